//! The start of a program, up to the moment at which it runs. Nothing here waits for a file system
//! on the thread that serves. Look-ups run as jobs, and the folder and the exec are the child's.

use super::child::{Child, Starting};
use super::endpoint::Endpoint;
use super::hub::Output;
use super::pty::{self, Pty};
use super::{PTY_CHUNK, Source, Spec};
use crate::cgroup::Leaf;
use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::sys::spawn::{self, Failure, Plan, Step};
use crate::users::{self, User};
use crate::{jobs, paths};
use connectrpc::ErrorCode;
use rustix::fs::{Mode, OFlags, fstat, makedev};
use rustix::pipe::{PipeFlags, pipe_with};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use tokio::time::Instant;

const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program that runs, with our ends of what it reads and writes.
pub(super) struct Started {
    pub child: Child,
    pub leaf: Option<Leaf>,
    pub stdin: Option<Endpoint>,
    pub pty: Option<Pty>,
    pub sources: Vec<Source>,
}

/// Starts a program as the account called `account`. `vars` are what the guest knows of itself.
///
/// # Errors
/// `unauthenticated` for an unknown account, and `invalid_argument` for a wrong request.
/// `not_found` for a program that is not there, and `permission_denied` for one that cannot be
/// executed. `deadline_exceeded` at the deadline, and `unavailable` when a file system does not
/// answer.
pub(super) async fn start(
    guest: &Arc<Guest>,
    account: String,
    spec: &Spec,
    vars: Vec<(&'static str, String)>,
    deadline: Option<Instant>,
) -> Result<Started> {
    check(spec)?;
    let (stdin, size) = (spec.stdin, spec.terminal);
    let look_up = move || -> Result<(User, Stdio)> {
        let user = users::get(&account)?;
        let stdio = Stdio::open(stdin, size, user.uid);
        Ok((user, stdio.map_err(|e| Error::io("opening the program's pipes", &e))?))
    };
    let (user, stdio) = guest.jobs.starts.run(jobs::LIMIT, look_up).await?;
    let place = guest.jobs.starts.free_place().await?;
    let settings = guest.settings();
    let workdir = settings.default_workdir.as_deref();
    let cwd = paths::resolve(spec.cwd.as_deref().unwrap_or(""), &user, workdir)?;
    let envs = environment(&user, spec, vars, settings.envs);
    let lives = spawn::Child { terminal: spec.terminal.is_some(), alone: !guest.in_guest };
    let plan = Plan::new(&spec.cmd, &spec.args, &envs, &cwd, user, lives);
    let plan =
        plan.map_err(|_| Error::invalid("cwd, or the capsule's environment, contains a NUL"))?;
    let group = guest.cgroups.leaf(spec.terminal.is_some());
    let (leaf, procs) = group.map_or((None, None), |(leaf, procs)| (Some(leaf), Some(procs)));
    let theirs = [stdio.theirs[0].as_fd(), stdio.theirs[1].as_fd(), stdio.theirs[2].as_fd()];
    let forked = guest.spawner.fork_exec(plan, theirs, procs.as_ref().map(AsFd::as_fd));
    let (pid, outcome) = match forked {
        Ok(forked) => forked,
        Err(error) => {
            leaf.into_iter().for_each(|leaf| guest.cgroups.end(leaf));
            return Err(cannot_run(spec, ErrorCode::InvalidArgument, &error));
        }
    };
    let starting = Starting::new(guest, Child::new(pid), leaf, place);
    drop(procs);
    let (stdin, pty, sources) = stdio.ours(spec.terminal.is_some())?;
    await_exec((spec, cwd.as_path()), outcome, deadline).await?;
    let (Some(child), leaf) = starting.finish() else {
        return Err(Error::internal("the program's process is lost"));
    };
    Ok(Started { child, leaf, stdin, pty, sources })
}

/// Checks what no environment or argument list can hold.
fn check(spec: &Spec) -> Result<()> {
    let nul = |text: &String| text.contains('\0');
    if spec.cmd.is_empty() {
        return Err(Error::invalid("cmd must not be empty"));
    }
    if nul(&spec.cmd) || spec.args.iter().any(nul) {
        return Err(Error::invalid("cmd and args must not contain a NUL"));
    }
    let bad = |(k, v): (&String, &String)| k.is_empty() || k.contains(['=', '\0']) || nul(v);
    if spec.envs.iter().any(bad) {
        return Err(Error::invalid("envs has a name or value that no environment can hold"));
    }
    Ok(())
}

/// The environment of a program: what callers gave, and nothing of envd's own.
fn environment(
    user: &User,
    spec: &Spec,
    vars: Vec<(&'static str, String)>,
    settings: BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut envs = BTreeMap::from([
        ("PATH".to_owned(), SEARCH_PATH.to_owned()),
        ("HOME".to_owned(), user.home.to_string_lossy().into_owned()),
        ("USER".to_owned(), user.name.clone()),
        ("LOGNAME".to_owned(), user.name.clone()),
    ]);
    envs.extend(vars.into_iter().map(|(name, value)| (name.to_owned(), value)));
    envs.extend(settings);
    envs.extend(spec.envs.clone());
    envs
}

/// Waits until the child has become the program.
async fn await_exec(
    (spec, cwd): (&Spec, &Path),
    outcome: OwnedFd,
    deadline: Option<Instant>,
) -> Result<()> {
    let outcome = Endpoint::new(outcome).map_err(|e| Error::io("reading a start", &e))?;
    let limit = Instant::now() + jobs::LIMIT;
    let until = deadline.map_or(limit, |deadline| deadline.min(limit));
    match tokio::time::timeout_at(until, outcome.read(64)).await {
        Ok(Ok(report)) => {
            Failure::read(&report).map_or(Ok(()), |why| Err(refusal(spec, cwd, &why)))
        }
        Ok(Err(error)) => Err(Error::io("reading a start", &error)),
        Err(_) if deadline.is_some_and(|deadline| deadline < limit) => {
            Err(Error::new(ErrorCode::DeadlineExceeded, protocol::DEADLINE_PASSED))
        }
        Err(_) => {
            let error = io::Error::other("the file system does not answer");
            Err(cannot_run(spec, ErrorCode::Unavailable, &error))
        }
    }
}

/// Tells a failed step in the wire's words. A missing program and one that cannot be executed have
/// codes of their own, as in shells.
fn refusal(spec: &Spec, cwd: &Path, failure: &Failure) -> Error {
    let error = &failure.error;
    match (failure.step, error.raw_os_error().unwrap_or(0)) {
        (Step::Folder, number) => {
            let shown = cwd.display();
            let why = match number {
                libc::ENOENT | libc::ENOTDIR => "does not exist or is no directory".to_owned(),
                _ => format!("cannot be entered: {error}"),
            };
            Error::invalid(format!("cwd '{shown}' {why}"))
        }
        (Step::Exec, libc::ENOENT | libc::ENOTDIR) => cannot_run(spec, ErrorCode::NotFound, error),
        (Step::Exec, libc::ENOMEM | libc::EAGAIN | libc::EMFILE | libc::ENFILE)
        | (Step::Setup, _) => cannot_run(spec, ErrorCode::InvalidArgument, error),
        (Step::Exec, _) => cannot_run(spec, ErrorCode::PermissionDenied, error),
    }
}

fn cannot_run(spec: &Spec, code: ErrorCode, error: &io::Error) -> Error {
    let cmd: String = spec.cmd.chars().take(200).collect();
    Error::new(code, format!("cannot run '{cmd}': {error}"))
}

/// The standard descriptors of a program, theirs and ours.
struct Stdio {
    theirs: [OwnedFd; 3],
    stdin: Option<OwnedFd>,
    /// Standard output and error, or the terminal's master alone.
    outputs: Vec<OwnedFd>,
}

impl Stdio {
    /// Opens files of the guest, so only threads that may block call it.
    fn open(stdin: bool, terminal: Option<(u16, u16)>, uid: u32) -> io::Result<Self> {
        if let Some(size) = terminal {
            let (master, slave) = pty::open(size, uid)?;
            let theirs = [slave.try_clone()?, slave.try_clone()?, slave];
            return Ok(Self { theirs, stdin: None, outputs: vec![master] });
        }
        let pipe = || pipe_with(PipeFlags::CLOEXEC);
        let (their_in, our_in) = if stdin {
            let (reader, writer) = pipe()?;
            (reader, Some(writer))
        } else {
            (nothing()?, None)
        };
        let ((our_out, their_out), (our_err, their_err)) = (pipe()?, pipe()?);
        let theirs = [their_in, their_out, their_err];
        Ok(Self { theirs, stdin: our_in, outputs: vec![our_out, our_err] })
    }

    /// Closes the program's ends and makes ours ready for use.
    fn ours(self, terminal: bool) -> Result<(Option<Endpoint>, Option<Pty>, Vec<Source>)> {
        drop(self.theirs);
        let fail = |e: io::Error| Error::io("opening the program's pipes", &e);
        let stdin = self.stdin.map(Endpoint::new).transpose().map_err(fail)?;
        let ends = self.outputs.into_iter().map(Endpoint::new);
        let ends = ends.collect::<io::Result<Vec<_>>>().map_err(fail)?;
        if terminal {
            let pty = ends.first().cloned().map(Pty::new);
            let source = |end| Source { end, output: Output::Pty, most: PTY_CHUNK };
            return Ok((stdin, pty, ends.into_iter().map(source).collect()));
        }
        let outputs = [Output::Stdout, Output::Stderr];
        let sources = ends.into_iter().zip(outputs);
        let source = |(end, output)| Source { end, output, most: super::endpoint::CHUNK };
        Ok((stdin, None, sources.map(source).collect()))
    }
}

/// Opens an empty input: the null device, or a pipe where the guest has put something else in its
/// place. The thread that serves closes the input, and must not wait for a file system.
fn nothing() -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if let Ok(null) = rustix::fs::open("/dev/null", flags, Mode::empty())
        && fstat(&null).is_ok_and(|found| found.st_rdev == makedev(1, 3))
        && rustix::io::ioctl_fionbio(&null, false).is_ok()
    {
        return Ok(null);
    }
    let (reader, _) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok(reader)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_program_and_one_that_cannot_be_executed_have_codes_of_their_own() {
        let spec = Spec { cmd: "x".into(), ..Spec::default() };
        for (step, number, code, text) in [
            (Step::Exec, libc::ENOENT, ErrorCode::NotFound, "cannot run 'x': No such file"),
            (Step::Exec, libc::EACCES, ErrorCode::PermissionDenied, "cannot run 'x': Permission"),
            (Step::Exec, libc::ENOEXEC, ErrorCode::PermissionDenied, "cannot run 'x': Exec format"),
            (Step::Exec, libc::EAGAIN, ErrorCode::InvalidArgument, "cannot run 'x': Resource"),
            (Step::Setup, libc::EPERM, ErrorCode::InvalidArgument, "cannot run 'x': Operation"),
            (Step::Folder, libc::ENOENT, ErrorCode::InvalidArgument, "cwd '/w' does not exist"),
            (Step::Folder, libc::EACCES, ErrorCode::InvalidArgument, "cwd '/w' cannot be entered"),
        ] {
            let failure = Failure { step, error: io::Error::from_raw_os_error(number) };
            let error = refusal(&spec, Path::new("/w"), &failure);
            assert_eq!(error.code, code, "{}", error.message);
            assert!(error.message.starts_with(text), "{}", error.message);
        }
    }
}
