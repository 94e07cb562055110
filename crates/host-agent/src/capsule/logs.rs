//! The way of a capsule's output to its log, and the log's lines about lifecycle events.
//!
//! ```text
//!  follow ─▶ Follower: console each second, envd's log as it comes ─▶ crate::log
//!  another setting: skip (after `none`) ─▶ tell ─▶ follow
//!  pause: pull_last ─▶ end      removal, end of a lifetime: end      a dead machine: died
//! ```
//! A capsule whose setting is `none`, a builder and a ready capsule have no log. Nothing waits for
//! a log but the last pull of a pause, which has a short limit. A log that cannot be written stops
//! nothing else.

mod pull;
pub(super) mod read;
pub(super) mod upkeep;

use super::host::Host;
use super::record::CapsuleRecord;
use super::registry::Running;
use super::{Error, chain, files, io_error};
use crate::context::AgentContext;
use crate::guest::Guest;
use crate::log::{Advance, CapsuleLog, Entry, LogMode, Source, is_team, now_ms};
use crate::vmm::Machine;
use daemon::blocking;
use pull::Follower;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use types::CapsuleId;

/// Time limit of the last pull before a pause.
const LAST: Duration = Duration::from_millis(500);
/// Time limit for the last words of a machine that ended. Its process is ended afterwards.
const WORDS: Duration = Duration::from_secs(5);

/// Event in the lifecycle of a capsule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LifecycleEvent {
    Created,
    /// The capsule began from a snapshot.
    Forked,
    Resumed,
    Paused,
    Expired,
    /// The machine ended for this reason.
    Died(String),
    /// The capsule was removed from this host.
    Ended,
    /// The guest's kernel ended this many programs.
    OutOfMemory(u64),
    /// This many connections were refused by name.
    Refused(u64),
    /// The disk had no room for logs.
    Halted,
    /// The setting admits output that it did not admit before.
    Begun,
}

impl LifecycleEvent {
    fn entry(&self) -> Entry {
        let (stream, text) = match self {
            Self::Created => ("create", "The capsule started".to_owned()),
            Self::Forked => ("fork", "The capsule started from a snapshot".to_owned()),
            Self::Resumed => ("resume", "The capsule resumed".to_owned()),
            Self::Paused => ("pause", "The capsule paused".to_owned()),
            Self::Expired => ("expire", "The capsule's lifetime is over".to_owned()),
            Self::Died(reason) => ("death", format!("The machine ended: {reason}")),
            Self::Ended => ("end", "The capsule was removed from its host".to_owned()),
            Self::OutOfMemory(count) => (
                "oom",
                format!(
                    "The guest's kernel ended {count} processes, since the guest's memory was full"
                ),
            ),
            Self::Refused(count) => (
                "egress",
                format!("The egress rules refused {count} connections or requests by name"),
            ),
            Self::Halted => ("halt", "Logging stopped while the host's disk was full".to_owned()),
            Self::Begun => ("begin", "The log has output from here".to_owned()),
        };
        Entry::new(Source::Lifecycle, stream, now_ms(), text)
    }
}

/// Begins to follow the output of a capsule that runs, unless its output is followed. `begins` is the
/// event that made it run.
pub(super) fn follow(host: &Host, record: &CapsuleRecord, begins: Option<LifecycleEvent>) {
    let Ok(Some(running)) = host.registry.machine(record.id) else { return };
    if !has_log(host, record) {
        return;
    }
    let (team, id, token) = (record.team.clone(), record.id, record.envd_token.clone());
    let machine = running.machine.record();
    let noted = Some(machine.clone());
    let before =
        host.registry.change(id, |capsule| std::mem::replace(&mut capsule.followed, noted));
    if before.flatten().as_ref() == Some(&machine) {
        return;
    }
    let this = host.clone();
    host.context.tasks.spawn(async move {
        match open(&this, &team, id).await {
            Ok(log) => Follower { host: this, id, token, machine, log }.run(begins).await,
            Err(error) => tracing::warn!(%id, %error, "cannot open the log of a capsule"),
        }
    });
}

/// Moves a log without output so far to the end of the present output, so that none of it is logged.
///
/// # Errors
/// Fails when the guest's agent does not answer, and when the disk takes no data.
pub(super) async fn skip(
    host: &Host,
    record: &CapsuleRecord,
    running: &Running,
) -> Result<(), Error> {
    if !has_log(host, record) {
        return Ok(());
    }
    // Without a log, the guest's agent drops the output that it has kept.
    let dropped = running.guest.set_log_mode(&record.envd_token, LogMode::None).await;
    dropped.map_err(|_| Error::Silent)?;
    let log = open(host, &record.team, record.id).await;
    let log = log.map_err(io_error("cannot open the capsule's log"))?;
    let skipped = pull::skip_console(&log, &*running.machine).await;
    skipped.map_err(io_error("cannot write to the capsule's log"))
}

