//! Writes of a file's contents. They go to a file beside the target, which takes the target's name
//! at the end. Until then, and after any failure, the old contents stand. Every call here belongs
//! on a thread that may block.

use super::closer::Closer;
use super::source::{self, Source};
use super::{STAGED_PREFIX, ensure_dir, entry};
use crate::error::{Error, Result};
use crate::jobs::{self, Pool};
use crate::open::{OPEN_FLAGS, not_regular};
use crate::users::User;
use connectrpc::ErrorCode;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{
    AtFlags, FallocateFlags, Mode, OFlags, fstat, openat, renameat, statat, unlinkat,
};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most links that a path may lead through (`path_resolution(7)`).
const LINKS_MAX: usize = 40;
/// Pieces that a single step of a copy moves.
const STEP: usize = 32;

/// A caller's order: path, user and metadata of a write.
pub(crate) struct Order<'a> {
    pub path: &'a Path,
    pub user: &'a User,
    pub metadata: &'a BTreeMap<String, String>,
}

/// A file that is being written. A drop before `commit` leaves the old contents.
pub(crate) struct Sink {
    file: Arc<File>,
    path: PathBuf,
    way: Way,
    /// Closes the file. Stands last, so that it is dropped last.
    closer: Option<Closer>,
}

/// Ways in which contents reach their target.
enum Way {
    /// Through a file beside the target.
    Staged(Staged),
    /// Straight into a file, since its folder takes no other file: it is read-only, or forbids it.
    InPlace,
    /// Straight into a character device, or into a file that the kernel makes up. Owner, mode,
    /// metadata and length stay.
    Special,
}

impl Way {
    /// Removes a staged file that did not become the target. This happens before the caller has an
    /// answer, since the caller may want its room next.
    fn abandon(&mut self) {
        if let Self::Staged(staged) = self {
            staged.remove();
        }
    }
}

/// Properties of a replaced file that its successor keeps.
struct Replaced {
    mode: u32,
    /// Number of the file's names.
    links: u64,
}

/// A file beside its target.
struct Staged {
    folder: Arc<OwnedFd>,
    name: String,
    target: OsString,
    /// Properties of the file that is to be replaced.
    replaced: Option<Replaced>,
    owner: (u32, u32),
    metadata: BTreeMap<String, String>,
    /// Set once the staged name is gone: it became the target's, or was removed.
    gone: bool,
    pool: Pool,
}

impl Sink {
    /// Opens a path for new contents and makes its parents. Follows links to their end.
    ///
    /// # Errors
    /// Returns `invalid_argument` for a folder, a named pipe, a socket or a block device. Each of
    /// them stays untouched.
    pub(crate) fn open(order: &Order<'_>, pool: &Pool) -> Result<Self> {
        let path = order.path;
        let fail = |e: &io::Error| failed(path, e);
        let sink = match fs::metadata(path) {
            Ok(found) if found.file_type().is_char_device() => special(path),
            Ok(found) if !found.is_file() => Err(not_regular(path)),
            Ok(found) => replace(order, &found, pool),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let target = follow(path).map_err(|e| fail(&e))?;
                if let Some(parent) = target.parent() {
                    ensure_dir(parent, order.user)?;
                }
                let staged = stage(order, &target, None, pool).map_err(|e| fail(&e))?;
                staged.ok_or_else(|| fail(&ErrorKind::PermissionDenied.into()))
            }
            Err(e) => Err(fail(&e)),
        };
        sink.map(|sink| Self { closer: Some(Closer::new(&sink.file, pool)), ..sink })
    }

    fn new(file: File, path: &Path, way: Way) -> Self {
        Self { file: Arc::new(file), path: path.to_owned(), way, closer: None }
    }

    /// Appends bytes to the contents.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.put(bytes).inspect_err(|_| self.way.abandon())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => return Err(failed(&self.path, &ErrorKind::WriteZero.into())),
                Ok(written) => rest = &rest[written..],
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // The device is full, such as a terminal that nobody reads.
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.wait()?,
                Err(e) => return Err(failed(&self.path, &e)),
            }
        }
        Ok(())
    }

    /// Waits until a device takes more, for at most the time of a call.
    fn wait(&self) -> Result<()> {
        let limit = Timespec::try_from(jobs::LIMIT).map_err(|e| Error::internal(e.to_string()))?;
        match poll(&mut [PollFd::new(&self.file, PollFlags::OUT)], Some(&limit)) {
            Ok(0) => {
                let message = format!("{} accepts no more data", self.path.display());
                Err(Error::new(ErrorCode::DeadlineExceeded, message))
            }
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(e) => Err(failed(&self.path, &e.into())),
        }
    }

    /// Copies a part of a source. Holes of a sparse source stay holes. Returns `false` at its end.
    pub(crate) fn copy(&mut self, from: &mut Source) -> Result<bool> {
        self.copy_step(from).inspect_err(|_| self.way.abandon())
    }

    fn copy_step(&mut self, from: &mut Source) -> Result<bool> {
        for _ in 0..STEP {
            if matches!(self.way, Way::Staged(_)) {
                let hole = from.skip_hole();
                self.skip(hole).map_err(|e| failed(&self.path, &e))?;
            }
            let piece = from.read().map_err(|e| from.failure(&e))?;
            if piece.is_empty() {
                return Ok(false);
            }
            self.put(&piece)?;
        }
        Ok(true)
    }

    fn skip(&mut self, hole: u64) -> io::Result<()> {
        if hole == 0 {
            return Ok(());
        }
        let at = self.file.stream_position()?.saturating_add(hole);
        self.file.set_len(at)?;
        self.file.seek(SeekFrom::Start(at)).map(|_| ())
    }

    /// Gives the contents to the target.
    pub(crate) fn commit(mut self) -> Result<()> {
        let done = match &mut self.way {
            Way::Staged(staged) => staged.commit(&self.file),
            Way::InPlace | Way::Special => Ok(()),
        };
        self.way.abandon();
        if let Some(closer) = &mut self.closer {
            closer.release();
        }
        done.map_err(|e| failed(&self.path, &e))
    }
}

