//! Errors of networks.

use std::io;

/// Reason why a network could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("WRENN_NETWORK: {0}")]
    Range(String),
    #[error("WRENN_NETWORK {range} overlaps {other} of this machine; choose another range")]
    Clash { range: String, other: String },
    #[error("all {0} network slots are in use")]
    Full(u32),
    #[error("{what}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Maps an error of the system to an [`Error`] that names the failed step.
pub(super) fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { what, source }
}
