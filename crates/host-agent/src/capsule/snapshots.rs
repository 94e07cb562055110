//! Snapshots that belong to no capsule. A running or paused capsule is their source and stays as it
//! is. Any number of other capsules may begin from them.

use super::ledger::Ledger;
use super::manager::{Manager, State, chain};
use super::pause::Keep;
use super::{
    Error, blocking, boot, io_error, kept_error, liveness, pause, unless_cancelled, until,
};
use crate::guest::Guest;
use crate::snapshot::{self, Layers, Manifest, Snapshot, Staging};
use crate::storage;
use crate::vmm::{self, Machine};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use types::{CapsuleId, SnapshotId};

impl Manager {
    /// Takes a snapshot of a capsule, which stays as it is. A complete snapshot of this id is
    /// success. Without `memory`, only the disk is saved. Returns the snapshot's bytes on disk: all
    /// of them, and those that no template's machine shares.
    pub(crate) async fn snapshot(
        &self,
        id: CapsuleId,
        to: SnapshotId,
        memory: bool,
    ) -> Result<(u64, u64), Error> {
        let this = self.clone();
        self.detached(async move { this.snapshot_in_turn(id, to, memory).await }).await
    }

    async fn snapshot_in_turn(
        &self,
        id: CapsuleId,
        to: SnapshotId,
        memory: bool,
    ) -> Result<(u64, u64), Error> {
        let at = self.parts.config.snapshots().join(to.to_string());
        let turn = self.turn(id)?;
        let _turn = turn.lock().await;
        if let Ok(snapshot) = Snapshot::open(&at) {
            return Ok(self.bytes_of(&snapshot));
        }
        let none = || Error::NotFound(format!("capsule {id}"));
        let known = self.change(id, |capsule| {
            let known = (capsule.state.clone(), capsule.running.clone());
            // Another operation of the capsule holds the token in every other state.
            let renews = matches!(known.0, State::Running | State::Paused);
            let cancel = if renews { capsule.renew_cancel() } else { CancellationToken::new() };
            (known, cancel)
        });
        let ledger = Ledger::load(&boot::folder(&self.parts, id)).ok_or_else(none)?;
        let (known, cancel) = known.ok_or_else(none)?;
        let taken = match known {
            (State::Running, Some(running)) => {
                let (machine, _) = &running;
                let bytes = if memory { self.memory_of(id) } else { 0 };
                let most = pause::most(&**machine, bytes) + self.disk_bytes(id);
                let _claim = self.parts.room.claim(most)?;
                let taken = self.take(&ledger, &running, &at, memory, &cancel).await;
                taken.map_err(|error| self.if_full(error))?
            }
            (State::Paused, _) => {
                let _claim = self.parts.room.claim(0)?;
                let own = self.own_snapshot(&ledger, ledger.last);
                let own = own.map_err(kept_error("opening what was kept of the capsule"))?;
                let ends = cancel.clone();
                let link = move || {
                    let staging = Staging::begin(&at)?.until(&ends);
                    if memory {
                        staging.link_all(&own)?;
                        return staging.commit(own.manifest);
                    }
                    let disk = own.manifest.disk.clone();
                    if disk.is_some() {
                        staging.take_disk(&own.dir)?;
                    }
                    staging.commit(Manifest { memory: None, state: None, ..own.manifest })
                };
                let linked = blocking(link).await.map_err(kept_error("keeping the snapshot"));
                unless_cancelled(&cancel, linked)?
            }
            (state, _) => return Err(Error::State(state)),
        };
        Ok(self.bytes_of(&taken))
    }

    /// Returns a snapshot's bytes on disk: all of them, and those that no template's machine
    /// shares.
    fn bytes_of(&self, snapshot: &Snapshot) -> (u64, u64) {
        let mut seen = HashSet::new();
        storage::used(&self.parts.config.golden(), &mut seen);
        (snapshot.bytes(), storage::used(&snapshot.dir, &mut seen))
    }

