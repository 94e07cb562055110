//! Named pipes between the interpreter and a kernel. The kernel has both ends of each open, so that
//! the end of the interpreter breaks none of them. A later interpreter opens them again by name.

use crate::process::User;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chownat, fchown, fstat, mknodat, open, unlink,
};
use rustix::io::Errno;
use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use tokio::net::unix::pipe;

/// A pipe's role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kernel) enum Name {
    /// Standard input of the kernel.
    Input,
    Stdout,
    Stderr,
    /// Reports of the kernel.
    Events,
    /// Requests to the kernel.
    Commands,
}

const ALL: [Name; 5] = [Name::Input, Name::Stdout, Name::Stderr, Name::Events, Name::Commands];

impl Name {
    fn file(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Events => "events",
            Self::Commands => "commands",
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Input => 0,
            Self::Stdout => 1,
            Self::Stderr => 2,
            Self::Events => 3,
            Self::Commands => 4,
        }
    }
}

/// The pipes of one kernel, all open.
#[derive(Debug)]
pub(super) struct Pipes {
    files: Vec<OwnedFd>,
}

impl Pipes {
    /// Makes the pipes in a private folder of the user.
    ///
    /// # Errors
    /// Returns an error if the folder or a pipe cannot be made.
    pub(super) fn make(folder: &Path, user: &User) -> io::Result<Self> {
        make_folder(folder, user)?;
        let make = |name: Name| make_pipe(&folder.join(name.file()), user);
        Ok(Self { files: ALL.into_iter().map(make).collect::<io::Result<_>>()? })
    }

    /// Opens the pipes of an earlier interpreter.
    ///
    /// # Errors
    /// Returns an error if a pipe is absent or something else.
    pub(super) fn find(folder: &Path) -> io::Result<Self> {
        let find = |name: Name| open_pipe(&folder.join(name.file()));
        Ok(Self { files: ALL.into_iter().map(find).collect::<io::Result<_>>()? })
    }

    /// Opens both ends of a pipe for a program.
    pub(super) fn both(&self, name: Name) -> io::Result<OwnedFd> {
        self.reopen(name, OFlags::RDWR)
    }

    /// Opens a pipe for reading. Since the interpreter has both ends open, reads never meet the
    /// stream's end, also if the kernel closes its own.
    pub(super) fn receiver(&self, name: Name) -> io::Result<pipe::Receiver> {
        pipe::Receiver::from_owned_fd(self.reopen(name, OFlags::RDWR | OFlags::NONBLOCK)?)
    }

    /// Opens a pipe for writing. Writes fail once the kernel has ended.
    pub(super) fn sender(&self, name: Name) -> io::Result<pipe::Sender> {
        pipe::Sender::from_owned_fd(self.reopen(name, OFlags::WRONLY | OFlags::NONBLOCK)?)
    }

    /// Opens the very pipe again, whatever its name stands for by now.
    fn reopen(&self, name: Name, flags: OFlags) -> io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.files[name.index()].as_raw_fd());
        Ok(open(path, flags | OFlags::CLOEXEC, Mode::empty())?)
    }
}

/// Removes the pipes and their folder. A folder with other files in it stays.
pub(super) fn remove(folder: &Path) {
    for name in ALL {
        let _ = unlink(folder.join(name.file()));
    }
    let _ = std::fs::remove_dir(folder);
}

/// Returns the folder of a kernel's pipes.
pub(super) fn folder(run: &Path, id: &str) -> PathBuf {
    run.join(id)
}

fn make_folder(folder: &Path, user: &User) -> io::Result<()> {
    // Root in the guest may have emptied the folder above.
    DirBuilder::new().recursive(true).mode(0o711).create(folder.parent().unwrap_or(folder))?;
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    Ok(chownat(CWD, folder, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Makes a pipe anew and gives it to the user, whose programs can change the folder meanwhile.
fn make_pipe(path: &Path, user: &User) -> io::Result<OwnedFd> {
    match unlink(path) {
        Err(error) if error != Errno::NOENT => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    let file = open_pipe(path)?;
    let found = fstat(&file)?;
    if found.st_uid != rustix::process::geteuid().as_raw() || found.st_nlink != 1 {
        return Err(other(path));
    }
    fchown(&file, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))?;
    Ok(file)
}

/// Opens both ends of a pipe, which never waits.
fn open_pipe(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = open(path, flags, Mode::empty())?;
    let is_pipe = FileType::from_raw_mode(fstat(&file)?.st_mode) == FileType::Fifo;
    if is_pipe { Ok(file) } else { Err(other(path)) }
}

fn other(path: &Path) -> io::Error {
    io::Error::other(format!("{} is not the kernel's pipe", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn pipe_found_again_has_what_was_written_before() {
        let run = tempfile::tempdir().unwrap();
        let folder = folder(&run.path().join("missing"), "id");
        let pipes = Pipes::make(&folder, &User::current()).unwrap();
        let _kernel = pipes.both(Name::Events).unwrap();
        pipes.sender(Name::Events).unwrap().write_all(b"abc").await.unwrap();
        drop(pipes);
        let mut bytes = [0; 3];
        let found = Pipes::find(&folder).unwrap();
        found.receiver(Name::Events).unwrap().read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"abc");
        remove(&folder);
        assert!(!folder.exists());
    }

    #[test]
    fn file_in_place_of_a_pipe_is_refused() {
        let run = tempfile::tempdir().unwrap();
        let folder = folder(run.path(), "id");
        Pipes::make(&folder, &User::current()).unwrap();
        std::fs::remove_file(folder.join("events")).unwrap();
        assert!(Pipes::find(&folder).is_err());
        std::fs::write(folder.join("events"), "").unwrap();
        assert!(Pipes::find(&folder).is_err());
        std::fs::remove_file(folder.join("events")).unwrap();
        std::os::unix::fs::symlink(folder.join("stdout"), folder.join("events")).unwrap();
        assert!(Pipes::find(&folder).is_err());
    }
}
