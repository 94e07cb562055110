//! The files of another stage, image or template, for a COPY. They are mounted beside the step's
//! root for the time of the copy.

use super::copy::{ORIGINS, Origin, not_found};
use super::place::{Attributes, Node, Placer, Spot};
use super::{Build, lower, members};
use crate::error::{Error, Result};
use crate::root::Root;
use crate::{overlay, sys};
use archive::Time;
use recipe::placement::{self, Sources};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, XattrFlags, fgetxattr, fsetxattr, fstat,
    mkdirat, openat, readlinkat, statat, unlinkat,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::collections::HashMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::Seek;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Lowest folder of each origin. A read-only overlay has two folders at least.
const EMPTY: &str = "origins/empty";
/// Attribute with the rights that a program has beyond its user's.
const CAPABILITY: &str = "security.capability";
/// Most files with several names whose names are kept together.
const LINKED_MAX: usize = 262_144;
/// Deepest nesting of folders.
const DEPTH_MAX: usize = 200;

/// Mounts an origin on a thread of its own and runs `work` there. The thread has a working folder of
/// its own, since short paths from PID 1's root have to fit into the options of the mount.
pub(super) fn with<T: Send>(
    build: &Build,
    origin: &Origin,
    work: impl FnOnce(&Root) -> Result<T> + Send,
) -> Result<T> {
    let lower = lower(&origin.lower)?;
    build.exist(&lower, origin.image)?;
    let folders = overlay::folders(&lower, origin.image);
    if folders.is_empty() {
        return Err(Error::invalid("origin: it has neither folders nor an image"));
    }
    let run = || {
        let mounted = mount_at(&build.outside, &folders);
        let (path, root) = mounted
            .map_err(|e| Error::internal(format!("cannot mount the origin of the files: {e:#}")))?;
        let done = work(&root);
        drop(root);
        let _ = unmount(&path, UnmountFlags::DETACH);
        let _ = unlinkat(CWD, &path, AtFlags::REMOVEDIR);
        done
    };
    let joined = std::thread::scope(|scope| scope.spawn(run).join());
    joined.unwrap_or_else(|_| Err(Error::internal("the thread that copies files has failed")))
}

/// Mounts folders. Returns the path from PID 1's root, and the mounted root.
fn mount_at(outside: &Root, folders: &[String]) -> anyhow::Result<(String, Root)> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    sys::own_folder()?;
    let folder = outside.at(Path::new("/"), OFlags::RDONLY | OFlags::DIRECTORY)?;
    rustix::process::fchdir(folder)?;
    let path = format!("origins/{}", COUNT.fetch_add(1, Ordering::Relaxed));
    for path in [ORIGINS.trim_start_matches('/'), EMPTY, &path] {
        match mkdirat(CWD, path, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let relative = |path: &String| path.trim_start_matches('/').to_owned();
    let mut lower: Vec<String> = folders.iter().map(relative).collect();
    lower.push(EMPTY.to_owned());
    let options = CString::new(overlay::options(&lower, None)?)?;
    let flags = MountFlags::RDONLY | MountFlags::NOATIME | MountFlags::NODEV;
    mount("overlay", &path, "overlay", flags, options.as_c_str())?;
    let root = Root::open(&path)?;
    Ok((path, root))
}

/// A walk over the files of an origin.
struct Walk<'w, 'p> {
    placer: &'w mut Placer<'p>,
    origin: &'w Root,
    unpack: bool,
    /// Places of files with several names, by device and inode.
    linked: HashMap<(u64, u64), PathBuf>,
}

/// A file of an origin that is no folder.
struct Found<'f> {
    /// Path from the origin's root.
    path: &'f Path,
    /// Open folder of the file, and the name there.
    above: &'f OwnedFd,
    name: &'f OsStr,
    /// Set if a link is followed, since a source names it.
    follow: bool,
}

/// Places the files of an origin that a source names. A file or folder that the source names itself
/// may be a link, which is followed. Links below stay links.
pub(super) fn place(
    placer: &mut Placer<'_>,
    origin: &Root,
    source: &str,
    unpack: bool,
) -> Result<()> {
    let none = || not_found(source);
    let path = placement::member(source).ok_or_else(none)?;
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    let is_plain = |name: &&&str| !name.contains(['*', '?', '[', '\\']);
    let (plain, wild) = names.split_at(names.iter().take_while(is_plain).count());
    let base = Path::new("/").join(plain.iter().collect::<PathBuf>());
    let tops = match wild.is_empty() {
        true => vec![base],
        false => {
            let sources = Sources::docker(&[wild.join("/")]);
            let sources = sources.map_err(|e| Error::invalid(e.to_string()))?;
            find(origin, base, &sources, wild.len())?
        }
    };
    if tops.is_empty() {
        return Err(none());
    }
    let mut walk = Walk { placer, origin, unpack, linked: HashMap::new() };
    for top in tops {
        let found = origin.find(&top).map_err(|_| none())?;
        walk.top(&top, &found)?;
    }
    Ok(())
}

/// Finds the files and folders that a pattern below a folder names, in the order of their names.
fn find(origin: &Root, base: PathBuf, sources: &Sources, depth: usize) -> Result<Vec<PathBuf>> {
    let mut tops = Vec::new();
    let mut waiting = vec![(base, Vec::<String>::new())];
    while let Some((folder, above)) = waiting.pop() {
        let Ok(open) = origin.at(&folder, OFlags::RDONLY | OFlags::DIRECTORY) else { continue };
        for name in list(&open, &folder)? {
            let mut names = above.clone();
            names.push(name.to_string_lossy().into_owned());
            let path = folder.join(&name);
            if names.len() == depth && sources.names(&names.join("/")) {
                tops.push(path);
            } else if names.len() < depth {
                waiting.push((path, names));
            }
        }
    }
    tops.sort();
    Ok(tops)
}

