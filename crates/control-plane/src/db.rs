//! SQL statements, one file per resource. This module makes no decisions.
//!
//! Each statement names the columns that it reads, since a newer replica may add a column.
//! PostgreSQL then refuses a prepared statement with `*`, since its result has other columns.

pub(crate) mod audit;
pub(crate) mod capsules;
pub(crate) mod channels;
pub(crate) mod events;
pub(crate) mod host_tokens;
pub(crate) mod hosts;
pub(crate) mod idempotency;
pub(crate) mod keys;
pub(crate) mod leader;
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
