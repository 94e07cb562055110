//! SQL, a file for each resource. Never decides anything.

pub(crate) mod capsules;
pub(crate) mod host_tokens;
pub(crate) mod hosts;
pub(crate) mod keys;
pub(crate) mod lead;
pub(crate) mod listen;
pub(crate) mod routes;
pub(crate) mod snapshots;
pub(crate) mod templates;
