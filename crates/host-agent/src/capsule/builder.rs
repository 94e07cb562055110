//! Disks that leave their capsules: the disk of a builder whose steps are done, and a copy of any
//! capsule's disk for a template. Such a disk becomes a read-only disk of others. So no machine may
//! write to it any more, and its journal must be empty. The disk itself is a guest's, so this module
//! reads only its superblock and never mounts it.
//!
//! ```text
//!  builder  ─▶ Stopping ─▶ end its machine ─▶ check ─▶ RENAME out of the folder ─▶ (removal)
//!  running  ─▶ claim ─▶ freeze file system, machine ─▶ copy ─▶ thaw ─▶ check
//!  paused   ─▶ claim ─▶ copy the last own snapshot's disk ─────────────▶ check
//! ```

use super::capture::{self, PauseMode};
use super::host::Host;
use super::record::CapsuleRecord;
use super::registry::transitions::{SnapshotSource, SnapshotStart, Stop};
use super::registry::{CapsuleLock, Running};
use super::snapshots::resume_after_snapshot;
use super::{Error, files, io_error, snapshot_error, thaw, unless_cancelled, until};
use crate::storage;
use crate::version::Version;
use daemon::blocking;
use rustix::fs::{Gid, Mode, Uid};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;
use types::CapsuleId;

/// Disks of a capsule that were copied for a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CopiedDisks {
    /// Team that owns the capsule.
    pub team: String,
    /// Name of the capsule's template.
    pub template: String,
    /// Version below the capsule's writes; `None` for a template of the operator's.
    pub version: Option<Version>,
}

/// Ends a builder's machine, and moves its disk to `disk.ext4` in its build's folder. Returns that
/// path. A disk that was moved before is success. The host lists the capsule as being removed from
/// then on, since it ended on purpose. The platform removes it after the build.
///
/// # Errors
/// [`Error::Unsaved`] when the guest has not written all of its data to the disk.
pub(super) async fn take_disk(host: &Host, id: CapsuleId) -> Result<PathBuf, Error> {
    let this = host.clone();
    host.detached(async move { take_under_lock(&this, id).await }).await
}

async fn take_under_lock(host: &Host, id: CapsuleId) -> Result<PathBuf, Error> {
    let lock = host.registry.capsule_lock(id)?;
    let _guard = lock.lock().await;
    let record = files::record(&host.context, id)?;
    let no_builder = || Error::Invalid("the capsule runs no steps of a build".to_owned());
    let build = record.builds.ok_or_else(no_builder)?;
    end_machine(host, id, &lock).await?;
    let from = files::folder(&host.context, id).join(storage::DISK);
    let folder = host.context.config.builds().join(build.to_string());
    let to = folder.join(storage::DISK);
    let path = to.clone();
    let moving = move || {
        // The folder of a forgotten build is gone, and nobody wants the disk any more.
        if !from.exists() && to.exists() {
            return Ok(());
        }
        seal(&from)?;
        daemon::failpoint("builder.sealed")?;
        fs::rename(&from, &to)?;
        File::open(&folder)?.sync_all()
    };
    blocking(moving).await.map_err(unsaved("cannot take the builder's disk"))?;
    Ok(path)
}

/// Ends a builder's machine at once, with whatever it does. A machine that has ended is success. The
/// capsule is then to be removed.
pub(super) async fn end(host: &Host, id: CapsuleId) -> Result<(), Error> {
    if host.registry.machine(id)?.is_none() {
        return Ok(());
    }
    let this = host.clone();
    let work = async move {
        let lock = this.registry.capsule_lock(id)?;
        let _guard = lock.lock().await;
        end_machine(&this, id, &lock).await
    };
    host.detached(work).await
}

/// Marks a builder as being removed, and ends its machine. The caller holds `lock`.
async fn end_machine(host: &Host, id: CapsuleId, lock: &CapsuleLock) -> Result<(), Error> {
    match host.registry.stop(id, lock, None)? {
        Stop::Gone => Err(Error::unknown(id)),
        Stop::Stopping(None) => Ok(()),
        Stop::Stopping(Some(Running { machine, guest })) => {
            guest.close();
            machine.kill().await.map_err(Error::from)
        }
    }
}

/// Checks a disk that no machine uses, and makes it read-only for everyone, durably.
fn seal(disk: &Path) -> io::Result<()> {
    let file = File::open(disk)?;
    check_complete(&file)?;
    // The last machine's user owned the file.
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    rustix::fs::fchown(
        &file,
        Some(Uid::from_raw(uid.as_raw())),
        Some(Gid::from_raw(gid.as_raw())),
    )?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o444))?;
    file.sync_all()
}

