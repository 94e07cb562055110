//! Starts a program: fork in the parent, then exec in the child.
//!
//! The standard library's call waits for the exec, which a hung file system can hold up for ever.
//! Its child also keeps copies of envd's descriptors meanwhile, so a pipe that envd closes would
//! stay open. Here the parent never waits: a pipe tells the outcome of the exec. The child closes
//! all that is not its own before it touches a file system.

use super::write_oom_score;
use crate::users::User;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::{CString, NulError};
use std::io;
use std::path::Path;

/// Longest path of a program, in bytes (`PATH_MAX`).
const PATH_MAX: usize = 4096;
/// Size of a report of the child: its step and the number of its error.
const REPORT: usize = 8;

/// Circumstances in which a child lives.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Child {
    /// Standard input is a terminal, which becomes its own.
    pub terminal: bool,
    /// Ends with envd: on an ordinary machine nobody else would end it.
    pub alone: bool,
}

/// A program to start, in the kernel's form. The child allocates nothing, so all of it is made
/// before the fork.
#[derive(Debug)]
pub(crate) struct Plan {
    cmd: CString,
    args: Vec<CString>,
    envs: Vec<CString>,
    /// Folders in which a name without `/` is looked for.
    search: Vec<u8>,
    cwd: CString,
    user: User,
    change_user: bool,
    child: Child,
}

impl Plan {
    /// Makes the plan of a program. `args` come without the name of the program itself.
    ///
    /// # Errors
    /// When a text holds a NUL.
    pub(crate) fn new(
        cmd: &str,
        args: &[String],
        envs: &BTreeMap<String, String>,
        cwd: &Path,
        user: User,
        child: Child,
    ) -> Result<Self, NulError> {
        let cmd = CString::new(cmd)?;
        let args = args.iter().map(|arg| CString::new(arg.as_str()));
        let args = std::iter::once(Ok(cmd.clone())).chain(args).collect::<Result<_, _>>()?;
        let variables = envs.iter().map(|(name, value)| CString::new(format!("{name}={value}")));
        let search = envs.get("PATH").map(|path| path.clone().into_bytes()).unwrap_or_default();
        Ok(Self {
            cmd,
            args,
            envs: variables.collect::<Result<_, _>>()?,
            search,
            cwd: CString::new(cwd.as_os_str().as_encoded_bytes())?,
            user,
            change_user: rustix::process::getuid().is_root(),
            child,
        })
    }
}

/// The step of a start that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Session, terminal, control group or identity.
    Setup,
    /// The change into the working folder.
    Folder,
    /// The exec itself.
    Exec,
}

/// Why a child did not become the program.
#[derive(Debug)]
pub(crate) struct Failure {
    pub step: Step,
    pub error: io::Error,
}

impl Failure {
    /// Reads a child's report. An empty one means that the program runs, or that a signal ended the
    /// child before.
    pub(crate) fn read(report: &[u8]) -> Option<Self> {
        let (step, rest) = report.split_first_chunk::<4>()?;
        let number = i32::from_ne_bytes(*rest.first_chunk::<4>()?);
        let step = match u32::from_ne_bytes(*step) {
            0 => Step::Setup,
            1 => Step::Folder,
            _ => Step::Exec,
        };
        Some(Self { step, error: io::Error::from_raw_os_error(number) })
    }
}

/// Forks. The child gets `stdio` as its standard descriptors, enters the control group whose
/// `cgroup.procs` is given, and becomes the program. Returns its pid, and a pipe that ends
/// empty once the program runs, or holds the report of a failure.
pub(crate) fn fork_exec(
    plan: &Plan,
    stdio: [BorrowedFd<'_>; 3],
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<(Pid, OwnedFd)> {
    let (outcome, report) = report_pipe()?;
    let pid = fork(plan, stdio, cgroup, report.as_fd())?;
    Ok((pid, outcome))
}

/// Makes the pipe for a child's report.
pub(super) fn report_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe_with(PipeFlags::CLOEXEC)?)
}

/// Forks as [`fork_exec`] does, for a child that reports to `report`.
pub(super) fn fork(
    plan: &Plan,
    stdio: [BorrowedFd<'_>; 3],
    cgroup: Option<BorrowedFd<'_>>,
    report: BorrowedFd<'_>,
) -> io::Result<Pid> {
    let args = pointers(&plan.args);
    let envs = pointers(&plan.envs);
    let raw = Raw {
        plan,
        args: &args,
        envs: &envs,
        stdio: stdio.map(|fd| fd.as_raw_fd()),
        cgroup,
        report: report.as_raw_fd(),
    };
    // SAFETY: the child only makes system calls on memory that exists already, and never returns.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => raw.run(),
        pid => Pid::from_raw(pid).ok_or_else(|| io::Error::other("fork gave no pid")),
    }
}

