//! Resets the machine of a kernel that was told to power off and cannot.
//!
//! A machine without a power switch, such as Firecracker's, goes on after the kernel's last
//! message. Its processes run, but the machine is of no use any more. The first process reads this
//! message in the kernel's log and resets the machine, which every host notices.

use super::restart;
use crate::console::console;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;

/// The kernel's log. Each read returns a record (`Documentation/ABI/testing/dev-kmsg`).
const LOG: &str = "/dev/kmsg";
/// The kernel's last message before it powers the machine off.
const LAST_WORD: &str = "reboot: Power down";
/// Message before the reset, with a priority that reaches the console.
const GOODBYE: &[u8] = b"<2>envd: the machine has no power switch and is reset instead";
/// Size in bytes of a buffer that holds any record.
const RECORD: usize = 8192;
/// Time between two wakes. The host relies on them: it takes a guest for halted when its processors
/// do not run for several seconds.
const HEARTBEAT: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Starts a thread that follows the kernel's log.
pub(super) fn watch() {
    let started = open().and_then(|log| {
        let thread = std::thread::Builder::new().name("power".to_owned());
        thread.stack_size(64 * 1024).spawn(move || follow(&log))
    });
    if let Err(error) = started {
        console(&format!("envd: cannot follow the kernel's log: {error}"));
    }
}

fn open() -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let log = rustix::fs::open(LOG, flags, Mode::empty())?;
    rustix::fs::seek(&log, SeekFrom::End(0))?;
    Ok(log)
}

fn follow(log: &OwnedFd) {
    let mut record = [0; RECORD];
    loop {
        let _ = poll(&mut [PollFd::new(log, PollFlags::IN)], Some(&HEARTBEAT));
        loop {
            match rustix::io::read(log, &mut record) {
                Ok(count) if is_last_word(&record[..count]) => {
                    // The kernel prints the message without waiting for an interrupt.
                    let _ = rustix::io::write(log, GOODBYE);
                    restart();
                }
                // Records that are overwritten before they are read are lost.
                Ok(1..) | Err(Errno::PIPE | Errno::INTR) => {}
                Ok(0) | Err(_) => break,
            }
        }
    }
}

/// Reports whether a record is the kernel's own last message. The kernel's facility is 0. A record
/// of a process has another.
fn is_last_word(record: &[u8]) -> bool {
    let text = String::from_utf8_lossy(record);
    let Some((head, message)) = text.split_once(';') else { return false };
    let priority = head.split(',').next().and_then(|number| number.parse::<u32>().ok());
    priority.is_some_and(|priority| priority >> 3 == 0) && message.lines().next() == Some(LAST_WORD)
}

#[cfg(test)]
mod tests {
    use super::is_last_word;

    #[test]
    fn last_word_is_recognized_only_in_kernel_records() {
        assert!(is_last_word(b"0,259,2758530,-;reboot: Power down\n"));
        assert!(is_last_word(b"0,259,2758530,-,caller=T1;reboot: Power down\n SUBSYSTEM=x\n"));
        for other in [
            &b"8,259,2758530,-;reboot: Power down\n"[..],
            b"0,258,2754989,-;sysrq: Power Off\n",
            b"0,259,2758530,-;reboot: Power down?\n",
            b"reboot: Power down\n",
            b"x;reboot: Power down\n",
            b"",
            b"\xff\xfe;",
        ] {
            assert!(!is_last_word(other), "{}", String::from_utf8_lossy(other));
        }
    }
}
