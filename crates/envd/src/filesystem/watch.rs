//! Watching directories with inotify: names relative to the watched directory, recursion
//! that also covers directories made later, and what was put into them before their watch.
//!
//! A directory that appears is watched and then read. Its contents are reported from that reading:
//! `Create` for each name, and `Write` for each file that has contents. The kernel may report the
//! same changes again, since both look at the directory at the same time. Such repetitions are in
//! the kernel's queue by then, and are dropped until the queue is empty.

use crate::error::{Error, Result};
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Watchers that nobody drains may not grow without end.
const WATCHERS_MAX: usize = 256;
const BUFFER: usize = 64 * 1024;

/// What happened to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Create,
    Write,
    Remove,
    Rename,
    Chmod,
}

/// One event below a watched directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// Relative to the watched directory.
    pub name: PathBuf,
    pub change: Change,
}

/// The events that one call to `drain` has found.
#[derive(Default)]
struct Found {
    events: Vec<Event>,
    /// Names that were reported from reading a directory, and those reported as written.
    read: HashSet<PathBuf>,
    written: HashSet<PathBuf>,
}

impl Found {
    /// Reports a name that was read from a directory.
    fn add_read(&mut self, name: &Path, has_contents: bool) {
        if self.read.insert(name.to_owned()) {
            self.events.push(Event { name: name.to_owned(), change: Change::Create });
        }
        if has_contents && self.written.insert(name.to_owned()) {
            self.events.push(Event { name: name.to_owned(), change: Change::Write });
        }
    }

    /// Reports a change from the kernel, unless a reading has reported it already.
    fn add_reported(&mut self, name: PathBuf, change: Change) {
        match change {
            Change::Create if self.read.contains(&name) => return,
            Change::Write if self.written.contains(&name) => return,
            Change::Remove | Change::Rename => {
                self.read.remove(&name);
                self.written.remove(&name);
            }
            Change::Create | Change::Write | Change::Chmod => {}
        }
        self.events.push(Event { name, change });
    }
}

/// Names that `Watcher::add` reports.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tell {
    Nothing,
    /// Directories that are not watched yet, and their contents.
    New,
    All,
}

/// A watch on a directory, and below it when recursive.
pub(crate) struct Watcher {
    pub root: PathBuf,
    pub include_entry: bool,
    recursive: bool,
    inotify: Inotify,
    /// Watched directories, relative to the root.
    dirs: HashMap<WatchDescriptor, PathBuf>,
}

impl Watcher {
    /// Begins to watch.
    ///
    /// # Errors
    /// `not_found`, `invalid_argument` for what is no directory, and for a network's mount
    /// unless allowed: its changes by others cannot be seen.
    pub(crate) fn new(root: PathBuf, recursive: bool, allow_network: bool) -> Result<Self> {
        let fail = |e: &io::Error| Error::io(&format!("watching {}", root.display()), e);
        let found = fs::metadata(&root).map_err(|e| fail(&e))?;
        if !found.is_dir() {
            return Err(Error::invalid(format!("path {} not a directory", root.display())));
        }
        if !allow_network && on_network(&root) {
            let message =
                format!("{} is on a network mount, which cannot be watched", root.display());
            return Err(Error::invalid(message));
        }
        let inotify = Inotify::init().map_err(|e| fail(&e))?;
        let mut watcher =
            Self { root, recursive, include_entry: false, inotify, dirs: HashMap::new() };
        watcher.add(Path::new(""), Tell::Nothing, &mut Found::default())?;
        Ok(watcher)
    }

    /// Every event since the last call, without waiting.
    pub(crate) fn drain(&mut self) -> Vec<Event> {
        let mut found = Found::default();
        let mut buffer = vec![0; BUFFER];
        loop {
            let raw: Vec<_> = match self.inotify.read_events(&mut buffer) {
                Ok(events) => events.map(|e| (e.wd, e.mask, e.name.map(PathBuf::from))).collect(),
                Err(_) => return found.events, // nothing more to read now
            };
            if raw.is_empty() {
                return found.events;
            }
            for (descriptor, mask, name) in raw {
                self.take(&descriptor, mask, name, &mut found);
            }
        }
    }

