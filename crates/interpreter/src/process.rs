//! Processes of kernels: started as the user, each in a session and a control group of its own. A
//! pidfd tells the end of each process, also of a process that another program started.

mod group;
mod session;
mod sys;
mod user;

pub(crate) use user::User;

use crate::kernel::{Exit, Saved, Status};
use group::Group;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, pidfd_open,
    pidfd_send_signal, waitid,
};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};

/// Longest wait for a start, longer than a child may take to its exec.
const START_TIME: Duration = Duration::from_secs(15);
/// Time that another program gets to report the status of its child's end.
const REPORT_TIME: Duration = Duration::from_secs(1);

/// A program to start.
pub(crate) struct Program {
    pub path: OsString,
    pub args: Vec<OsString>,
    /// The whole environment.
    pub envs: BTreeMap<String, String>,
    pub cwd: PathBuf,
    /// Descriptors of the child, from 0 on. `None` is `/dev/null`.
    pub files: Vec<Option<OwnedFd>>,
    /// Value of `oom_score_adj`.
    pub oom_score: i32,
}

/// The folder of a program cannot be entered.
#[derive(Debug, thiserror::Error)]
#[error("folder '{folder}' cannot be entered: {why}")]
pub(crate) struct FolderError {
    pub folder: String,
    pub why: String,
}

/// A process with its session and control group. A drop kills the group.
pub(crate) struct Process {
    shared: Arc<Shared>,
    exit: watch::Receiver<Option<Exit>>,
    /// Set if a drop leaves the process alive.
    released: AtomicBool,
}

/// Facts of a process that its watcher needs too.
struct Shared {
    pid: Pid,
    /// Start time in clock ticks. With the pid, it names the process for good.
    started: u64,
    pidfd: OwnedFd,
    group: Option<Group>,
}

impl Process {
    /// Starts a program as the leader of a session, in the control group `k-{group}`. A thread of
    /// its own waits for the program's exec. A start that the caller gives up ends its process.
    ///
    /// # Errors
    /// Returns an error that names the failed step, or if the exec takes too long.
    pub(crate) async fn start(program: Program, user: &User, group: &str) -> io::Result<Self> {
        let (user, group) = (user.clone(), group.to_owned());
        let start = move || Self::start_and_wait(program, &user, &group);
        match tokio::time::timeout(START_TIME, tokio::task::spawn_blocking(start)).await {
            Ok(Ok(started)) => started,
            Ok(Err(ended)) => Err(io::Error::other(ended)),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "its start took too long")),
        }
    }

    /// Starts a program and waits for its exec. May block for some seconds.
    fn start_and_wait(program: Program, user: &User, group: &str) -> io::Result<Self> {
        let group = Group::make(group);
        let processes = group.as_ref().and_then(Group::processes);
        let started = sys::Plan::new(program, user, processes).and_then(|plan| sys::spawn(&plan));
        if started.is_err() {
            group.iter().for_each(Group::remove_soon);
        }
        let pid = started?;
        Self::watched(pid, group, None).inspect_err(|_| {
            let _ = kill_process(pid, Signal::KILL);
        })
    }

    /// Takes over a process that another program has started as the leader of a session, and moves
    /// it into the control group `k-{group}`. The other program reports the raw wait status.
    ///
    /// # Errors
    /// Returns an error if the process leads no session of the user's.
    pub(crate) fn attach(
        pid: i32,
        user: &User,
        group: &str,
        status: oneshot::Receiver<i32>,
    ) -> io::Result<Self> {
        let pid = checked(pid)?;
        if !session::leads(pid.as_raw_pid(), user.uid) {
            return Err(io::Error::new(io::ErrorKind::NotFound, "its process leads no session"));
        }
        let group = Group::make(group);
        if let Some(group) = &group {
            group.add(pid.as_raw_pid());
        }
        Self::watched(pid, group, Some(status))
    }

    /// Finds a process again that an earlier interpreter started.
    ///
    /// # Errors
    /// Returns an error if the process has ended.
    pub(crate) fn adopt(saved: &Saved) -> io::Result<Self> {
        let group = saved.group.as_deref().and_then(Group::find);
        let found = checked(saved.pid).and_then(|pid| Self::watched(pid, group.clone(), None));
        match found {
            Ok(process) if process.shared.started == saved.started => Ok(process),
            other => {
                // The number may be another process's by now. The group is the kernel's still.
                other.into_iter().for_each(Self::release);
                group.iter().for_each(Group::end);
                Err(io::Error::new(io::ErrorKind::NotFound, "the process has ended"))
            }
        }
    }

    /// Begins to watch a process.
    fn watched(
        pid: Pid,
        group: Option<Group>,
        status: Option<oneshot::Receiver<i32>>,
    ) -> io::Result<Self> {
        let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        let events = sys::async_fd(pidfd.try_clone()?)?;
        let started = session::start_time(pid.as_raw_pid()).unwrap_or_default();
        let shared = Arc::new(Shared { pid, started, pidfd, group });
        let (sender, exit) = watch::channel(None);
        tokio::spawn(report_end(Arc::clone(&shared), events, status, sender));
        Ok(Self { shared, exit, released: AtomicBool::new(false) })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.shared.pid.as_raw_pid()
    }

    /// Sends a signal to the process group that the process leads.
    pub(crate) fn signal(&self, signal: i32) {
        // A number that is free again could be another group's.
        if self.exit.borrow().is_some() {
            return;
        }
        if let Some(signal) = Signal::from_named_raw(signal) {
            let _ = kill_process_group(self.shared.pid, signal);
        }
    }

    /// Sends a signal to the process itself, and not to its children.
    pub(crate) fn signal_alone(&self, signal: i32) {
        if let Some(signal) = Signal::from_named_raw(signal) {
            let _ = pidfd_send_signal(&self.shared.pidfd, signal);
        }
    }

    /// Returns a future of the process's end. It does not borrow the process.
    pub(crate) fn end(&self) -> impl Future<Output = Exit> + Send + use<> {
        end_of(self.exit.clone())
    }

    /// Returns the memory of the group in bytes or, without a control group, of the session.
    pub(crate) fn memory(&self) -> Option<u64> {
        match &self.shared.group {
            Some(group) => group.memory(),
            None => session::memory(self.pid()),
        }
    }

    /// Returns the pid, the start time and the group's name, for [`Self::adopt`].
    pub(crate) fn saved(&self) -> (i32, u64, Option<String>) {
        let group = self.shared.group.as_ref().map(|group| group.name().to_owned());
        (self.pid(), self.shared.started, group)
    }

    /// Drops the process without killing it.
    pub(crate) fn release(self) {
        self.keep();
    }

    /// Keeps a later drop from killing the process.
    pub(crate) fn keep(&self) {
        self.released.store(true, Ordering::Relaxed);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.released.load(Ordering::Relaxed) {
            return;
        }
        self.signal(libc::SIGKILL);
        // A forked process may not lead its group yet.
        self.signal_alone(libc::SIGKILL);
        match &self.shared.group {
            Some(group) => group.end(),
            None => session::kill(self.pid()),
        }
    }
}

