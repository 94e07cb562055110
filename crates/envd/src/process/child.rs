//! A child process of envd. Its wait needs no thread, and a child is never lost while it starts.

use crate::cgroup::Leaf;
use crate::guest::Guest;
use crate::sys;
use crate::sys::spawner::{Asked, Outcome};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// Time between two checks of a child without a pidfd.
const LOOK: Duration = Duration::from_millis(50);

/// A child that has not been reaped. Its pid belongs to no other process until then.
pub(super) struct Child {
    pid: Pid,
    /// Pidfd, readable once the child has ended. `None` if no descriptor was free.
    ended: Option<AsyncFd<OwnedFd>>,
}

impl Child {
    pub(super) fn new(pid: Pid) -> Self {
        let ended = pidfd_open(pid, PidfdFlags::empty());
        let ended = ended.ok().and_then(|fd| sys::async_fd(fd).ok());
        Self { pid, ended }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw_pid().cast_unsigned()
    }

    /// Waits for the child's end, and reaps it.
    pub(super) async fn wait(&self) -> io::Result<ExitStatus> {
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

/// Guard of a start under way. A drop kills the child with its group, and reaps the child. So a
/// start that takes too long, or whose caller has gone, leaves no unknown program.
pub(super) struct Starting {
    guest: Arc<Guest>,
    leaf: Option<Leaf>,
    /// The start's outcome to come. `None` once it has come.
    asked: Option<Asked>,
    /// Descriptors that the start copies.
    theirs: Vec<OwnedFd>,
}

impl Starting {
    pub(super) fn new(
        guest: &Arc<Guest>,
        leaf: Option<Leaf>,
        asked: Asked,
        theirs: Vec<OwnedFd>,
    ) -> Self {
        Self { guest: Arc::clone(guest), leaf, asked: Some(asked), theirs }
    }

    /// Waits for the outcome. Returns `None` when there will be none.
    pub(super) async fn outcome(&mut self) -> Option<Outcome> {
        let outcome = self.asked.as_mut()?.outcome().await;
        self.asked = None;
        outcome
    }

    /// Hands over the control group of a running program.
    pub(super) fn finish(mut self) -> Option<Leaf> {
        self.leaf.take()
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let (leaf, theirs) = (self.leaf.take(), std::mem::take(&mut self.theirs));
        let guest = Arc::clone(&self.guest);
        if let Some(asked) = &self.asked {
            asked.cancel();
            if let Some(leaf) = &leaf {
                leaf.kill();
            }
        }
        let end = move || leaf.into_iter().for_each(|leaf| guest.cgroups.end(leaf));
        let Some(mut asked) = self.asked.take() else { return end() };
        tokio::spawn(async move {
            // Both the program's end and the outcome of the start may take as long as its file
            // system.
            if let Some(Outcome::Runs(pid)) = asked.outcome().await {
                let _ = Child::new(pid).wait().await;
            }
            drop(theirs);
            end();
        });
    }
}
