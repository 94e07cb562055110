//! Starts a program by a fork and an exec, with system calls for which rustix has no safe form. No
//! other module of this crate has unsafe code.
//!
//! The child of a process with threads must neither allocate nor take a lock. So the parent prepares
//! all texts and lists, and the child makes system calls only.
#![expect(unsafe_code, reason = "fork, exec and the registration of a pidfd have no safe form")]

use super::{FolderError, Program, User};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{fcntl_dupfd_cloexec, retry_on_intr};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Gid, Pid, Signal, Uid, WaitOptions, kill_process, waitpid};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};
use std::ffi::{CStr, CString, OsStr};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use tokio::io::unix::AsyncFd;

/// Lowest descriptor of the parent that a child takes over. A child's own numbers are below it.
const FILES_MAX: RawFd = 16;
/// Number of the standard descriptors.
const STANDARD: usize = 3;
/// Bytes of the kernel's set of signals.
const SIGNAL_SET: usize = 8;
/// Seconds that a child may take from the fork to its exec.
const EXEC_SECONDS: i64 = 10;

/// Registers a descriptor for readiness with the runtime.
pub(super) fn async_fd(owner: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the owner keeps its descriptor open and unchanged until after the registration's end.
    Ok(unsafe { AsyncFd::register(owner) }?)
}

/// A start in the kernel's form.
pub(super) struct Plan {
    /// Name of the program, for messages.
    name: String,
    /// Paths at which the program may be, in order.
    paths: Vec<CString>,
    args: Vec<CString>,
    envs: Vec<CString>,
    cwd: CString,
    files: Vec<OwnedFd>,
    cgroup: Option<OwnedFd>,
    oom_score: CString,
    change: Option<(Uid, Gid, Vec<Gid>)>,
}

impl Plan {
    /// Prepares a start. Only root changes its user.
    pub(super) fn new(program: Program, user: &User, cgroup: Option<OwnedFd>) -> io::Result<Self> {
        let path = program.envs.get("PATH").map_or("/usr/local/bin:/usr/bin:/bin", String::as_str);
        let args = std::iter::once(&program.path).chain(&program.args);
        let envs = program.envs.iter().map(|(name, value)| format!("{name}={value}"));
        let groups = user.groups.iter().copied().map(Gid::from_raw).collect();
        let mut files = program.files;
        let count = files.len().max(STANDARD);
        files.resize_with(count, || None);
        let change = (Uid::from_raw(user.uid), Gid::from_raw(user.gid), groups);
        Ok(Self {
            name: program.path.display().to_string(),
            paths: candidates(&program.path, path)?,
            args: args.map(|arg| text(arg.as_bytes())).collect::<io::Result<_>>()?,
            envs: envs.map(|env| text(env.as_bytes())).collect::<io::Result<_>>()?,
            cwd: text(program.cwd.as_os_str().as_bytes())?,
            files: files.into_iter().map(raised).collect::<io::Result<_>>()?,
            cgroup: cgroup.map(Some).map(raised).transpose()?,
            oom_score: text(program.oom_score.to_string().as_bytes())?,
            change: rustix::process::geteuid().is_root().then_some(change),
        })
    }
}

/// Returns the paths at which a program may be, as a shell finds them.
fn candidates(program: &OsStr, path: &str) -> io::Result<Vec<CString>> {
    let name = program.as_bytes();
    if name.contains(&b'/') {
        return Ok(vec![text(name)?]);
    }
    let folders = path.split(':').filter(|folder| folder.starts_with('/'));
    folders.map(|folder| text(&[folder.as_bytes(), b"/", name].concat())).collect()
}

fn text(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| {
        let shown = String::from_utf8_lossy(bytes).escape_debug().to_string();
        io::Error::new(io::ErrorKind::InvalidInput, format!("'{shown}' contains a NUL"))
    })
}

/// Moves a descriptor above all numbers that a child uses, so that no copy overwrites another.
fn raised(file: Option<OwnedFd>) -> io::Result<OwnedFd> {
    let file = match file {
        Some(file) => file,
        None => std::fs::File::options().read(true).write(true).open("/dev/null")?.into(),
    };
    Ok(fcntl_dupfd_cloexec(&file, FILES_MAX)?)
}

/// Step of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Setup,
    Folder,
    Exec,
}

/// Starts a program and waits for its exec.
pub(super) fn spawn(plan: &Plan) -> io::Result<Pid> {
    if plan.files.len() > usize::try_from(FILES_MAX).unwrap_or_default() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the program has too many files"));
    }
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let writer = raised(Some(writer))?;
    let (args, envs) = (pointers(&plan.args), pointers(&plan.envs));
    // SAFETY: the child makes system calls alone, until its exec or its end.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Child { plan, args: &args, envs: &envs, report: writer.as_raw_fd() }.run(),
        pid => {
            drop(writer);
            let none = || io::Error::other("fork returned no process id");
            let pid = Pid::from_raw(pid).ok_or_else(none)?;
            wait_for_exec(reader, pid).map_err(|failure| failure.describe(plan)).map(|()| pid)
        }
    }
}

