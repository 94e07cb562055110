//! SQL, a file for each resource. Never decides anything.
//!
//! Statements name the columns that they read. PostgreSQL refuses a prepared statement once its
//! result has other columns, as `*` has when a newer replica adds a column.

pub(crate) mod audit;
pub(crate) mod capsules;
pub(crate) mod channels;
pub(crate) mod events;
pub(crate) mod host_tokens;
pub(crate) mod hosts;
pub(crate) mod idempotency;
pub(crate) mod keys;
pub(crate) mod lead;
pub(crate) mod limits;
pub(crate) mod listen;
pub(crate) mod makers;
pub(crate) mod pool;
pub(crate) mod retention;
pub(crate) mod routes;
pub(crate) mod schema;
pub(crate) mod secrets;
pub(crate) mod sessions;
pub(crate) mod snapshots;
pub(crate) mod teams;
pub(crate) mod templates;
pub(crate) mod users;

pub(crate) use pool::connect;
