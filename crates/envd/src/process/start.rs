//! The start of a program, up to the moment at which it runs. The serving thread never touches a
//! file system here. `Spawner` does the look-ups, the change of folder and the exec.
//!
//! A start takes four forms: `Spec` (the wire's), `Plan` (the kernel's texts), `Request` (with
//! descriptors) and `Task` (the child's view).

use super::child::Child;
use super::endpoint::Endpoint;
use super::hub::Output;
use super::pty::{self, Pty};
use super::starting::Starting;
use super::{PTY_CHUNK, Source, Spec, shell};
use crate::cgroup::Leaf;
use crate::error::{Error, Result};
use crate::guest::{Guest, Settings};
use crate::sys::spawn::{self, Failure, Plan, Step};
use crate::sys::spawner::{Outcome, Request};
use crate::users::{self, User};
use crate::{jobs, paths};
use connectrpc::ErrorCode;
use rustix::pipe::{PipeFlags, pipe_with};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::time::Instant;

const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A running program, with envd's ends of its input and output.
pub(super) struct Started {
    pub child: Child,
    pub leaf: Option<Leaf>,
    pub stdin: Option<Endpoint>,
    pub pty: Option<Pty>,
    pub sources: Vec<Source>,
}

/// Starts a program as the user called `account`. `vars` are the variables from the guest's
/// metadata.
///
/// # Errors
/// Returns `unauthenticated` for an unknown user, and `invalid_argument` for a wrong request.
/// Returns `not_found` for a missing program, and `permission_denied` for a program that cannot be
/// executed. Returns `deadline_exceeded` at the deadline, and `unavailable` when a file system does
/// not answer.
pub(super) async fn start(
    guest: &Arc<Guest>,
    account: String,
    spec: &Arc<Spec>,
    vars: Vec<(&'static str, String)>,
    deadline: Option<Instant>,
) -> Result<Started> {
    check(spec)?;
    let limit = Instant::now() + jobs::LIMIT;
    let until = deadline.map_or(limit, |deadline| deadline.min(limit));
    match tokio::time::timeout_at(until, begin(guest, account, spec, vars)).await {
        Ok(started) => started,
        Err(_) if until < limit => {
            Err(Error::new(ErrorCode::DeadlineExceeded, protocol::DEADLINE_PASSED))
        }
        Err(_) => {
            let error = io::Error::other("the file system does not answer");
            Err(cannot_run(spec, ErrorCode::Unavailable, &error))
        }
    }
}

/// Starts a program. A drop of the future leaves no program.
async fn begin(
    guest: &Arc<Guest>,
    account: String,
    spec: &Arc<Spec>,
    vars: Vec<(&'static str, String)>,
) -> Result<Started> {
    let Stdio { theirs, stdin, outputs } = Stdio::open(guest, &account, spec).await?;
    let (stdin, pty, sources) = ours(stdin, outputs, spec.terminal.is_some())?;
    let place = guest.jobs.starts.free_place().await?;
    let group = guest.cgroups.leaf(spec.terminal.is_some());
    let (leaf, procs) = group.map_or((None, None), |(leaf, procs)| (Some(leaf), Some(procs)));
    let request = Request {
        plan: Box::new(plan(guest, account, Arc::clone(spec), vars)),
        stdio: theirs.each_ref().map(AsRawFd::as_raw_fd),
        cgroup: procs.as_ref().map(AsRawFd::as_raw_fd),
        place,
    };
    let asked = match guest.spawner.ask(request) {
        Ok(asked) => asked,
        Err(error) => {
            leaf.into_iter().for_each(|leaf| guest.cgroups.end(leaf));
            return Err(error);
        }
    };
    let mut starting = Starting::new(guest, leaf, asked, theirs.into_iter().chain(procs).collect());
    match starting.outcome().await {
        Some(Outcome::Runs(pid)) => {
            let (child, leaf) = (Child::new(pid), starting.finish());
            Ok(Started { child, leaf, stdin, pty, sources })
        }
        Some(Outcome::Failed(failure, plan)) => Err(refusal(spec, plan.cwd(), &failure)),
        Some(Outcome::Refused(error)) => Err(error),
        None => Err(Error::internal("the thread that starts programs has failed")),
    }
}

/// Returns the look-ups of a start, which read files of the guest.
fn plan(
    guest: &Guest,
    account: String,
    spec: Arc<Spec>,
    vars: Vec<(&'static str, String)>,
) -> impl FnOnce() -> Result<Plan> + Send + 'static {
    let settings = guest.settings();
    let lives = spawn::Child { terminal: spec.terminal.is_some(), alone: !guest.in_guest };
    move || {
        let user = users::get(&account)?;
        let cwd = folder(&spec, &user, settings.default_workdir.as_deref())?;
        let cmd = shell::choose(&spec.cmd, &spec.args)?;
        let envs = environment(&user, &spec, vars, settings);
        let plan = Plan::new(cmd, &spec.args, &envs, &cwd, user, lives);
        plan.map_err(|_| {
            Error::invalid("cwd or the capsule's environment contains a NUL character")
        })
    }
}

/// Returns the folder in which a program starts. A caller who names none gets the root folder in
/// place of a home that does not exist, as login shells do.
fn folder(spec: &Spec, user: &User, workdir: Option<&str>) -> Result<PathBuf> {
    let wanted = spec.cwd.as_deref().unwrap_or("");
    let cwd = paths::resolve(wanted, user, workdir)?;
    if wanted.is_empty() && workdir.is_none() {
        let found = std::fs::metadata(&cwd).map_err(|error| error.kind());
        // Any other failure, such as a mount that lets only the user in, may not be the user's.
        if matches!(found, Err(io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)) {
            return Ok(PathBuf::from("/"));
        }
    }
    Ok(cwd)
}

/// Refuses texts that no environment or argument list can hold.
fn check(spec: &Spec) -> Result<()> {
    let nul = |text: &String| text.contains('\0');
    if spec.cmd.is_empty() {
        return Err(Error::invalid("cmd must not be empty"));
    }
    if nul(&spec.cmd) || spec.args.iter().any(nul) {
        return Err(Error::invalid("cmd and args must not contain NUL characters"));
    }
    let bad = |(k, v): (&String, &String)| k.is_empty() || k.contains(['=', '\0']) || nul(v);
    if spec.envs.iter().any(bad) {
        return Err(Error::invalid("envs contains an invalid variable name or value"));
    }
    Ok(())
}

/// Builds the environment of a program. It holds nothing of envd's own environment.
fn environment(
    user: &User,
    spec: &Spec,
    vars: Vec<(&'static str, String)>,
    settings: Settings,
) -> BTreeMap<String, String> {
    let search = settings.template_path.unwrap_or_else(|| SEARCH_PATH.to_owned());
    let mut envs = BTreeMap::from([
        ("PATH".to_owned(), search),
        ("HOME".to_owned(), user.home.to_string_lossy().into_owned()),
        ("USER".to_owned(), user.name.clone()),
        ("LOGNAME".to_owned(), user.name.clone()),
    ]);
    envs.extend(vars.into_iter().map(|(name, value)| (name.to_owned(), value)));
    envs.extend(settings.envs);
    envs.extend(spec.envs.clone());
    envs
}

/// Makes the error of a failed step, in the form of the wire. A missing program and a program that
/// cannot be executed have codes of their own, as in shells.
fn refusal(spec: &Spec, cwd: &Path, failure: &Failure) -> Error {
    let error = &failure.error;
    match (failure.step, error.raw_os_error().unwrap_or(0)) {
        (Step::Folder, number) => {
            let shown = cwd.display();
            let why = match number {
                libc::ENOENT | libc::ENOTDIR => "does not exist or is not a directory".to_owned(),
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

/// The standard descriptors of a program: the child's ends and envd's.
struct Stdio {
    theirs: [OwnedFd; 3],
    stdin: Option<OwnedFd>,
    /// Standard output and error, or the terminal's master alone.
    outputs: Vec<OwnedFd>,
}

impl Stdio {
    async fn open(guest: &Guest, account: &str, spec: &Spec) -> Result<Self> {
        let opened = match spec.terminal {
            None => Self::pipes(guest.null.as_ref(), spec.stdin),
            Some(size) => {
                let account = account.to_owned();
                // This opens files of the guest.
                let open = move || Ok(Self::terminal(size, users::get(&account)?.uid));
                guest.jobs.starts.run(jobs::LIMIT, open).await?
            }
        };
        opened.map_err(|e| cannot_open(&e))
    }

    fn terminal(size: (u16, u16), uid: u32) -> io::Result<Self> {
        let (master, slave) = pty::open(size, uid)?;
        let theirs = [slave.try_clone()?, slave.try_clone()?, slave];
        Ok(Self { theirs, stdin: None, outputs: vec![master] })
    }

    fn pipes(null: Option<&OwnedFd>, stdin: bool) -> io::Result<Self> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC);
        let (their_in, our_in) = match null {
            Some(null) if !stdin => (null.try_clone()?, None),
            _ => {
                let (reader, writer) = pipe()?;
                (reader, stdin.then_some(writer))
            }
        };
        let ((our_out, their_out), (our_err, their_err)) = (pipe()?, pipe()?);
        let theirs = [their_in, their_out, their_err];
        Ok(Self { theirs, stdin: our_in, outputs: vec![our_out, our_err] })
    }
}

/// Makes envd's ends ready for use.
fn ours(
    stdin: Option<OwnedFd>,
    outputs: Vec<OwnedFd>,
    terminal: bool,
) -> Result<(Option<Endpoint>, Option<Pty>, Vec<Source>)> {
    let stdin = stdin.map(Endpoint::new).transpose().map_err(|e| cannot_open(&e))?;
    let ends = outputs.into_iter().map(Endpoint::new);
    let ends = ends.collect::<io::Result<Vec<_>>>().map_err(|e| cannot_open(&e))?;
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

fn cannot_open(error: &io::Error) -> Error {
    // The program exists, even if the guest's terminals cannot be opened: this is not `not_found`.
    Error::new(ErrorCode::FailedPrecondition, format!("cannot open the program's pipes: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_home_is_replaced_by_the_root_folder_only_by_default() {
        let home = |home: &str| User {
            name: "nobody".into(),
            uid: 65_534,
            gid: 65_534,
            groups: vec![65_534],
            home: home.into(),
        };
        let at = |cwd: Option<&str>, user: &User, workdir| {
            let spec = Spec { cwd: cwd.map(str::to_owned), ..Spec::default() };
            folder(&spec, user, workdir).unwrap()
        };
        let (missing, existing) = (home("/nonexistent"), home("/usr"));
        assert_eq!(at(None, &missing, None), Path::new("/"));
        assert_eq!(at(Some(""), &missing, None), Path::new("/"));
        assert_eq!(at(None, &existing, None), Path::new("/usr"));
        assert_eq!(at(Some("/nowhere"), &missing, None), Path::new("/nowhere"));
        assert_eq!(at(Some("~"), &missing, None), Path::new("/nonexistent"));
        assert_eq!(at(None, &missing, Some("/nowhere")), Path::new("/nowhere"));
    }

    #[test]
    fn missing_and_non_executable_program_have_distinct_codes() {
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
