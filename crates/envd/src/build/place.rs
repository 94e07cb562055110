//! Places files in a step's root. Links on the way lead to places within the root, a link in a
//! file's own place is replaced, and folders merge. All calls belong on a thread that may block.

use crate::error::{Error, Result};
use crate::root::Root;
use archive::Time;
use connectrpc::ErrorCode;
use rustix::fs::{
    AtFlags, Dev, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, chownat,
    fstat, linkat, mknodat, openat, readlinkat, renameat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes per read and write.
const CHUNK: usize = 256 * 1024;
/// Name of a file while its place becomes a folder.
const ASIDE: &str = ".wrenn-aside";
/// Most bytes of paths of folders that still get their time.
const FOLDERS_MAX: usize = 8 << 20;
/// Most links that are followed in the place of the destination, as in Linux.
const LINKS_MAX: usize = 40;
/// Mode of a folder that no source describes.
const FOLDER_MODE: u32 = 0o755;

/// Rules of one COPY.
pub(super) struct Rules {
    /// Absolute path.
    pub dest: PathBuf,
    /// Set if the destination is a folder, although it may be missing.
    pub into: bool,
    /// User and group of all that is placed.
    pub owner: (u32, u32),
    /// Permission bits of all that is placed; those of the source if absent.
    pub mode: Option<u32>,
    /// Set if a folder that exists gets owner and mode of the source, as with Docker.
    pub overrides: bool,
}

/// Place of a file or a folder, relative to the destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spot {
    /// Path of the file or folder that a source names. It tells tops apart.
    pub top: OsString,
    /// Path below the top. Empty for the top itself.
    pub below: PathBuf,
}

/// Kind of a file with the parts of this kind.
pub(super) enum Node<'a> {
    Folder,
    File(&'a mut dyn Read),
    Link(&'a [u8]),
    /// Another name of the file at this path of the root.
    HardLink(&'a Path),
    /// A device or a FIFO.
    Special(FileType, Dev),
}

/// Attributes of a file's source.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes {
    pub mode: u32,
    pub modified: Option<Time>,
}

/// A COPY under way.
pub(super) struct Placer<'a> {
    root: &'a Root,
    rules: Rules,
    /// Top of the only file so far, which has the destination's own name.
    single: Option<OsString>,
    /// Folders that get their time at the end, since each new file changes it.
    folders: Vec<(PathBuf, Time)>,
    /// Bytes of the paths of these folders.
    folder_bytes: usize,
    /// Folder of the last file, and its path.
    parent: Option<(PathBuf, OwnedFd)>,
    buffer: Vec<u8>,
    /// Bytes and files that were placed, for a watcher of the thread.
    progress: Arc<AtomicU64>,
    pub files: u64,
    pub bytes: u64,
    most: u64,
}

impl<'a> Placer<'a> {
    pub(super) fn new(root: &'a Root, mut rules: Rules, progress: Arc<AtomicU64>) -> Result<Self> {
        if rules.overrides {
            rules.dest = follow(root, rules.dest)?;
        }
        let disk = rustix::fs::fstatvfs(root);
        let disk = disk.map_err(|e| Error::io("cannot look at the disk", &e.into()))?;
        Ok(Self {
            root,
            rules,
            single: None,
            folders: Vec::new(),
            folder_bytes: 0,
            parent: None,
            buffer: vec![0; CHUNK],
            progress,
            files: 0,
            bytes: 0,
            most: disk.f_blocks.saturating_mul(disk.f_frsize),
        })
    }

    /// Returns the place of a file or folder. The first single file has the destination's name, and
    /// moves into a folder of that name when another source follows.
    pub(super) fn path(&mut self, spot: &Spot, is_folder: bool) -> Result<PathBuf> {
        if self.single.as_ref().is_some_and(|single| *single != spot.top) {
            self.make_room()?;
        }
        let dest = &self.rules.dest;
        if !spot.below.as_os_str().is_empty() {
            return Ok(dest.join(&spot.below));
        }
        if is_folder {
            return Ok(dest.clone());
        }
        if self.single.is_none() && self.is_folder()? {
            return Ok(dest.join(last(&spot.top)));
        }
        self.single = Some(spot.top.clone());
        Ok(dest.clone())
    }

