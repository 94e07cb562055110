//! Capsules on this machine: made, found again, ended. `manager` is the only writer of a
//! capsule's state here; `ledger` is what it remembers on disk; `boot` makes and unmakes the
//! parts of one.

pub(crate) mod boot;
pub(crate) mod ledger;
pub(crate) mod manager;

use crate::{network, vmm};
use std::io;

/// Why a capsule could not be made or ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Invalid(String),
    #[error("there is no template `{0}` on this host")]
    NoTemplate(String),
    #[error("no capacity: {0}")]
    NoCapacity(String),
    #[error("the capsule is being removed")]
    Stopping,
    #[error("there is no capsule {0}")]
    NotFound(types::CapsuleId),
    #[error("the guest did not answer within {seconds} s; its console ended with: {console}")]
    GuestSilent { seconds: u64, console: String },
    #[error("the machine ended while it booted: {reason}; its console ended with: {console}")]
    Died { reason: String, console: String },
    #[error("{what}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Network(#[from] network::Error),
    #[error(transparent)]
    Vmm(#[from] vmm::Error),
}

pub(crate) fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { what, source }
}
