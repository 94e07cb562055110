//! Snapshots that belong to no capsule. A running or paused capsule is their source and stays as it
//! is. Any number of other capsules may begin from them.
//!
//! ```text
//!  running ─▶ claim ─▶ prepare ─▶ freeze ─▶ copy ─▶ thaw ─▶ set the clock ─▶ write ─▶ RENAME
//!  paused  ─▶ claim ─▶ link the last own snapshot ──────────────────────────────────▶ RENAME
//! ```

use super::capture::{self, PauseMode};
use super::host::Host;
use super::record::CapsuleRecord;
use super::registry::Running;
use super::registry::transitions::{SnapshotSource, SnapshotStart};
use super::{
    Error, State, chain, files, io_error, liveness, snapshot_error, thaw, unless_cancelled, until,
};
use crate::snapshot::{self, Layers, Manifest, Snapshot, Staging};
use crate::{storage, vmm};
use daemon::blocking;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tokio_util::sync::CancellationToken;
use types::{CapsuleId, SnapshotId};

/// Bytes of a snapshot on the host's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SnapshotSize {
    /// All bytes of the snapshot.
    pub bytes: u64,
    /// Bytes that no template's machine shares.
    pub own_bytes: u64,
}

/// Takes a snapshot of a capsule, which stays as it is. A complete snapshot of this id is
/// success. Without `memory`, only the disk is saved.
pub(super) async fn take(
    host: &Host,
    id: CapsuleId,
    to: SnapshotId,
    memory: bool,
) -> Result<SnapshotSize, Error> {
    let this = host.clone();
    host.detached(async move { take_under_lock(&this, id, to, memory).await }).await
}

async fn take_under_lock(
    host: &Host,
    id: CapsuleId,
    to: SnapshotId,
    memory: bool,
) -> Result<SnapshotSize, Error> {
    let at = files::snapshot_dir(&host.context, to);
    let lock = host.registry.capsule_lock(id)?;
    let _guard = lock.lock().await;
    if let Ok(snapshot) = Snapshot::open(&at) {
        return Ok(size_of(host, &snapshot));
    }
    let begun = host.registry.begin_snapshot(id);
    let record = files::record(&host.context, id)?;
    let SnapshotStart { source, cancel } = begun?;
    if record.builds.is_some() {
        return Err(Error::Invalid("a builder has no snapshots".to_owned()));
    }
    let taken = match source {
        SnapshotSource::Running(running) => {
            let bytes = if memory { host.registry.memory_of(id) } else { 0 };
            let disk = files::disk_bytes(&files::folder(&host.context, id));
            let most = files::most_saved(&*running.machine, bytes) + disk;
            let _claim = host.context.room.claim(most)?;
            let taken = capture_running(host, &record, &running, &at, memory, &cancel).await;
            taken.map_err(|error| host.if_full(error))?
        }
        SnapshotSource::Paused => {
            let _claim = host.context.room.claim(0)?;
            let own = files::own_snapshot(&host.context, id, record.last);
            let own = own.map_err(snapshot_error("cannot open the capsule's snapshot"))?;
            link_paused(own, at, memory, &cancel).await?
        }
    };
    Ok(size_of(host, &taken))
}

/// Links a paused capsule's own snapshot into a snapshot that belongs to no capsule.
async fn link_paused(
    own: Snapshot,
    at: PathBuf,
    memory: bool,
    cancel: &CancellationToken,
) -> Result<Snapshot, Error> {
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
    let linked = blocking(link).await.map_err(snapshot_error("cannot store the snapshot"));
    unless_cancelled(cancel, linked)
}

/// Returns the bytes of a snapshot on the host's disk.
fn size_of(host: &Host, snapshot: &Snapshot) -> SnapshotSize {
    let mut seen = HashSet::new();
    storage::used(&host.context.config.golden(), &mut seen);
    let own_bytes = storage::used(&snapshot.dir, &mut seen);
    SnapshotSize { bytes: snapshot.bytes(), own_bytes }
}

