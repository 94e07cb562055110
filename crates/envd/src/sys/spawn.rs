//! Starts a program, in the manner of `vfork(2)` and an exec.
//!
//! The child shares its parent's memory until the exec, while the thread that made it waits. A copy
//! of the memory, as `fork(2)` makes, costs more than the rest of a start. The child reports a
//! failure in `Task::failure`, which both share. It closes all other descriptors before it follows
//! any path.
//!
//! The child must neither allocate nor take a lock, since the shared memory would keep either after
//! the exec. Functions of the C library that keep state are forbidden too: `setuid` signals every
//! thread of envd, and `sigaction` may take a lock. So the child makes system calls directly, or by
//! wrappers that only set `errno`.

use super::write_oom_score;
use crate::lock::lock;
use crate::users::User;
use rustix::fd::{AsRawFd, BorrowedFd, RawFd};
use rustix::io::retry_on_intr;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect};
use rustix::process::{
    Gid, Pid, Signal, Uid, WaitOptions, kill_process, kill_process_group, waitpid,
};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::{CString, NulError, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// Longest path of a program, in bytes (`PATH_MAX`).
const PATH_MAX: usize = 4096;
/// Bytes of the kernel's set of signals.
const SIGNAL_SET: usize = 8;
/// Bytes of a child's stack. A child needs less than that.
const STACK: usize = 64 * 1024;
/// Bytes below a stack that cannot be accessed.
const GUARD: usize = 64 * 1024;

/// Circumstances of a child.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Child {
    /// Set if standard input is a terminal, which becomes the child's own.
    pub terminal: bool,
    /// Set if the child ends with envd. On an ordinary machine no other process would end it.
    pub alone: bool,
}

/// A program to start, in the kernel's form. The child allocates nothing, so the plan is made
/// before the fork.
#[derive(Debug)]
pub(crate) struct Plan {
    cmd: CString,
    args: Vec<CString>,
    envs: Vec<CString>,
    /// Folders to search for a name without `/`.
    search: Vec<u8>,
    cwd: CString,
    user: User,
    groups: Vec<Gid>,
    change_user: bool,
    child: Child,
}

impl Plan {
    /// Makes the plan of a program. `args` do not contain the name of the program itself.
    ///
    /// # Errors
    /// Returns an error when a text holds a NUL.
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
            groups: user.groups.iter().copied().map(Gid::from_raw).collect(),
            user,
            change_user: rustix::process::getuid().is_root(),
            child,
        })
    }

    /// Returns the folder in which the program starts.
    pub(crate) fn cwd(&self) -> &Path {
        Path::new(OsStr::from_bytes(self.cwd.as_bytes()))
    }
}

/// Stack for a thread's children, of which only one uses it at a time. It is never freed.
pub(super) struct Stack {
    top: *mut libc::c_void,
}

impl Stack {
    pub(super) fn new() -> io::Result<Self> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a mapping of its own, whose lowest part is nobody's.
        unsafe {
            let base = mmap_anonymous(std::ptr::null_mut(), GUARD + STACK, protection, flags)?;
            mprotect(base, GUARD, MprotectFlags::empty())?;
            Ok(Self { top: base.byte_add(GUARD + STACK) })
        }
    }
}

/// Link between a start and its caller, who may cancel it.
#[derive(Default)]
pub(crate) struct Cancellable {
    cancelled: AtomicBool,
    /// Pid of the child, or 0. The kernel writes it before the child runs.
    pid: AtomicI32,
    /// Held while the pid is given up, so that no signal reaches another process with that pid.
    reaping: Mutex<()>,
}

impl Cancellable {
    /// Keeps the program from starting. Kills a child that exists already, and leaves its end to
    /// the thread that waits for it.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        let _held = lock(&self.reaping);
        if let Some(pid) = Pid::from_raw(self.pid.load(Ordering::SeqCst)) {
            // The child's group may not exist yet.
            let _ = kill_process_group(pid, Signal::KILL);
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// Reaps a child that failed to start.
    fn reap(&self, pid: Pid) {
        let held = lock(&self.reaping);
        self.pid.store(0, Ordering::SeqCst);
        drop(held);
        let _ = retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()));
    }
}

