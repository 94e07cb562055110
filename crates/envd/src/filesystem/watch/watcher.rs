//! Reads inotify for a watch, on the watch's own thread. Names are relative to the root. A
//! recursive watch also covers directories made later, and files that were put into them before
//! their watch.
//!
//! A directory that appears is watched and then read. The reading reports its contents: `Create`
//! for each name, and `Write` for each file that has contents. The kernel may report the same
//! creations again, since both look at the directory at the same time. The repetitions are in the
//! kernel's queue when the reading ends. The watcher drops them until it has read that queue.

use super::Options;
use super::events::{Change, Events};
use super::queue::{BATCH, Queue};
use super::tree::{Id, Tree};
use crate::error::{Error, Result};
use crate::filesystem::STAGED_PREFIX;
use crate::filesystem::entry::{self, Entry};
use crate::users::Names;
use connectrpc::ErrorCode;
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirEntry};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of one read from the kernel's queue.
const BUFFER: usize = 64 * 1024;
/// Bytes of the longest event (`inotify(7)`).
const EVENT_MAX: usize = 16 + 256;
/// Most names from readings that are remembered, so that they are not reported again.
const TOLD_MAX: usize = 65_536;
/// Staged files whose rename is awaited.
const STAGED_MAX: usize = 64;
/// Most watches of directories that left the tree that are removed at once. The kernel reports each
/// removal, and its queue is limited.
const RELEASED: usize = 1024;

/// Directory of the last event, so that its path is put together once.
#[derive(Default)]
struct Place {
    id: Option<Id>,
    path: PathBuf,
    /// Path with a slash at its end. Empty for the root.
    text: String,
}

/// A watch on a directory and, when recursive, on all directories below it.
pub(super) struct Watcher {
    root: PathBuf,
    options: Options,
    inotify: Inotify,
    tree: Tree,
    /// Watches of directories that left the tree and may return to it.
    leaving: BTreeMap<Id, WatchDescriptor>,
    /// Cookies of renames from a staged name.
    staged: VecDeque<u32>,
    /// Names that readings reported, and the number of further reads that may repeat them.
    told: HashSet<OsString>,
    repeats: usize,
    has_read: bool,
    place: Place,
    found: Events,
    /// Entries of the events in `found`. Each path is looked at once.
    entries: HashMap<PathBuf, Option<Arc<Entry>>>,
    /// Names of users and groups for these entries, read once.
    names: Option<Names>,
    queue: Arc<Queue>,
}

impl Watcher {
    /// Begins to watch.
    ///
    /// # Errors
    /// Returns `not_found`, `invalid_argument` for a file, and `resource_exhausted` when the kernel
    /// allows no more watches. Returns `invalid_argument` also for a network mount, unless it is
    /// allowed, since changes by other machines cannot be seen there.
    pub(super) fn new(root: PathBuf, options: Options, queue: Arc<Queue>) -> Result<Self> {
        let found = fs::metadata(&root).map_err(|e| refused(&root, &e))?;
        if !found.is_dir() {
            return Err(Error::invalid(format!("path {} not a directory", root.display())));
        }
        if !options.allow_network && on_network(&root) {
            let message =
                format!("{} is on a network mount, which cannot be watched", root.display());
            return Err(Error::invalid(message));
        }
        let inotify = Inotify::init().map_err(|e| refused(&root, &e))?;
        let watch = inotify.watches().add(&root, root_mask()).map_err(|e| refused(&root, &e))?;
        let tree = Tree::new(watch);
        let first = tree.root();
        let mut watcher = Self {
            root,
            options,
            inotify,
            tree,
            leaving: BTreeMap::new(),
            staged: VecDeque::new(),
            told: HashSet::new(),
            repeats: 0,
            has_read: false,
            place: Place::default(),
            found: Events::default(),
            entries: HashMap::new(),
            names: None,
            queue,
        };
        watcher.read_below(first, false)?;
        Ok(watcher)
    }

