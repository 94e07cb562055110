//! The capsules of this machine, from creation to removal.
//!
//! ```text
//!  admit          run          begin_pause          complete_pause
//!  ────▶ Starting ───▶ Running ───────────▶ Pausing ──────────────▶ Paused
//!           │          │ │ ▲ ▲                 │                     │  ▲ no restore,
//!           │ no boot  │ │ │ └─────────────────┘        begin_resume │  │ or fetched
//!           ▼          │ │ │       no snapshot                       ▼  │
//!        removed       │ │ └───────────────────────────────────── Resuming ◀── fetch_capsule
//!                      │ │                  run                     ▲
//!               expire │ │ lost                                     │ begin_resume, with
//!                      ▼ ▼                                          │ an earlier snapshot
//!                Expired Dead ──────────────────────────────────────┘
//!
//!  any state ── destroy ──▶ Stopping ── boot::remove ──▶ removed
//! ```
//! `manager::State` has these states. A resume that fails restores the state before it. A new agent
//! adopts a capsule as `Running`, `Paused`, `Expired` or `Dead`, or removes it.
//!
//! - `manager` is the only writer of a capsule's state on this host.
//! - `record` is the file about a capsule that outlives the agent.
//! - `boot` makes the parts of a capsule and removes them.
//! - `pause`, `resume` and `snapshots` save machines and bring them back.
//! - `destroy` removes a capsule.
//! - `adopt` finds the capsules that an earlier agent left.
//! - `lifetime` decides when a capsule's time is over.
//! - `disk_pressure` stops guests that would fill the disk.
//! - `liveness` notices that a machine has ended.

mod adopt;
pub(crate) mod boot;
mod destroy;
mod disk_pressure;
pub(crate) mod lifetime;
mod liveness;
pub(crate) mod manager;
pub(crate) mod pause;
pub(crate) mod record;
pub(crate) mod resume;
mod snapshots;
pub(crate) mod store;
pub(crate) mod template_snapshot;

use crate::{network, room, snapshot, vmm};
use std::future::Future;
use std::io;
use tokio_util::sync::CancellationToken;

/// Reason why a capsule could not be made, changed or ended.
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
    #[error("there is no {0}")]
    NotFound(String),
    #[error("the capsule is {0}")]
    State(manager::State),
    #[error("a newer command was given since")]
    Stale,
    #[error("the guest did not answer within {seconds} s; its console ended with: {console}")]
    GuestSilent { seconds: u64, console: String },
    #[error("the machine ended while it booted: {reason}; its console ended with: {console}")]
    Died { reason: String, console: String },
    #[error("{}", protocol::SILENT)]
    Silent,
    #[error("the guest did not write to its disk what it has in memory")]
    Unsaved(#[source] io::Error),
    #[error("{0}")]
    Ended(String),
    #[error("what was kept is damaged")]
    Damaged(#[source] io::Error),
    #[error("it was kept on another kind of machine ({taken}) than this host has ({here})")]
    Incompatible { taken: String, here: String },
    #[error("{what}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Network(#[from] network::Error),
    #[error(transparent)]
    Vmm(vmm::Error),
}

impl From<vmm::Error> for Error {
    fn from(error: vmm::Error) -> Self {
        match error.source {
            Some(source) if snapshot::is_damage(&source) => Self::Damaged(source),
            _ => Self::Vmm(error),
        }
    }
}

impl From<room::NoRoom> for Error {
    fn from(error: room::NoRoom) -> Self {
        Self::NoCapacity(error.0)
    }
}

pub(crate) fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { what, source }
}

/// Maps an error of reading a snapshot to `Damaged` if the snapshot is damaged, else to `Io`.
pub(crate) fn snapshot_error(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| match snapshot::is_damage(&source) {
        true => Error::Damaged(source),
        false => Error::Io { what, source },
    }
}

/// Waits for work, unless the capsule is to be removed before the work is done.
///
/// # Errors
/// [`Error::Stopping`] when `cancel` is cancelled.
pub(crate) async fn until<T>(
    cancel: &CancellationToken,
    work: impl Future<Output = T>,
) -> Result<T, Error> {
    cancel.run_until_cancelled(work).await.ok_or(Error::Stopping)
}

/// Maps an error to `Stopping` if a removal cancelled the work.
pub(crate) fn unless_cancelled<T>(
    cancel: &CancellationToken,
    done: Result<T, Error>,
) -> Result<T, Error> {
    done.map_err(|error| if cancel.is_cancelled() { Error::Stopping } else { error })
}
