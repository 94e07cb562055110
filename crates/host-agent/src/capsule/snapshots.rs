//! Snapshots that belong to no capsule. A running or paused capsule is their source and stays as it
//! is. Any number of other capsules may begin from them.

use super::manager::{Manager, State, chain};
use super::pause::PauseMode;
use super::record::CapsuleRecord;
use super::{Error, boot, io_error, liveness, pause, snapshot_error, unless_cancelled, until};
use crate::guest::Guest;
use crate::snapshot::{self, Layers, Manifest, Snapshot, Staging};
use crate::storage;
use crate::vmm::{self, Machine};
use daemon::blocking;
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
        self.detached(async move { this.snapshot_under_lock(id, to, memory).await }).await
    }

    async fn snapshot_under_lock(
        &self,
        id: CapsuleId,
        to: SnapshotId,
        memory: bool,
    ) -> Result<(u64, u64), Error> {
        let at = self.context.config.snapshots().join(to.to_string());
        let lock = self.capsule_lock(id)?;
        let _guard = lock.lock().await;
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
        let record = CapsuleRecord::load(&boot::folder(&self.context, id)).ok_or_else(none)?;
        let (known, cancel) = known.ok_or_else(none)?;
        let taken = match known {
            (State::Running, Some(running)) => {
                let (machine, _) = &running;
                let bytes = if memory { self.memory_of(id) } else { 0 };
                let most = pause::most(&**machine, bytes) + self.disk_bytes(id);
                let _claim = self.context.room.claim(most)?;
                let taken = self.take(&record, &running, &at, memory, &cancel).await;
                taken.map_err(|error| self.if_full(error))?
            }
            (State::Paused, _) => {
                let _claim = self.context.room.claim(0)?;
                let own = self.own_snapshot(&record, record.last);
                let own = own.map_err(snapshot_error("opening what was kept of the capsule"))?;
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
                let linked = blocking(link).await.map_err(snapshot_error("keeping the snapshot"));
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
        storage::used(&self.context.config.golden(), &mut seen);
        (snapshot.bytes(), storage::used(&snapshot.dir, &mut seen))
    }

    /// Freezes a machine only while its changes are copied, and writes the copy after the guest
    /// runs again. If only the disk is saved, the guest first writes its data to the disk.
    async fn take(
        &self,
        record: &CapsuleRecord,
        (machine, guest): &(Arc<dyn Machine>, Guest),
        at: &Path,
        with_memory: bool,
        cancel: &CancellationToken,
    ) -> Result<Snapshot, Error> {
        let failed = "taking the snapshot";
        let staging = Staging::begin(at).map_err(io_error(failed))?.until(cancel);
        let state = with_memory.then(|| staging.state_file()).transpose();
        let state = state.map_err(io_error(failed))?;
        let dir = boot::folder(&self.context, record.id);
        let has_disk = self.context.driver.boots_images();
        let from = dir.clone();
        let bytes = u64::from(record.resources.memory_mib) << 20;
        let prepared = until(cancel, self.prepare(record, &**machine, guest, with_memory)).await;
        let prepared = prepared.and_then(|prepared| prepared);
        if prepared.is_err() && !with_memory {
            // The guest's agent may freeze the disk late, so its file system is thawed once it
            // answers.
            self.refresh_later(record.id, guest.clone(), record.envd_token.clone());
        }
        prepared?;
        let frozen = std::time::Instant::now();
        let copied = async {
            until(cancel, self.freeze(record.id, &**machine)).await??;
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
        let thawed = self.thaw(record.id, &**machine).await;
        metrics::histogram!("wrenn_snapshot_frozen_seconds").record(frozen.elapsed().as_secs_f64());
        self.resume_after_snapshot(record, machine, guest, thawed, cancel).await?;
        let (staging, memory, disk) = copied?;
        daemon::failpoint("snapshot.copied").map_err(io_error("a failpoint"))?;
        let mut manifest = self.manifest(record);
        (manifest.disk, manifest.memory) = (disk, with_memory.then(Layers::default));
        let base = record.base_layers.clone();
        let write = move || {
            if let Some(memory) = memory {
                manifest.memory = Some(staging.write_memory(&memory, &base, &dir)?);
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
        record: &CapsuleRecord,
        machine: &dyn Machine,
        guest: &Guest,
        with_memory: bool,
    ) -> Result<(), Error> {
        if !with_memory {
            self.thaw_if_owed(record.id, machine).await?;
            return self.quiesce(record, machine, guest, PauseMode::Disk).await;
        }
        if self.waits_for_room(record.id) || guest.responds().await {
            return Ok(());
        }
        self.judge_silent(record.id, machine, guest, PauseMode::Memory).await
    }

    /// Sets the clock of a guest after a snapshot of it was taken.
    ///
    /// # Errors
    /// Fails when the guest has ended, or is to be removed.
    async fn resume_after_snapshot(
        &self,
        record: &CapsuleRecord,
        machine: &Arc<dyn Machine>,
        guest: &Guest,
        thawed: Result<(), vmm::Error>,
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        let resumed = match thawed {
            Ok(()) => {
                let refreshed = until(cancel, guest.refresh(&record.envd_token)).await?;
                refreshed.map_err(io_error("setting the clock after a snapshot"))
            }
            Err(error) => Err(error.into()),
        };
        let Err(error) = resumed else { return Ok(()) };
        tracing::warn!(id = %record.id, error = chain(&error), "going on after a snapshot");
        let lives = self.change(record.id, |capsule| capsule.state == State::Running);
        let halted = until(cancel, liveness::is_halted(&**machine, guest)).await?;
        if lives != Some(true) || halted {
            return Err(Error::Ended(liveness::REASON.to_owned()));
        }
        self.refresh_later(record.id, guest.clone(), record.envd_token.clone());
        Ok(())
    }

    /// Removes a snapshot. Capsules that began from it keep the data that they need. An unknown
    /// snapshot is success.
    pub(crate) async fn remove_snapshot(&self, id: SnapshotId) -> Result<(), Error> {
        let at = self.context.config.snapshots().join(id.to_string());
        if let Some(layers) = Snapshot::open(&at).ok().and_then(|found| found.manifest.memory) {
            self.context.images.forget(&layers);
        }
        let removed = blocking(move || snapshot::remove(&at)).await;
        removed.map_err(io_error("removing the snapshot"))
    }

    /// Lists the snapshots on this host that belong to no capsule.
    pub(crate) fn snapshots(&self) -> Vec<SnapshotId> {
        let entries = std::fs::read_dir(self.context.config.snapshots());
        let entries = entries.into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }
}