/// Ends the kernels that an earlier interpreter has left and that no saved facts name, such as
/// those that were about to start.
pub(crate) fn end_strays<'a>(saved: impl Iterator<Item = &'a Saved>) {
    let kept: Vec<&str> = saved.filter_map(|saved| saved.group.as_deref()).collect();
    Group::end_others(&kept);
}

fn checked(pid: i32) -> io::Result<Pid> {
    // The kernel takes 1 and lower numbers for the first process and for groups.
    let pid = Some(pid).filter(|pid| *pid > 1).and_then(Pid::from_raw);
    pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the pid is no process's"))
}

/// Waits until the end is known.
async fn end_of(mut exit: watch::Receiver<Option<Exit>>) -> Exit {
    let known = exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
    known.unwrap_or(Exit { status: Status::Unknown, out_of_memory: None })
}

/// Waits for the end of a process, reaps it if it is a child, and publishes its exit.
async fn report_end(
    shared: Arc<Shared>,
    events: AsyncFd<OwnedFd>,
    told: Option<oneshot::Receiver<i32>>,
    exit: watch::Sender<Option<Exit>>,
) {
    let _ = events.readable().await;
    let status = match reap(&events) {
        Some(status) => status,
        None => told_status(told).await,
    };
    let out_of_memory = match (status, &shared.group) {
        (Status::Signal(libc::SIGKILL) | Status::Unknown, Some(group)) => group.out_of_memory(),
        (Status::Code(_) | Status::Signal(_) | Status::Unknown, _) => None,
    };
    exit.send_replace(Some(Exit { status, out_of_memory }));
}

/// Takes the status of an ended child. Returns `None` for another program's child.
fn reap(pidfd: &AsyncFd<OwnedFd>) -> Option<Status> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let status = waitid(WaitId::PidFd(pidfd.get_ref().as_fd()), options).ok()??;
    let code = status.exit_status().map(Status::Code);
    code.or_else(|| status.terminating_signal().map(Status::Signal))
}

/// Waits for the status that another program reports.
async fn told_status(told: Option<oneshot::Receiver<i32>>) -> Status {
    let Some(told) = told else { return Status::Unknown };
    match tokio::time::timeout(REPORT_TIME, told).await {
        Ok(Ok(raw)) => read_status(raw),
        Ok(Err(_)) | Err(_) => Status::Unknown,
    }
}

/// Reads a raw wait status.
fn read_status(raw: i32) -> Status {
    if libc::WIFSIGNALED(raw) {
        Status::Signal(libc::WTERMSIG(raw))
    } else if libc::WIFEXITED(raw) {
        Status::Code(libc::WEXITSTATUS(raw))
    } else {
        Status::Unknown
    }
}

#[cfg(test)]
mod tests;