/// Makes a list that ends with a null pointer, the form of `execve(2)`.
fn pointers(texts: &[CString]) -> Vec<*const libc::c_char> {
    texts.iter().map(|text| text.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
}

/// Failed step of a start, and its reason.
struct Failure {
    step: Step,
    error: io::Error,
}

impl Failure {
    fn describe(self, plan: &Plan) -> io::Error {
        let (kind, error) = (self.error.kind(), &self.error);
        let name = &plan.name;
        match self.step {
            Step::Setup => io::Error::new(kind, format!("'{name}' cannot be prepared: {error}")),
            Step::Exec => io::Error::new(kind, format!("'{name}' cannot be run: {error}")),
            Step::Folder => {
                let folder = plan.cwd.to_string_lossy().into_owned();
                io::Error::new(kind, FolderError { folder, why: error.to_string() })
            }
        }
    }
}

/// Reads the child's report. An exec closes the report's descriptor.
fn wait_for_exec(reader: OwnedFd, pid: Pid) -> Result<(), Failure> {
    let limit = Timespec { tv_sec: EXEC_SECONDS, tv_nsec: 0 };
    let readable = retry_on_intr(|| poll(&mut [PollFd::new(&reader, PollFlags::IN)], Some(&limit)));
    let mut report = [0_u8; 5];
    let read = match readable {
        Ok(1..) => std::fs::File::from(reader).read(&mut report),
        Ok(0) | Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    let failure = match read {
        Ok(0) => return Ok(()),
        Ok(_) => read_report(report),
        Err(error) => Failure { step: Step::Setup, error },
    };
    let _ = kill_process(pid, Signal::KILL);
    let _ = retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()));
    Err(failure)
}

/// Reads a report: the step, and the error's number.
fn read_report([step, number @ ..]: [u8; 5]) -> Failure {
    let step = match step {
        1 => Step::Folder,
        2 => Step::Exec,
        _ => Step::Setup,
    };
    Failure { step, error: io::Error::from_raw_os_error(i32::from_ne_bytes(number)) }
}

/// Result of a step of the child: on failure, the step and the error's number.
type StepResult = Result<(), (Step, i32)>;

/// The child's view of its start.
struct Child<'a> {
    plan: &'a Plan,
    args: &'a [*const libc::c_char],
    envs: &'a [*const libc::c_char],
    report: RawFd,
}

impl Child<'_> {
    /// Becomes the program, or reports the failure and ends.
    fn run(&self) -> ! {
        let (step, number) = match self.prepare() {
            Ok(()) => (Step::Exec, self.exec()),
            Err(failure) => failure,
        };
        let step = match step {
            Step::Setup => 0,
            Step::Folder => 1,
            Step::Exec => 2,
        };
        let [a, b, c, d] = number.to_ne_bytes();
        let report = [step, a, b, c, d];
        // SAFETY: the buffer outlives the call, and `_exit` runs no code of the parent's.
        unsafe {
            libc::write(self.report, report.as_ptr().cast(), report.len());
            libc::_exit(127)
        }
    }

    fn prepare(&self) -> StepResult {
        if let Some(cgroup) = &self.plan.cgroup {
            rustix::io::write(cgroup, b"0").map_err(setup)?;
        }
        reset_signals();
        for (file, number) in self.plan.files.iter().zip(0..) {
            // SAFETY: plain numbers; all sources are above all targets.
            check(unsafe { libc::dup2(file.as_raw_fd(), number) }, Step::Setup)?;
        }
        self.close_others()?;
        rustix::process::setsid().map_err(setup)?;
        self.write_oom_score();
        if let Some((uid, gid, groups)) = &self.plan.change {
            set_thread_groups(groups).map_err(setup)?;
            set_thread_gid(*gid).map_err(setup)?;
            set_thread_uid(*uid).map_err(setup)?;
        }
        self.enter_folder()
    }

    /// Lets the exec close every descriptor but the program's own.
    fn close_others(&self) -> StepResult {
        let first = libc::c_long::try_from(self.plan.files.len()).unwrap_or(0);
        let (last, flags) = (libc::c_long::from(u32::MAX), libc::CLOSE_RANGE_CLOEXEC);
        // SAFETY: plain numbers, in a table that is the child's own.
        check(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }, Step::Setup)
    }

    /// Writes the score by which the kernel chooses a process to end. A failure is no obstacle.
    fn write_oom_score(&self) {
        const PATH: &CStr = c"/proc/self/oom_score_adj";
        let score = self.plan.oom_score.to_bytes();
        // SAFETY: the path ends with NUL, the buffer outlives the call. The descriptor is owned once.
        unsafe {
            let file = libc::open(PATH.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if file >= 0 {
                let _ = rustix::io::write(OwnedFd::from_raw_fd(file), score);
            }
        }
    }

    fn enter_folder(&self) -> StepResult {
        // SAFETY: the text ends with NUL and outlives the call.
        check(unsafe { libc::chdir(self.plan.cwd.as_ptr()) }, Step::Folder)
    }

    /// Tries each path. Returns the error's number, of the first path that exists.
    fn exec(&self) -> i32 {
        let mut outcome = libc::ENOENT;
        for path in &self.plan.paths {
            // SAFETY: the path ends with NUL, both lists with a null pointer; all outlive the call.
            unsafe { libc::execve(path.as_ptr(), self.args.as_ptr(), self.envs.as_ptr()) };
            match last_error() {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => outcome = libc::EACCES,
                other => return other,
            }
        }
        outcome
    }
}

/// Resets signals to their defaults and unblocks them. The Rust runtime ignores `SIGPIPE`, and
/// programs would inherit this.
fn reset_signals() {
    // The kernel's form of an action: default handler, no flags, no restorer, empty mask.
    let (action, none) = ([0_u64; 4], 0_u64);
    let old = std::ptr::null_mut::<u64>();
    // SAFETY: both structures outlive the calls. The kernel refuses those for `SIGKILL`.
    unsafe {
        for number in 1..=64_i64 {
            libc::syscall(libc::SYS_rt_sigaction, number, action.as_ptr(), old, SIGNAL_SET);
        }
        let how = libc::SIG_SETMASK;
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