/// Step of a start that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Session, terminal, control group or user.
    Setup,
    /// Change into the working folder.
    Folder,
    /// The exec itself.
    Exec,
}

/// Reason why a child did not become the program.
#[derive(Debug)]
pub(crate) struct Failure {
    pub step: Step,
    pub error: io::Error,
}

impl Failure {
    /// Makes a failure from an error before the child's first step.
    pub(super) fn setup(error: io::Error) -> Self {
        Self { step: Step::Setup, error }
    }
}

/// Starts a program and waits for its exec. The child gets `stdio` as its standard descriptors, and
/// enters the control group whose `cgroup.procs` is given. It runs on `stack` until the exec.
///
/// Also returns the pid when a signal killed the child before its exec.
pub(super) fn spawn(
    plan: &Plan,
    stdio: [BorrowedFd<'_>; 3],
    cgroup: Option<BorrowedFd<'_>>,
    cancellable: &Cancellable,
    stack: &mut Stack,
) -> Result<Pid, Failure> {
    if cancellable.is_cancelled() {
        return Err(Failure::setup(io::Error::from_raw_os_error(libc::ECANCELED)));
    }
    let args = pointers(&plan.args);
    let envs = pointers(&plan.envs);
    let task = Task {
        plan,
        args: &args,
        envs: &envs,
        stdio: stdio.map(|fd| fd.as_raw_fd()),
        cgroup,
        cancellable,
        failure: Cell::new(None),
    };
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PARENT_SETTID | libc::SIGCHLD;
    let argument = (&raw const task).cast_mut().cast();
    // SAFETY: the stack is the child's alone, and grows down from its end. This thread goes on once
    // the child has left its memory. So task and stack outlive the child's use of them.
    let pid = unsafe { libc::clone(child, stack.top, flags, argument, cancellable.pid.as_ptr()) };
    if pid == -1 {
        return Err(Failure::setup(io::Error::last_os_error()));
    }
    let none = || Failure::setup(io::Error::other("clone returned no process id"));
    let pid = Pid::from_raw(pid).ok_or_else(none)?;
    match task.failure.take() {
        None => Ok(pid),
        Some((step, number)) => {
            cancellable.reap(pid);
            Err(Failure { step, error: io::Error::from_raw_os_error(number) })
        }
    }
}

/// Entry point of the child.
extern "C" fn child(task: *mut libc::c_void) -> libc::c_int {
    // SAFETY: it is the task of a thread that waits for the child.
    let task = unsafe { &*task.cast::<Task<'_>>() };
    task.run()
}

/// Makes a list that ends with a null pointer, the form of `execve(2)`.
fn pointers(texts: &[CString]) -> Vec<*const libc::c_char> {
    texts.iter().map(|text| text.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
}

/// Result of one step of the child: on failure, the step and the error's number.
type StepResult = Result<(), (Step, i32)>;

/// The child's view of its start.
struct Task<'a> {
    plan: &'a Plan,
    args: &'a [*const libc::c_char],
    envs: &'a [*const libc::c_char],
    stdio: [RawFd; 3],
    cgroup: Option<BorrowedFd<'a>>,
    cancellable: &'a Cancellable,
    /// The failed step and the error's number, if the child did not become the program.
    failure: Cell<Option<(Step, i32)>>,
}

impl Task<'_> {
    /// Becomes the program, or records the failure.
    fn run(&self) -> ! {
        let failure = match self.become_program() {
            Ok(never) => match never {},
            Err(failure) => failure,
        };
        self.failure.set(Some(failure));
        // SAFETY: `_exit` runs no code of the parent's.
        unsafe { libc::_exit(127) }
    }

    fn become_program(&self) -> Result<Infallible, (Step, i32)> {
        // `cancel` sets the flag before it reads the pid, so at least one side always notices.
        if self.cancellable.is_cancelled() {
            return Err((Step::Setup, libc::ECANCELED));
        }
        // The control group comes first, so that ending it ends a child that hangs further down.
        if let Some(procs) = self.cgroup {
            rustix::io::write(procs, b"0").map_err(setup)?;
        }
        for (from, to) in self.stdio.iter().zip(0..) {
            // SAFETY: plain numbers; the descriptors are open.
            check(unsafe { libc::dup2(*from, to) }, Step::Setup)?;
        }
        self.close_others()?;
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
            // A change of user clears this signal, so it is set afterwards.
            let signal = Some(Signal::KILL);
            rustix::process::set_parent_process_death_signal(signal).map_err(setup)?;
        }
        Err((Step::Exec, self.exec()))
    }

    /// Closes every descriptor but the standard ones.
    fn close_others(&self) -> StepResult {
        // SAFETY: plain numbers. The table is the child's own, and nothing here drops its owners.
        check(unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) }, Step::Setup)
    }

    fn enter_folder(&self) -> StepResult {
        // SAFETY: the text ends with NUL and outlives the call.
        check(unsafe { libc::chdir(self.plan.cwd.as_ptr()) }, Step::Folder)
    }

    fn become_user(&self) -> StepResult {
        let user = &self.plan.user;
        set_thread_groups(&self.plan.groups).map_err(setup)?;
        set_thread_gid(Gid::from_raw(user.gid)).map_err(setup)?;
        set_thread_uid(Uid::from_raw(user.uid)).map_err(setup)
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
            let name_at = if folder.is_empty() { 0 } else { folder.len() + 1 };
            path[..folder.len()].copy_from_slice(folder);
            if name_at > 0 {
                path[folder.len()] = b'/';
            }
            path[name_at..name_at + cmd.len()].copy_from_slice(cmd);
            match self.exec_at(path.as_ptr().cast()) {
                libc::ENOENT | libc::ENOTDIR | libc::ENODEV | libc::ESTALE | libc::ETIMEDOUT => {}
                libc::EACCES => outcome = libc::EACCES,
                other => return other,
            }
        }
        outcome
    }

    /// Replaces the process with the program at a path. Returns the error's number.
    fn exec_at(&self, path: *const libc::c_char) -> i32 {
        // SAFETY: the path ends with NUL, and both lists with a null pointer; all outlive the call.
        unsafe { libc::execve(path, self.args.as_ptr(), self.envs.as_ptr()) };
        last_error()
    }
}

/// Resets signals to their defaults, and unblocks them. The Rust runtime ignores `SIGPIPE`, which
/// programs would inherit. A handler of the parent would run in the memory that both share.
fn reset_signals() {
    // The kernel's form of an action: default handler, no flags, no restorer, empty mask.
    let (action, none) = ([0_u64; 4], 0_u64);
    // SAFETY: both structures outlive the calls. `SIGKILL` and `SIGSTOP` keep their defaults anyway.
    unsafe {
        for number in 1..=64 {
            let old = std::ptr::null_mut::<u64>();
            libc::syscall(libc::SYS_rt_sigaction, number, action.as_ptr(), old, SIGNAL_SET);
        }
        let (how, old) = (libc::SIG_SETMASK, std::ptr::null_mut::<u64>());
        libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const none, old, SIGNAL_SET);
    }
}

fn setup(error: rustix::io::Errno) -> (Step, i32) {
    (Step::Setup, error.raw_os_error())
}

/// Returns the error of a call that returned -1.
fn check(result: impl Into<libc::c_long>, step: Step) -> StepResult {
    if result.into() == -1 { Err((step, last_error())) } else { Ok(()) }
}

fn last_error() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

#[cfg(test)]
mod tests;
