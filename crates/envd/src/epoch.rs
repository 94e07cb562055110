//! Epochs: a guest's lives between two freezes.
//!
//! Before an epoch ends, the host has the guest write its data to the disk. When the next epoch
//! begins, the host gives the guest randomness that no other guest has. Connections from before are
//! ended, since their other side is gone. Processes do not notice an epoch.

use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::identity::Ids;
use crate::sys;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Parameters of a new epoch.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Epoch {
    /// Randomness from the host, in Base64.
    entropy: String,
    /// Set if this guest is a copy of the frozen one. A copy gets ids of its own.
    fresh: bool,
}

impl Epoch {
    /// Reports whether this guest is a copy of the frozen one.
    pub(crate) fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Returns a number of this epoch that no other epoch has. The value reveals nothing of the
    /// randomness.
    pub(crate) fn id(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.entropy.hash(&mut hasher);
        hasher.finish()
    }
}

/// Device that takes randomness.
const RANDOM: &str = "/dev/urandom";

/// Begins an epoch for the caller at `host`.
///
/// # Errors
/// Returns an error when randomness, new ids or the end of old connections fails. Nobody may use
/// the guest then.
pub(crate) fn begin(epoch: &Epoch, ids: Option<&Ids>, host: SocketAddr) -> Result<()> {
    let entropy = STANDARD.decode(&epoch.entropy);
    let entropy = entropy.map_err(|e| Error::invalid(format!("epoch.entropy: {e}")))?;
    let fail = |what: &str, e: &dyn std::fmt::Display| Error::internal(format!("{what}: {e}"));
    let added = check_device(RANDOM.as_ref()).and_then(|()| sys::add_entropy(&entropy));
    added.map_err(|e| fail("cannot add randomness to the kernel's", &e))?;
    if epoch.fresh
        && let Some(ids) = ids
    {
        ids.renew().map_err(|e| fail("cannot renew the ids of the machine and its boot", &e))?;
    }
    end_connections(host).map_err(|e| fail("cannot end the connections of the previous epoch", &e))
}

/// Checks that a path leads to a character device. Root in the guest may have put a named pipe
/// there, whose open would wait for a reader.
fn check_device(path: &Path) -> io::Result<()> {
    match std::fs::metadata(path)?.file_type().is_char_device() {
        true => Ok(()),
        false => Err(io::Error::other(format!("{} is not a device", path.display()))),
    }
}

/// Time for writing every file system's data. After it, only the capsule's own disk counts.
const OTHERS: Duration = Duration::from_secs(4);
/// Time for writing and freezing the capsule's own disk. Together with [`OTHERS`] it is less than
/// the host waits.
const OWN: Duration = Duration::from_secs(22);

/// Writes everything to the disk. With `freeze`, no more writes happen until [`thaw`].
///
/// Other file systems have little time for this. A hanging one, such as a network mount whose
/// server is gone, does not hold up a pause.
///
/// # Errors
/// Returns an error when the capsule's own disk takes no data, or is not frozen in time.
pub(crate) async fn quiesce(guest: &Arc<Guest>, freeze: bool) -> Result<()> {
    if guest.jobs.syncs.place().is_ok() {
        let all = || {
            rustix::fs::sync();
            Ok(())
        };
        let _ = guest.jobs.syncs.run(OTHERS, all).await;
    }
    let own = Arc::clone(guest);
    let work = move || -> Result<Option<Frozen>> {
        let Some(disk) = &own.disk else { return Ok(None) };
        let fail = |e: io::Error| Error::internal(format!("cannot write to the disk: {e}"));
        rustix::fs::syncfs(disk).map_err(|e| fail(e.into()))?;
        if !freeze {
            return Ok(None);
        }
        sys::freeze_file_system(disk).map_err(fail)?;
        Ok(Some(Frozen(Some(Arc::clone(&own)))))
    };
    if let Some(frozen) = guest.jobs.host.run(OWN, work).await? {
        frozen.hold();
    }
    Ok(())
}