/// Error of a disk whose journal holds writes.
#[derive(Debug, thiserror::Error)]
#[error("the disk's journal holds writes that were not completed")]
struct Incomplete;

fn check_complete(disk: &File) -> io::Result<()> {
    match storage::needs_recovery(disk)? {
        true => Err(io::Error::other(Incomplete)),
        false => Ok(()),
    }
}

/// Maps an incomplete disk to [`Error::Unsaved`], and other errors to [`Error::Io`].
fn unsaved(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |error| match error.get_ref().is_some_and(|inner| inner.is::<Incomplete>()) {
        true => Error::Unsaved(error),
        false => io_error(what)(error),
    }
}

/// Copies a capsule's disk to `disk.ext4` in the folder `to`. Links the disks below it beside the
/// copy, under the names that they have in a capsule's folder. The capsule stays as it is. The
/// caller removes the folder after an error.
///
/// # Errors
/// [`Error::Unsaved`] when the newest writes are only in the memory of a paused capsule.
pub(super) async fn copy_upper(
    host: &Host,
    id: CapsuleId,
    to: PathBuf,
) -> Result<CopiedDisks, Error> {
    let this = host.clone();
    host.detached(async move { copy_under_lock(&this, id, to).await }).await
}

async fn copy_under_lock(host: &Host, id: CapsuleId, to: PathBuf) -> Result<CopiedDisks, Error> {
    let lock = host.registry.capsule_lock(id)?;
    let _guard = lock.lock().await;
    let begun = host.registry.begin_snapshot(id);
    let record = files::record(&host.context, id)?;
    let SnapshotStart { source, cancel } = begun?;
    if !host.context.driver.boots_images() {
        return Err(Error::Invalid("capsules of this host have no disks".to_owned()));
    }
    fs::create_dir_all(&to).map_err(io_error("cannot create the folder of the disk's copy"))?;
    match source {
        SnapshotSource::Running(running) => {
            let from = files::folder(&host.context, id);
            let _claim = host.context.room.claim(files::disk_bytes(&from))?;
            let copied = copy_running(host, &record, &running, (from, to), &cancel).await;
            copied.map_err(|error| host.if_full(error))?;
        }
        SnapshotSource::Paused => {
            let own = files::own_snapshot(&host.context, id, record.last);
            let own = own.map_err(snapshot_error("cannot open the capsule's snapshot"))?;
            let _claim = host.context.room.claim(own.disk_bytes())?;
            copy(own.dir, to, &cancel).await?;
        }
    }
    Ok(CopiedDisks { team: record.team, template: record.template, version: record.version })
}

/// Copies the disk of a running capsule, whose guest stands still meanwhile.
async fn copy_running(
    host: &Host,
    record: &CapsuleRecord,
    running: &Running,
    (from, to): (PathBuf, PathBuf),
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let Running { machine, guest } = running;
    let prepare = async {
        thaw::thaw_if_owed(host, record.id, &**machine).await?;
        capture::quiesce(host, record, &**machine, guest, PauseMode::Disk).await
    };
    let prepared = until(cancel, prepare).await.and_then(|prepared| prepared);
    if prepared.is_err() {
        // The guest's agent may freeze the disk late, so its file system is thawed once it
        // answers.
        thaw::refresh_later(host, record.id, guest.clone(), record.envd_token.clone());
    }
    prepared?;
    let copied = async {
        until(cancel, thaw::freeze(host, record.id, &**machine)).await??;
        copy(from, to, cancel).await
    };
    let copied = copied.await;
    let thawed = thaw::thaw(host, record.id, &**machine).await;
    resume_after_snapshot(host, record, running, thawed, cancel).await?;
    copied
}

/// Copies the disk in a folder, and links the disks below it.
async fn copy(from: PathBuf, to: PathBuf, cancel: &CancellationToken) -> Result<(), Error> {
    let ends = cancel.clone();
    let work = move || {
        storage::link_below(&from, &to)?;
        let disk = File::open(from.join(storage::DISK))?;
        check_complete(&disk)?;
        let at = to.join(storage::DISK);
        storage::copy_disk(&disk, &at, &ends)?;
        seal(&at)?;
        File::open(&to)?.sync_all()
    };
    unless_cancelled(cancel, blocking(work).await.map_err(unsaved("cannot copy the disk")))
}

#[cfg(test)]
mod tests;
