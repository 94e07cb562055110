//! A child process of envd. Its wait needs no thread.

use crate::sys;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// Time between two checks of a child without a pidfd.
const LOOK: Duration = Duration::from_millis(50);

/// A child that has not been reaped. Its pid belongs to no other process until then.
pub(crate) struct Child {
    pid: Pid,
    /// Pidfd, readable once the child has ended. `None` if no descriptor was free.
    ended: Option<AsyncFd<OwnedFd>>,
}

impl Child {
    pub(crate) fn new(pid: Pid) -> Self {
        let ended = pidfd_open(pid, PidfdFlags::empty());
        let ended = ended.ok().and_then(|fd| sys::async_fd(fd).ok());
        Self { pid, ended }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_pid().cast_unsigned()
    }

    /// Waits for the child's end, and reaps it.
    pub(crate) async fn wait(&self) -> io::Result<ExitStatus> {
        loop {
            let guard = match &self.ended {
                Some(ended) => Some(ended.readable().await?),
                None => None,
            };
            match waitpid(Some(self.pid), WaitOptions::NOHANG) {
                Ok(Some((_, status))) => return Ok(ExitStatus::from_raw(status.as_raw())),
                Ok(None) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            match guard {
                Some(mut guard) => guard.clear_ready(),
                None => tokio::time::sleep(LOOK).await,
            }
        }
    }
}
