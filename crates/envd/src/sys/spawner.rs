//! Threads that start programs, each with a table of descriptors of its own.
//!
//! A child begins with a copy of its parent's table. Closing a copy can wait for the file's server,
//! as with FUSE, and no signal ends that wait. The tables of these threads hold no caller's file.
//! So a transfer that hangs holds up no start.
//!
//! A start waits for its look-ups and its exec, and a file system may hold them up. If the last
//! idle thread takes work, it first starts another. Only idle threads start threads, since a new
//! thread begins with a copy of its creator's table. Callers bound the starts, and so the threads.

use super::spawn::{self, Cancellable, Failure, Plan, Stack};
use crate::error::{Error, Result};
use crate::lock::lock;
use connectrpc::ErrorCode;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// Bytes of a thread's own stack.
const THREAD_STACK: usize = 128 * 1024;

/// Starts programs on threads of its own.
pub(crate) struct Spawner {
    queue: Arc<Queue>,
}

/// A program to start.
pub(crate) struct Request {
    /// Makes the plan, through look-ups that may take long.
    pub plan: Box<dyn FnOnce() -> Result<Plan> + Send>,
    /// Standard descriptors of the program, in envd's table. They stay open until the answer.
    pub stdio: [RawFd; 3],
    /// List of processes of the program's control group. It stays open until the answer.
    pub cgroup: Option<RawFd>,
    /// Permit of the pool `starts`, held until the exec.
    pub place: OwnedSemaphorePermit,
}

/// Handle of a requested start.
pub(crate) struct Asked {
    cancellable: Arc<Cancellable>,
    outcome: oneshot::Receiver<Outcome>,
}

/// Result of a start.
pub(crate) enum Outcome {
    /// The program runs, or a signal has ended it. It has not been reaped.
    Runs(Pid),
    /// The child did not become the program.
    Failed(Failure, Plan),
    /// The look-ups failed, no thread was free, or the start was cancelled.
    Refused(Error),
}

/// Work for a thread.
struct Work {
    request: Request,
    cancellable: Arc<Cancellable>,
    answer: oneshot::Sender<Outcome>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    ready: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Work>,
    /// Threads without work.
    idle: usize,
    /// Set once the first threads run. Threads never end.
    begun: bool,
}

impl Spawner {
    /// Starts two threads. Call it before any caller's file is opened.
    pub(crate) fn new() -> Self {
        let queue = Arc::new(Queue::default());
        let begun = Worker::begin(&queue, None) && Worker::begin(&queue, None);
        queue.lock().begun = begun;
        Self { queue }
    }

    /// Hands a start to a thread.
    ///
    /// # Errors
    /// Returns `unavailable` when there is no thread at all.
    pub(crate) fn ask(&self, request: Request) -> Result<Asked> {
        let cancellable = Arc::new(Cancellable::default());
        let (answer, outcome) = oneshot::channel();
        let mut state = self.queue.lock();
        if !state.begun {
            return Err(no_thread());
        }
        state.waiting.push_back(Work { request, cancellable: Arc::clone(&cancellable), answer });
        drop(state);
        self.queue.ready.notify_one();
        Ok(Asked { cancellable, outcome })
    }
}

fn no_thread() -> Error {
    let message = "the capsule has no room for another thread of envd";
    Error::new(ErrorCode::Unavailable, message)
}

impl Asked {
    /// Waits for the end of the start. Returns `None` when its thread has failed.
    pub(crate) async fn outcome(&mut self) -> Option<Outcome> {
        (&mut self.outcome).await.ok()
    }

