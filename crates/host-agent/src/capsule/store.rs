//! Transfers between this host and the platform's object store. This host sends the last snapshot
//! of each paused capsule, snapshots that belong to no capsule, and templates. So another host can
//! take over. This host fetches capsules that were paused elsewhere, and snapshots or templates
//! that it lacks. Each is fetched once, however many calls ask for it.
//!
//! A pause does not wait for the store. Files to send are linked into another folder first. So the
//! capsule may be resumed or removed meanwhile.
//!
//! Files are sent or swept only after the platform has just confirmed that this host is a member.
//! An older snapshot is removed when the control plane asks for it, after the row names the new
//! one.

mod stored_snapshot;

pub(crate) use stored_snapshot::StoredSnapshot;

use super::manager::{Capsule, Manager, State, chain};
use super::record::{CapsuleRecord, Phase};
use super::{Error, boot, io_error};
use crate::room::Room;
use crate::snapshot::{self, Layers};
use daemon::{blocking, lock};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use store::Store;
use tokio::sync::Notify;
use types::{CapsuleId, SnapshotId};

/// Period of the checks for files to send; a pause triggers a check earlier.
const LOOK: Duration = Duration::from_secs(20);
/// Number of capsules that are sent at once.
const AT_ONCE: usize = 2;
/// Period of the sweeps of the store.
const SWEEP: Duration = Duration::from_secs(24 * 3600);
/// Team that owns the templates in the store.
const PLATFORM: &str = "platform";

/// The store, and the data of this host that is known to be there.
pub(crate) struct Stored {
    store: Store,
    /// Folder for files on their way to the store or from it.
    dir: PathBuf,
    snapshots: Mutex<HashSet<SnapshotId>>,
    templates: Mutex<HashSet<String>>,
    /// True after the platform refused to confirm this host, or could not be reached.
    refused: AtomicBool,
    /// Lock of each folder that is being fetched, by its name in the store.
    fetching: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    work: Notify,
}

impl Stored {
    /// Opens the store, and removes everything that an earlier agent left in `dir`.
    pub(crate) fn new(store: Store, dir: PathBuf) -> io::Result<Self> {
        let _ = fs::remove_dir_all(&dir);
        // The folder holds disks and memories of guests, so only this user may read it.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let (snapshots, templates, refused, fetching) = Default::default();
        Ok(Self { store, dir, snapshots, templates, refused, fetching, work: Notify::new() })
    }

    /// Wakes the task that sends, since there is something new to send.
    pub(super) fn notify(&self) {
        self.work.notify_one();
    }

    fn snapshots(&self) -> MutexGuard<'_, HashSet<SnapshotId>> {
        lock(&self.snapshots)
    }

    fn templates(&self) -> MutexGuard<'_, HashSet<String>> {
        lock(&self.templates)
    }

    /// Fetches a stored folder into the folder `to`, unless that folder exists.
    async fn fetch(
        &self,
        room: &Room,
        (namespace, name): (&str, &str),
        to: &Path,
    ) -> Result<(), Error> {
        let lock = {
            let mut all = lock(&self.fetching);
            // No fetch uses a lock that only the map holds. A fetch that is given up cannot remove
            // its own lock, so the next fetch does.
            all.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(all.entry(name.to_owned()).or_default())
        };
        let _guard = lock.lock().await;
        if to.exists() {
            return Ok(());
        }
        let bytes = self.store.bytes(namespace, name).await.map_err(failure)?;
        let _claim = room.claim(bytes)?;
        let staged = self.dir.join(format!("fetched-{}", name.replace('/', "-")));
        let failed = "fetching from the store";
        let _ = fs::remove_dir_all(&staged);
        fs::create_dir_all(&staged).map_err(io_error(failed))?;
        let fetched = self.store.get(namespace, name, &staged).await.map_err(failure);
        let placed = fetched.and_then(|()| place(&staged, to).map_err(io_error(failed)));
        if placed.is_err() {
            let _ = fs::remove_dir_all(&staged);
        }
        placed
    }
}

