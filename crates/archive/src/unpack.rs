//! Unpacks an archive below a folder. Opens each folder on the way to an entry from its parent's
//! descriptor, and follows no link. No entry leads outside, whatever the archive or another program
//! does to the tree.

use crate::format::{Entry, Kind, Reader, Time};
use crate::{CHUNK, DEPTH_MAX, Error, Result};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes between two syncs of a file that replaces another one, so that no single sync takes long.
const SYNC: u64 = 64 * 1024 * 1024;
/// Names that are tried for a staged entry.
const NAMES: u32 = 64;

/// Rules by which an archive is unpacked.
#[derive(Debug, Clone)]
pub struct Options {
    /// User and group that own all entries. `None` leaves them to the process's own.
    pub owner: Option<(u32, u32)>,
    /// Keeps the set-user-id and set-group-id bits when set.
    pub keep_set_id: bool,
    /// Prefix of the names of incomplete files.
    pub staged: &'static str,
    /// The only top entry that the archive may hold. `None` takes any entries.
    pub top: Option<Top>,
}

/// The only top entry that an archive may hold.
#[derive(Debug, Clone)]
pub struct Top {
    /// Name in the archive. Any other name is refused.
    pub from: OsString,
    /// Name that the entry gets.
    pub to: OsString,
    /// Set for a folder with all below it. Otherwise the entry is a single file. A link is refused
    /// in both cases.
    pub folder: bool,
}

/// Unpacks an archive below the existing folder `folder`, and returns the bytes of files' contents.
/// Files are staged beside their place and renamed. Folders that exist already keep their mode and
/// time.
///
/// # Errors
/// Returns `Refused` for an archive with entries that are not unpacked. Returns `File` when a write
/// fails, and `Stream` when the archive ends early. Entries before the error stay.
pub fn unpack(folder: &Path, from: impl Read, options: Options) -> Result<u64> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(folder, flags, Mode::empty());
    let root = root.map_err(|e| Error::file(format!("cannot open {}", folder.display()), e))?;
    let mut reader = Reader::new(from);
    let mut target = Target { root, options, open: Vec::new(), buffer: vec![0; CHUNK] };
    let mut bytes = 0_u64;
    while let Some(entry) = reader.next_entry()? {
        bytes = bytes.saturating_add(entry.size);
        target.put(&entry, &mut reader)?;
    }
    target.close(0)?;
    Ok(bytes)
}

/// An open folder below the root.
struct Open {
    name: OsString,
    fd: OwnedFd,
    /// Mode and time that a folder of ours gets once its contents are there.
    finish: Option<(u32, Time)>,
}

struct Target {
    root: OwnedFd,
    options: Options,
    /// Folders from below the root down to the last entry's.
    open: Vec<Open>,
    buffer: Vec<u8>,
}

/// Makes the error of a failed call for the entry at `path`.
fn failed(path: &Path) -> impl Fn(Errno) -> Error {
    let doing = writing(path);
    move |error| Error::file(doing.clone(), error)
}

fn writing(path: &Path) -> String {
    format!("cannot write {}", shown(path))
}

/// Renders a path of an archive for people. A hostile name must not control a terminal.
fn shown(path: &Path) -> String {
    let plain = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    path.to_string_lossy().chars().map(plain).collect()
}

fn refused(path: &Path, why: &str) -> Error {
    Error::Refused(format!("{} {why}", shown(path)))
}

fn mode(bits: u32) -> Mode {
    Mode::from_raw_mode(bits & 0o7777)
}

fn times(Time { seconds, nanos }: Time) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanos.into() },
    }
}

impl Target {
    fn put(&mut self, entry: &Entry, reader: &mut Reader<impl Read>) -> Result<()> {
        let Some(parts) = self.parts(&entry.path, entry.kind)? else { return Ok(()) };
        let path: PathBuf = parts.iter().collect();
        if let Kind::Other(flag) = entry.kind {
            let why = match flag {
                b'3' | b'4' | b'6' => "is a device or a FIFO, which cannot be unpacked",
                _ => "has a type that cannot be unpacked",
            };
            return Err(refused(&path, why));
        }
        if matches!(entry.kind, Kind::Link | Kind::HardLink) && entry.link.is_empty() {
            return Err(refused(&path, "is a link without a target"));
        }
        let Some((name, parents)) = parts.split_last() else { return Ok(()) };
        self.enter(parents)?;
        if entry.kind == Kind::Folder {
            return self.make(name, &path, Some((self.mode_of(entry), entry.modified)));
        }
        let replaces = self.is_taken(name, &path)?;
        let staged = match entry.kind {
            Kind::File => self.write(entry, &path, replaces, reader)?,
            Kind::Link => self.link(entry, &path)?,
            Kind::HardLink => self.hard_link(entry, &path)?,
            Kind::Folder | Kind::Other(_) => return Ok(()),
        };
        let dir = self.dir();
        let renamed = rustix::fs::renameat(dir, &staged, dir, name);
        // A rename between two names of one file does nothing, so the staged name is still there.
        if renamed.is_err() || entry.kind == Kind::HardLink {
            let _ = rustix::fs::unlinkat(dir, &staged, AtFlags::empty());
        }
        renamed.map_err(failed(&path))
    }

