//! Watching directories with inotify: names relative to the watched directory, recursion
//! that also covers directories made later, and what was put into them before their watch.

use crate::error::{Error, Result};
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use std::collections::{BTreeMap, HashMap};
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
        watcher.add(Path::new(""), None)?;
        Ok(watcher)
    }

    /// Every event since the last call, without waiting.
    pub(crate) fn drain(&mut self) -> Vec<Event> {
        let mut out = Vec::new();
        let mut buffer = vec![0; BUFFER];
        loop {
            let raw: Vec<_> = match self.inotify.read_events(&mut buffer) {
                Ok(events) => events.map(|e| (e.wd, e.mask, e.name.map(PathBuf::from))).collect(),
                Err(_) => return out, // nothing more to read now
            };
            if raw.is_empty() {
                return out;
            }
            for (descriptor, mask, name) in raw {
                self.take(&descriptor, mask, name, &mut out);
            }
        }
    }

    fn take(
        &mut self,
        descriptor: &WatchDescriptor,
        mask: EventMask,
        name: Option<PathBuf>,
        out: &mut Vec<Event>,
    ) {
        if mask.contains(EventMask::IGNORED) {
            self.dirs.remove(descriptor);
            return;
        }
        // Events of a directory itself reach its parent's watch under its name.
        let (Some(dir), Some(name)) = (self.dirs.get(descriptor), name) else { return };
        let name = dir.join(name);
        let Some(change) = change_of(mask) else { return };
        let event = Event { name: name.clone(), change };
        let made_dir = change == Change::Create && mask.contains(EventMask::ISDIR);
        // The scan of a new directory may have told of this one already.
        if change != Change::Create || !out.contains(&event) {
            out.push(event);
        }
        if made_dir && self.recursive {
            let _ = self.add(&name, Some(out));
        }
    }

    /// Watches a directory and, when recursive, those below; with `found`, tells of what is
    /// there already, since it may have come before the watch.
    fn add(&mut self, dir: &Path, mut found: Option<&mut Vec<Event>>) -> Result<()> {
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
        self.dirs.insert(descriptor, dir.to_owned());
        if !self.recursive {
            return Ok(());
        }
        for child in fs::read_dir(&path).into_iter().flatten().flatten() {
            let name = dir.join(child.file_name());
            let event = Event { name: name.clone(), change: Change::Create };
            if let Some(found) = found.as_deref_mut()
                && !found.contains(&event)
            {
                found.push(event);
            }
            if child.file_type().is_ok_and(|t| t.is_dir()) {
                let _ = self.add(&name, found.as_deref_mut());
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

    #[test]
    fn a_new_directory_and_what_was_put_into_it_at_once_are_both_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut watcher = Watcher::new(dir.path().to_owned(), true, false).unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/f"), "x").unwrap();
        let seen = changes(&mut watcher);
        for name in ["a", "a/b", "a/b/f"] {
            assert_eq!(
                seen.iter().filter(|e| **e == (name.into(), Change::Create)).count(),
                1,
                "{seen:?}"
            );
        }
        fs::remove_file(dir.path().join("a/b/f")).unwrap();
        assert_eq!(changes(&mut watcher), [("a/b/f".into(), Change::Remove)]);
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