    fn take(
        &mut self,
        descriptor: &WatchDescriptor,
        mask: EventMask,
        name: Option<PathBuf>,
        found: &mut Found,
    ) {
        if mask.contains(EventMask::IGNORED) {
            self.dirs.remove(descriptor);
            return;
        }
        if mask.contains(EventMask::Q_OVERFLOW) {
            // Events were lost, and directories that need a watch may be among them.
            let _ = self.add(Path::new(""), Tell::New, found);
            return;
        }
        // Events of a directory itself reach its parent's watch under its name.
        let (Some(dir), Some(name)) = (self.dirs.get(descriptor), name) else { return };
        let name = dir.join(name);
        let Some(change) = change_of(mask) else { return };
        let made_dir = change == Change::Create && mask.contains(EventMask::ISDIR);
        found.add_reported(name.clone(), change);
        if made_dir && self.recursive {
            let _ = self.add(&name, Tell::All, found);
        }
    }

    /// Watches a directory and, when recursive, the directories below it. Reports their contents as
    /// `tell` says, since a name may have come before the watch.
    fn add(&mut self, dir: &Path, tell: Tell, found: &mut Found) -> Result<()> {
        let path = self.root.join(dir);
        let mask = WatchMask::CREATE
            | WatchMask::MODIFY
            | WatchMask::DELETE
            | WatchMask::MOVED_FROM
            | WatchMask::MOVED_TO
            | WatchMask::ATTRIB
            | WatchMask::ONLYDIR;
        let mut watches: Watches = self.inotify.watches();
        let descriptor = watches
            .add(&path, mask)
            .map_err(|e| Error::io(&format!("watching {}", path.display()), &e))?;
        let is_new = self.dirs.insert(descriptor, dir.to_owned()).is_none();
        if !self.recursive {
            return Ok(());
        }
        let tell = match tell {
            Tell::New if is_new => {
                found.add_read(dir, false);
                Tell::All
            }
            Tell::Nothing | Tell::New | Tell::All => tell,
        };
        for child in fs::read_dir(&path).into_iter().flatten().flatten() {
            let name = dir.join(child.file_name());
            let is_dir = child.file_type().is_ok_and(|kind| kind.is_dir());
            if tell == Tell::All {
                let has_contents = || child.metadata().is_ok_and(|m| m.is_file() && m.len() > 0);
                found.add_read(&name, !is_dir && has_contents());
            }
            if is_dir {
                let _ = self.add(&name, tell, found);
            }
        }
        Ok(())
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

impl std::os::fd::AsRawFd for Watcher {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.inotify.as_raw_fd()
    }
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

fn on_network(path: &Path) -> bool {
    const NETWORK: [u64; 4] = [0x6969, 0xff53_4d42, 0x0102_1997, 0x6573_5546];
    rustix::fs::statfs(path).is_ok_and(|s| NETWORK.contains(&s.f_type.unsigned_abs()))
}

/// Watchers whose events wait to be asked for, by id.
#[derive(Default)]
pub(crate) struct Watchers {
    known: Mutex<Known>,
}

/// How many there were, and those that are left.
type Known = (u64, BTreeMap<String, Arc<Mutex<Watcher>>>);

impl Watchers {
    /// Keeps a watcher and names it.
    pub(crate) fn insert(&self, watcher: Watcher) -> Result<String> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.1.len() >= WATCHERS_MAX {
            let code = connectrpc::ErrorCode::OutOfRange;
            return Err(Error::new(code, format!("there are {WATCHERS_MAX} watchers already")));
        }
        known.0 += 1;
        let id = format!("w{}", known.0);
        known.1.insert(id.clone(), Arc::new(Mutex::new(watcher)));
        Ok(id)
    }

    /// Finds a watcher.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<Mutex<Watcher>>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.1.get(id).cloned().ok_or_else(|| unknown(id))
    }

    /// Forgets a watcher.
    pub(crate) fn remove(&self, id: &str) -> Result<()> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.1.remove(id).map(|_| ()).ok_or_else(|| unknown(id))
    }
}

