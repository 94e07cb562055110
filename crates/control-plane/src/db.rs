//! SQL statements, one file per resource. This module makes no decisions.
//!
//! Each statement names the columns that it reads, since a newer replica may add a column.
//! PostgreSQL then refuses a prepared statement with `*`, since its result has other columns.
//!
//! Rows have typed ids, enums for closed sets and `None` where a column holds 0 for none. A value
//! that does not fit is a decode error, which names the column. An insert of a row with more than
//! four columns names each value (`insert.rs`, ADR 37).

pub(crate) mod actor;
pub(crate) mod audit;
pub(crate) mod build_files;
pub(crate) mod build_logs;
pub(crate) mod build_runs;
pub(crate) mod builds;
pub(crate) mod capsule_counts;
pub(crate) mod capsule_lineage;
pub(crate) mod capsule_list;
pub(crate) mod capsule_names;
pub(crate) mod capsules;
pub(crate) mod channels;
mod decode;
pub(crate) mod events;
pub(crate) mod host_tokens;
pub(crate) mod hosts;
pub(crate) mod idempotency;
mod insert;
pub(crate) mod keys;
pub(crate) mod leader;
pub(crate) mod limits;
pub(crate) mod listen;
pub(crate) mod logs;
pub(crate) mod makers;
pub(crate) mod new_capsule;
pub(crate) mod pool;
pub(crate) mod registry_logins;
pub(crate) mod retention;
pub(crate) mod routes;
pub(crate) mod schema;
pub(crate) mod secrets;
pub(crate) mod sessions;
pub(crate) mod snapshots;
pub(crate) mod stats;
pub(crate) mod tags;
pub(crate) mod teams;
pub(crate) mod templates;
pub(crate) mod users;
pub(crate) mod versions;

pub(crate) use pool::connect;