/// Makes a list that ends with a null pointer, as `execve(2)` wants it.
fn pointers(texts: &[CString]) -> Vec<*const libc::c_char> {
    texts.iter().map(|text| text.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
}

type Done = Result<(), (Step, i32)>;

/// The child's side.
struct Raw<'a> {
    plan: &'a Plan,
    args: &'a [*const libc::c_char],
    envs: &'a [*const libc::c_char],
    stdio: [RawFd; 3],
    cgroup: Option<BorrowedFd<'a>>,
    report: RawFd,
}

impl Raw<'_> {
    /// Becomes the program, or tells why it cannot.
    fn run(&self) -> ! {
        let (step, number) = match self.become_program() {
            Ok(never) => match never {},
            Err(failure) => failure,
        };
        let step: u32 = match step {
            Step::Setup => 0,
            Step::Folder => 1,
            Step::Exec => 2,
        };
        let mut report = [0_u8; REPORT];
        report[..4].copy_from_slice(&step.to_ne_bytes());
        report[4..].copy_from_slice(&number.to_ne_bytes());
        // SAFETY: the buffer outlives the call, the descriptor is the child's own, and `_exit`
        // runs no code of the parent.
        unsafe {
            libc::write(self.report, report.as_ptr().cast(), REPORT);
            libc::_exit(127)
        }
    }

    fn become_program(&self) -> Result<Infallible, (Step, i32)> {
        // First of all, so that the end of the group ends a child that hangs further down.
        if let Some(procs) = self.cgroup {
            rustix::io::write(procs, b"0").map_err(setup)?;
        }
        for (from, to) in self.stdio.iter().zip(0..) {
            // SAFETY: plain numbers; the descriptors are open.
            check(unsafe { libc::dup2(*from, to) }, Step::Setup)?;
        }
        self.close_others();
        reset_signals();
        rustix::process::setsid().map_err(setup)?;
        if self.plan.child.terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()).map_err(setup)?;
        }
        write_oom_score();
        let entered = self.enter_folder();
        if self.plan.change_user {
            self.become_user()?;
        }
        // A mount of the user's own may refuse root, and let the user in.
        entered.or_else(|_| self.enter_folder())?;
        if self.plan.child.alone {
            // After the change of user, which clears it.
            let signal = Some(Signal::KILL);
            rustix::process::set_parent_process_death_signal(signal).map_err(setup)?;
        }
        Err((Step::Exec, self.exec()))
    }

    /// Closes every descriptor but the standard ones and the report's.
    fn close_others(&self) {
        let close = |first: u32, last: u32| {
            // SAFETY: plain numbers. The child uses none of these descriptors, and its copies of
            // their owners are never dropped.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        };
        let report = self.report.cast_unsigned();
        if report > 3 {
            close(3, report - 1);
        }
        close(report + 1, u32::MAX);
    }

    fn enter_folder(&self) -> Done {
        // SAFETY: the text ends with NUL and outlives the call.
        check(unsafe { libc::chdir(self.plan.cwd.as_ptr()) }, Step::Folder)
    }

    fn become_user(&self) -> Done {
        let user = &self.plan.user;
        // SAFETY: plain system calls on numbers and a live slice; nothing allocates.
        unsafe {
            check(libc::setgroups(user.groups.len(), user.groups.as_ptr()), Step::Setup)?;
            check(libc::setgid(user.gid), Step::Setup)?;
            check(libc::setuid(user.uid), Step::Setup)
        }
    }

    /// Tries each place where the program may be, as `execvp(3)` does. Returns the error's number.
    fn exec(&self) -> i32 {
        let cmd = self.plan.cmd.as_bytes();
        if cmd.contains(&b'/') {
            return self.exec_at(self.plan.cmd.as_ptr());
        }
        let mut outcome = libc::ENOENT;
        for folder in self.plan.search.split(|byte| *byte == b':') {
            let mut path = [0_u8; PATH_MAX];
            let length = folder.len() + 1 + cmd.len();
            // The last byte stays NUL.
            if length >= PATH_MAX {
                continue;
            }
            let name = if folder.is_empty() { 0 } else { folder.len() + 1 };
            path[..folder.len()].copy_from_slice(folder);
            if name > 0 {
                path[folder.len()] = b'/';
            }
            path[name..name + cmd.len()].copy_from_slice(cmd);
            match self.exec_at(path.as_ptr().cast()) {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => outcome = libc::EACCES,
                other => return other,
            }
        }
        outcome
    }

    /// Replaces the process by the program at a path. Returns the error's number.
    fn exec_at(&self, path: *const libc::c_char) -> i32 {
        // SAFETY: the path ends with NUL, and both lists with a null pointer; all outlive the call.
        unsafe { libc::execve(path, self.args.as_ptr(), self.envs.as_ptr()) };
        last_error()
    }
}

/// Gives signals their defaults: the Rust runtime ignores `SIGPIPE`, which programs would inherit.
fn reset_signals() {
    // SAFETY: plain system calls on a set that lives here.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

fn setup(error: rustix::io::Errno) -> (Step, i32) {
    (Step::Setup, error.raw_os_error())
}

fn check(result: libc::c_int, step: Step) -> Done {
    if result == -1 { Err((step, last_error())) } else { Ok(()) }
}

fn last_error() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

#[cfg(test)]
mod tests;