fn unknown(id: &str) -> Error {
    Error::not_found(format!("watcher with id {id} not found"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(watcher: &mut Watcher) -> Vec<(String, Change)> {
        watcher.drain().into_iter().map(|e| (e.name.display().to_string(), e.change)).collect()
    }

    fn count(seen: &[(String, Change)], name: &str, change: Change) -> usize {
        seen.iter().filter(|event| **event == (name.to_owned(), change)).count()
    }

    #[test]
    fn new_directory_tells_what_was_put_into_it_before_its_watch_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut watcher = Watcher::new(dir.path().to_owned(), true, false).unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/f"), "x").unwrap();
        fs::write(dir.path().join("a/empty"), "").unwrap();
        let seen = changes(&mut watcher);
        for name in ["a", "a/b", "a/b/f", "a/empty"] {
            assert_eq!(count(&seen, name, Change::Create), 1, "{name}: {seen:?}");
        }
        assert_eq!(count(&seen, "a/b/f", Change::Write), 1, "{seen:?}");
        assert_eq!(count(&seen, "a/empty", Change::Write), 0, "{seen:?}");
        fs::remove_file(dir.path().join("a/b/f")).unwrap();
        assert_eq!(changes(&mut watcher), [("a/b/f".into(), Change::Remove)]);
        fs::write(dir.path().join("a/b/f"), "x").unwrap();
        let wanted = [("a/b/f".into(), Change::Create), ("a/b/f".into(), Change::Write)];
        assert_eq!(changes(&mut watcher), wanted);
    }

    #[test]
    fn files_written_while_directories_appear_are_each_told_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut watcher = Watcher::new(dir.path().to_owned(), true, false).unwrap();
        let root = dir.path().to_owned();
        let writer = std::thread::spawn(move || {
            for n in 0..300 {
                fs::create_dir_all(root.join(format!("{n}/in"))).unwrap();
                fs::write(root.join(format!("{n}/in/f")), "x").unwrap();
            }
        });
        let mut seen = Vec::new();
        while !writer.is_finished() {
            seen.extend(changes(&mut watcher));
        }
        writer.join().unwrap();
        seen.extend(changes(&mut watcher));
        for n in 0..300 {
            let of = |name: &str, change| count(&seen, &format!("{n}{name}"), change);
            let created = ["", "/in", "/in/f"].map(|name| of(name, Change::Create));
            assert_eq!(created, [1; 3], "{n}");
            // A file that is still being written may be reported by a reading and by the kernel.
            assert!((1..=2).contains(&of("/in/f", Change::Write)), "{n}");
        }
    }

    #[test]
    fn directories_whose_events_were_lost_are_watched_and_told() {
        let queue = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        let queue: usize = queue.trim().parse().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut watcher = Watcher::new(dir.path().to_owned(), true, false).unwrap();
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        fs::write(&one, "x").unwrap();
        for _ in 0..=queue / 2 {
            // The kernel joins an event with an equal one just before it.
            fs::rename(&one, &other).unwrap();
            fs::rename(&other, &one).unwrap();
        }
        fs::create_dir(dir.path().join("late")).unwrap();
        fs::write(dir.path().join("late/f"), "x").unwrap();
        let seen = changes(&mut watcher);
        for (name, change) in
            [("late", Change::Create), ("late/f", Change::Create), ("late/f", Change::Write)]
        {
            assert_eq!(count(&seen, name, change), 1, "{name} {change:?}");
        }
        fs::write(dir.path().join("late/g"), "").unwrap();
        assert_eq!(changes(&mut watcher), [("late/g".into(), Change::Create)]);
    }

    #[test]
    fn a_flat_watch_tells_of_its_own_level_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        let mut watcher = Watcher::new(dir.path().to_owned(), false, false).unwrap();
        fs::write(dir.path().join("sub/f"), "x").unwrap();
        fs::rename(dir.path().join("sub"), dir.path().join("new")).unwrap();
        let seen = changes(&mut watcher);
        assert!(seen.contains(&("sub".into(), Change::Rename)), "{seen:?}");
        assert!(seen.contains(&("new".into(), Change::Create)), "{seen:?}");
        assert!(!seen.iter().any(|(name, _)| name.contains('/')), "{seen:?}");
        let file = Watcher::new(dir.path().join("new/f"), false, false);
        assert!(file.is_err_and(|e| e.code == connectrpc::ErrorCode::InvalidArgument));
    }
}