    /// Publishes the events that the kernel holds at the time of the call.
    ///
    /// # Errors
    /// Returns the reason why the watch ends.
    pub(super) fn drain(&mut self) -> Result<()> {
        let mut buffer = vec![0; BUFFER];
        for _ in 0..self.reads() {
            if self.queue.is_stopped() {
                return Err(stopped());
            }
            let events = match self.inotify.read_events(&mut buffer) {
                Ok(events) => events,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(refused(&self.root, &e)),
            };
            if self.repeats > 0 {
                self.repeats -= 1;
            } else if !self.told.is_empty() {
                self.told = HashSet::new();
            }
            let mut outcome = Ok(());
            for event in events {
                let id = event.wd.get_watch_descriptor_id();
                outcome = self.take(id, event.mask, event.cookie, event.name);
                if outcome.is_err() {
                    break;
                }
            }
            self.publish()?;
            outcome?;
            if std::mem::take(&mut self.has_read) {
                self.repeats = self.reads();
            }
        }
        self.release();
        Ok(())
    }

    /// Checks that the root is still the directory of its path. The kernel reports nothing when a
    /// parent is moved, or when a program keeps the removed directory open.
    ///
    /// # Errors
    /// Returns the reason why the watch ends.
    pub(super) fn check_root(&self) -> Result<()> {
        match self.inotify.watches().add(&self.root, root_mask()) {
            Ok(watch) if watch.get_watch_descriptor_id() != self.tree.root() => {
                Err(gone(&self.root, "was replaced"))
            }
            Err(e) if has_vanished(&e) => Err(gone(&self.root, "was removed or moved")),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Counts the reads that take all that the kernel holds now.
    fn reads(&self) -> usize {
        let bytes = rustix::io::ioctl_fionread(&self.inotify).unwrap_or(0);
        // A read fills the buffer, except where the next event does not fit.
        usize::try_from(bytes).unwrap_or(0) / (BUFFER - EVENT_MAX) + 1
    }

    fn take(&mut self, id: Id, mask: EventMask, cookie: u32, name: Option<&OsStr>) -> Result<()> {
        if mask.contains(EventMask::Q_OVERFLOW) {
            return Err(lost(&self.root, "the kernel's queue of events overflowed"));
        }
        let is_root = id == self.tree.root();
        if is_root && mask.contains(EventMask::UNMOUNT) {
            return Err(gone(&self.root, "was unmounted"));
        }
        if is_root && mask.intersects(EventMask::DELETE_SELF | EventMask::IGNORED) {
            return Err(gone(&self.root, "was removed"));
        }
        if is_root && mask.contains(EventMask::MOVE_SELF) {
            return Err(gone(&self.root, "was moved"));
        }
        if mask.contains(EventMask::UNMOUNT) && self.tree.contains(id) {
            let message = lost(&self.root, "a file system below it was unmounted").message;
            return Err(Error::new(ErrorCode::Aborted, message));
        }
        if mask.contains(EventMask::IGNORED) {
            self.leaving.remove(&id);
            self.tree.remove(id);
            self.place.id = None;
            return Ok(());
        }
        // Events of a directory itself come from its parent's watch, under the directory's name.
        let (Some(name), Some(change)) = (name, change_of(mask)) else { return Ok(()) };
        if !self.tree.contains(id) {
            return Ok(());
        }
        if is_staged(name) {
            if mask.contains(EventMask::MOVED_FROM) {
                self.staged.truncate(STAGED_MAX - 1);
                self.staged.push_front(cookie);
            }
            return Ok(());
        }
        if mask.contains(EventMask::ISDIR) {
            return self.take_directory(id, mask, name, change);
        }
        let from_stage = mask.contains(EventMask::MOVED_TO) && self.staged.contains(&cookie);
        self.take_file(id, mask, name, change);
        if from_stage {
            // This is an upload. Its owner, mode and contents were set before it had its name.
            self.tell(id, name, Change::Chmod);
            self.tell(id, name, Change::Write);
        }
        Ok(())
    }

    fn take_file(&mut self, id: Id, mask: EventMask, name: &OsStr, change: Change) {
        match change {
            Change::Create if mask.contains(EventMask::CREATE) && self.was_told(id, name) => return,
            Change::Remove | Change::Rename => self.forget_told(id, name),
            Change::Create | Change::Write | Change::Chmod => {}
        }
        self.tell(id, name, change);
    }

    fn take_directory(
        &mut self,
        id: Id,
        mask: EventMask,
        name: &OsStr,
        change: Change,
    ) -> Result<()> {
        let repeated = mask.contains(EventMask::CREATE) && self.was_told(id, name);
        if !repeated {
            self.tell(id, name, change);
        }
        match change {
            // A reading has entered a repeated directory too, unless it was another directory.
            Change::Create if repeated && self.tree.child(id, name).is_some() => {}
            Change::Create if self.options.recursive => {
                if let Some(dir) = self.tree.path(id)
                    && let Some(new) = self.enter(id, &dir, name)?
                {
                    self.read_below(new, true)?;
                }
            }
            Change::Remove | Change::Rename => {
                // Names below the directory were reported too.
                self.told = HashSet::new();
                // The kernel itself ends a removed directory's watch.
                if change == Change::Rename
                    && let Some(child) = self.tree.child(id, name)
                {
                    self.leaving.extend(self.tree.cut(child));
                    self.place.id = None;
                }
            }
            Change::Create | Change::Write | Change::Chmod => {}
        }
        Ok(())
    }

    /// Watches a directory. Returns `None` when it vanished, or is its own parent through a bind
    /// mount.
    fn enter(&mut self, parent: Id, dir: &Path, name: &OsStr) -> Result<Option<Id>> {
        let path = self.root.join(dir).join(name);
        let watch = match self.inotify.watches().add(&path, mask() | WatchMask::DONT_FOLLOW) {
            Ok(watch) => watch,
            Err(e) if has_vanished(&e) => return Ok(None),
            Err(e) => return Err(refused(&path, &e)),
        };
        let id = watch.get_watch_descriptor_id();
        self.leaving.remove(&id);
        self.place.id = None;
        Ok(self.tree.link(parent, name, watch).then_some(id))
    }

    /// Watches the directories below a watched one, when recursive. Reports their contents if they
    /// are new, since a name may be older than the watch.
    fn read_below(&mut self, first: Id, is_new: bool) -> Result<()> {
        let mut left = vec![first];
        while let Some(id) = left.pop() {
            if !self.options.recursive {
                return Ok(());
            }
            if self.queue.is_stopped() {
                return Err(stopped());
            }
            let Some(dir) = self.tree.path(id) else { continue };
            let path = self.root.join(&dir);
            let children = match fs::read_dir(&path) {
                Ok(children) => children,
                Err(e) if has_vanished(&e) && id != self.tree.root() => continue,
                Err(e) => return Err(refused(&path, &e)),
            };
            for child in children {
                let child = match child {
                    Ok(child) => child,
                    Err(e) if has_vanished(&e) => break,
                    Err(e) => return Err(refused(&path, &e)),
                };
                let name = child.file_name();
                if is_staged(&name) {
                    continue;
                }
                let is_dir = child.file_type().is_ok_and(|kind| kind.is_dir());
                if is_new {
                    self.tell_read(id, &child, is_dir)?;
                }
                if is_dir && let Some(new) = self.enter(id, &dir, &name)? {
                    left.push(new);
                }
            }
        }
        Ok(())
    }

    /// Reports a name that was read from a new directory.
    fn tell_read(&mut self, id: Id, child: &DirEntry, is_dir: bool) -> Result<()> {
        let name = child.file_name();
        if self.was_told(id, &name) || !self.find(id) {
            return Ok(());
        }
        if self.told.len() >= TOLD_MAX {
            self.told = HashSet::new();
        }
        self.told.insert(self.place.path.join(&name).into_os_string());
        self.has_read = true;
        self.tell(id, &name, Change::Create);
        if !is_dir && child.metadata().is_ok_and(|m| m.is_file() && m.len() > 0) {
            self.tell(id, &name, Change::Write);
        }
        if self.found.len() >= BATCH {
            self.publish()?;
        }
        Ok(())
    }

    /// Adds an event to `found`.
    fn tell(&mut self, id: Id, name: &OsStr, change: Change) {
        if !self.find(id) {
            return;
        }
        // A name that was removed has no entry. Another file may have the name by then.
        let has_entry = !matches!(change, Change::Remove | Change::Rename);
        let entry = (self.options.include_entry && has_entry).then(|| {
            let path = self.root.join(&self.place.path).join(name);
            let names = self.names.get_or_insert_with(Names::load);
            let look = |path: &PathBuf| entry::stat_with(path, names).ok().map(Arc::new);
            self.entries.entry(path).or_insert_with_key(look).clone()
        });
        self.found.push(&self.place.text, name, change, entry.flatten());
    }

    /// Sets `place` to a directory. Reports whether the directory has a path.
    fn find(&mut self, id: Id) -> bool {
        if self.place.id != Some(id) {
            let Some(path) = self.tree.path(id) else { return false };
            let mut text = path.to_string_lossy().into_owned();
            if !text.is_empty() {
                text.push('/');
            }
            self.place = Place { id: Some(id), path, text };
        }
        true
    }

    /// Reports whether a reading reported this name, so that the kernel may repeat it.
    fn was_told(&mut self, id: Id, name: &OsStr) -> bool {
        !self.told.is_empty()
            && self.find(id)
            && self.told.contains(self.place.path.join(name).as_os_str())
    }

    fn forget_told(&mut self, id: Id, name: &OsStr) {
        if !self.told.is_empty() && self.find(id) {
            self.told.remove(self.place.path.join(name).as_os_str());
        }
    }

    /// Publishes the events in `found`.
    fn publish(&mut self) -> Result<()> {
        self.entries.clear();
        self.names = None;
        if self.found.is_empty() {
            return Ok(());
        }
        let found = std::mem::take(&mut self.found);
        self.queue.publish(found).map_err(|why| lost(&self.root, why))
    }

    /// Removes watches of directories that left the tree.
    fn release(&mut self) {
        for _ in 0..RELEASED {
            let Some((_, watch)) = self.leaving.pop_first() else { return };
            // A removed directory has no watch any more.
            let _ = self.inotify.watches().remove(watch);
        }
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

fn mask() -> WatchMask {
    WatchMask::CREATE
        | WatchMask::MODIFY
        | WatchMask::DELETE
        | WatchMask::MOVED_FROM
        | WatchMask::MOVED_TO
        | WatchMask::ATTRIB
        | WatchMask::ONLYDIR
}

fn root_mask() -> WatchMask {
    mask() | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF
}

fn change_of(mask: EventMask) -> Option<Change> {
    let table = [
        (EventMask::CREATE | EventMask::MOVED_TO, Change::Create),
        (EventMask::MODIFY, Change::Write),
        (EventMask::DELETE, Change::Remove),
        (EventMask::MOVED_FROM, Change::Rename),
        (EventMask::ATTRIB, Change::Chmod),
    ];
    table.into_iter().find(|(bits, _)| mask.intersects(*bits)).map(|(_, change)| change)
}

/// Reports whether a name belongs to a file that envd itself has not finished.
fn is_staged(name: &OsStr) -> bool {
    name.as_bytes().starts_with(STAGED_PREFIX.as_bytes())
}

fn on_network(path: &Path) -> bool {
    const NETWORK: [u64; 4] = [0x6969, 0xff53_4d42, 0x0102_1997, 0x6573_5546];
    rustix::fs::statfs(path).is_ok_and(|s| NETWORK.contains(&s.f_type.unsigned_abs()))
}

/// Reports whether a directory was removed, or replaced by a file or link, before the call.
fn has_vanished(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP))
}

/// Makes an error from the kernel's refusal. Names the limit that was reached.
fn refused(path: &Path, error: &io::Error) -> Error {
    let limit = match error.raw_os_error() {
        Some(libc::ENOSPC) => "fs.inotify.max_user_watches",
        Some(libc::EMFILE) => "fs.inotify.max_user_instances",
        Some(libc::ENOMEM) => "memory",
        _ => return Error::io(&format!("cannot watch {}", path.display()), error),
    };
    let message =
        format!("cannot watch {}: the guest's limit of {limit} is reached", path.display());
    Error::new(ErrorCode::ResourceExhausted, message)
}

fn lost(root: &Path, why: &str) -> Error {
    let message = format!(
        "the watch of {} ended: {why}; list the folder again and start a new watch",
        root.display()
    );
    Error::new(ErrorCode::ResourceExhausted, message)
}

fn gone(root: &Path, why: &str) -> Error {
    Error::not_found(format!("the watch of {} ended: the folder {why}", root.display()))
}

fn stopped() -> Error {
    Error::new(ErrorCode::Canceled, "the watch was stopped")
}

#[cfg(test)]
mod tests;