fn failed(path: &Path, error: &io::Error) -> Error {
    Error::io(&format!("cannot write {}", path.display()), error)
}

/// Follows links to a path that does not exist yet.
fn follow(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("/")).join(target),
            Err(_) => return Ok(path),
        }
    }
    Err(Errno::LOOP.into())
}

fn special(path: &Path) -> Result<Sink> {
    let file = OpenOptions::new().write(true).custom_flags(OPEN_FLAGS).open(path);
    let file = file.map_err(|e| failed(path, &e))?;
    // The path may lead to another file by now. Such a file would lose its contents part by part.
    let found = file.metadata().map_err(|e| failed(path, &e))?;
    if !found.file_type().is_char_device() && !source::is_made_up(&file) {
        return Err(not_regular(path));
    }
    Ok(Sink::new(file, path, Way::Special))
}

/// Opens an existing file for new contents.
fn replace(order: &Order<'_>, found: &Metadata, pool: &Pool) -> Result<Sink> {
    let path = order.path;
    if source::on_made_up(path) {
        return special(path);
    }
    // A file without a path, as below /proc/self/fd, is written in place.
    if let Ok(target) = fs::canonicalize(path) {
        let replaced = Replaced { mode: found.mode(), links: found.nlink() };
        let staged = stage(order, &target, Some(replaced), pool).map_err(|e| failed(path, &e))?;
        if let Some(sink) = staged {
            return Ok(sink);
        }
    }
    in_place(order).map_err(|e| failed(path, &e))?.ok_or_else(|| not_regular(path))
}

/// Opens a file to be written in place. Returns `None` when the path no longer leads to a file.
fn in_place(order: &Order<'_>) -> io::Result<Option<Sink>> {
    let path = order.path;
    let file = OpenOptions::new().write(true).custom_flags(OPEN_FLAGS).open(path)?;
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    own(&file, (order.user.uid, order.user.gid))?;
    entry::replace_metadata(&file, order.metadata)?;
    file.set_len(0)?;
    Ok(Some(Sink::new(file, path, Way::InPlace)))
}

/// Makes a file beside a target, with the owner and the attributes that the target is to have.
/// Returns `None` when the folder of an existing target takes no other file.
fn stage(
    order: &Order<'_>,
    target: &Path,
    replaced: Option<Replaced>,
    pool: &Pool,
) -> io::Result<Option<Sink>> {
    let name = target.file_name().ok_or(ErrorKind::InvalidFilename)?.to_owned();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = openat(rustix::fs::CWD, target.parent().unwrap_or(target), flags, Mode::empty())?;
    let mut staged = Staged {
        folder: Arc::new(folder),
        name: String::new(),
        target: name,
        replaced,
        owner: (order.user.uid, order.user.gid),
        metadata: order.metadata.clone(),
        gone: true,
        pool: pool.clone(),
    };
    let file = match staged.create() {
        Err(e) if staged.replaced.is_some() && is_forbidden(&e) => return Ok(None),
        file => file?,
    };
    own(&file, staged.owner)?;
    if let Some(replaced) = &staged.replaced {
        entry::copy_attributes(target, &file);
        // Like a change of owner, this clears the set-user-id and set-group-id bits.
        file.set_permissions(fs::Permissions::from_mode(replaced.mode & 0o1777))?;
    }
    // On a file system without such attributes, the error comes before any contents do.
    entry::replace_metadata(&file, order.metadata)?;
    Ok(Some(Sink::new(file, order.path, Way::Staged(staged))))
}

