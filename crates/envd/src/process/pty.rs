//! The master's end of terminals.

use super::endpoint::Endpoint;
use rustix::fs::{fstat, makedev};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcgetwinsize, tcsetwinsize};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// The group that owns terminals, by convention of Debian and devpts.
const TTY_GROUP: u32 = 5;

/// A terminal's master.
pub(crate) struct Pty(Endpoint);

/// Opens a terminal of `size` (columns, rows) whose slave belongs to `uid`. Returns the master and
/// the slave. Opens files of the guest, so only threads that may block call it.
pub(super) fn open(size: (u16, u16), uid: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    // The serving thread uses both ends, and must not wait for a server in the guest.
    if fstat(&master)?.st_rdev != makedev(5, 2) {
        return Err(io::Error::other("/dev/ptmx is not the terminal device"));
    }
    grantpt(&master)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    let (owner, group) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(TTY_GROUP));
    // The terminal also works without the right to change its owner.
    let _ = rustix::fs::fchown(&slave, Some(owner), Some(group));
    resize(&master, size)?;
    Ok((master, slave))
}

fn resize(master: impl AsFd, (cols, rows): (u16, u16)) -> io::Result<()> {
    let size = Winsize { ws_col: cols, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(master, size)?)
}

impl Pty {
    pub(super) fn new(master: Endpoint) -> Self {
        Self(master)
    }

    pub(super) fn resize(&self, size: (u16, u16)) -> io::Result<()> {
        resize(self.0.descriptor(), size)
    }

    /// Returns the present size (columns, rows), which programs may change too.
    pub(super) fn size(&self) -> io::Result<(u16, u16)> {
        let size = tcgetwinsize(self.0.descriptor())?;
        Ok((size.ws_col, size.ws_row))
    }

    pub(super) async fn write_all(&self, data: &[u8]) -> io::Result<()> {
        self.0.write_all(data).await
    }
}
