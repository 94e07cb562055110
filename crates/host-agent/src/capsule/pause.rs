//! Pausing a capsule. Connections are drained, the guest is quiesced and frozen, and its parts are
//! written to a staging folder. A rename makes the snapshot complete. A failure before that rename
//! lets the guest run on unchanged. After the rename the machine is ended in any case.
//!
//! ```text
//!  begin_pause ─▶ claim ─▶ drain ─▶ quiesce ─▶ freeze ─▶ save ─▶ write ─▶ RENAME
//!                   │        └─────────┴──────────┴────────┴────────┤        └─▶ settle ─▶ end_pause
//!                   └─▶ abandon_pause            resume_after_failure
//! ```
//! Each wait for the guest has a limit, and a removal ends it. A guest whose agent is silent might
//! not come back from a snapshot, so its pause is refused.

use super::capture::{self, PauseMode};
use super::files::{self, BESIDE};
use super::host::Host;
use super::logs::{self, LifecycleEvent};
use super::record::CapsuleRecord;
use super::registry::Running;
use super::registry::transitions::{PauseStart, Pausing};
use super::settle::settle;
use super::{Error, chain, io_error, liveness, sizes, thaw, unless_cancelled, until};
use crate::snapshot::{self, Staging};
use daemon::{blocking, stage};
use futures::FutureExt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use types::CapsuleId;

/// Histogram of a pause's stages.
const STAGES: &str = "wrenn_pause_stage_seconds";
/// Time limit for requests under way to finish.
const GRACE: Duration = Duration::from_secs(2);

/// A pause whose snapshot is complete.
struct Saved {
    record: CapsuleRecord,
    number: u64,
}

/// A pause that failed before its snapshot was complete.
struct Failed {
    error: Error,
    /// Token of the guest's agent, if the capsule's record is readable.
    token: Option<String>,
}

/// Pauses a capsule; a paused capsule is success. `generation` is the command's, or `None` for
/// the agent's own pauses.
///
/// # Errors
/// [`Error::Silent`] when the guest's agent does not answer, unless the guest is saved
/// regardless. [`Error::Stopping`] when the capsule is to be removed. The capsule then runs on.
pub(super) async fn pause(
    host: &Host,
    id: CapsuleId,
    generation: Option<u64>,
    mode: PauseMode,
) -> Result<(), Error> {
    let this = host.clone();
    let work = async move { Box::pin(pause_under_lock(&this, id, generation, mode)).await };
    host.detached(work).await
}

async fn pause_under_lock(
    host: &Host,
    id: CapsuleId,
    generation: Option<u64>,
    mode: PauseMode,
) -> Result<(), Error> {
    let lock = host.registry.capsule_lock(id)?;
    let _guard = lock.lock().await;
    // A builder that is refused later would lose its connections.
    if files::record(&host.context, id).is_ok_and(|record| record.builds.is_some()) {
        return Err(Error::Invalid("a builder cannot be paused".to_owned()));
    }
    let pausing = match host.registry.begin_pause(id, generation)? {
        PauseStart::Paused => return Ok(()),
        PauseStart::Begun(pausing) => pausing,
    };
    // The claim comes before connections are cut, so a guest without room notices nothing.
    let most = match mode.has_memory() {
        true => files::most_saved(&*pausing.running.machine, host.registry.memory_of(id)),
        false => BESIDE,
    };
    let _claim = match host.context.room.claim(most) {
        Ok(claim) => claim,
        Err(error) => {
            metrics::counter!("wrenn_pauses_failed_total").increment(1);
            host.registry.abandon_pause(id);
            return Err(error.into());
        }
    };
    let started = Instant::now();
    match save_known(host, id, generation, &pausing, mode).await {
        Ok(saved) => {
            metrics::histogram!("wrenn_pause_seconds").record(started.elapsed().as_secs_f64());
            complete_pause(host, id, pausing, saved).await;
            Ok(())
        }
        Err(Failed { error, token }) => {
            metrics::counter!("wrenn_pauses_failed_total").increment(1);
            let record = pausing.running.machine.record();
            resume_after_failure(host, id, pausing, token, &error).await;
            if let Error::Ended(reason) = &error {
                liveness::lost(host, id, &record, reason.clone()).await;
            }
            Err(error)
        }
    }
}

/// Reads the capsule's record, and makes the capsule's next snapshot.
async fn save_known(
    host: &Host,
    id: CapsuleId,
    generation: Option<u64>,
    pausing: &Pausing,
    mode: PauseMode,
) -> Result<Saved, Failed> {
    let known = files::known_record(&host.context, id);
    let mut record = known.map_err(|error| Failed { error, token: None })?;
    record.generation = generation.unwrap_or(record.generation);
    match save(host, &record, pausing, mode).await {
        Ok(number) => Ok(Saved { record, number }),
        Err(error) => Err(Failed { error: host.if_full(error), token: Some(record.envd_token) }),
    }
}

/// Ends the machine of a capsule whose snapshot is complete. There is no way back from here.
async fn complete_pause(
    host: &Host,
    id: CapsuleId,
    pausing: Pausing,
    Saved { mut record, number }: Saved,
) {
    // The network is removed only when nobody holds it.
    host.registry.change(id, |capsule| capsule.running = None);
    drop(pausing);
    if let Err(error) = settle(&host.context, &mut record, number).await {
        tracing::error!(%id, error = chain(&error), "cannot clean up after a pause");
    }
    host.registry.end_pause(id, number);
    logs::end(host, &record, LifecycleEvent::Paused);
    sizes::measure_soon(host, id);
    if let Some(stored) = &host.stored {
        stored.notify();
    }
}

