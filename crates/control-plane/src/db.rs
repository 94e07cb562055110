//! SQL, a file for each resource. Never decides anything.

pub(crate) mod capsules;
pub(crate) mod hosts;
pub(crate) mod keys;
pub(crate) mod templates;
