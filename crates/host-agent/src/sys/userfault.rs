//! Memory of another process, which this process fills (`ioctl_userfaultfd(2)`). The other process
//! waits in each missing page that it touches.
#![expect(unsafe_code, reason = "userfaultfd has no safe form")]

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use rustix::ioctl::{Opcode, Updater, ioctl};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use std::fs::{self, File};
use std::io::{self, IoSliceMut, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

const COPY: Opcode = 0xc028_aa03;
const ZERO: Opcode = 0xc020_aa04;
const WAKE: Opcode = 0x8010_aa02;
const UNREGISTER: Opcode = 0x8010_aa01;
/// Bytes of a page.
const PAGE: u64 = 4096;
/// Bytes of a message, and its first byte when it tells of a touched page.
const MESSAGE: usize = 32;
const TOUCHED: u8 = 0x12;
/// Place of the address in such a message.
const ADDRESS: usize = 16;
/// Contents of the link by which `/proc` shows such a descriptor.
const LINK: &str = "anon_inode:[userfaultfd]";
/// Most times that a request is repeated while the process changes its mappings.
const REPEATS: u32 = 1000;

/// Memory of another process, which is filled from here.
#[derive(Debug)]
pub(crate) struct Userfault(File);

/// Arguments of the requests, as the kernel has them.
#[repr(C)]
struct CopyRequest {
    to: u64,
    from: u64,
    bytes: u64,
    mode: u64,
    done: i64,
}

#[repr(C)]
struct ZeroRequest {
    at: u64,
    bytes: u64,
    mode: u64,
    done: i64,
}

#[repr(C)]
struct RangeRequest {
    at: u64,
    bytes: u64,
}

impl Userfault {
    /// Takes over a descriptor that another process has made.
    ///
    /// # Errors
    /// Fails when the descriptor is of another kind.
    pub(crate) fn new(given: OwnedFd) -> io::Result<Self> {
        if !is_one(Path::new(&format!("/proc/self/fd/{}", given.as_raw_fd()))) {
            return Err(io::Error::other("the descriptor is no userfaultfd"));
        }
        fcntl_setfl(&given, fcntl_getfl(&given)? | OFlags::NONBLOCK)?;
        Ok(Self(given.into()))
    }

    /// Finds the descriptor that a process holds. `started` guards against another process that has
    /// the number by now.
    pub(crate) fn of_process(pid: i32, started: u64) -> io::Result<Self> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let process = super::open_process(pid, started)?.ok_or_else(gone)?;
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let entry = entry?;
            let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if let Some(number) = number
                && is_one(&entry.path())
            {
                return Self::new(pidfd_getfd(&process, number, PidfdGetfdFlags::empty())?);
            }
        }
        Err(gone())
    }

    /// Returns the address of the next touched page; `None` when there is none now.
    pub(crate) fn touched(&self) -> io::Result<Option<u64>> {
        let mut message = [0; MESSAGE];
        match self.read(&mut message) {
            Ok(MESSAGE) if message[0] == TOUCHED => {
                let (_, rest) = message.split_at(ADDRESS);
                Ok(rest.first_chunk::<8>().map(|address| u64::from_le_bytes(*address)))
            }
            Ok(_) => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads a message without a wait. The process shares the descriptor's flags, and could clear
    /// the one against waits. Linux before 6.10 goes by that flag alone.
    fn read(&self, message: &mut [u8]) -> io::Result<usize> {
        let parts = &mut [IoSliceMut::new(message)];
        match preadv2(&self.0, parts, u64::MAX, ReadWriteFlags::NOWAIT) {
            Err(Errno::OPNOTSUPP) => (&self.0).read(message),
            read => Ok(read?),
        }
    }

    /// Puts whole pages at an address. Pages that are there already stay as they are.
    pub(crate) fn copy(&self, to: u64, pages: &[u8]) -> io::Result<()> {
        each_part(to, pages.len() as u64, |at, bytes| {
            let skipped = usize::try_from(at - to).unwrap_or(usize::MAX);
            let from = pages.get(skipped..).unwrap_or_default().as_ptr() as u64;
            let mut request = CopyRequest { to: at, from, bytes, mode: 0, done: 0 };
            // SAFETY: the kernel reads the rest of `pages` and `request`, which live through the
            // call. In this process, it writes to `request` alone.
            let asked = unsafe { ioctl(&self.0, Updater::<COPY, _>::new(&mut request)) };
            (asked, request.done)
        })
    }

    /// Puts pages of zeros at an address. Pages that are there already stay as they are.
    pub(crate) fn zero(&self, at: u64, bytes: u64) -> io::Result<()> {
        each_part(at, bytes, |at, bytes| {
            let mut request = ZeroRequest { at, bytes, mode: 0, done: 0 };
            // SAFETY: the kernel reads and writes `request` alone, which lives through the call.
            let asked = unsafe { ioctl(&self.0, Updater::<ZERO, _>::new(&mut request)) };
            (asked, request.done)
        })
    }

    /// Lets threads go on that wait for pages of a range.
    pub(crate) fn wake(&self, at: u64, bytes: u64) -> io::Result<()> {
        let mut request = RangeRequest { at, bytes };
        // SAFETY: the kernel reads `request`, which lives through the call.
        Ok(unsafe { ioctl(&self.0, Updater::<WAKE, _>::new(&mut request)) }?)
    }

    /// Makes a range ordinary memory, whose missing pages are zeros. Threads that wait go on.
    pub(crate) fn release(&self, at: u64, bytes: u64) -> io::Result<()> {
        let mut request = RangeRequest { at, bytes };
        // SAFETY: the kernel reads `request`, which lives through the call.
        Ok(unsafe { ioctl(&self.0, Updater::<UNREGISTER, _>::new(&mut request)) }?)
    }
}

fn is_one(link: &Path) -> bool {
    fs::read_link(link).is_ok_and(|to| to.as_os_str() == LINK)
}

/// Fills a range. `part` asks the kernel to fill the rest of the range, and returns the kernel's
/// answer and the number of filled bytes.
fn each_part(
    at: u64,
    bytes: u64,
    mut part: impl FnMut(u64, u64) -> (rustix::io::Result<()>, i64),
) -> io::Result<()> {
    let (mut at, end, mut repeats) = (at, at.saturating_add(bytes), 0);
    while at < end {
        match part(at, end - at) {
            (Ok(()), _) => return Ok(()),
            // The first page is there already.
            (Err(Errno::EXIST), _) => at += PAGE,
            (Err(Errno::AGAIN), done @ 1..) => at += done.unsigned_abs(),
            (Err(Errno::AGAIN), _) if repeats < REPEATS => {
                repeats += 1;
                std::thread::yield_now();
            }
            (Err(error), _) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