/// Freezes a machine only while its changes are copied, and writes the copy after the guest
/// runs again. If only the disk is saved, the guest first writes its data to the disk.
async fn capture_running(
    host: &Host,
    record: &CapsuleRecord,
    running: &Running,
    at: &Path,
    with_memory: bool,
    cancel: &CancellationToken,
) -> Result<Snapshot, Error> {
    let Running { machine, guest } = running;
    let failed = "cannot take the snapshot";
    let staging = Staging::begin(at).map_err(io_error(failed))?.until(cancel);
    let state = with_memory.then(|| staging.state_file()).transpose();
    let state = state.map_err(io_error(failed))?;
    let dir = files::folder(&host.context, record.id);
    let has_disk = host.context.driver.boots_images();
    let from = dir.clone();
    let bytes = u64::from(record.resources.memory_mib) << 20;
    let prepared = until(cancel, prepare(host, record, running, with_memory)).await;
    let prepared = prepared.and_then(|prepared| prepared);
    if prepared.is_err() && !with_memory {
        // The guest's agent may freeze the disk late, so its file system is thawed once it
        // answers.
        thaw::refresh_later(host, record.id, guest.clone(), record.envd_token.clone());
    }
    prepared?;
    let frozen = Instant::now();
    let copied = async {
        until(cancel, thaw::freeze(host, record.id, &**machine)).await??;
        daemon::failpoint("snapshot.frozen").map_err(io_error("a failpoint failed"))?;
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
    let thawed = thaw::thaw(host, record.id, &**machine).await;
    metrics::histogram!("wrenn_snapshot_frozen_seconds").record(frozen.elapsed().as_secs_f64());
    resume_after_snapshot(host, record, running, thawed, cancel).await?;
    let (staging, memory, disk) = copied?;
    daemon::failpoint("snapshot.copied").map_err(io_error("a failpoint failed"))?;
    let mut manifest = capture::manifest(&host.context, record);
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
    host: &Host,
    record: &CapsuleRecord,
    Running { machine, guest }: &Running,
    with_memory: bool,
) -> Result<(), Error> {
    let machine = &**machine;
    if !with_memory {
        thaw::thaw_if_owed(host, record.id, machine).await?;
        return capture::quiesce(host, record, machine, guest, PauseMode::Disk).await;
    }
    if host.registry.waits_for_room(record.id) || guest.responds().await {
        return Ok(());
    }
    capture::judge_silent(host, record.id, machine, guest, PauseMode::Memory).await
}

/// Sets the clock of a guest after a snapshot of it was taken.
///
/// # Errors
/// Fails when the guest has ended, or is to be removed.
pub(super) async fn resume_after_snapshot(
    host: &Host,
    record: &CapsuleRecord,
    Running { machine, guest }: &Running,
    thawed: Result<(), vmm::Error>,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let resumed = match thawed {
        Ok(()) => {
            let refreshed = until(cancel, guest.refresh(&record.envd_token)).await?;
            refreshed.map_err(io_error("cannot set the guest's clock after a snapshot"))
        }
        Err(error) => Err(error.into()),
    };
    let Err(error) = resumed else { return Ok(()) };
    tracing::warn!(
        id = %record.id, error = chain(&error),
        "cannot thaw the guest after a snapshot"
    );
    let lives = host.registry.state(record.id) == Some(State::Running);
    let halted = until(cancel, liveness::is_halted(&**machine, guest)).await?;
    if !lives || halted {
        return Err(Error::Ended(liveness::REASON.to_owned()));
    }
    thaw::refresh_later(host, record.id, guest.clone(), record.envd_token.clone());
    Ok(())
}

/// Removes a snapshot. Capsules that began from it keep the data that they need. An unknown
/// snapshot is success.
pub(super) async fn remove(host: &Host, id: SnapshotId) -> Result<(), Error> {
    let at = files::snapshot_dir(&host.context, id);
    if let Some(layers) = Snapshot::open(&at).ok().and_then(|found| found.manifest.memory) {
        host.context.images.forget(&layers);
    }
    let removed = blocking(move || snapshot::remove(&at)).await;
    removed.map_err(io_error("cannot remove the snapshot"))
}
