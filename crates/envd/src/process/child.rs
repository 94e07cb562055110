//! A child process of envd: awaited without a thread, and never lost while it starts.

use crate::cgroup::Leaf;
use crate::guest::Guest;
use crate::sys;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, waitpid};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::OwnedSemaphorePermit;

/// Time between two looks at a child of which the kernel tells no end.
const LOOK: Duration = Duration::from_millis(50);

/// A child that has not been waited for. Its pid belongs to nobody else until then.
pub(super) struct Child {
    pid: Pid,
    /// Readable once the child has ended; none without a free descriptor.
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

    /// Waits for the child's end.
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

/// A child between its fork and the caller's knowledge of it. Dropped, it is killed with all that
/// it has started, and waited for. So a start that takes too long, or whose caller has left,
/// leaves no program that nobody knows.
pub(super) struct Starting {
    guest: Arc<Guest>,
    child: Option<Child>,
    leaf: Option<Leaf>,
    /// Bounds the children that hang.
    place: Option<OwnedSemaphorePermit>,
}

impl Starting {
    pub(super) fn new(
        guest: &Arc<Guest>,
        child: Child,
        leaf: Option<Leaf>,
        place: OwnedSemaphorePermit,
    ) -> Self {
        Self { guest: Arc::clone(guest), child: Some(child), leaf, place: Some(place) }
    }

    /// Hands over a child that has become the program.
    pub(super) fn finish(mut self) -> (Option<Child>, Option<Leaf>) {
        (self.child.take(), self.leaf.take())
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let (leaf, place, guest) = (self.leaf.take(), self.place.take(), Arc::clone(&self.guest));
        let Some(child) = self.child.take() else { return };
        if let Some(leaf) = &leaf {
            leaf.kill();
        }
        // Its group may not exist yet. Neither signal can reach another: it was not waited for.
        let _ = sys::kill_group(child.pid(), Signal::KILL);
        let _ = kill_process(child.pid, Signal::KILL);
        tokio::spawn(async move {
            let _ = child.wait().await;
            leaf.into_iter().for_each(|leaf| guest.cgroups.end(leaf));
            drop(place);
        });
    }
}
