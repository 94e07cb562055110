//! The capsules of this machine, from creation to removal.
//!
//! ```text
//!  admit          run          begin_pause          end_pause
//!  ────▶ Starting ───▶ Running ───────────▶ Pausing ──────────────▶ Paused
//!           │          │ │ ▲ ▲                 │                     │  ▲ no restore,
//!           │ no boot  │ │ │ └─────────────────┘        begin_resume │  │ or fetched
//!           ▼          │ │ │       no snapshot                       ▼  │
//!        removed       │ │ └───────────────────────────────────── Resuming ◀── fetch::capsule
//!                      │ │                  run                     ▲
//!               expire │ │ lost                                     │ begin_resume, with
//!                      ▼ ▼                                          │ an earlier snapshot
//!                Expired Dead ──────────────────────────────────────┘
//!
//!  any state ── destroy ──▶ Stopping ── teardown::kill ──▶ removed, with remains for a while
//!  any state ── end of a builder ──▶ Stopping
//! ```
//! [`State`] has these states. A resume that fails restores the state before it. A new agent adopts
//! a capsule as `Running`, `Paused`, `Expired` or `Dead`, or removes it.
//!
//! The layers of this folder, from the outside to the inside:
//! ```text
//!  manager                                      facade for rpc.rs and proxy.rs
//!  adopt  due  disk_pressure  upload  versions  start-up and watchers
//!  upkeep  remake  ready/refill
//!  create  pause  resume  snapshots  destroy    operations, each under a capsule's lock
//!  builder  expire  fetch  settings
//!  capture  thaw  sizes  liveness  logs         steps that operations share
//!  ready/claim
//!  host                                         parts that operations share
//!  boot  settle  teardown                       a capsule's parts: made and removed
//!  template_snapshot  store  start
//!  registry  usage  changes                     states and locks; no I/O
//!  background  ready
//!  files                                        folders and their sizes
//!  record  lifetime  stored_snapshot            values, with this file
//! ```
//! - `registry` is the only writer of a capsule's state on this host. It has the table of requests.
//! - `record` is the file about a capsule that outlives the agent.
//! - `boot` makes the parts of a capsule in phases; `teardown` removes them, whatever the phase.
//! - `adopt` finds the capsules that an earlier agent left.
//! - `lifetime` decides when a capsule's time is over; `due` acts on it.
//! - `disk_pressure` stops guests that would fill the disk.
//! - `liveness` notices that a machine has ended.
//! - `logs` carries output of a running guest to the capsule's log.
//! - `ready` has the machines that are made ahead of their creates.

mod adopt;
mod background;
mod boot;
pub(crate) mod builder;
pub(crate) mod capture;
mod changes;
pub(crate) mod create;
mod destroy;
mod disk_pressure;
mod due;
mod expire;
pub(crate) mod fetch;
pub(crate) mod files;
mod host;
pub(crate) mod lifetime;
mod liveness;
mod logs;
pub(crate) mod manager;
mod pause;
mod ready;
pub(crate) mod record;
pub(crate) mod registry;
mod remake;
pub(crate) mod resume;
mod settings;
mod settle;
mod sizes;
pub(crate) mod snapshots;
mod start;
pub(crate) mod store;
pub(crate) mod stored_snapshot;
pub(crate) mod teardown;
mod template_snapshot;
mod thaw;
mod upkeep;
mod upload;
mod usage;
mod versions;

use crate::{network, room, snapshot, vmm};
use std::future::Future;
use std::{fmt, io};
use tokio_util::sync::CancellationToken;
use types::CapsuleId;

/// State of a capsule on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    Starting,
    Running,
    Pausing,
    /// No machine exists; the last snapshot holds the whole capsule.
    Paused,
    Resuming,
    /// The capsule's time is over, and it is to be removed.
    Expired,
    Stopping,
    /// The machine has ended, for the reason given. The rest of the capsule is still to be removed.
    Dead(String),
}

impl State {
    /// Names of all states, as labels of metrics.
    pub(crate) const NAMES: [&str; 8] =
        ["starting", "running", "pausing", "paused", "resuming", "expired", "stopping", "dead"];

    /// Returns the state's name, without the reason of a death.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Resuming => "resuming",
            Self::Expired => "expired",
            Self::Stopping => "stopping",
            Self::Dead(_) => "dead",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Resuming => "resuming",
            Self::Expired => "past its lifetime",
            Self::Stopping => "being removed",
            Self::Dead(_) => "dead",
        })
    }
}

/// Reason why a capsule could not be made, changed or ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Invalid(String),
    #[error("this host has no template `{0}`")]
    NoTemplate(String),
    #[error("no capacity: {0}")]
    NoCapacity(String),
    /// Removal of the capsule, or end of the agent, before the work was done.
    #[error("the capsule is being removed")]
    Stopping,
    #[error("there is no {0}")]
    NotFound(String),
    #[error("the capsule is {0}")]
    State(State),
    #[error("a newer command for the capsule was accepted first")]
    Stale,
    /// Silence of envd in a guest that was started.
    #[error("the guest did not answer within {seconds} s; its console ended with: {console}")]
    GuestSilent { seconds: u64, console: String },
    #[error("the machine ended during its boot: {reason}; its console ended with: {console}")]
    Died { reason: String, console: String },
    /// Silence of envd in a guest that was running.
    #[error("the capsule's envd does not answer")]
    Silent,
    #[error("the guest did not write its unsaved data to its disk")]
    Unsaved(#[source] io::Error),
    /// End of the guest, which is halted for the reason given.
    #[error("{0}")]
    Ended(String),
    #[error("the snapshot is damaged")]
    Damaged(#[source] io::Error),
    #[error("the snapshot needs a machine of the kind {taken}, but this host has {here}")]
    Incompatible { taken: String, here: String },
    #[error("{what}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    /// Failure of a version's start or ready command, with the text for the version's author.
    #[error("{0}")]
    Start(String),
    #[error(transparent)]
    Network(#[from] network::Error),
    #[error(transparent)]
    Vmm(vmm::Error),
}

impl Error {
    /// Returns the error about a capsule that this host does not have.
    pub(crate) fn unknown(id: CapsuleId) -> Self {
        Self::NotFound(format!("capsule {id}"))
    }
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

/// Formats an error and all of its causes in a single line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        out.push_str(": ");
        out.push_str(&error.to_string());
        cause = error.source();
    }
    out
}