/// Moves a complete folder to its place, durably.
fn place(staged: &Path, to: &Path) -> io::Result<()> {
    daemon::failpoint("store.fetched")?;
    let parent = to.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent)?;
    fs::rename(staged, to)?;
    File::open(parent)?.sync_all()
}

fn failure(error: store::Error) -> Error {
    match error {
        store::Error::Missing(name) => Error::NotFound(format!("{name} in the store")),
        store::Error::Damaged(name) => {
            Error::Damaged(snapshot::damaged(format!("{name} in the store")))
        }
        error @ (store::Error::Store(_) | store::Error::File(_)) => {
            Error::Io { what: "using the store", source: io::Error::other(error) }
        }
    }
}

/// The command that resumes a capsule, as far as copies of the capsule are concerned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Placed {
    /// Generation of the command.
    pub generation: u64,
    /// Generation of the command that placed the capsule on this host. A copy of an earlier
    /// generation is a leftover: the capsule has run elsewhere since. 0 when unknown.
    pub since: u64,
}

impl Manager {
    /// Spawns the tasks that upload what the store lacks, and that sweep the store. Both run until
    /// the process ends.
    pub(super) fn spawn_uploads(&self) {
        let Some(stored) = self.context.stored.clone() else { return };
        let (this, tasks) = (self.clone(), self.context.tasks.clone());
        self.context.tasks.spawn(async move {
            let mut stop = tasks.stop_signal().wait();
            loop {
                tokio::select! {
                    () = Box::pin(this.store_all(&stored)) => {}
                    () = &mut stop => return,
                }
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    () = stored.work.notified() => {}
                    () = &mut stop => return,
                }
            }
        });
        let (stored, tasks) = (self.context.stored.clone(), self.context.tasks.clone());
        let standing = Arc::clone(&self.context.standing);
        self.context.tasks.spawn(async move {
            let Some(stored) = stored else { return };
            let mut stop = tasks.stop_signal().wait();
            // The first wait is random, so that hosts that start together do not sweep together.
            let mut wait = SWEEP.mul_f64(f64::from(rand::random::<f32>()));
            loop {
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = &mut stop => return,
                }
                wait = SWEEP;
                if !standing.confirm().await {
                    continue;
                }
                match stored.store.sweep().await {
                    Ok(0) => {}
                    Ok(removed) => tracing::info!(removed, "swept the store"),
                    Err(error) => tracing::warn!(%error, "sweeping the store"),
                }
            }
        });
    }

    /// Sends everything that the store lacks, unless the platform no longer counts this host as a
    /// member.
    async fn store_all(&self, stored: &Stored) {
        use futures::StreamExt;
        // A linked copy takes a little room, and keeps files on the disk that are removed
        // meanwhile.
        if let Err(error) = self.context.room.claim(0) {
            tracing::warn!(error = chain(&error), "nothing is sent to the store");
            return;
        }
        let due: Vec<CapsuleId> = {
            let capsules = self.lock();
            let due = capsules.iter().filter(|(_, c)| c.state == State::Paused && c.is_unsent());
            due.map(|(id, _)| *id).collect()
        };
        let (mut snapshots, mut templates) = (self.snapshots(), self.context.templates_here());
        snapshots.retain(|id| !stored.snapshots().contains(id));
        templates.retain(|name| !stored.templates().contains(name));
        if due.is_empty() && snapshots.is_empty() && templates.is_empty() {
            return;
        }
        let refused = !self.context.standing.confirm().await;
        if stored.refused.swap(refused, Ordering::Relaxed) != refused && refused {
            tracing::warn!("the platform does not confirm this host: nothing is sent to the store");
        }
        if refused {
            return;
        }
        let sending = due.into_iter().map(|id| async move {
            if let Err(error) = self.send_capsule(stored, id).await {
                tracing::warn!(%id, error = chain(&error), "keeping a capsule in the store");
            }
        });
        futures::stream::iter(sending).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
        for id in snapshots {
            if let Err(error) = self.send_snapshot(stored, id).await {
                tracing::warn!(%id, error = chain(&error), "keeping a snapshot in the store");
            }
        }
        for name in templates {
            if let Err(error) = self.send_template(stored, &name).await {
                tracing::warn!(name, error = chain(&error), "keeping a template in the store");
            }
        }
    }

    /// Sends a paused capsule's last snapshot to the store, beside earlier ones.
    async fn send_capsule(&self, stored: &Stored, id: CapsuleId) -> Result<(), Error> {
        let dir = boot::folder(&self.context, id);
        let lock = self.capsule_lock(id)?;
        let aside = stored.dir.join(format!("sent-{id}"));
        let sent = {
            let _guard = lock.lock().await;
            let Some(record) = CapsuleRecord::load(&dir).filter(|l| l.phase == Phase::Paused)
            else {
                return Ok(());
            };
            let (from, to, told) = (
                boot::snapshots_dir(&dir).join(record.last.to_string()),
                aside.clone(),
                record.clone(),
            );
            let set_aside = move || {
                link_aside(&from, &to)?;
                // The stored record leaves out the parts that exist only on this host.
                CapsuleRecord { slot: None, machine: None, base_layers: Layers::default(), ..told }
                    .save(&to)
            };
            blocking(set_aside).await.map_err(io_error("setting a snapshot aside"))?;
            record
        };
        let (team, tree) = (&sent.team, StoredSnapshot::fresh(sent.last));
        let put = stored.store.put(team, &tree.path(id), &aside).await;
        let _ = fs::remove_dir_all(&aside);
        let bytes = put.map_err(failure)?;
        daemon::failpoint("store.sent").map_err(io_error("a failpoint"))?;
        metrics::counter!("wrenn_stored_bytes_total").increment(bytes);
        let _guard = lock.lock().await;
        // Each command since then has a later generation: a resume, or another copy after a
        // removal.
        match CapsuleRecord::load(&dir).filter(|record| record.generation == sent.generation) {
            Some(mut record) => {
                (record.stored, record.tree) = (tree.number, tree.name().to_owned());
                record.save(&dir).map_err(io_error("writing the capsule's record"))?;
                self.change(id, |capsule| capsule.stored = Some(tree));
                self.changed();
                Ok(())
            }
            // The row never named this upload, so no later command could use or remove it.
            None => stored.store.remove(team, &tree.path(id)).await.map_err(failure),
        }
    }

    /// Removes a capsule's snapshots from the store: all of them or, with `stays`, the other ones
    /// with no higher number.
    pub(crate) async fn prune_stored(
        &self,
        team: &str,
        id: CapsuleId,
        stays: Option<&StoredSnapshot>,
    ) -> Result<(), Error> {
        let Some(stored) = &self.context.stored else { return Ok(()) };
        for name in stored.store.names(team, &stored_snapshot::folder(id)).await.map_err(failure)? {
            let found = name.rsplit('/').next().and_then(StoredSnapshot::parse);
            let goes = match (stays, found) {
                (None, _) => true,
                (Some(stays), Some(found)) => found.number <= stays.number && found != *stays,
                (Some(_), None) => false,
            };
            if goes {
                stored.store.remove(team, &name).await.map_err(failure)?;
            }
        }
        Ok(())
    }

    /// Fetches a capsule that was paused on another host, and lists it as paused on this host.
    pub(crate) async fn fetch_capsule(
        &self,
        team: &str,
        id: CapsuleId,
        tree: &StoredSnapshot,
        placed: Placed,
    ) -> Result<(), Error> {
        let here = CapsuleRecord::load(&boot::folder(&self.context, id));
        let is_ours =
            |here: &CapsuleRecord| here.generation >= placed.since && here.last >= tree.number;
        if here.as_ref().is_some_and(is_ours) {
            return Ok(());
        }
        let Some(stored) = &self.context.stored else {
            return Err(Error::NotFound(format!("capsule {id}, and no store here")));
        };
        // A copy on this host is a leftover of a capsule that has run elsewhere since.
        if let Some(here) = here {
            self.evict_stale(&here, placed).await?;
        }
        let fetching = Fetching::begin(self, id, placed.generation);
        let failed = "placing a capsule from the store";
        let fetched = stored.dir.join(format!("capsule-{id}-{}", tree.name()));
        stored.fetch(&self.context.room, (team, &tree.path(id)), &fetched).await?;
        let (from, to, tree) = (fetched.clone(), boot::folder(&self.context, id), tree.clone());
        let number = tree.number;
        let placing = blocking(move || {
            let mut record = CapsuleRecord::load(&from)
                .filter(|record| record.id == id && record.last == number)
                .ok_or_else(|| snapshot::damaged("the capsule's record"))?;
            (record.stored, record.tree) = (number, tree.name().to_owned());
            // This copy belongs to the command that it was fetched for.
            record.generation = placed.generation.max(record.generation);
            // An earlier attempt that lost a race may have left this folder.
            let whole = from.with_extension("whole");
            let _ = fs::remove_dir_all(&whole);
            fs::create_dir_all(boot::snapshots_dir(&whole))?;
            record.save(&whole)?;
            CapsuleRecord::remove(&from)?;
            fs::rename(&from, boot::snapshots_dir(&whole).join(number.to_string()))?;
            File::open(boot::snapshots_dir(&whole))?.sync_all()?;
            place(&whole, &to)?;
            Ok(record)
        });
        let record = placing.await;
        let _ = fs::remove_dir_all(&fetched);
        let record = record.map_err(super::snapshot_error(failed))?;
        tracing::info!(%id, number, "fetched a capsule from the store");
        if fetching.end(&record) {
            return Ok(());
        }
        // A removal took the capsule's entry during the fetch.
        boot::remove(&self.context, id).await?;
        Err(Error::Stale)
    }

    /// Removes the leftovers of a capsule that has run elsewhere since it was here. A copy of
    /// `placed`'s own generation, or of a later one, stays.
    async fn evict_stale(&self, here: &CapsuleRecord, placed: Placed) -> Result<(), Error> {
        let id = here.id;
        let state = self.change(id, |capsule| capsule.state.clone());
        let ended = matches!(state, None | Some(State::Paused | State::Dead(_)));
        match state {
            Some(state) if !ended && here.generation >= placed.since => Err(Error::State(state)),
            _ => {
                tracing::info!(%id, "evicting a stale copy of a capsule");
                self.destroy(id, Some(placed.generation.saturating_sub(1))).await
            }
        }
    }

    async fn send_snapshot(&self, stored: &Stored, id: SnapshotId) -> Result<(), Error> {
        let from = self.context.config.snapshots().join(id.to_string());
        let Ok(found) = snapshot::Snapshot::open(&from) else { return Ok(()) };
        let Some(team) = found.manifest.team else { return Ok(()) };
        let name = format!("snapshots/{id}");
        if !stored.store.has(&team, &name).await.map_err(failure)? {
            let aside = stored.dir.join(format!("sent-{id}"));
            let to = aside.clone();
            let set_aside = blocking(move || link_aside(&from, &to)).await;
            set_aside.map_err(io_error("setting a snapshot aside"))?;
            let sent = stored.store.put(&team, &name, &aside).await;
            let _ = fs::remove_dir_all(&aside);
            sent.map_err(failure)?;
        }
        if self.context.config.snapshots().join(id.to_string()).exists() {
            stored.snapshots().insert(id);
            self.changed();
            return Ok(());
        }
        // The snapshot was removed while it was sent.
        stored.store.remove(&team, &name).await.map_err(failure)
    }

    /// Lists the snapshots of this host that the store has too.
    pub(crate) fn stored_snapshots(&self) -> Vec<SnapshotId> {
        let stored = self.context.stored.as_ref();
        stored.map(|stored| stored.snapshots().iter().copied().collect()).unwrap_or_default()
    }

    /// Removes a snapshot from the store.
    pub(crate) async fn forget_snapshot(&self, team: &str, id: SnapshotId) -> Result<(), Error> {
        let Some(stored) = &self.context.stored else { return Ok(()) };
        stored.snapshots().remove(&id);
        stored.store.remove(team, &format!("snapshots/{id}")).await.map_err(failure)
    }

    /// Fetches a snapshot that another host took, if this host lacks it.
    pub(super) async fn fetch_snapshot(&self, team: &str, id: SnapshotId) -> Result<(), Error> {
        let to = self.context.config.snapshots().join(id.to_string());
        match &self.context.stored {
            Some(stored) if !to.exists() => {
                let name = format!("snapshots/{id}");
                stored.fetch(&self.context.room, (team, &name), &to).await
            }
            _ => Ok(()),
        }
    }

    async fn send_template(&self, stored: &Stored, name: &str) -> Result<(), Error> {
        let path = format!("templates/{name}");
        if !stored.store.has(PLATFORM, &path).await.map_err(failure)? {
            let from = self.context.config.templates().join(name);
            stored.store.put(PLATFORM, &path, &from).await.map_err(failure)?;
            tracing::info!(name, "a template is in the store");
        }
        stored.templates().insert(name.to_owned());
        Ok(())
    }

    /// Fetches a template that another host made, if this host lacks it.
    pub(super) async fn fetch_template(&self, name: &str) -> Result<(), Error> {
        let Some(stored) = &self.context.stored else { return Ok(()) };
        if self.context.templates().iter().any(|known| known == name) {
            return Ok(());
        }
        let to = self.context.config.templates().join(name);
        let path = format!("templates/{name}");
        match stored.fetch(&self.context.room, (PLATFORM, &path), &to).await {
            Err(Error::NotFound(_)) => Err(Error::NoTemplate(name.to_owned())),
            fetched => fetched,
        }
    }
}