    fn is_folder(&self) -> Result<bool> {
        if self.rules.into {
            return Ok(true);
        }
        let dest = &self.rules.dest;
        let found = match self.root.find(dest) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(false),
            found => found.map_err(|e| failed(dest, e))?,
        };
        let stat = fstat(&found).map_err(|e| failed(dest, e))?;
        Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }

    /// Moves the only file so far into a folder that takes its place.
    fn make_room(&mut self) -> Result<()> {
        let Some(first) = self.single.take() else { return Ok(()) };
        let dest = self.rules.dest.clone();
        let (parent, name) = self.enter(&dest)?;
        renameat(parent, &name, parent, ASIDE).map_err(|e| failed(&dest, e))?;
        self.make(&dest)?;
        let folder = self.root.find(&dest).map_err(|e| failed(&dest, e))?;
        let (parent, _) = self.enter(&dest)?;
        renameat(parent, ASIDE, &folder, last(&first)).map_err(|e| failed(&dest, e))
    }

    /// Makes a folder with its parents, for the owner.
    fn make(&self, path: &Path) -> Result<bool> {
        let made = self.root.make_for(path, Some(self.rules.owner));
        made.map_err(|e| Error::invalid(format!("cannot make {}: {e:#}", path.display())))
    }

    /// Opens the folder of a path. Returns it with the path's last name.
    fn enter(&mut self, path: &Path) -> Result<(&OwnedFd, OsString)> {
        let name = path.file_name().ok_or_else(|| is_folder(path))?.to_owned();
        let above = path.parent().unwrap_or(Path::new("/"));
        if self.parent.as_ref().is_none_or(|(known, _)| known != above) {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let opened = match self.root.at(above, flags) {
                Err(Errno::NOENT) => {
                    self.make(above)?;
                    self.root.at(above, flags)
                }
                opened => opened,
            };
            let opened = opened.map_err(|e| failed(above, e))?;
            self.parent = Some((above.to_owned(), opened));
        }
        let parent = self.parent.as_ref().map(|(_, parent)| parent);
        Ok((parent.ok_or_else(|| Error::internal("a folder is not open"))?, name))
    }

    /// Places a file or a folder at a path of the root.
    ///
    /// # Errors
    /// Returns `invalid_argument` for a file in place of a folder and the reverse.
    pub(super) fn put(
        &mut self,
        path: &Path,
        node: Node<'_>,
        attributes: Attributes,
    ) -> Result<()> {
        self.files += 1;
        self.progress.fetch_add(1, Ordering::Relaxed);
        let name = match node {
            Node::Folder => return self.put_folder(path, attributes),
            Node::HardLink(to) if to == path => return Ok(()),
            Node::File(_) | Node::Link(_) | Node::HardLink(_) | Node::Special(..) => {
                self.clear(path)?
            }
        };
        match node {
            Node::Folder => Ok(()),
            Node::File(contents) => self.put_file(path, contents, attributes),
            Node::HardLink(to) => self.put_hard_link(path, to),
            Node::Link(text) => {
                let (parent, _) = self.enter(path)?;
                let text = OsStr::from_bytes(text);
                symlinkat(text, parent, &name).map_err(|e| failed(path, e))?;
                self.finish(path, &name, attributes)
            }
            Node::Special(kind, device) => {
                let mode = bits(self.rules.mode.unwrap_or(attributes.mode));
                let (parent, _) = self.enter(path)?;
                mknodat(parent, &name, kind, mode, device)
                    .and_then(|()| rustix::fs::chmodat(parent, &name, mode, AtFlags::empty()))
                    .map_err(|e| failed(path, e))?;
                self.finish(path, &name, attributes)
            }
        }
    }

    /// Gives owner and time to a link or a device.
    fn finish(&mut self, path: &Path, name: &OsStr, attributes: Attributes) -> Result<()> {
        let (user, group) = self.owner();
        let (parent, _) = self.enter(path)?;
        chownat(parent, name, user, group, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| failed(path, e))?;
        let Some(time) = attributes.modified else { return Ok(()) };
        utimensat(parent, name, &times(time), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| failed(path, e))
    }

    fn owner(&self) -> (Option<Uid>, Option<Gid>) {
        let (user, group) = self.rules.owner;
        (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))
    }

    fn put_folder(&mut self, path: &Path, attributes: Attributes) -> Result<()> {
        let is_dest = path == self.rules.dest;
        let made = self.make(path)?;
        if !made && (is_dest || !self.rules.overrides) {
            return Ok(());
        }
        // As with Docker, the destination itself has no mode of a source.
        let described = if is_dest && self.rules.overrides { FOLDER_MODE } else { attributes.mode };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let folder = self.root.at(path, flags).map_err(|e| failed(path, e))?;
        let (user, group) = self.owner();
        rustix::fs::fchown(&folder, user, group)
            .and_then(|()| rustix::fs::fchmod(&folder, bits(self.rules.mode.unwrap_or(described))))
            .map_err(|e| failed(path, e))?;
        if let Some(time) = attributes.modified
            && self.rules.overrides
            && !is_dest
        {
            self.folder_bytes += path.as_os_str().len();
            if self.folder_bytes <= FOLDERS_MAX {
                self.folders.push((path.to_owned(), time));
            }
        }
        Ok(())
    }

    /// Gives folders the times of their sources, as Docker does. A folder that is gone meanwhile, or
    /// beyond [`FOLDERS_MAX`], has the time of the copy.
    pub(super) fn finish_folders(&mut self) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        for (path, time) in self.folders.drain(..) {
            if let Ok(folder) = self.root.at(&path, flags) {
                let _ = rustix::fs::futimens(&folder, &times(time));
            }
        }
    }

    fn put_file(
        &mut self,
        path: &Path,
        contents: &mut dyn Read,
        attributes: Attributes,
    ) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let (parent, name) = self.enter(path)?;
        let file = openat(parent, &name, flags | OFlags::CLOEXEC, bits(0o600));
        let mut file = File::from(file.map_err(|e| failed(path, e))?);
        self.fill(&mut file, path, contents)?;
        let (user, group) = self.owner();
        let mode = bits(self.rules.mode.unwrap_or(attributes.mode));
        // A change of owner clears the set-user-id bit, so the mode comes last.
        rustix::fs::fchown(&file, user, group)
            .and_then(|()| rustix::fs::fchmod(&file, mode))
            .map_err(|e| failed(path, e))?;
        let Some(time) = attributes.modified else { return Ok(()) };
        rustix::fs::futimens(&file, &times(time)).map_err(|e| failed(path, e))
    }

    /// Writes contents. Zeros become a hole, so that a sparse file stays one.
    fn fill(&mut self, file: &mut File, path: &Path, contents: &mut dyn Read) -> Result<()> {
        let fail = |e: io::Error| Error::io(&format!("cannot write {}", path.display()), &e);
        let mut size = 0_u64;
        loop {
            let read = match contents.read(&mut self.buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                read => read.map_err(|e| source_failed(path, &e))?,
            };
            let data = &self.buffer[..read];
            if data.is_empty() {
                break;
            }
            size += read as u64;
            self.bytes += read as u64;
            self.progress.fetch_add(read as u64, Ordering::Relaxed);
            if self.bytes > self.most {
                let most = self.most;
                let message = format!("the files have more than {most} bytes, the disk's size");
                return Err(Error::new(ErrorCode::ResourceExhausted, message));
            }
            if data.iter().all(|byte| *byte == 0) {
                let step = i64::try_from(read).unwrap_or(0);
                file.seek(SeekFrom::Current(step)).map_err(fail)?;
            } else {
                file.write_all(data).map_err(fail)?;
            }
        }
        file.set_len(size).map_err(fail)
    }

    fn put_hard_link(&mut self, path: &Path, to: &Path) -> Result<()> {
        let none = || {
            let (path, to) = (path.display(), to.display());
            Error::invalid(format!("{path} is a hard link to {to}, which this step did not copy"))
        };
        let (above, from) = (to.parent().unwrap_or(to), to.file_name().ok_or_else(none)?);
        let above = self.root.at(above, OFlags::PATH | OFlags::DIRECTORY).map_err(|_| none())?;
        let found = statat(&above, from, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| none())?;
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            return Err(none());
        }
        let (parent, name) = self.enter(path)?;
        linkat(&above, from, parent, &name, AtFlags::empty()).map_err(|e| failed(path, e))
    }

    /// Removes a file, link or device in the place of a new file. Returns the name of the place.
    fn clear(&mut self, path: &Path) -> Result<OsString> {
        let (parent, name) = self.enter(path)?;
        match statat(parent, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(name),
            Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Directory => {
                return Err(is_folder(path));
            }
            found => found.map_err(|e| failed(path, e))?,
        };
        unlinkat(parent, &name, AtFlags::empty()).map_err(|e| failed(path, e))?;
        Ok(name)
    }

    /// Opens a file that was placed, for a second copy of its contents.
    pub(super) fn reopen(&self, path: &Path) -> Result<File> {
        let file = self.root.at(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK);
        file.map(File::from).map_err(|e| failed(path, e))
    }
}

