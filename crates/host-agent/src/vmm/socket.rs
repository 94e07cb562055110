//! Sockets that a VMM is asked over. They stay in the capsule's folder, so that a later agent can
//! use them too.

use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net;
use std::path::Path;
use tokio::net::UnixStream;

/// Listens for a VMM to take over; the path may be of any length.
pub(super) fn listen(dir: &Path, socket: &str) -> io::Result<net::UnixListener> {
    let _ = std::fs::remove_file(dir.join(socket));
    through_descriptor(dir, socket, |path| net::UnixListener::bind(path))
}

/// Connects to where a VMM listens.
pub(super) fn connect(dir: &Path, socket: &str) -> io::Result<UnixStream> {
    let stream = through_descriptor(dir, socket, |path| net::UnixStream::connect(path))?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// Socket paths hold 107 bytes; a descriptor's path is short whatever the folder's is.
fn through_descriptor<T>(
    dir: &Path,
    socket: &str,
    work: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    let dir = rustix::fs::open(dir, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    work(Path::new(&format!("/proc/self/fd/{}/{socket}", dir.as_raw_fd())))
}