/// Makes the capsule's next snapshot; returns its number.
async fn save(
    host: &Host,
    record: &CapsuleRecord,
    pausing: &Pausing,
    mode: PauseMode,
) -> Result<u64, Error> {
    let Pausing { running: Running { machine, guest }, cancel } = pausing;
    // Each stage ends at a point at which tests inject failures.
    let pass = |name| daemon::failpoint(name).map_err(io_error("a failpoint failed"));
    let cut = stage(STAGES, "pause.drained", until(cancel, guest.drain(GRACE))).await?;
    metrics::counter!("wrenn_requests_cut_total").increment(cut);
    pass("pause.drained")?;
    stage(STAGES, "pause.quiesced", Box::pin(quiesce(host, record, pausing, mode))).await?;
    pass("pause.quiesced")?;
    let freezing = async {
        let frozen = until(cancel, thaw::freeze(host, record.id, &**machine)).await?;
        frozen.map_err(Error::from)
    };
    stage(STAGES, "pause.frozen", freezing).await?;
    pass("pause.frozen")?;
    let dir = files::folder(&host.context, record.id);
    let snapshots = files::snapshots_dir(&dir);
    let number = record.last.max(files::newest(&snapshot::sweep(&snapshots))) + 1;
    let failed = "cannot store the capsule's snapshot";
    let staging = Staging::begin(&snapshots.join(number.to_string())).map_err(io_error(failed))?;
    let staging = staging.until(cancel);
    let mut manifest = capture::manifest(&host.context, record);
    let pages = match mode.has_memory() {
        false => None,
        true => {
            let state = staging.state_file().map_err(io_error(failed))?;
            let bytes = u64::from(record.resources.memory_mib) << 20;
            let saving = async {
                let saved = until(cancel, machine.save(state, bytes)).await?;
                saved.map_err(Error::from)
            };
            let pages = stage(STAGES, "pause.saved", saving).await?;
            pass("pause.saved")?;
            Some(pages.map(|pages| pages.until(cancel.clone())))
        }
    };
    let base = record.base_layers.clone();
    let has_disk = host.context.driver.boots_images();
    let write = move || {
        if let Some(pages) = pages {
            manifest.memory = Some(match pages {
                Some(pages) => staging.write_memory(&pages, &base, &dir)?,
                None => base,
            });
            manifest.state = Some(staging.seal_state()?);
        }
        manifest.disk = has_disk.then(|| staging.take_disk(&dir)).transpose()?;
        daemon::failpoint("pause.written")?;
        staging.commit(manifest)
    };
    // A removal waits for this writer, which then ends early. So nothing is written after the
    // removal.
    let committing =
        async { unless_cancelled(cancel, blocking(write).await.map_err(io_error(failed))) };
    stage(STAGES, "pause.committed", committing).await?;
    // The pause is complete here, so a failed test point no longer counts.
    let _ = pass("pause.committed");
    Ok(number)
}

/// Has the guest write its data to the disk.
async fn quiesce(
    host: &Host,
    record: &CapsuleRecord,
    pausing: &Pausing,
    mode: PauseMode,
) -> Result<(), Error> {
    let Pausing { running: Running { machine, guest }, cancel } = pausing;
    until(cancel, thaw::thaw_if_owed(host, record.id, &**machine)).await??;
    let asking = guest.renewed(host.context.tasks.clone());
    until(cancel, logs::pull_last(host, record, &asking)).await?;
    let asked = until(cancel, capture::quiesce(host, record, &**machine, &asking, mode)).await;
    // These connections are cut without a goodbye, which a frozen guest could not acknowledge.
    asking.cut();
    asked?
}

/// Lets a capsule run on that could not be paused. `token` is its agent's token, if known.
async fn resume_after_failure(
    host: &Host,
    id: CapsuleId,
    pausing: Pausing,
    token: Option<String>,
    error: &Error,
) {
    let Pausing { running: Running { machine, guest }, cancel } = pausing;
    let thawed = thaw::thaw_if_owed(host, id, &*machine).await;
    if let Some(token) = token {
        // A removal may have ended the pause before the connections were cut.
        guest.cut();
        let guest = guest.renewed(host.context.tasks.clone());
        // A guest that stands still does not answer. Its clock is set when it runs again.
        if thawed.is_ok() {
            let refreshed = match matches!(error, Error::Silent) {
                true => Err(Error::Silent),
                false => until(&cancel, guest.refresh(&token)).await.and_then(|refreshed| {
                    refreshed.map_err(io_error("cannot set the clock of a thawed guest"))
                }),
            };
            if let Err(error) = refreshed {
                tracing::warn!(%id, error = chain(&error), "the thawed guest does not answer");
                thaw::refresh_later(host, id, guest.clone(), token);
            }
        }
        guest.admit();
        host.registry.change(id, |capsule| {
            capsule.running = Some(Running { machine: Arc::clone(&machine), guest });
        });
    }
    host.registry.abandon_pause(id);
    if let Err(error) = thawed {
        tracing::error!(%id, error = chain(&error), "cannot thaw a capsule");
    }
    if !machine.record().is_alive() {
        // A machine that has ended returns the reason at once.
        let reason = machine.ended().now_or_never();
        let reason = reason.unwrap_or_else(|| "the VMM ended".to_owned());
        liveness::lost(host, id, &machine.record(), reason).await;
    }
}