/// Tells a guest's agent the output that the capsule's log has.
///
/// # Errors
/// Fails when the guest's agent does not answer.
pub(super) async fn tell(host: &Host, record: &CapsuleRecord, guest: &Guest) -> Result<(), Error> {
    let mode = if has_log(host, record) { record.logs } else { LogMode::None };
    guest.set_log_mode(&record.envd_token, mode).await.map_err(|_| Error::Silent)
}

/// Notes an event after which a capsule has no machine, and closes the log's segment.
pub(super) fn end(host: &Host, record: &CapsuleRecord, event: LifecycleEvent) {
    if !has_log(host, record) {
        return;
    }
    let (this, team, id) = (host.clone(), record.team.clone(), record.id);
    host.context.tasks.spawn(async move {
        let ended = async {
            let log = open(&this, &team, id).await?;
            note(&this, &log, &event).await;
            blocking(move || log.close()).await
        };
        if let Err(error) = ended.await {
            tracing::warn!(%id, %error, "cannot close the log of a capsule");
        }
    });
}

/// Takes the last words of a machine that ended, and notes the reason.
pub(super) async fn died(host: &Host, id: CapsuleId, machine: &dyn Machine, reason: &str) {
    let Ok(record) = files::record(&host.context, id) else { return };
    if !has_log(host, &record) {
        return;
    }
    let noted = async {
        let log = open(host, &record.team, id).await?;
        if admits(host, &log).await {
            pull::console(&log, machine, true).await?;
        }
        note(host, &log, &LifecycleEvent::Died(reason.to_owned())).await;
        blocking(move || log.close()).await
    };
    let noted = tokio::time::timeout(WORDS, noted).await;
    if let Err(error) = noted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        tracing::warn!(%id, error = chain(&error), "cannot log the end of a machine");
    }
}

/// Takes the output of a guest that is about to be paused.
pub(super) async fn pull_last(host: &Host, record: &CapsuleRecord, guest: &Guest) {
    if !has_log(host, record) {
        return;
    }
    let pulled = async {
        let Some(log) = find(host, &record.team, record.id).await else { return };
        if admits(host, &log).await {
            // Output that is not pulled now comes after the resume.
            let _ = pull::process(host, &log, guest, &record.envd_token, Duration::ZERO).await;
        }
    };
    let _ = tokio::time::timeout(LAST, pulled).await;
}

fn has_log(host: &Host, record: &CapsuleRecord) -> bool {
    host.context.logs.is_on()
        && record.logs != LogMode::None
        && record.builds.is_none()
        && is_team(&record.team)
}

async fn open(host: &Host, team: &str, id: CapsuleId) -> io::Result<Arc<CapsuleLog>> {
    let (context, team) = (Arc::clone(&host.context), team.to_owned());
    blocking(move || context.logs.open(&team, id)).await
}

/// Reports whether this host has the capsule, which may add lines later. May block.
fn is_living(context: &AgentContext, id: CapsuleId) -> bool {
    files::record(context, id).is_ok()
}

/// Returns the log of a capsule, if somebody writes or reads it now.
async fn find(host: &Host, team: &str, id: CapsuleId) -> Option<Arc<CapsuleLog>> {
    let (context, team) = (Arc::clone(&host.context), team.to_owned());
    blocking(move || Ok(context.logs.find(&team, id))).await.unwrap_or_default()
}

async fn append(log: &Arc<CapsuleLog>, entries: Vec<Entry>, advance: Advance) -> io::Result<()> {
    let log = Arc::clone(log);
    blocking(move || log.append(entries, &advance)).await
}

/// Adds a line about a lifecycle event, unless the disk has no room for logs.
async fn note(host: &Host, log: &Arc<CapsuleLog>, event: &LifecycleEvent) {
    if !admits(host, log).await {
        return;
    }
    if let Err(error) = append(log, vec![event.entry()], Advance::Nothing).await {
        tracing::warn!(%error, "cannot write to the log of a capsule");
        log.halt();
    }
}

/// Reports whether the disk has room for logs. Adds a line once it has room again.
async fn admits(host: &Host, log: &Arc<CapsuleLog>) -> bool {
    if !host.context.room.has_spare() {
        log.halt();
        return false;
    }
    if log.go_on()
        && append(log, vec![LifecycleEvent::Halted.entry()], Advance::Nothing).await.is_err()
    {
        log.halt();
        return false;
    }
    true
}