    /// Splits a path of the archive into names. Returns `None` for the unpacking folder itself.
    fn parts(&self, path: &[u8], kind: Kind) -> Result<Option<Vec<OsString>>> {
        let whole = Path::new(OsStr::from_bytes(path));
        if path.starts_with(b"/") || path.contains(&0) {
            return Err(refused(whole, "is an absolute or invalid path"));
        }
        let mut parts = Vec::new();
        for part in path.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return Err(refused(whole, "leads out of the target folder")),
                part => parts.push(OsStr::from_bytes(part).to_owned()),
            }
        }
        // A path has at most `DEPTH_MAX` folders and a file in the last one.
        if parts.len() > DEPTH_MAX + 1 {
            return Err(refused(whole, "is nested too deeply"));
        }
        if let Some(top) = &self.options.top {
            // A link at the top would lead the next copy to the same place astray.
            let fits = match parts.len() {
                1 if top.folder => kind == Kind::Folder,
                1 => kind == Kind::File,
                _ => top.folder,
            };
            match parts.first_mut() {
                Some(first) if *first == top.from && fits => {
                    first.clone_from(&top.to);
                }
                _ => return Err(refused(whole, "is not the requested file or folder")),
            }
        }
        Ok((!parts.is_empty()).then_some(parts))
    }

    fn mode_of(&self, entry: &Entry) -> u32 {
        if self.options.keep_set_id { entry.mode } else { entry.mode & !0o6000 }
    }

    /// Returns the folder that was entered last.
    fn dir(&self) -> &OwnedFd {
        self.open.last().map_or(&self.root, |open| &open.fd)
    }

    /// Enters the folder of these names, and makes missing ones.
    fn enter(&mut self, names: &[OsString]) -> Result<()> {
        let same = self.open.iter().zip(names).take_while(|(open, name)| open.name == **name);
        let same = same.count();
        self.close(same)?;
        for at in same..names.len() {
            let path: PathBuf = names[..=at].iter().collect();
            self.make(&names[at], &path, None)?;
        }
        Ok(())
    }

    /// Opens a folder in the current one and enters it. Makes it when it is missing.
    fn make(&mut self, name: &OsStr, path: &Path, finish: Option<(u32, Time)>) -> Result<()> {
        if let Some(fd) = open_folder(self.dir(), name, OFlags::PATH, path)? {
            self.open.push(Open { name: name.to_owned(), fd, finish: None });
            return Ok(());
        }
        // Until its contents are there, nobody else may change the folder, and this process can.
        let bits = if finish.is_some() { 0o700 } else { 0o755 };
        rustix::fs::mkdirat(self.dir(), name, mode(bits)).map_err(failed(path))?;
        let fd = open_folder(self.dir(), name, OFlags::RDONLY, path)?;
        let fd = fd.ok_or_else(|| refused(path, "was removed during its creation"))?;
        self.give(&fd, path)?;
        self.open.push(Open { name: name.to_owned(), fd, finish });
        Ok(())
    }

    /// Leaves all folders but the first `kept` ones.
    fn close(&mut self, kept: usize) -> Result<()> {
        while self.open.len() > kept {
            let path: PathBuf = self.open.iter().map(|open| &open.name).collect();
            let Some(Open { fd, finish: Some((bits, time)), .. }) = self.open.pop() else {
                continue;
            };
            rustix::fs::fchmod(&fd, mode(bits)).map_err(failed(&path))?;
            rustix::fs::futimens(&fd, &times(time)).map_err(failed(&path))?;
        }
        Ok(())
    }

    fn give(&self, fd: &OwnedFd, path: &Path) -> Result<()> {
        let Some((user, group)) = self.options.owner else { return Ok(()) };
        let owner = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
        rustix::fs::fchown(fd, owner.0, owner.1).map_err(failed(path))
    }

    /// Reports whether a file or a link has this name. A new entry replaces either.
    fn is_taken(&self, name: &OsStr, path: &Path) -> Result<bool> {
        let found = match rustix::fs::statat(self.dir(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(failed(path)(error)),
        };
        match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile | FileType::Symlink => Ok(true),
            FileType::Directory => Err(refused(path, "is a folder, which a file cannot replace")),
            FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => {
                Err(refused(path, "is a device, a FIFO or a socket, which cannot be replaced"))
            }
        }
    }

    /// Makes an entry under a staged name, and returns that name.
    fn stage<T>(
        &self,
        path: &Path,
        make: impl Fn(&str) -> rustix::io::Result<T>,
    ) -> Result<(String, T)> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let process = std::process::id();
        for _ in 0..NAMES {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("{}{process}-{count}", self.options.staged);
            match make(&name) {
                Ok(made) => return Ok((name, made)),
                // A killed process left this name behind.
                Err(Errno::EXIST) => {}
                Err(error) => return Err(failed(path)(error)),
            }
        }
        Err(failed(path)(Errno::EXIST))
    }

    fn write(
        &mut self,
        entry: &Entry,
        path: &Path,
        replaces: bool,
        reader: &mut Reader<impl Read>,
    ) -> Result<String> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = self.dir();
        let open = |name: &str| rustix::fs::openat(dir, name, flags, mode(0o600));
        let (staged, fd) = self.stage(path, open)?;
        let filled = self.fill(fd, entry, path, replaces, reader);
        if filled.is_err() {
            let _ = rustix::fs::unlinkat(self.dir(), &staged, AtFlags::empty());
        }
        filled.map(|()| staged)
    }

    fn fill(
        &mut self,
        fd: OwnedFd,
        entry: &Entry,
        path: &Path,
        replaces: bool,
        reader: &mut Reader<impl Read>,
    ) -> Result<()> {
        let fail = |error: io::Error| Error::file(writing(path), error);
        let mut file = File::from(fd);
        let mut unsynced = 0;
        loop {
            let read = reader.read(&mut self.buffer)?;
            let data = &self.buffer[..read];
            if data.is_empty() {
                break;
            }
            // Zeros become a hole, so that a sparse file stays one.
            if data.iter().all(|byte| *byte == 0) {
                let step = i64::try_from(read).unwrap_or(0);
                file.seek(SeekFrom::Current(step)).map_err(fail)?;
            } else {
                file.write_all(data).map_err(fail)?;
            }
            unsynced += read as u64;
            if replaces && unsynced >= SYNC {
                file.sync_data().map_err(fail)?;
                unsynced = 0;
            }
        }
        file.set_len(entry.size).map_err(fail)?;
        let fd = OwnedFd::from(file);
        self.give(&fd, path)?;
        rustix::fs::fchmod(&fd, mode(self.mode_of(entry))).map_err(failed(path))?;
        rustix::fs::futimens(&fd, &times(entry.modified)).map_err(failed(path))?;
        if replaces {
            // After a crash the file has either the old contents or the new ones.
            rustix::fs::fsync(&fd).map_err(failed(path))?;
        }
        Ok(())
    }

    fn link(&self, entry: &Entry, path: &Path) -> Result<String> {
        let dir = self.dir();
        let target = OsStr::from_bytes(&entry.link);
        let (staged, ()) = self.stage(path, |name| rustix::fs::symlinkat(target, dir, name))?;
        let given = self.options.owner.map_or(Ok(()), |(user, group)| {
            let (user, group) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
            rustix::fs::chownat(dir, &staged, user, group, AtFlags::SYMLINK_NOFOLLOW)
        });
        let set = given.and_then(|()| {
            let times = times(entry.modified);
            rustix::fs::utimensat(dir, &staged, &times, AtFlags::SYMLINK_NOFOLLOW)
        });
        if let Err(error) = set {
            let _ = rustix::fs::unlinkat(dir, &staged, AtFlags::empty());
            return Err(failed(path)(error));
        }
        Ok(staged)
    }

    /// Links a file of the folder again.
    fn hard_link(&self, entry: &Entry, path: &Path) -> Result<String> {
        let none = || refused(path, "is a hard link to a file that is not in the archive");
        let parts = self.parts(&entry.link, Kind::File)?.ok_or_else(none)?;
        let (name, parents) = parts.split_last().ok_or_else(none)?;
        let mut walked: Option<OwnedFd> = None;
        for parent in parents {
            let dir = walked.as_ref().unwrap_or(&self.root);
            let next = open_folder(dir, parent, OFlags::PATH, path)?;
            walked = Some(next.ok_or_else(none)?);
        }
        let from = walked.as_ref().unwrap_or(&self.root);
        let found = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW);
        let found = found.map_err(|_| none())?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Err(none());
        }
        let dir = self.dir();
        let link = |staged: &str| {
            rustix::fs::linkat(from, name.as_os_str(), dir, staged, AtFlags::empty())
        };
        self.stage(path, link).map(|(staged, ())| staged)
    }
}

/// Opens a folder in another one. Returns `None` when nothing has this name.
fn open_folder(
    dir: &OwnedFd,
    name: &OsStr,
    access: OFlags,
    path: &Path,
) -> Result<Option<OwnedFd>> {
    let flags = access | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT) => Ok(None),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            Err(refused(path, "is not a folder, or is a link, which is not followed"))
        }
        Err(error) => Err(failed(path)(error)),
    }
}

#[cfg(test)]
mod tests;
