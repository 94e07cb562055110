//! A thread that forks for all others, with a table of descriptors of its own.
//!
//! A child begins with a copy of its parent's table. The close of a copy can wait for the file's
//! server, as with FUSE, and no signal ends that wait. The table of this thread holds no file that
//! was opened later. So a transfer that hangs holds up no start.

use super::spawn::{self, Plan};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Stack of the thread.
const STACK: usize = 256 * 1024;

/// Starts programs by a thread of its own.
pub(crate) struct Spawner {
    /// None where the kernel gives no such thread what it needs.
    requests: Option<Sender<Request>>,
}

/// A program to start. Descriptors are those of the process, and stay open until the answer.
struct Request {
    plan: Plan,
    stdio: [RawFd; 3],
    cgroup: Option<RawFd>,
    report: RawFd,
    answer: Sender<io::Result<Pid>>,
}

impl Spawner {
    /// Begins the thread, which must be before any file of a caller's is opened.
    pub(crate) fn new() -> Self {
        let (requests, received) = channel();
        let (tell, told) = channel();
        let work = move || {
            let table = own_table();
            let _ = tell.send(table.is_ok());
            if let Ok(process) = table {
                serve(&received, &process);
            }
        };
        let thread = std::thread::Builder::new().name("starts".to_owned()).stack_size(STACK);
        let works = thread.spawn(work).is_ok() && told.recv().unwrap_or(false);
        Self { requests: works.then_some(requests) }
    }

    /// Starts a program, as [`spawn::fork_exec`] does. Waits for the fork, and not for the exec.
    pub(crate) fn fork_exec(
        &self,
        plan: Plan,
        stdio: [BorrowedFd<'_>; 3],
        cgroup: Option<BorrowedFd<'_>>,
    ) -> io::Result<(Pid, OwnedFd)> {
        let Some(requests) = &self.requests else {
            return spawn::fork_exec(&plan, stdio, cgroup);
        };
        let (outcome, report) = spawn::report_pipe()?;
        let (answer, answered) = channel();
        let request = Request {
            plan,
            stdio: stdio.map(|fd| fd.as_raw_fd()),
            cgroup: cgroup.map(|fd| fd.as_raw_fd()),
            report: report.as_raw_fd(),
            answer,
        };
        let ended = || io::Error::other("the thread that starts programs has ended");
        requests.send(request).map_err(|_| ended())?;
        let pid = answered.recv().map_err(|_| ended())??;
        Ok((pid, outcome))
    }
}

/// Gives the thread a table of its own. Returns the process, by which the thread gets copies of
/// the descriptors that it needs.
fn own_table() -> io::Result<OwnedFd> {
    // SAFETY: the thread holds no descriptor yet, and uses those of its own table from now on.
    unsafe { unshare_unsafe(UnshareFlags::FILES)? };
    let process = pidfd_open(getpid(), PidfdFlags::empty())?;
    // A filter of system calls may forbid what each request needs.
    drop(pidfd_getfd(&process, 0, PidfdGetfdFlags::empty())?);
    Ok(process)
}

/// Forks for others until they are gone.
fn serve(requests: &Receiver<Request>, process: &OwnedFd) {
    for request in requests {
        let forked = request.fork(process);
        let _ = request.answer.send(forked);
    }
}

impl Request {
    /// Forks with copies of the descriptors, which are closed before the return.
    fn fork(&self, process: &OwnedFd) -> io::Result<Pid> {
        let copy = |fd: RawFd| pidfd_getfd(process, fd, PidfdGetfdFlags::empty());
        let [input, output, error] = self.stdio;
        let (input, output, error) = (copy(input)?, copy(output)?, copy(error)?);
        let cgroup = self.cgroup.map(copy).transpose()?;
        let report = copy(self.report)?;
        let stdio = [input.as_fd(), output.as_fd(), error.as_fd()];
        spawn::fork(&self.plan, stdio, cgroup.as_ref().map(AsFd::as_fd), report.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::spawn::Child;
    use crate::users::User;
    use rustix::process::{WaitOptions, waitpid};
    use std::collections::BTreeMap;
    use std::fs::File;
    use std::io::Read;
    use std::path::Path;

    #[test]
    fn program_started_by_the_thread_writes_and_is_waited_for_by_another() {
        let spawner = Spawner::new();
        let gid = rustix::process::getgid().as_raw();
        let uid = rustix::process::getuid().as_raw();
        let user = User { name: "me".into(), uid, gid, groups: vec![gid], home: "/".into() };
        let child = Child { terminal: false, alone: true };
        let envs = BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]);
        let args = ["-c".to_owned(), "echo up".to_owned()];
        let plan = Plan::new("sh", &args, &envs, Path::new("/"), user, child).unwrap();
        // The thread has its own table by now, so these are in another one.
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        let (output, theirs) = spawn::report_pipe().unwrap();
        let stdio = [null.as_fd(), theirs.as_fd(), null.as_fd()];
        let (pid, outcome) = spawner.fork_exec(plan, stdio, None).unwrap();
        drop(theirs);
        let (mut report, mut text) = (Vec::new(), String::new());
        File::from(outcome).read_to_end(&mut report).unwrap();
        File::from(output).read_to_string(&mut text).unwrap();
        assert_eq!((report.as_slice(), text.as_str()), (&b""[..], "up\n"));
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(0));
    }
}
