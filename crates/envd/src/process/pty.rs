//! Terminals: the master's end, read and written without blocking.

use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, ReadBuf};

/// The group that owns terminals, by Debian's and devpts's convention.
const TTY_GROUP: u32 = 5;

/// A terminal's master.
#[derive(Clone)]
pub(crate) struct Pty {
    master: Arc<AsyncFd<OwnedFd>>,
}

/// Opens a terminal of `size` (columns, rows) whose slave belongs to `uid`.
pub(super) fn open(size: (u16, u16), uid: u32) -> io::Result<(Pty, OwnedFd)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let slave = rustix::fs::open(name, flags, rustix::fs::Mode::empty())?;
    let (owner, group) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(TTY_GROUP));
    // Without the right to, the terminal works all the same.
    let _ = rustix::fs::fchown(&slave, Some(owner), Some(group));
    rustix::io::ioctl_fionbio(&master, true)?;
    let pty = Pty { master: Arc::new(crate::sys::async_fd(master)?) };
    pty.resize(size)?;
    Ok((pty, slave))
}

impl Pty {
    pub(super) fn resize(&self, (cols, rows): (u16, u16)) -> io::Result<()> {
        let size = Winsize { ws_col: cols, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(self.master.get_ref(), size)?)
    }

    pub(super) async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let mut guard = self.master.writable().await?;
            if let Ok(written) = guard.try_io(|fd| Ok(rustix::io::write(fd, data)?)) {
                data = &data[written?..];
            }
        }
        Ok(())
    }

    pub(super) fn reader(&self) -> Self {
        self.clone()
    }
}

impl AsyncRead for Pty {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.master.poll_read_ready(cx))?;
            let room = buf.initialize_unfilled();
            if let Ok(read) = guard.try_io(|fd| Ok(rustix::io::read(fd, &mut *room)?)) {
                buf.advance(read?);
                return Poll::Ready(Ok(()));
            }
        }
    }
}
