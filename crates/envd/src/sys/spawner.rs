//! Threads that start programs, with a table of descriptors of their own.
//!
//! A child begins with a copy of its parent's table. The close of a copy can wait for the file's
//! server, as with FUSE, and no signal ends that wait. The table of these threads holds no file that
//! was opened later. So a transfer that hangs holds up no start.
//!
//! A start waits for its exec, and a file system may hold that up. A free thread is always left for
//! the next start: the last one that takes work begins another. Nobody else begins them, since a
//! thread shares the table of the thread that begins it. Callers bound the starts, and so the threads.

use super::spawn::{self, Failure, Order, Plan};
use crate::error::Result;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// Stack of a thread.
const STACK: usize = 128 * 1024;

/// Starts programs by threads of its own.
pub(crate) struct Spawner {
    queue: Arc<Queue>,
}

/// A program to start.
pub(crate) struct Request {
    /// Makes the plan, by look-ups that may take long.
    pub plan: Box<dyn FnOnce() -> Result<Plan> + Send>,
    /// Descriptors of the process, which stay open until the answer.
    pub stdio: [RawFd; 3],
    /// The list of processes of the program's control group, likewise.
    pub cgroup: Option<RawFd>,
    /// The caller's share of the starts at once, which the start holds to its end.
    pub place: OwnedSemaphorePermit,
}

/// A start that was asked for.
pub(crate) struct Asked {
    order: Arc<Order>,
    outcome: oneshot::Receiver<Outcome>,
}

/// How a start ended.
pub(crate) enum Outcome {
    /// The program runs, or a signal has ended it. Nobody has waited for it.
    Runs(Pid),
    /// The child did not become the program.
    Failed(Failure, Plan),
    /// There is no plan.
    Refused(crate::error::Error),
}

/// Work that a thread takes.
struct Work {
    request: Request,
    order: Arc<Order>,
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
    /// Threads that have begun.
    threads: usize,
    /// Threads that wait for work.
    idle: usize,
}

impl Spawner {
    /// Begins two threads, which must be before any file of a caller's is opened.
    pub(crate) fn new() -> Self {
        let queue = Arc::new(Queue::default());
        let (tell, told) = channel();
        let worker = Worker { queue: Arc::clone(&queue), process: None };
        worker.begin(move |worker| {
            worker.process = own_table().ok().map(Arc::new);
            worker.hire();
            let _ = tell.send(());
        });
        // Nobody tells when there is no thread; starts are refused then.
        let _ = told.recv();
        Self { queue }
    }

    /// Hands a start to a thread.
    ///
    /// # Errors
    /// When there is no thread at all.
    pub(crate) fn ask(&self, request: Request) -> io::Result<Asked> {
        let order = Arc::new(Order::default());
        let (answer, outcome) = oneshot::channel();
        let mut state = self.queue.lock();
        if state.threads == 0 {
            return Err(io::Error::other("there is no thread that starts programs"));
        }
        state.waiting.push_back(Work { request, order: Arc::clone(&order), answer });
        drop(state);
        self.queue.ready.notify_one();
        Ok(Asked { order, outcome })
    }
}

impl Asked {
    /// Waits for the end of the start. None when its thread has failed.
    pub(crate) async fn outcome(&mut self) -> Option<Outcome> {
        (&mut self.outcome).await.ok()
    }

    /// Keeps the program from starting, or kills it. The outcome comes all the same.
    pub(crate) fn cancel(&self) {
        self.order.cancel();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for work. Returns it, and whether no thread is left that waits for more.
    fn take(&self) -> (Work, bool) {
        let mut state = self.lock();
        state.idle += 1;
        loop {
            if let Some(work) = state.waiting.pop_front() {
                state.idle -= 1;
                return (work, state.idle == 0);
            }
            state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A thread that starts programs.
#[derive(Clone)]
struct Worker {
    queue: Arc<Queue>,
    /// The process, where the thread has a table of its own: copies come by it.
    process: Option<Arc<OwnedFd>>,
}

impl Worker {
    /// Begins a thread, which never ends: a child may be made to end with the thread that made it.
    fn begin(mut self, first: impl FnOnce(&mut Self) + Send + 'static) {
        let queue = Arc::clone(&self.queue);
        queue.lock().threads += 1;
        let thread = std::thread::Builder::new().name("starts".to_owned()).stack_size(STACK);
        let work = move || {
            super::block_signals();
            first(&mut self);
            self.serve();
        };
        if thread.spawn(work).is_err() {
            queue.lock().threads -= 1;
        }
    }

    /// Begins another thread, which shares this one's table.
    fn hire(&self) {
        self.clone().begin(|_| {});
    }

    fn serve(&self) {
        let mut stack = Box::new([0; spawn::STACK]);
        loop {
            let (work, last) = self.queue.take();
            if last {
                self.hire();
            }
            let Work { request, order, answer } = work;
            let outcome = self.start(request, &order, &mut stack);
            // A caller that has left still takes it.
            let _ = answer.send(outcome);
        }
    }

    fn start(&self, request: Request, order: &Order, stack: &mut [u8; spawn::STACK]) -> Outcome {
        let Request { plan, stdio, cgroup, place } = request;
        let plan = match plan() {
            Ok(plan) => plan,
            Err(error) => return Outcome::Refused(error),
        };
        let started = self.copies(stdio, cgroup).map_err(Failure::setup).and_then(|copies| {
            let stdio = [copies.stdio[0].as_fd(), copies.stdio[1].as_fd(), copies.stdio[2].as_fd()];
            spawn::spawn(&plan, stdio, copies.cgroup.as_ref().map(AsFd::as_fd), order, stack)
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

/// Gives the thread a table of its own. Returns the process, by which the thread gets copies of
/// the descriptors that it needs.
fn own_table() -> io::Result<OwnedFd> {
    let process = || pidfd_open(getpid(), PidfdFlags::empty());
    // A filter of system calls may forbid what each request needs.
    drop(pidfd_getfd(process()?, 0, PidfdGetfdFlags::empty())?);
    // SAFETY: the thread holds no descriptor yet, and uses those of its own table from now on.
    unsafe { unshare_unsafe(UnshareFlags::FILES)? };
    Ok(process()?)
}

#[cfg(test)]
mod tests;