    /// Keeps the program from starting, or kills it. The outcome comes in either case.
    pub(crate) fn cancel(&self) {
        self.cancellable.cancel();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Takes the next work. The flag is true if no idle thread remains.
    fn take(&self) -> (Work, bool) {
        let mut state = self.lock();
        loop {
            if let Some(work) = state.waiting.pop_front() {
                state.idle -= 1;
                return (work, state.idle == 0);
            }
            state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn rest(&self) {
        self.lock().idle += 1;
    }
}

/// A thread that starts programs.
struct Worker {
    queue: Arc<Queue>,
    /// The process, from which a thread with a table of its own copies descriptors. `None` for a
    /// thread that shares the process's table.
    process: Option<OwnedFd>,
    stack: Stack,
}

impl Worker {
    /// Starts a thread and waits until it has its own table. Returns `false` if this fails. The
    /// thread never ends, since a child may be made to end with the thread that made it.
    fn begin(queue: &Arc<Queue>, creator: Option<&Self>) -> bool {
        let (tell, told) = channel();
        let needs_table = creator.is_some_and(|creator| creator.process.is_some());
        let queue = Arc::clone(queue);
        let work = move || {
            super::block_signals();
            let (Ok(process), Ok(stack)) = (own_table(), Stack::new()) else { return };
            // The creator's table is not the process's, so descriptors in a copy would be of other
            // files.
            if process.is_none() && needs_table {
                return;
            }
            queue.rest();
            let _ = tell.send(());
            Self { queue, process, stack }.serve();
        };
        let thread = std::thread::Builder::new().name("starts".to_owned()).stack_size(THREAD_STACK);
        thread.spawn(work).is_ok() && told.recv().is_ok()
    }

    fn serve(mut self) {
        loop {
            let (work, last) = self.queue.take();
            let Work { request, cancellable, answer } = work;
            // Without a free thread, later starts would wait for the end of this one.
            let outcome = match last && !Self::begin(&self.queue, Some(&self)) {
                true => Outcome::Refused(no_thread()),
                false => self.start(request, &cancellable),
            };
            // A caller that has gone still takes the outcome.
            let _ = answer.send(outcome);
            self.queue.rest();
        }
    }

    fn start(&mut self, request: Request, cancellable: &Cancellable) -> Outcome {
        let Request { plan, stdio, cgroup, place } = request;
        if cancellable.is_cancelled() {
            return Outcome::Refused(Error::new(ErrorCode::Canceled, "the start was cancelled"));
        }
        let plan = match plan() {
            Ok(plan) => plan,
            Err(error) => return Outcome::Refused(error),
        };
        let started = self.copies(stdio, cgroup).map_err(Failure::setup).and_then(|copies| {
            let stdio = [copies.stdio[0].as_fd(), copies.stdio[1].as_fd(), copies.stdio[2].as_fd()];
            spawn::spawn(
                &plan,
                stdio,
                copies.cgroup.as_ref().map(AsFd::as_fd),
                cancellable,
                &mut self.stack,
            )
        });
        drop(place);
        match started {
            Ok(pid) => Outcome::Runs(pid),
            Err(failure) => Outcome::Failed(failure, plan),
        }
    }

    fn copies(&self, stdio: [RawFd; 3], cgroup: Option<RawFd>) -> io::Result<Copies> {
        let [input, output, error] = stdio;
        let stdio = [self.copy(input)?, self.copy(output)?, self.copy(error)?];
        Ok(Copies { stdio, cgroup: cgroup.map(|fd| self.copy(fd)).transpose()? })
    }

    /// Copies a descriptor of the process into this thread's table.
    fn copy(&self, fd: RawFd) -> io::Result<OwnedFd> {
        Ok(match &self.process {
            Some(process) => pidfd_getfd(process, fd, PidfdGetfdFlags::empty())?,
            // SAFETY: the thread shares the process's table, where the descriptor stays open.
            None => fcntl_dupfd_cloexec(unsafe { BorrowedFd::borrow_raw(fd) }, 3)?,
        })
    }
}

/// Descriptors of a start in a thread's own table.
struct Copies {
    stdio: [OwnedFd; 3],
    cgroup: Option<OwnedFd>,
}

/// Gives the thread a table of its own. Returns the process, from which the thread copies the
/// descriptors that it needs. Returns `None` if the thread shares its creator's table as before.
///
/// # Errors
/// Fails when the thread has its own table and no way to copy into it.
fn own_table() -> io::Result<Option<OwnedFd>> {
    let process = || pidfd_open(getpid(), PidfdFlags::empty());
    // A filter of system calls may forbid the call that each request needs.
    let probe = process().and_then(|process| pidfd_getfd(process, 0, PidfdGetfdFlags::empty()));
    if probe.map(drop).is_err() {
        return Ok(None);
    }
    // SAFETY: the thread holds no descriptor yet, and uses its own from now on.
    if unsafe { unshare_unsafe(UnshareFlags::FILES) }.is_err() {
        return Ok(None);
    }
    Ok(Some(process()?))
}

#[cfg(test)]
mod tests;