/// A frozen disk, which is thawed on drop: if a freeze finishes too late, no caller would thaw it.
/// `FIFREEZE` waits for every write under way, and a write may wait for a hanging file system.
struct Frozen(Option<Arc<Guest>>);

impl Frozen {
    /// Leaves the disk frozen until [`thaw`].
    fn hold(mut self) {
        self.0 = None;
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Some(guest) = &self.0 {
            thaw(guest.disk.as_ref());
        }
    }
}

/// Runs a shell that does nothing. An image without a shell has nothing to warm.
pub(crate) fn warm() -> io::Result<()> {
    match std::process::Command::new("/bin/sh").args(["-c", "true"]).status() {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Thaws the file system if it was frozen.
pub(crate) fn thaw(disk: Option<&OwnedFd>) {
    if let Some(disk) = disk {
        let _ = sys::thaw_file_system(disk);
    }
}

/// Opens the capsule's own disk, below the overlay.
pub(crate) fn open_disk(path: &str) -> io::Result<OwnedFd> {
    Ok(File::open(path)?.into())
}

/// Ends every TCP connection that leaves the guest, except the host's, through `sock_diag(7)`.
/// Programs that use such a connection see an error at once.
fn end_connections(host: SocketAddr) -> io::Result<()> {
    let socket = diag::Socket::open()?;
    for family in [diag::IPV4, diag::IPV6] {
        for connection in socket.list(family)? {
            let (from, to) = (connection.source(), connection.destination());
            let inside = to.ip().is_loopback() || to.ip() == from.ip() || to.port() == 0;
            if !inside && to != host {
                socket.destroy(&connection)?;
            }
        }
    }
    Ok(())
}

/// Access to the kernel's table of sockets.
mod diag {
    use super::{IpAddr, OwnedFd, SocketAddr, io};
    use rustix::net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send,
        socket_with,
    };
    use std::net::Ipv6Addr;

    pub(super) const IPV4: u8 = 2;
    pub(super) const IPV6: u8 = 10;
    const TCP: u8 = 6;
    const LIST: u16 = 20; // SOCK_DIAG_BY_FAMILY
    const DESTROY: u16 = 21; // SOCK_DESTROY
    const ERROR: u16 = 2; // NLMSG_ERROR
    const DONE: u16 = 3; // NLMSG_DONE
    const ASK: u16 = 0x001; // NLM_F_REQUEST
    const ACKNOWLEDGE: u16 = 0x004; // NLM_F_ACK
    const ALL: u16 = 0x300; // NLM_F_DUMP
    /// All states except listening (`TCP_LISTEN`, 10).
    const STATES: u32 = 0xfff & !(1 << 10);
    const HEADER: usize = 16;
    /// Size of `struct inet_diag_sockid` in bytes. It stands 4 bytes into the kernel's message.
    const ID: usize = 48;

    /// A connection, identified as the kernel does.
    pub(super) struct Connection {
        family: u8,
        id: [u8; ID],
    }

    impl Connection {
        fn end(&self, port: usize, address: usize) -> SocketAddr {
            let port = u16::from_be_bytes([self.id[port], self.id[port + 1]]);
            let bytes = &self.id[address..address + 16];
            let ip = match self.family {
                IPV4 => IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]),
                _ => {
                    let all: [u8; 16] = std::array::from_fn(|at| bytes[at]);
                    Ipv6Addr::from(all).to_canonical()
                }
            };
            SocketAddr::new(ip, port)
        }

        pub(super) fn source(&self) -> SocketAddr {
            self.end(0, 4)
        }

        pub(super) fn destination(&self) -> SocketAddr {
            self.end(2, 20)
        }
    }

    pub(super) struct Socket(OwnedFd);

    impl Socket {
        pub(super) fn open() -> io::Result<Self> {
            let (family, flags) = (AddressFamily::NETLINK, SocketFlags::CLOEXEC);
            Ok(Self(socket_with(family, SocketType::DGRAM, flags, Some(netlink::SOCK_DIAG))?))
        }

        fn ask(&self, kind: u16, flags: u16, family: u8, id: &[u8; ID]) -> io::Result<()> {
            let mut message = Vec::with_capacity(HEADER + 8 + ID);
            message.extend_from_slice(&u32::try_from(HEADER + 8 + ID).unwrap_or(0).to_ne_bytes());
            message.extend_from_slice(&kind.to_ne_bytes());
            message.extend_from_slice(&(ASK | flags).to_ne_bytes());
            message.extend_from_slice(&[0; 8]);
            message.extend_from_slice(&[family, TCP, 0, 0]);
            message.extend_from_slice(&STATES.to_ne_bytes());
            message.extend_from_slice(id);
            send(&self.0, &message, SendFlags::empty())?;
            Ok(())
        }

        /// Reads messages until `each` reports the last one.
        fn read(&self, mut each: impl FnMut(u16, &[u8]) -> io::Result<bool>) -> io::Result<()> {
            let mut buffer = vec![0; 32 * 1024];
            loop {
                let (length, _) = recv(&self.0, buffer.as_mut_slice(), RecvFlags::empty())?;
                let mut rest = &buffer[..length];
                while let Some((head, _)) = rest.split_first_chunk::<HEADER>() {
                    let size = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
                    let message = rest.get(HEADER..size).ok_or(io::ErrorKind::InvalidData)?;
                    if each(u16::from_ne_bytes([head[4], head[5]]), message)? {
                        return Ok(());
                    }
                    rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
                }
            }
        }

        pub(super) fn list(&self, family: u8) -> io::Result<Vec<Connection>> {
            self.ask(LIST, ALL, family, &[0; ID])?;
            let mut found = Vec::new();
            self.read(|kind, message| match kind {
                DONE => Ok(true),
                // A kernel without the address family has no such connections.
                ERROR if refused(message).is_some_and(|e| e.raw_os_error() == Some(2)) => Ok(true),
                ERROR => refused(message).map_or(Ok(true), Err),
                _ => {
                    let id = message.get(4..4 + ID).and_then(|id| id.try_into().ok());
                    found.extend(id.map(|id| Connection { family: message[0], id }));
                    Ok(false)
                }
            })?;
            Ok(found)
        }

        /// Ends a connection. Succeeds too if the connection has just ended.
        pub(super) fn destroy(&self, connection: &Connection) -> io::Result<()> {
            self.ask(DESTROY, ACKNOWLEDGE, connection.family, &connection.id)?;
            self.read(|kind, message| match (kind, refused(message)) {
                (ERROR, Some(error)) if error.raw_os_error() != Some(2) => Err(error),
                _ => Ok(kind == ERROR),
            })
        }
    }

    /// Returns the error in an error message. Returns `None` when the message only acknowledges.
    fn refused(message: &[u8]) -> Option<io::Error> {
        let number = i32::from_ne_bytes(*message.first_chunk::<4>()?);
        (number != 0).then(|| io::Error::from_raw_os_error(-number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    #[test]
    fn pipe_in_place_of_random_device_is_refused_without_blocking() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("urandom");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
        assert!(check_device(&pipe).is_err());
        check_device(RANDOM.as_ref()).unwrap();
    }

    #[test]
    fn sock_diag_lists_both_ends_of_a_connection() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (from, to) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        let found = diag::Socket::open().unwrap().list(diag::IPV4).unwrap();
        assert!(found.iter().any(|c| c.source() == from && c.destination() == to));
        assert!(found.iter().any(|c| c.source() == to && c.destination() == from));
        assert!(!found.iter().any(|c| c.source() == to && c.destination().port() == 0));
    }
}
