//! Pausing a capsule. Connections are drained, the guest is quiesced and frozen, and its parts are
//! written to a staging folder. A rename makes the snapshot complete. A failure before that rename
//! lets the guest run on unchanged. After the rename the machine is ended in any case.
//!
//! Each wait for the guest has a limit, and a removal ends it. A guest whose agent is silent might
//! not come back from a snapshot, so its pause is refused.

#[cfg(test)]
mod tests;

use super::lifetime::{Due, now_ms};
use super::manager::{Manager, State, chain};
use super::record::{CapsuleRecord, Phase};
use super::{Error, boot, io_error, liveness, unless_cancelled, until};
use crate::AgentContext;
use crate::guest::Guest;
use crate::snapshot::{self, Manifest, Snapshot, Staging};
use crate::vmm::Machine;
use daemon::blocking;
use futures::FutureExt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use types::CapsuleId;

/// Time limit for requests under way to finish.
const GRACE: Duration = Duration::from_secs(2);
/// Delay before another pause of a capsule whose time is over, after its agent refused a pause.
const SILENT_AGAIN: Duration = Duration::from_secs(5);
/// Most bytes that a pause or snapshot writes beside the memory: the devices' state, the manifest,
/// and the guest's last writes.
pub(super) const BESIDE: u64 = 64 << 20;
/// Snapshots of its own that a capsule keeps.
const RETAINED: u64 = 2;

/// Returns the most bytes that saving a machine with `memory` bytes may write.
pub(super) fn most(machine: &dyn Machine, memory: u64) -> u64 {
    match machine.most_memory(memory) {
        0 => 0,
        bytes => bytes + BESIDE,
    }
}

/// Returns the highest number among some names, or 0.
pub(super) fn newest(names: &[String]) -> u64 {
    names.iter().filter_map(|name| name.parse().ok()).max().unwrap_or(0)
}

/// Completes a pause whose snapshot is complete. Removes the machine and old snapshots, and updates
/// the record.
pub(super) async fn settle(
    context: &AgentContext,
    record: &mut CapsuleRecord,
    number: u64,
) -> Result<(), Error> {
    record.base_layers = snapshot::Layers::default();
    (record.phase, record.last) = (Phase::Paused, number);
    boot::release(context, record).await?;
    daemon::failpoint("pause.settled").map_err(io_error("a failpoint"))?;
    let snapshots = boot::snapshots_dir(&boot::folder(context, record.id));
    let names = snapshot::sweep(&snapshots);
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    for old in numbers.iter().rev().skip(usize::try_from(RETAINED).unwrap_or(2)) {
        if let Err(error) = snapshot::remove(&snapshots.join(old.to_string())) {
            tracing::warn!(id = %record.id, old, %error, "removing an old snapshot");
        }
    }
    Ok(())
}

/// Mode of a pause: the parts of the capsule that it saves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PauseMode {
    /// The disk, after the guest has written its data to it.
    Disk,
    /// Memory, devices and disk.
    Memory,
    /// Memory, devices and disk, even of a guest whose agent is silent.
    Frozen,
}

impl PauseMode {
    fn has_memory(self) -> bool {
        match self {
            Self::Disk => false,
            Self::Memory | Self::Frozen => true,
        }
    }
}

/// A pause that has begun.
struct UnderWay {
    machine: Arc<dyn Machine>,
    guest: Guest,
    /// Token by which a removal cancels the pause.
    cancel: CancellationToken,
}

impl Manager {
    /// Pauses a capsule; a paused capsule is success. `generation` is the command's, or `None` for
    /// the agent's own pauses.
    ///
    /// # Errors
    /// [`Error::Silent`] when the guest's agent does not answer, unless the guest is saved
    /// regardless. [`Error::Stopping`] when the capsule is to be removed. The capsule then runs on.
    pub(crate) async fn pause(
        &self,
        id: CapsuleId,
        generation: Option<u64>,
        mode: PauseMode,
    ) -> Result<(), Error> {
        let this = self.clone();
        self.detached(async move { this.pause_under_lock(id, generation, mode).await }).await
    }

