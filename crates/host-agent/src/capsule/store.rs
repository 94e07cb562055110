//! The platform's object store, as this host uses it: the data that is known to be there, and
//! fetches of folders. Each folder is fetched once, however many calls ask for it. `upload` sends
//! to the store, and `fetch` gets capsules, snapshots and templates.

use super::{Error, io_error};
use crate::room::Room;
use crate::snapshot;
use daemon::lock;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};
use store::Store;
use tokio::sync::Notify;
use types::{BuildId, SnapshotId};

/// Histogram of transfers to the store and from it.
const TRANSFERS: &str = "wrenn_store_seconds";
/// Team that owns the templates in the store.
pub(super) const PLATFORM: &str = "platform";

/// The store, and the data of this host that is known to be there.
pub(crate) struct Stored {
    pub(super) store: Store,
    /// Folder for files on their way to the store or from it.
    pub(super) dir: PathBuf,
    snapshots: Mutex<HashSet<SnapshotId>>,
    templates: Mutex<HashSet<String>>,
    versions: Mutex<HashSet<BuildId>>,
    /// True after the platform refused to confirm this host, or could not be reached.
    pub(super) refused: AtomicBool,
    /// Lock of each folder that is being fetched, by its name in the store.
    fetching: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    pub(super) work: Notify,
}

impl Stored {
    /// Opens the store, and removes everything that an earlier agent left in `dir`.
    pub(crate) fn new(store: Store, dir: PathBuf) -> io::Result<Self> {
        let _ = fs::remove_dir_all(&dir);
        // The folder holds disks and memories of guests, so only this user may read it.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        Ok(Self {
            store,
            dir,
            snapshots: Mutex::default(),
            templates: Mutex::default(),
            versions: Mutex::default(),
            refused: AtomicBool::default(),
            fetching: Mutex::default(),
            work: Notify::new(),
        })
    }

    /// Wakes the task that sends, since there is something new to send.
    pub(super) fn notify(&self) {
        self.work.notify_one();
    }

    pub(super) fn snapshots(&self) -> MutexGuard<'_, HashSet<SnapshotId>> {
        lock(&self.snapshots)
    }

    pub(super) fn templates(&self) -> MutexGuard<'_, HashSet<String>> {
        lock(&self.templates)
    }

    pub(super) fn versions(&self) -> MutexGuard<'_, HashSet<BuildId>> {
        lock(&self.versions)
    }

    /// Returns the lock of a folder's fetch, by the folder's name in the store.
    pub(super) fn fetch_lock(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut all = lock(&self.fetching);
        // No fetch uses a lock that only the map holds. A fetch that is given up cannot remove its
        // own lock, so the next fetch does.
        all.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(all.entry(name.to_owned()).or_default())
    }

    /// Sends a folder to the store. Returns the bytes that were sent.
    pub(super) async fn put(
        &self,
        namespace: &str,
        name: &str,
        folder: &Path,
    ) -> Result<u64, store::Error> {
        let sending = Box::pin(self.store.put(namespace, name, folder));
        daemon::stage(TRANSFERS, "send", sending).await
    }

    /// Fetches a stored folder into the folder `to`, unless that folder exists.
    pub(super) async fn fetch(
        &self,
        room: &Room,
        (namespace, name): (&str, &str),
        to: &Path,
    ) -> Result<(), Error> {
        let lock = self.fetch_lock(name);
        let _guard = lock.lock().await;
        if to.exists() {
            return Ok(());
        }
        let bytes = self.store.bytes(namespace, name).await.map_err(failure)?;
        let _claim = room.claim(bytes)?;
        let staged = self.dir.join(format!("fetched-{}", name.replace('/', "-")));
        let failed = "cannot fetch from the store";
        let _ = fs::remove_dir_all(&staged);
        fs::create_dir_all(&staged).map_err(io_error(failed))?;
        let fetching = Box::pin(self.store.get(namespace, name, &staged));
        let fetched = daemon::stage(TRANSFERS, "fetch", fetching).await.map_err(failure);
        let placed = fetched.and_then(|()| place(&staged, to).map_err(io_error(failed)));
        if placed.is_err() {
            let _ = fs::remove_dir_all(&staged);
        }
        placed
    }
}

/// Moves a complete folder to its place, durably.
pub(super) fn place(staged: &Path, to: &Path) -> io::Result<()> {
    daemon::failpoint("store.fetched")?;
    let parent = to.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent)?;
    fs::rename(staged, to)?;
    File::open(parent)?.sync_all()
}

/// Returns the name of a template's folder in its owner's namespace of the store.
pub(super) fn template_path(folder: &str) -> String {
    format!("templates/{folder}")
}

/// Maps an error of the store to a capsule's error.
pub(super) fn failure(error: store::Error) -> Error {
    match error {
        store::Error::Missing(name) => Error::NotFound(format!("{name} in the store")),
        store::Error::Damaged(name) => {
            Error::Damaged(snapshot::damaged(format!("{name} in the store is damaged")))
        }
        error @ (store::Error::Store(_) | store::Error::File(_)) => {
            Error::Io { what: "cannot use the store", source: io::Error::other(error) }
        }
    }
}

/// Links a folder's files into another folder, which is made anew. So the files outlive their
/// first folder while they are sent.
pub(super) fn link_aside(from: &Path, to: &Path) -> io::Result<()> {
    match fs::remove_dir_all(to) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => fs::create_dir_all(to)?,
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::hard_link(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn locks_of_ended_fetches_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("store");
        let store = Store::open(kept.to_str().unwrap(), None, std::iter::empty()).unwrap();
        let stored = Stored::new(store, dir.path().join("sending")).unwrap();
        let room = Room::new(dir.path(), false);
        let to = dir.path().join("fetched");
        let waiting = {
            let mut all = stored.fetching.lock().unwrap();
            Arc::clone(all.entry("waited-for".to_owned()).or_default())
        };
        for number in 0..10 {
            let name = format!("capsules/x/{number}");
            let fetched = stored.fetch(&room, ("team", &name), &to).await;
            assert!(matches!(fetched, Err(Error::NotFound(_))));
        }
        let names: HashSet<String> = stored.fetching.lock().unwrap().keys().cloned().collect();
        assert_eq!(names, HashSet::from(["waited-for".to_owned(), "capsules/x/9".to_owned()]));
        drop(waiting);
    }
}
