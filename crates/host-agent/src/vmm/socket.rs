//! Sockets over which VMMs take requests. They stay in the capsule's folder, so that a later agent
//! can use them too.

use rustix::fs::{FileType, Mode, OFlags};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net;
use std::path::Path;
use tokio::net::UnixStream;

/// Listens on a socket that a VMM takes over. The path may be of any length.
pub(super) fn listen(dir: &Path, socket: &str) -> io::Result<net::UnixListener> {
    let _ = std::fs::remove_file(dir.join(socket));
    through_descriptor(dir, socket, |path| net::UnixListener::bind(path))
}

/// Connects to a VMM's socket. The path may be of any length. Fails when the listener's queue is
/// full.
///
/// The folder may be the VMM's own, which may have replaced the socket. So no link is followed. A
/// socket with a second name, or whose owner is not the folder's, is refused.
pub(super) async fn connect(dir: &Path, socket: &str) -> io::Result<UnixStream> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let dir = rustix::fs::open(dir, flags, Mode::empty())?;
    let found = rustix::fs::openat(&dir, socket, flags | OFlags::NOFOLLOW, Mode::empty())?;
    let (folder, about) = (rustix::fs::fstat(&dir)?, rustix::fs::fstat(&found)?);
    let is_socket = FileType::from_raw_mode(about.st_mode) == FileType::Socket;
    if !is_socket || about.st_uid != folder.st_uid || about.st_nlink != 1 {
        return Err(io::Error::other(format!("{socket} is not the socket of its folder's owner")));
    }
    // The descriptor refers to the file that was checked.
    UnixStream::connect(format!("/proc/self/fd/{}", found.as_raw_fd())).await
}

/// Runs `work` with a short path through a descriptor, since a socket's path holds at most 107
/// bytes.
fn through_descriptor<T>(
    dir: &Path,
    socket: &str,
    work: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    let dir = rustix::fs::open(dir, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    work(Path::new(&format!("/proc/self/fd/{}/{socket}", dir.as_raw_fd())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn symlink_hard_link_or_file_at_socket_path_is_refused() {
        let (own, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (place, theirs) = (own.path().join("socket"), other.path().join("socket"));
        let _listener = listen(other.path(), "socket").unwrap();
        connect(other.path(), "socket").await.unwrap();
        std::os::unix::fs::symlink(&theirs, &place).unwrap();
        assert!(connect(own.path(), "socket").await.is_err());
        std::fs::remove_file(&place).unwrap();
        std::fs::hard_link(&theirs, &place).unwrap();
        assert!(connect(own.path(), "socket").await.is_err());
        std::fs::remove_file(&place).unwrap();
        connect(other.path(), "socket").await.unwrap();
        std::fs::write(&place, "").unwrap();
        assert!(connect(own.path(), "socket").await.is_err());
    }

    #[tokio::test]
    async fn connect_to_socket_with_full_queue_fails_without_blocking() {
        let dir = tempfile::tempdir().unwrap();
        let listener = listen(dir.path(), "socket").unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let mut waiting = Vec::new();
        for _ in 0..3 {
            waiting.push(connect(dir.path(), "socket").await);
        }
        assert!(waiting[0].is_ok() && waiting[2].is_err(), "{waiting:?}");
    }
}
