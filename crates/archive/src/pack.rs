//! Packs a file or a folder. Each entry's kind is looked at before it is opened, so no FIFO or
//! device holds the thread up.

use crate::format::{self, Entry, Kind, Time};
use crate::{CHUNK, DEPTH_MAX, Error, Result};
use rustix::fs::{FsWord, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, ReadDir};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Size up to which a file is read before its header is written. Files of `/proc` and `/sys` tell
/// no size, or a wrong one.
const SMALL: u64 = 64 * 1024;
/// Bytes that a file without a true size may have.
const UNSIZED_MAX: u64 = 4 * 1024 * 1024;

/// Counts of what was packed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// Bytes of files' contents.
    pub bytes: u64,
    /// Entries that were left out: FIFOs, sockets, devices, and mounted folders of the kernel's own
    /// file systems.
    pub skipped: u64,
}

/// Packs the file or folder at `source` under the name `name`. Follows a link at `source` itself,
/// as `cp` does. Packs links below it as links.
///
/// # Errors
/// Returns `Refused` for any other kind of source, and `File` when the source cannot be read.
/// Returns `Stream` when the archive cannot be written.
pub fn pack(source: &Path, name: &OsStr, to: &mut impl Write) -> Result<Packed> {
    let found = fs::metadata(source).map_err(|e| reading(source, e))?;
    if !found.is_file() && !found.is_dir() {
        let message = format!("path is neither a file nor a folder: {}", source.display());
        return Err(Error::Refused(message));
    }
    let mut packer = Packer { to, packed: Packed::default(), folders: Vec::new() };
    let name = name.as_bytes().to_vec();
    if found.is_file() {
        packer.file(source, name, OFlags::empty())?;
    } else {
        packer.enter(source.to_owned(), name, &found)?;
        packer.walk()?;
    }
    format::finish(packer.to)?;
    Ok(packer.packed)
}

/// Packs single entries under names of the caller's, for a caller that walks folders itself.
pub struct Builder<'a, W> {
    packer: Packer<'a, W>,
}

impl<'a, W: Write> Builder<'a, W> {
    /// Begins an archive.
    pub fn new(to: &'a mut W) -> Self {
        Self { packer: Packer { to, packed: Packed::default(), folders: Vec::new() } }
    }

    /// Packs the entry at `path` under the name `name`, without anything below it. Packs a link as
    /// a link. Counts FIFOs, sockets and devices as skipped.
    ///
    /// # Errors
    /// Returns `File` when the entry cannot be read, and `Stream` when the archive cannot be
    /// written.
    pub fn add(&mut self, path: &Path, name: &[u8]) -> Result<()> {
        let found = fs::symlink_metadata(path).map_err(|e| reading(path, e))?;
        if found.is_symlink() {
            self.packer.link(path, name.to_vec(), &found)
        } else if found.is_dir() {
            let name = [name, b"/"].concat();
            format::write_header(self.packer.to, &entry(Kind::Folder, name, &found))
        } else if found.is_file() {
            self.packer.file(path, name.to_vec(), OFlags::NOFOLLOW)
        } else {
            self.packer.packed.skipped += 1;
            Ok(())
        }
    }

    /// Writes the archive's end.
    ///
    /// # Errors
    /// Returns `Stream` when the archive cannot be written.
    pub fn finish(self) -> Result<Packed> {
        format::finish(self.packer.to)?;
        Ok(self.packer.packed)
    }
}

fn reading(path: &Path, error: io::Error) -> Error {
    Error::file(format!("cannot read {}", path.display()), error)
}

/// Reports whether an entry was removed, or became another kind of entry, since its folder was
/// read.
fn has_vanished(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn time(found: &Metadata) -> Time {
    Time { seconds: found.mtime(), nanos: u32::try_from(found.mtime_nsec()).unwrap_or(0) }
}

/// A folder that is being packed.
struct Folder {
    path: PathBuf,
    name: Vec<u8>,
    device: u64,
    entries: ReadDir,
}

struct Packer<'a, W> {
    to: &'a mut W,
    packed: Packed,
    /// Folders from the top down to the current one.
    folders: Vec<Folder>,
}