    /// Pauses a capsule whose time is over. After some pauses that the guest's agent refused, the
    /// guest is saved as it is. So no guest runs for ever.
    pub(super) async fn pause_due(&self, id: CapsuleId, due: Due) -> Result<(), Error> {
        let tries = self.change(id, |capsule| capsule.silent_tries).unwrap_or(0);
        let paused = self.pause(id, None, due.pause_mode(tries)).await;
        let refused = matches!(paused, Err(Error::Silent | Error::Unsaved(_)));
        self.change(id, |capsule| {
            capsule.silent_tries = if refused { tries + 1 } else { 0 };
            if refused {
                capsule.due_after = Instant::now() + SILENT_AGAIN;
            }
        });
        paused
    }

    async fn pause_under_lock(
        &self,
        id: CapsuleId,
        generation: Option<u64>,
        mode: PauseMode,
    ) -> Result<(), Error> {
        let lock = self.capsule_lock(id)?;
        let _guard = lock.lock().await;
        let Some(under_way) = self.begin_pause(id, generation)? else { return Ok(()) };
        // The claim comes before connections are cut, so a guest without room notices nothing.
        let most = match mode.has_memory() {
            true => most(&*under_way.machine, self.memory_of(id)),
            false => BESIDE,
        };
        let _claim = match self.context.room.claim(most) {
            Ok(claim) => claim,
            Err(error) => {
                metrics::counter!("wrenn_pauses_failed_total").increment(1);
                self.change(id, |capsule| capsule.state = State::Running);
                return Err(error.into());
            }
        };
        let (dir, started) = (boot::folder(&self.context, id), Instant::now());
        let lost = || io_error("reading the capsule's record")(std::io::ErrorKind::NotFound.into());
        let captured = match CapsuleRecord::load(&dir).ok_or_else(lost) {
            Ok(mut record) => {
                record.generation = generation.unwrap_or(record.generation);
                match self.capture(&record, &under_way, mode).await {
                    Ok(number) => Ok((record, number)),
                    Err(error) => Err((self.if_full(error), Some(record.envd_token))),
                }
            }
            Err(error) => Err((error, None)),
        };
        match captured {
            Ok((record, number)) => {
                metrics::histogram!("wrenn_pause_seconds").record(started.elapsed().as_secs_f64());
                self.complete_pause(id, under_way, record, number).await;
                Ok(())
            }
            Err((error, token)) => {
                metrics::counter!("wrenn_pauses_failed_total").increment(1);
                let record = under_way.machine.record();
                self.resume_after_failure(id, under_way, token, &error).await;
                if let Error::Ended(reason) = &error {
                    self.lost(id, &record, reason.clone()).await;
                }
                Err(error)
            }
        }
    }

    /// Ends the machine of a capsule whose snapshot is complete. There is no way back from here.
    async fn complete_pause(
        &self,
        id: CapsuleId,
        under_way: UnderWay,
        mut record: CapsuleRecord,
        number: u64,
    ) {
        // The network is removed only when nobody holds it.
        self.change(id, |capsule| capsule.running = None);
        drop(under_way);
        if let Err(error) = settle(&self.context, &mut record, number).await {
            tracing::error!(%id, error = chain(&error), "clearing up after a pause");
        }
        self.change(id, |capsule| {
            capsule.state = State::Paused;
            capsule.memory_mib = 0;
            capsule.last = number;
        });
        self.measure_soon(id);
        if let Some(stored) = &self.context.stored {
            stored.notify();
        }
    }

    /// Returns the bytes of a capsule's memory.
    pub(super) fn memory_of(&self, id: CapsuleId) -> u64 {
        self.lock().get(&id).map_or(0, |capsule| capsule.memory_mib << 20)
    }

    /// Maps a failure to write data to [`Error::NoCapacity`] when the disk is full.
    pub(super) fn if_full(&self, error: Error) -> Error {
        let other = !matches!(error, Error::Silent | Error::Stopping);
        match other && self.context.room.is_full() {
            true => Error::NoCapacity(format!("the host's disk is full ({})", chain(&error))),
            false => error,
        }
    }