    /// Freezes a machine only while its changes are copied, and writes the copy after the guest
    /// runs again. If only the disk is saved, the guest first writes its data to the disk.
    async fn take(
        &self,
        ledger: &Ledger,
        (machine, guest): &(Arc<dyn Machine>, Guest),
        at: &Path,
        with_memory: bool,
        cancel: &CancellationToken,
    ) -> Result<Snapshot, Error> {
        let failed = "taking the snapshot";
        let staging = Staging::begin(at).map_err(io_error(failed))?.until(cancel);
        let state = with_memory.then(|| staging.state_file()).transpose();
        let state = state.map_err(io_error(failed))?;
        let dir = boot::folder(&self.parts, ledger.id);
        let has_disk = self.parts.driver.boots_images();
        let from = dir.clone();
        let bytes = u64::from(ledger.resources.memory_mib) << 20;
        let prepared = until(cancel, self.prepare(ledger, &**machine, guest, with_memory)).await;
        let prepared = prepared.and_then(|prepared| prepared);
        if prepared.is_err() && !with_memory {
            // The guest's agent may freeze the disk late, so its file system is thawed once it
            // answers.
            self.refresh_later(ledger.id, guest.clone(), ledger.envd_token.clone());
        }
        prepared?;
        let frozen = std::time::Instant::now();
        let copied = async {
            until(cancel, self.freeze(ledger.id, &**machine)).await??;
            daemon::failpoint("snapshot.frozen").map_err(io_error("a failpoint"))?;
            let memory = match state {
                Some(state) => until(cancel, machine.save(state, bytes)).await??,
                None => None,
            };
            let memory = memory.map(|memory| memory.until(cancel.clone()));
            let copy = move || {
                let memory = memory.map(|memory| memory.copy()).transpose()?;
                let disk = has_disk.then(|| staging.copy_disk(&from)).transpose()?;
                Ok((staging, memory, disk))
            };
            // A removal waits for this thread, which then ends early. The claim covers all of its
            // work.
            unless_cancelled(cancel, blocking(copy).await.map_err(io_error(failed)))
        };
        let copied = copied.await;
        let thawed = self.thaw(ledger.id, &**machine).await;
        metrics::histogram!("wrenn_snapshot_frozen_seconds").record(frozen.elapsed().as_secs_f64());
        self.goes_on(ledger, machine, guest, thawed, cancel).await?;
        let (staging, memory, disk) = copied?;
        daemon::failpoint("snapshot.copied").map_err(io_error("a failpoint"))?;
        let mut manifest = self.manifest(ledger);
        (manifest.disk, manifest.memory) = (disk, with_memory.then(Layers::default));
        let began = ledger.began.clone();
        let write = move || {
            if let Some(memory) = memory {
                manifest.memory = Some(staging.write_memory(&memory, &began, &dir)?);
            }
            if with_memory {
                manifest.state = Some(staging.seal_state()?);
            }
            staging.sync_disk()?;
            staging.commit(manifest)
        };
        unless_cancelled(cancel, blocking(write).await.map_err(io_error(failed)))
    }

    /// Makes sure that a guest can be brought back from the snapshot that is about to be taken. If
    /// only the disk is saved, the disk then holds all of the guest's data.
    async fn prepare(
        &self,
        ledger: &Ledger,
        machine: &dyn Machine,
        guest: &Guest,
        with_memory: bool,
    ) -> Result<(), Error> {
        if !with_memory {
            self.thaw_if_owed(ledger.id, machine).await?;
            return self.quiesce(ledger, machine, guest, Keep::Disk).await;
        }
        if self.waits_for_room(ledger.id) || guest.responds().await {
            return Ok(());
        }
        self.judge_silent(ledger.id, machine, guest, Keep::Memory).await
    }

    /// Sets the clock of a guest after a snapshot of it was taken.
    ///
    /// # Errors
    /// Fails when the guest has ended, or is to be removed.
    async fn goes_on(
        &self,
        ledger: &Ledger,
        machine: &Arc<dyn Machine>,
        guest: &Guest,
        thawed: Result<(), vmm::Error>,
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        let goes_on = match thawed {
            Ok(()) => {
                let refreshed = until(cancel, guest.refresh(&ledger.envd_token)).await?;
                refreshed.map_err(io_error("setting the clock after a snapshot"))
            }
            Err(error) => Err(error.into()),
        };
        let Err(error) = goes_on else { return Ok(()) };
        tracing::warn!(id = %ledger.id, error = chain(&error), "going on after a snapshot");
        let lives = self.change(ledger.id, |capsule| capsule.state == State::Running);
        let halted = until(cancel, liveness::is_halted(&**machine, guest)).await?;
        if lives != Some(true) || halted {
            return Err(Error::Ended(liveness::REASON.to_owned()));
        }
        self.refresh_later(ledger.id, guest.clone(), ledger.envd_token.clone());
        Ok(())
    }

    /// Removes a snapshot. Capsules that began from it keep the data that they need. An unknown
    /// snapshot is success.
    pub(crate) async fn remove_snapshot(&self, id: SnapshotId) -> Result<(), Error> {
        let at = self.parts.config.snapshots().join(id.to_string());
        if let Some(layers) = Snapshot::open(&at).ok().and_then(|found| found.manifest.memory) {
            self.parts.images.forget(&layers);
        }
        let removed = blocking(move || snapshot::remove(&at)).await;
        removed.map_err(io_error("removing the snapshot"))
    }

    /// Lists the snapshots on this host that belong to no capsule.
    pub(crate) fn snapshots(&self) -> Vec<SnapshotId> {
        let entries = std::fs::read_dir(self.parts.config.snapshots());
        let entries = entries.into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }
}