impl<W: Write> Packer<'_, W> {
    fn walk(&mut self) -> Result<()> {
        while let Some(folder) = self.folders.last_mut() {
            let device = folder.device;
            let Some(child) = folder.entries.next() else {
                self.folders.pop();
                continue;
            };
            let child = child.map_err(|e| reading(&folder.path, e))?;
            let name = [&folder.name[..], b"/", child.file_name().as_bytes()].concat();
            let path = child.path();
            let found = match fs::symlink_metadata(&path) {
                Ok(found) => found,
                // An entry that vanishes while its folder is packed is left out.
                Err(error) if has_vanished(&error) => continue,
                Err(error) => return Err(reading(&path, error)),
            };
            if found.is_symlink() {
                self.link(&path, name, &found)?;
            } else if found.is_file() {
                self.file(&path, name, OFlags::NOFOLLOW)?;
            } else if found.is_dir() && (found.dev() == device || !is_kernels(&path)) {
                self.enter(path, name, &found)?;
            } else {
                self.packed.skipped += 1;
            }
        }
        Ok(())
    }

    fn enter(&mut self, path: PathBuf, name: Vec<u8>, found: &Metadata) -> Result<()> {
        if self.folders.len() >= DEPTH_MAX {
            let message = format!("over {DEPTH_MAX} nested folders: {}", path.display());
            return Err(Error::Refused(message));
        }
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if has_vanished(&error) && !self.folders.is_empty() => return Ok(()),
            Err(error) => return Err(reading(&path, error)),
        };
        let mut header = entry(Kind::Folder, name.clone(), found);
        header.path.push(b'/');
        format::write_header(self.to, &header)?;
        self.folders.push(Folder { path, name, device: found.dev(), entries });
        Ok(())
    }

    fn link(&mut self, path: &Path, name: Vec<u8>, found: &Metadata) -> Result<()> {
        let target = match fs::read_link(path) {
            Ok(target) => target,
            // `readlink` answers invalid input for an entry that is no longer a link.
            Err(error) if has_vanished(&error) || error.kind() == io::ErrorKind::InvalidInput => {
                return Ok(());
            }
            Err(error) => return Err(reading(path, error)),
        };
        let mut header = entry(Kind::Link, name, found);
        header.link = target.into_os_string().as_bytes().to_vec();
        format::write_header(self.to, &header)
    }

    fn file(&mut self, path: &Path, name: Vec<u8>, follow: OFlags) -> Result<()> {
        // The path may lead to another file by now. So the open never waits, and the kind is
        // checked again.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC | follow;
        let mut file = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            // A file below the top that vanishes or becomes a link is left out.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if !follow.is_empty() => return Ok(()),
            Err(error) => return Err(reading(path, error.into())),
        };
        let found = file.metadata().map_err(|e| reading(path, e))?;
        if !found.is_file() {
            self.packed.skipped += 1;
            return Ok(());
        }
        let mut header = entry(Kind::File, name, &found);
        header.size = found.len();
        if found.len() <= SMALL {
            let mut whole = Vec::new();
            let mut most = Read::by_ref(&mut file).take(UNSIZED_MAX + 1);
            most.read_to_end(&mut whole).map_err(|e| reading(path, e))?;
            header.size = whole.len() as u64;
            if header.size > UNSIZED_MAX {
                let message = format!("file became longer during the read: {}", path.display());
                return Err(Error::Refused(message));
            }
            format::write_header(self.to, &header)?;
            self.to.write_all(&whole).map_err(Error::Stream)?;
        } else {
            format::write_header(self.to, &header)?;
            self.contents(path, &mut file, header.size)?;
        }
        self.packed.bytes += header.size;
        format::pad(self.to, header.size)
    }

    fn contents(&mut self, path: &Path, file: &mut File, size: u64) -> Result<()> {
        let mut buffer = vec![0; CHUNK];
        let mut left = size;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK);
            let read = file.read(&mut buffer[..most]).map_err(|e| reading(path, e))?;
            if read == 0 {
                let message = format!("file became shorter during the read: {}", path.display());
                return Err(Error::Refused(message));
            }
            self.to.write_all(&buffer[..read]).map_err(Error::Stream)?;
            left -= read as u64;
        }
        Ok(())
    }
}

fn entry(kind: Kind, path: Vec<u8>, found: &Metadata) -> Entry {
    let mode = found.permissions().mode() & 0o7777;
    Entry { kind, path, link: Vec::new(), mode, modified: time(found), size: 0 }
}

/// Reports whether a folder is on a file system that shows the kernel's state. Such trees have no
/// contents of their own, and some of their files have no end, such as `/proc/kcore`.
fn is_kernels(path: &Path) -> bool {
    /// Magic numbers of procfs, sysfs, both kinds of control groups, debugfs, tracefs, securityfs
    /// and bpf, from `linux/magic.h`.
    const KERNELS: [FsWord; 8] = [
        0x9fa0,
        0x6265_6572,
        0x6367_7270,
        0x0027_e0eb,
        0x6462_6720,
        0x7472_6163,
        0x7363_6673,
        0xcafe_4a11,
    ];
    rustix::fs::statfs(path).is_ok_and(|found| KERNELS.contains(&found.f_type))
}