    /// Marks a running capsule as being paused; none when it is already paused.
    fn begin_pause(
        &self,
        id: CapsuleId,
        generation: Option<u64>,
    ) -> Result<Option<UnderWay>, Error> {
        let mut capsules = self.lock();
        let none = || Error::NotFound(format!("capsule {id}"));
        let capsule = capsules.get_mut(&id).ok_or_else(none)?;
        match (&capsule.state, &capsule.running) {
            (State::Paused, _) => Ok(None),
            (State::Running, Some((machine, guest))) => {
                if generation.is_some_and(|given| given < capsule.generation) {
                    return Err(Error::Stale);
                }
                let (machine, guest) = (Arc::clone(machine), guest.clone());
                capsule.generation = generation.unwrap_or(capsule.generation);
                capsule.state = State::Pausing;
                Ok(Some(UnderWay { machine, guest, cancel: capsule.renew_cancel() }))
            }
            (state, _) => Err(Error::State(state.clone())),
        }
    }

    /// Makes the capsule's next snapshot; returns its number.
    async fn capture(
        &self,
        record: &CapsuleRecord,
        under_way: &UnderWay,
        mode: PauseMode,
    ) -> Result<u64, Error> {
        let UnderWay { machine, guest, cancel } = under_way;
        let mut since = Instant::now();
        // Records the time of a stage, which is also a point at which tests inject failures.
        let mut step = |name: &'static str| {
            let took = since.elapsed().as_secs_f64();
            metrics::histogram!("wrenn_pause_stage_seconds", "stage" => name).record(took);
            since = Instant::now();
            daemon::failpoint(name).map_err(io_error("a failpoint"))
        };
        let cut = until(cancel, guest.drain(GRACE)).await?;
        metrics::counter!("wrenn_requests_cut_total").increment(cut);
        step("pause.drained")?;
        until(cancel, self.thaw_if_owed(record.id, &**machine)).await??;
        let asking = guest.renewed(self.context.tasks.clone());
        let asked = until(cancel, self.quiesce(record, &**machine, &asking, mode)).await;
        // These connections are cut without a goodbye, which a frozen guest could not acknowledge.
        asking.cut();
        asked??;
        step("pause.quiesced")?;
        until(cancel, self.freeze(record.id, &**machine)).await??;
        step("pause.frozen")?;
        let dir = boot::folder(&self.context, record.id);
        let snapshots = boot::snapshots_dir(&dir);
        let number = record.last.max(newest(&snapshot::sweep(&snapshots))) + 1;
        let failed = "keeping the capsule";
        let staging =
            Staging::begin(&snapshots.join(number.to_string())).map_err(io_error(failed))?;
        let staging = staging.until(cancel);
        let mut manifest = self.manifest(record);
        let pages = match mode.has_memory() {
            false => None,
            true => {
                let state = staging.state_file().map_err(io_error(failed))?;
                let bytes = u64::from(record.resources.memory_mib) << 20;
                let pages = until(cancel, machine.save(state, bytes)).await??;
                step("pause.saved")?;
                Some(pages.map(|pages| pages.until(cancel.clone())))
            }
        };
        let base = record.base_layers.clone();
        let has_disk = self.context.driver.boots_images();
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
        unless_cancelled(cancel, blocking(write).await.map_err(io_error(failed)))?;
        // The pause is complete here, so a failed test point no longer counts.
        let _ = step("pause.committed");
        Ok(number)
    }

    /// Asks a guest to write the data in its memory to its disk. A guest that is merely slow is no
    /// error, unless only its disk is saved.
    ///
    /// # Errors
    /// [`Error::Silent`] when the guest's agent answers nothing. [`Error::Unsaved`] when only the
    /// disk is to be saved and the agent fails. [`Error::Ended`] when the guest is halted.
    pub(super) async fn quiesce(
        &self,
        record: &CapsuleRecord,
        machine: &dyn Machine,
        guest: &Guest,
        mode: PauseMode,
    ) -> Result<(), Error> {
        let asked = guest.quiesce(&record.envd_token, !mode.has_memory());
        let answered = if mode.has_memory() {
            // An agent that writes late does no harm, so most pauses ask once.
            guest.unless_silent(asked).await
        } else if guest.responds().await {
            // An agent that freezes its disk late would stop a guest that runs on.
            Some(asked.await)
        } else {
            None
        };
        match answered {
            Some(Ok(())) => return Ok(()),
            Some(Err(error)) if !mode.has_memory() => {
                return Err(Error::Unsaved(error));
            }
            Some(Err(error)) => {
                tracing::warn!(id = %record.id, %error, "the guest did not write down what it has");
                if guest.responds().await {
                    return Ok(());
                }
            }
            None => {}
        }
        self.judge_silent(record.id, machine, guest, mode).await
    }

    /// Decides whether a guest whose agent is silent may be saved.
    ///
    /// # Errors
    /// As [`Self::quiesce`].
    pub(super) async fn judge_silent(
        &self,
        id: CapsuleId,
        machine: &dyn Machine,
        guest: &Guest,
        mode: PauseMode,
    ) -> Result<(), Error> {
        if liveness::is_halted(machine, guest).await {
            return Err(Error::Ended(liveness::REASON.to_owned()));
        }
        // A guest that waits for room cannot answer, and answers again when it is brought back.
        let saves = match mode {
            PauseMode::Frozen => true,
            PauseMode::Memory => self.waits_for_room(id) || machine.waits_for_room(),
            PauseMode::Disk => false,
        };
        if !saves {
            return Err(Error::Silent);
        }
        tracing::warn!(%id, "keeping a guest whose agent is silent, as it is");
        Ok(())
    }

    /// Returns the manifest of a new snapshot of a capsule, without any data yet.
    pub(super) fn manifest(&self, record: &CapsuleRecord) -> Manifest {
        Manifest {
            fingerprint: self.context.driver.fingerprint(),
            system: record.system.clone(),
            template: record.template.clone(),
            team: Some(record.team.clone()),
            resources: record.resources,
            taken_at_ms: now_ms(),
            memory: None,
            state: None,
            disk: None,
            envd_token: Some(record.envd_token.clone()),
        }
    }

    /// Lets a capsule run on that could not be paused. `token` is its agent's token, if known.
    async fn resume_after_failure(
        &self,
        id: CapsuleId,
        under_way: UnderWay,
        token: Option<String>,
        error: &Error,
    ) {
        let UnderWay { machine, guest, cancel } = under_way;
        let thawed = self.thaw_if_owed(id, &*machine).await;
        if let Some(token) = token {
            // A removal may have ended the pause before the connections were cut.
            guest.cut();
            let guest = guest.renewed(self.context.tasks.clone());
            // A guest that stands still does not answer. Its clock is set when it runs again.
            if thawed.is_ok() {
                let refreshed = match matches!(error, Error::Silent) {
                    true => Err(Error::Silent),
                    false => until(&cancel, guest.refresh(&token)).await.and_then(|refreshed| {
                        refreshed.map_err(io_error("setting the clock of a guest that goes on"))
                    }),
                };
                if let Err(error) = refreshed {
                    tracing::warn!(%id, error = chain(&error), "a guest that goes on is silent");
                    self.refresh_later(id, guest.clone(), token);
                }
            }
            guest.admit();
            self.change(id, |capsule| capsule.running = Some((Arc::clone(&machine), guest)));
        }
        self.change(id, |capsule| capsule.state = State::Running);
        if let Err(error) = thawed {
            tracing::error!(%id, error = chain(&error), "letting a capsule go on");
        }
        if !machine.record().is_alive() {
            // A machine that has ended returns the reason at once.
            let reason = machine.ended().now_or_never();
            let reason = reason.unwrap_or_else(|| "the VMM ended".to_owned());
            self.lost(id, &machine.record(), reason).await;
        }
    }

    /// Ends a capsule whose time is over. The host lists it as expired until it is removed.
    pub(super) async fn expire(&self, id: CapsuleId) -> Result<(), Error> {
        let lock = self.capsule_lock(id)?;
        let _guard = lock.lock().await;
        let running = self.change(id, |capsule| {
            let runs = capsule.state == State::Running;
            runs.then(|| capsule.state = State::Expired).and_then(|()| capsule.running.take())
        });
        let Some((machine, guest)) = running.flatten() else { return Ok(()) };
        guest.drain(Duration::ZERO).await;
        drop((machine, guest));
        let dir = boot::folder(&self.context, id);
        if let Some(mut record) = CapsuleRecord::load(&dir) {
            record.phase = Phase::Expired;
            boot::release(&self.context, &mut record).await?;
        }
        self.change(id, |capsule| capsule.memory_mib = 0);
        Ok(())
    }

    /// Opens one of a capsule's own snapshots.
    pub(super) fn own_snapshot(
        &self,
        record: &CapsuleRecord,
        number: u64,
    ) -> std::io::Result<Snapshot> {
        let snapshots = boot::snapshots_dir(&boot::folder(&self.context, record.id));
        Snapshot::open(&snapshots.join(number.to_string()))
    }
}
