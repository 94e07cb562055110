//! The copy of a saved disk, on a thread beside the start of its machine. The guest stands still
//! until the copy is complete. Nobody is let in before all contents are checked.

use super::beside;
use crate::capsule::{Error, snapshot_error, unless_cancelled};
use crate::room::Claim;
use crate::snapshot::DiskCopy;
use std::io;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Copy of a disk under way. Dropping it ends the thread at its next block.
pub(super) struct PendingDisk {
    /// The thread; `None` after it has succeeded.
    work: Option<JoinHandle<io::Result<()>>>,
    /// True if the disk has all contents, checked or not.
    complete: bool,
    cancel: CancellationToken,
    _ends: DropGuard,
}

impl PendingDisk {
    /// Begins the rest of a copy. The thread holds the claim for the bytes that it writes, since it
    /// may outlive the boot by one block.
    pub(super) fn begin(copy: DiskCopy, claim: Claim, cancel: &CancellationToken) -> Self {
        let ends = cancel.child_token();
        let complete = copy.is_complete();
        // A copy that shares all blocks writes nothing.
        let claim = (!complete).then_some(claim);
        let until = ends.clone();
        let work = tokio::task::spawn_blocking(move || {
            let _claim = claim;
            copy.finish(&until)
        });
        Self { work: Some(work), complete, cancel: cancel.clone(), _ends: ends.drop_guard() }
    }

    /// Waits until the disk has all contents, so that its guest may run.
    pub(super) async fn fill(&mut self) -> Result<(), Error> {
        if self.complete { Ok(()) } else { self.check().await }
    }

    /// Waits until the disk has all contents and they are checked, so that anyone may be let in.
    ///
    /// # Errors
    /// [`Error::Damaged`] when the contents differ from the written ones. [`Error::Stopping`] when
    /// the capsule is to be removed.
    pub(super) async fn check(&mut self) -> Result<(), Error> {
        let Some(work) = &mut self.work else { return Ok(()) };
        let done = work.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        self.work = None;
        let checked = done.map_err(snapshot_error("cannot create the capsule's disk"));
        unless_cancelled(&self.cancel, checked)
    }
}

/// Waits for both, a guest and the check of its disk. Damage precedes any failure of the guest,
/// since the damage may explain it.
pub(super) async fn ready_and_checked(
    ready: impl Future<Output = Result<(), Error>>,
    disk: Option<PendingDisk>,
) -> Result<(), Error> {
    match disk {
        Some(mut disk) => beside(disk.check(), ready).await,
        None => ready.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::room::Room;
    use crate::snapshot::{Manifest, Snapshot};
    use std::fs::{self, File};
    use std::future::{pending, ready};
    use std::path::Path;

    /// Begins to copy a disk. `wanted` is the hash in its snapshot's manifest.
    fn begin(dir: &Path, wanted: blake3::Hash, cancel: &CancellationToken) -> PendingDisk {
        let context =
            crate::context::AgentContext::for_tests(dir, Box::new(crate::vmm::null::ImageDriver));
        let record = crate::capsule::record::CapsuleRecord::unknown();
        let manifest = crate::capsule::capture::manifest(&context, &record);
        let disk = Some(wanted.to_hex().to_string());
        let snapshot = Snapshot { dir: dir.to_owned(), manifest: Manifest { disk, ..manifest } };
        let copy = snapshot.begin_disk(&dir.join("copy")).unwrap().unwrap();
        let claim = Room::new(dir, false).claim(0).unwrap();
        PendingDisk::begin(copy, claim, cancel)
    }

    fn disk(dir: &Path) -> blake3::Hash {
        fs::write(dir.join(crate::storage::DISK), vec![5; 300_000]).unwrap();
        let file = File::open(dir.join(crate::storage::DISK)).unwrap();
        crate::storage::hash_disk(&file, &CancellationToken::new()).unwrap()
    }

    #[tokio::test]
    async fn guest_is_ready_only_after_its_disk_is_checked() {
        let dir = tempfile::tempdir().unwrap();
        let hash = disk(dir.path());
        let cancel = CancellationToken::new();
        let mut whole = begin(dir.path(), hash, &cancel);
        whole.fill().await.unwrap();
        assert_eq!(fs::read(dir.path().join("copy")).unwrap(), vec![5; 300_000]);
        ready_and_checked(ready(Ok(())), Some(whole)).await.unwrap();
        ready_and_checked(ready(Ok(())), None).await.unwrap();
    }

    #[tokio::test]
    async fn damage_of_the_disk_precedes_any_end_of_the_guest() {
        let dir = tempfile::tempdir().unwrap();
        disk(dir.path());
        let cancel = CancellationToken::new();
        let damaged = || begin(dir.path(), blake3::hash(b"other"), &cancel);
        for guest in [Ok(()), Err(Error::Silent)] {
            let done = ready_and_checked(ready(guest), Some(damaged())).await;
            assert!(matches!(done, Err(Error::Damaged(_))), "{done:?}");
        }
        // A guest that hangs for the damage holds up nothing.
        let done = ready_and_checked(pending(), Some(damaged())).await;
        assert!(matches!(done, Err(Error::Damaged(_))), "{done:?}");
    }

    #[tokio::test]
    async fn removal_ends_the_copy_as_stopping() {
        let dir = tempfile::tempdir().unwrap();
        let hash = disk(dir.path());
        let cancel = CancellationToken::new();
        cancel.cancel();
        let mut stopped = begin(dir.path(), hash, &cancel);
        assert!(matches!(stopped.check().await, Err(Error::Stopping)));
    }
}