/// Follows links in the place of the destination, as Docker does: a single file replaces the file to
/// which the link leads. The path's other links are followed by each call anyway.
fn follow(root: &Root, mut dest: PathBuf) -> Result<PathBuf> {
    for _ in 0..LINKS_MAX {
        let (Some(above), Some(_)) = (dest.parent(), dest.file_name()) else { return Ok(dest) };
        let found = match root.at(&dest, OFlags::PATH | OFlags::NOFOLLOW) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(dest),
            found => found.map_err(|e| failed(&dest, e))?,
        };
        let stat = fstat(&found).map_err(|e| failed(&dest, e))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            return Ok(dest);
        }
        let target = readlinkat(&found, c"", Vec::new()).map_err(|e| failed(&dest, e))?;
        let next = above.join(OsString::from_vec(target.into_bytes()));
        // A path such as `..` has no last name. It is a folder, to which each call follows the link.
        if next.file_name().is_none() {
            return Ok(dest);
        }
        dest = next;
    }
    Err(failed(&dest, Errno::LOOP))
}

fn is_folder(path: &Path) -> Error {
    Error::invalid(format!("{} is a folder, which a file cannot replace", path.display()))
}

fn failed(path: &Path, error: Errno) -> Error {
    Error::io(&format!("cannot write {}", path.display()), &error.into())
}

/// Makes the error of a source that cannot be read.
fn source_failed(path: &Path, error: &io::Error) -> Error {
    let what = format!("cannot read the contents for {}", path.display());
    match error.raw_os_error() {
        Some(_) => Error::io(&what, error),
        None => Error::invalid(format!("{what}: {error}")),
    }
}

fn last(path: &OsStr) -> &OsStr {
    Path::new(path).file_name().unwrap_or(path)
}

fn bits(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}

fn times(Time { seconds, nanos }: Time) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds.max(0), tv_nsec: nanos.into() },
    }
}