/// Links a folder's files into another folder, which is made anew.
fn link_aside(from: &Path, to: &Path) -> io::Result<()> {
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

/// A capsule that is being fetched. The host lists it as `Resuming` meanwhile, so that the platform
/// does not take it for lost. Dropping it before the end, as when the caller leaves, removes the
/// capsule's entry.
struct Fetching<'a> {
    manager: &'a Manager,
    id: CapsuleId,
    generation: u64,
}

impl<'a> Fetching<'a> {
    fn begin(manager: &'a Manager, id: CapsuleId, generation: u64) -> Self {
        let unknown = CapsuleRecord { generation, ..CapsuleRecord::unknown() };
        let new = || Capsule { memory_mib: 0, ..Capsule::new(&unknown, State::Resuming) };
        manager.lock().entry(id).or_insert_with(new);
        Self { manager, id, generation }
    }

    /// Reports whether the entry still belongs to this fetch.
    fn is_ours(&self, capsule: &Capsule) -> bool {
        capsule.state == State::Resuming && capsule.generation == self.generation
    }

    /// Marks the capsule as paused on this host; false when it was removed meanwhile.
    fn end(&self, record: &CapsuleRecord) -> bool {
        let mut capsules = self.manager.lock();
        let Some(capsule) = capsules.get_mut(&self.id) else { return false };
        if self.is_ours(capsule) {
            // A removal may wait for the old entry's lock, so the new entry takes it over.
            let lock = Arc::clone(&capsule.lock);
            *capsule = Capsule { lock, ..Capsule::new(record, State::Paused) };
        }
        true
    }
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        let mut capsules = self.manager.lock();
        if capsules.get(&self.id).is_some_and(|capsule| self.is_ours(capsule)) {
            capsules.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AgentContext;
    use crate::vmm::null::NullDriver;

    #[tokio::test]
    async fn capsule_is_listed_during_its_fetch() {
        let dir = tempfile::tempdir().unwrap();
        let context = AgentContext::for_tests(dir.path(), Box::new(NullDriver { port: 1 }));
        let manager = Manager::new(Arc::new(context)).await.unwrap();
        let id = CapsuleId::new();
        let state = || manager.list().into_iter().find(|it| it.id == id).map(|it| it.state);
        let fetching = Fetching::begin(&manager, id, 7);
        assert_eq!(state(), Some(State::Resuming));
        drop(fetching);
        assert_eq!(state(), None, "its caller has left");
        let fetching = Fetching::begin(&manager, id, 7);
        let record = CapsuleRecord { id, generation: 7, ..CapsuleRecord::unknown() };
        assert!(fetching.end(&record));
        drop(fetching);
        assert_eq!(state(), Some(State::Paused));
        manager.lock().remove(&id);
        let fetching = Fetching::begin(&manager, id, 8);
        manager.lock().remove(&id);
        assert!(!fetching.end(&record), "it was removed meanwhile");
    }

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
