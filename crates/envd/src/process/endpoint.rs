//! An end of a pipe, or a terminal's master, read and written without blocking. A reader that waits
//! holds no buffer, so a program that writes nothing costs no memory.

use crate::sys;
use bytes::Bytes;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use tokio::io::unix::AsyncFd;

/// Most bytes that one read returns.
pub(super) const CHUNK: usize = 32 * 1024;

/// An end, which clones share; the last one closes it.
#[derive(Clone)]
pub(super) struct Endpoint {
    fd: Arc<AsyncFd<OwnedFd>>,
}

impl Endpoint {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { fd: Arc::new(sys::async_fd(fd)?) })
    }

    /// Waits for something to read and reads at most `most` bytes, no more than [`CHUNK`]. Nothing
    /// is the end.
    pub(super) async fn read(&self, most: usize) -> io::Result<Bytes> {
        loop {
            let mut guard = self.fd.readable().await?;
            if let Ok(read) = guard.try_io(|fd| read_now(fd.get_ref(), most)) {
                return read;
            }
        }
    }

    /// Reads what is there already, as [`Self::read`] does.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing yet.
    pub(super) fn read_now(&self, most: usize) -> io::Result<Bytes> {
        read_now(self.fd.get_ref(), most)
    }

    /// Writes everything; waits while the other side does not read.
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