/// Lists the names of a folder, sorted.
fn list(folder: &OwnedFd, path: &Path) -> Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder).map_err(|e| failed(path, e))? {
        let entry = entry.map_err(|e| failed(path, e))?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn failed(path: &Path, error: rustix::io::Errno) -> Error {
    Error::io(&format!("cannot read {} of the origin", path.display()), &error.into())
}

fn attributes(found: &Stat) -> Attributes {
    let nanos = u32::try_from(found.st_mtime_nsec).unwrap_or(0);
    let modified = Some(Time { seconds: found.st_mtime, nanos });
    Attributes { mode: found.st_mode & 0o7777, modified }
}

fn is_folder(found: &Stat) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::Directory
}

impl Walk<'_, '_> {
    /// Places a file or folder that a source names.
    fn top(&mut self, path: &Path, found: &OwnedFd) -> Result<()> {
        let stat = fstat(found).map_err(|e| failed(path, e))?;
        let spot = Spot { top: path.into(), below: PathBuf::new() };
        if is_folder(&stat) {
            let to = self.placer.path(&spot, true)?;
            self.placer.put(&to, Node::Folder, attributes(&stat))?;
            return self.below(path);
        }
        let above = self.origin.find(path.parent().unwrap_or(path));
        let above = above.map_err(|e| failed(path, e))?;
        let name = path.file_name().unwrap_or_default();
        self.put(&Found { path, above: &above, name, follow: true }, &spot)
    }

    /// Places everything below a folder that a source names.
    fn below(&mut self, top: &Path) -> Result<()> {
        let mut waiting = vec![PathBuf::new()];
        while let Some(folder) = waiting.pop() {
            let full = top.join(&folder);
            let open = self.origin.at(&full, OFlags::RDONLY | OFlags::DIRECTORY);
            let open = open.map_err(|e| failed(&full, e))?;
            if folder.components().count() > DEPTH_MAX {
                let message = format!("{} has more than {DEPTH_MAX} folders", full.display());
                return Err(Error::invalid(message));
            }
            for name in list(&open, &full)? {
                let below = folder.join(&name);
                let path = top.join(&below);
                let stat = statat(&open, &name, AtFlags::SYMLINK_NOFOLLOW);
                let stat = stat.map_err(|e| failed(&path, e))?;
                let spot = Spot { top: top.into(), below: below.clone() };
                if is_folder(&stat) {
                    let to = self.placer.path(&spot, true)?;
                    self.placer.put(&to, Node::Folder, attributes(&stat))?;
                    waiting.push(below);
                    continue;
                }
                self.put(&Found { path: &path, above: &open, name: &name, follow: false }, &spot)?;
            }
        }
        Ok(())
    }

    /// Places anything but a folder.
    fn put(&mut self, found: &Found<'_>, spot: &Spot) -> Result<()> {
        let fail = |e| failed(found.path, e);
        let stat = match found.follow {
            true => fstat(self.origin.find(found.path).map_err(fail)?),
            false => statat(found.above, found.name, AtFlags::SYMLINK_NOFOLLOW),
        };
        let stat = stat.map_err(fail)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.put_file(found, spot, &stat),
            FileType::Symlink => {
                let text = readlinkat(found.above, found.name, Vec::new()).map_err(fail)?;
                let to = self.placer.path(spot, false)?;
                self.placer.put(&to, Node::Link(text.as_bytes()), attributes(&stat))
            }
            // A socket has no server in the copy.
            FileType::Socket | FileType::Directory | FileType::Unknown => Ok(()),
            kind @ (FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice) => {
                let to = self.placer.path(spot, false)?;
                self.placer.put(&to, Node::Special(kind, stat.st_rdev), attributes(&stat))
            }
        }
    }

    fn put_file(&mut self, found: &Found<'_>, spot: &Spot, stat: &Stat) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match found.follow {
            true => self.origin.at(found.path, flags),
            false => openat(found.above, found.name, flags | OFlags::NOFOLLOW, Mode::empty()),
        };
        let mut file = File::from(file.map_err(|e| failed(found.path, e))?);
        if self.unpack && spot.below.as_os_str().is_empty() {
            let (head, rest) = members::peek(&mut file, members::HEAD)?;
            if let Some(gzip) = members::packed(&head)? {
                return members::unpack_all(self.placer, gzip, rest);
            }
            drop(rest);
            file.rewind().map_err(|e| Error::io("cannot read a file of the origin", &e))?;
        }
        let to = self.placer.path(spot, false)?;
        let id = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.linked.get(&id).filter(|_| stat.st_nlink > 1) {
            return self.placer.put(&to, Node::HardLink(first), attributes(stat));
        }
        self.placer.put(&to, Node::File(&mut file), attributes(stat))?;
        copy_capability(&file, &self.placer.reopen(&to)?);
        if stat.st_nlink > 1 && self.linked.len() < LINKED_MAX {
            self.linked.insert(id, to);
        }
        Ok(())
    }
}

/// Copies the rights of a program. A new file has none.
fn copy_capability(from: &File, to: &File) {
    let mut value = [0_u8; 64];
    if let Ok(length) = fgetxattr(from, CAPABILITY, &mut value[..]) {
        let _ = fsetxattr(to, CAPABILITY, &value[..length], XattrFlags::empty());
    }
}