fn is_forbidden(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem)
}

/// Gives a file to its user. Without the right to do so, on an ordinary machine, does nothing.
fn own(file: &File, owner: (u32, u32)) -> io::Result<()> {
    if !rustix::process::getuid().is_root() {
        return Ok(());
    }
    fchown(file, Some(owner.0), Some(owner.1))
}

impl Staged {
    fn create(&mut self) -> io::Result<File> {
        let mut random = [0_u8; 8];
        rustix::rand::getrandom(&mut random[..], rustix::rand::GetRandomFlags::empty())?;
        let name = format!("{STAGED_PREFIX}{:016x}", u64::from_ne_bytes(random));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK;
        // Nobody may read a file's next contents before it has the old file's mode.
        let mode = if self.replaced.is_some() { 0o600 } else { 0o666 };
        let file = openat(&*self.folder, name.as_str(), flags, Mode::from_raw_mode(mode))?;
        self.name = name;
        self.gone = false;
        Ok(file.into())
    }

    fn commit(&mut self, file: &File) -> io::Result<()> {
        self.check_staged(file)?;
        if let Some(replaced) = &self.replaced {
            // Without this sync, a crash could leave neither contents. The wait is the dearest part
            // of an upload, so a file that replaces nothing goes to the disk later.
            file.sync_data()?;
            // A rename would part the file from its other names.
            if replaced.links > 1 {
                return self.copy_into_target(file);
            }
        }
        let target = self.target.as_os_str();
        match renameat(&*self.folder, self.name.as_str(), &*self.folder, target) {
            // The target is a mount point. Other mounts show the file, so it must stay.
            Err(Errno::BUSY) if self.replaced.is_some() => return self.copy_into_target(file),
            done => done?,
        }
        self.gone = true;
        Ok(())
    }

    /// Checks that the staged name still leads to the file that was written.
    fn check_staged(&self, file: &File) -> io::Result<()> {
        let found = statat(&*self.folder, self.name.as_str(), AtFlags::SYMLINK_NOFOLLOW)?;
        let ours = fstat(file)?;
        if (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino) {
            return Ok(());
        }
        Err(Errno::STALE.into())
    }

    /// Writes the staged contents into the target itself, which has to stay the same file. No other
    /// way keeps its other names. Claims the room first, so that a full disk changes nothing.
    fn copy_into_target(&self, staged: &File) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let folder = &*self.folder;
        let target = File::from(openat(folder, self.target.as_os_str(), flags, Mode::empty())?);
        let (old, new) = (target.metadata()?, staged.metadata()?);
        if !old.is_file() {
            let message = "the file is no longer a regular file";
            return Err(io::Error::new(ErrorKind::InvalidInput, message));
        }
        let room = new.len().min(new.blocks().saturating_mul(512));
        if room > 0 {
            let claimed = rustix::fs::fallocate(&target, FallocateFlags::KEEP_SIZE, 0, room);
            if let Err(full @ (Errno::NOSPC | Errno::DQUOT)) = claimed {
                let _ = target.set_len(old.len());
                return Err(full.into());
            }
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let from = openat(folder, self.name.as_str(), flags, Mode::empty())?;
        io::copy(&mut File::from(from), &mut &target)?;
        target.set_len(new.len())?;
        own(&target, self.owner)?;
        entry::replace_metadata(&target, &self.metadata)?;
        target.sync_data()
    }

    fn remove(&mut self) {
        if !self.gone {
            let _ = unlinkat(&*self.folder, self.name.as_str(), AtFlags::empty());
            self.gone = true;
        }
    }
}

impl Drop for Staged {
    /// Removes a file that did not become the target. The removal is a job, since the serving
    /// thread may be the thread that drops the file.
    fn drop(&mut self) {
        if self.gone {
            return;
        }
        let (folder, name) = (Arc::clone(&self.folder), std::mem::take(&mut self.name));
        self.pool.later(move || {
            let _ = unlinkat(&*folder, name.as_str(), AtFlags::empty());
        });
    }
}

#[cfg(test)]
mod tests;
