//! An end of a pipe, or a terminal's master, with nonblocking reads and writes. A waiting reader
//! holds no buffer, so a program that writes nothing costs no memory.

use crate::sys;
use bytes::Bytes;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use tokio::io::unix::AsyncFd;

/// Most bytes that a read returns.
pub(super) const CHUNK: usize = 32 * 1024;

/// An end that clones share. The last clone closes it.
#[derive(Clone)]
pub(super) struct Endpoint {
    fd: Arc<AsyncFd<OwnedFd>>,
}

impl Endpoint {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { fd: Arc::new(sys::async_fd(fd)?) })
    }

    /// Waits for data and reads at most `most` bytes, and no more than [`CHUNK`]. An empty result
    /// marks the end.
    pub(super) async fn read(&self, most: usize) -> io::Result<Bytes> {
        loop {
            let mut guard = self.fd.readable().await?;
            if let Ok(read) = guard.try_io(|fd| read_now(fd.get_ref(), most)) {
                return read;
            }
        }
    }

    /// Reads data that is there already, like [`Self::read`].
    ///
    /// # Errors
    /// Returns `WouldBlock` when there is none yet.
    pub(super) fn read_now(&self, most: usize) -> io::Result<Bytes> {
        read_now(self.fd.get_ref(), most)
    }

    /// Writes everything. Waits while the other side does not read.
    pub(super) async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let mut guard = self.fd.writable().await?;
            if let Ok(written) = guard.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), data)?)) {
                data = &data[written?..];
            }
        }
        Ok(())
    }

    pub(super) fn descriptor(&self) -> &OwnedFd {
        self.fd.get_ref()
    }
}

fn read_now(fd: impl AsFd, most: usize) -> io::Result<Bytes> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); CHUNK];
    let (read, _) = rustix::io::read(fd, &mut buffer[..most.min(CHUNK)])?;
    Ok(Bytes::copy_from_slice(read))
}
