//! A watch's own thread. A file system that does not answer hangs this thread and no other.

use super::Options;
use super::queue::Queue;
use super::watcher::Watcher;
use crate::error::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Seconds without an event after which the root is checked.
const IDLE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

/// Runs a watch until its end. First reports through `begun` whether it has begun. `locate` finds
/// the root.
pub(super) fn run(
    locate: impl FnOnce() -> Result<PathBuf>,
    options: Options,
    queue: &Arc<Queue>,
    begun: oneshot::Sender<Result<()>>,
) {
    let watcher = locate().and_then(|root| Watcher::new(root, options, Arc::clone(queue)));
    let mut watcher = match watcher {
        Ok(watcher) => watcher,
        Err(error) => {
            let _ = begun.send(Err(error));
            return;
        }
    };
    let _ = begun.send(Ok(()));
    let mut answered = 0;
    while !queue.is_stopped() {
        match turn(&mut watcher, queue, answered) {
            Ok(request) => answered = request,
            Err(error) => return queue.end(error),
        }
    }
}

/// Waits for events or a request, and handles both. Returns the newest request that is done.
fn turn(watcher: &mut Watcher, queue: &Queue, answered: u64) -> Result<u64> {
    let mut ready =
        [PollFd::new(&*watcher, PollFlags::IN), PollFd::new(queue.requests(), PollFlags::IN)];
    let is_idle = poll(&mut ready, Some(&IDLE)).is_ok_and(|count| count == 0);
    let request = queue.newest_request();
    watcher.drain()?;
    if is_idle || request > answered {
        watcher.check_root()?;
    }
    queue.answer(request);
    Ok(request)
}
