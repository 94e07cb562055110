//! Programs that callers start: one value each, alive until 30 s after its end.
//!
//! The leader of each is in a session and so a process group of its own; a signal or a
//! deadline reaches the whole group. What it writes goes to its `hub`; nothing is kept for
//! callers that come later but the end itself.

pub(crate) mod hub;
pub(crate) mod pty;
pub(crate) mod registry;

use crate::cgroup::Leaf;
use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::users::User;
use crate::{paths, sys};
use bytes::Bytes;
use hub::{Event, Exit, Hub, Output};
use pty::Pty;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::Instant;

const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const CHUNK: usize = 32 * 1024;
const PTY_CHUNK: usize = 16 * 1024;
/// The most that a pipe can hold (`/proc/sys/fs/pipe-max-size`'s default).
const PIPE_MAX: usize = 1 << 20;
/// How long to wait for more output after the leader's end.
const DRAIN: Duration = Duration::from_millis(250);

/// What a caller asks to be run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spec {
    pub cmd: String,
    pub args: Vec<String>,
    pub envs: BTreeMap<String, String>,
    pub cwd: Option<String>,
    pub tag: Option<String>,
    /// Columns and rows, when it wants a terminal.
    pub terminal: Option<(u16, u16)>,
    /// Whether standard input is a pipe.
    pub stdin: bool,
}

/// A program that was started.
pub(crate) struct Process {
    pub pid: u32,
    pub spec: Spec,
    pub hub: Hub,
    stdin: Mutex<Option<ChildStdin>>,
    pty: Option<Pty>,
}

/// Starts a program as `user` and returns it with the first subscription, made before the
/// program can write, so that no output is lost. At the deadline its whole group is killed,
/// whether or not anyone listens. `vars` are what the guest knows of itself.
pub(crate) fn start(
    guest: &Arc<Guest>,
    user: &User,
    spec: Spec,
    vars: Vec<(&'static str, String)>,
    deadline: Option<Instant>,
) -> Result<(Arc<Process>, mpsc::Receiver<Event>)> {
    let mut command = command(guest, user, &spec, vars)?;
    let terminal = spec.terminal.map(|size| pty::open(size, user.uid)).transpose();
    let mut terminal = terminal.map_err(|e| Error::io("opening a terminal", &e))?;
    if let Some((_, slave)) = &mut terminal {
        let stdio = || slave.try_clone().map(Stdio::from);
        let clone = |e| Error::io("opening a terminal", &e);
        command.stdin(stdio().map_err(clone)?);
        command.stdout(stdio().map_err(clone)?);
        command.stderr(stdio().map_err(clone)?);
    } else {
        command.stdin(if spec.stdin { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
    }
    let leaf = guest.cgroups.leaf(terminal.is_some());
    let cgroup = leaf.as_ref().map(|leaf| &leaf.procs);
    let alone = !guest.in_guest;
    sys::prepare_child(
        &mut command,
        user,
        cgroup,
        sys::Child { terminal: terminal.is_some(), alone },
    )
    .map_err(|e| Error::io("preparing the process", &e))?;
    let spawned = command.spawn();
    drop(command); // and with it our copies of the terminal's slave
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            leaf.into_iter().for_each(|leaf| guest.cgroups.end(leaf));
            return Err(spawn_error(&spec, &error));
        }
    };
    let process = Arc::new(Process {
        pid: child.id().unwrap_or(0),
        spec,
        hub: Hub::default(),
        stdin: Mutex::new(child.stdin.take()),
        pty: terminal.map(|(master, _slave)| master),
    });
    let events = process.hub.subscribe();
    guest.processes.insert(&process);
    tokio::spawn(follow(Arc::clone(guest), Arc::clone(&process), child, leaf, deadline));
    Ok((process, events))
}

fn command(
    guest: &Guest,
    user: &User,
    spec: &Spec,
    vars: Vec<(&'static str, String)>,
) -> Result<Command> {
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
    let settings = guest.settings();
    let workdir = settings.default_workdir.as_deref();
    let cwd = paths::resolve(spec.cwd.as_deref().unwrap_or(""), user, workdir)?;
    if !cwd.is_dir() {
        let shown = cwd.display();
        return Err(Error::invalid(format!("cwd '{shown}' does not exist or is no directory")));
    }
    let mut command = Command::new(&spec.cmd);
    command.args(&spec.args).current_dir(cwd).env_clear();
    command.env("PATH", SEARCH_PATH).env("HOME", &user.home);
    command.env("USER", &user.name).env("LOGNAME", &user.name);
    command.envs(vars).envs(&settings.envs).envs(&spec.envs);
    Ok(command)
}

fn spawn_error(spec: &Spec, error: &std::io::Error) -> Error {
    let cmd: String = spec.cmd.chars().take(200).collect();
    Error::invalid(format!("cannot run '{cmd}': {error}"))
}

/// Carries output to the hub until the program's end, then says how it ended.
async fn follow(
    guest: Arc<Guest>,
    process: Arc<Process>,
    mut child: Child,
    leaf: Option<Leaf>,
    deadline: Option<Instant>,
) {
    let status = carry(&process, &mut child, deadline).await;
    process.hub.end(Exit::from(status)).await;
    leaf.into_iter().for_each(|leaf| guest.cgroups.end(leaf));
    guest.processes.forget_later(Arc::clone(&process));
    // Last: a writer may hold it while some heir of the program's does not read.
    process.stdin.lock().await.take();
}

async fn carry(
    process: &Process,
    child: &mut Child,
    deadline: Option<Instant>,
) -> std::io::Result<ExitStatus> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (ended, end) = watch::channel(false);
    let pump = async {
        if let Some(pty) = &process.pty {
            process.pump(pty.reader(), Output::Pty, PTY_CHUNK, end).await;
        } else {
            tokio::join!(
                process.pump_maybe(stdout, Output::Stdout, end.clone()),
                process.pump_maybe(stderr, Output::Stderr, end.clone()),
            );
        }
    };
    let wait = async {
        let status = tokio::select! {
            status = child.wait() => status,
            () = crate::rpc::stream::until(deadline) => {
                // One that has just ended needs no killing.
                let _ = process.signal(Signal::KILL);
                child.wait().await
            }
        };
        ended.send_replace(true);
        status
    };
    tokio::join!(wait, pump).0
}

impl Process {
    async fn pump_maybe(
        &self,
        from: Option<impl AsyncRead + Unpin>,
        output: Output,
        end: watch::Receiver<bool>,
    ) {
        if let Some(from) = from {
            self.pump(from, output, CHUNK, end).await;
        }
    }

    /// Carries output until there is no more. Children of the leader may keep its pipes for
    /// ever: after its end only what it can have left there is carried.
    async fn pump(
        &self,
        mut from: impl AsyncRead + Unpin,
        output: Output,
        chunk: usize,
        mut end: watch::Receiver<bool>,
    ) {
        let mut buffer = vec![0; chunk];
        let mut left = PIPE_MAX;
        while left > 0 {
            let ended = *end.borrow_and_update();
            let read = if ended {
                tokio::time::timeout(DRAIN, from.read(&mut buffer)).await.unwrap_or(Ok(0))
            } else {
                tokio::select! {
                    biased;
                    read = from.read(&mut buffer) => read,
                    _ = end.changed() => continue,
                }
            };
            // A terminal ends with an error, a pipe with nothing more to read.
            let Ok(n @ 1..) = read else { return };
            self.hub.publish(output, Bytes::copy_from_slice(&buffer[..n])).await;
            left = if ended { left.saturating_sub(n) } else { PIPE_MAX };
        }
    }

    /// Feeds standard input; waits while the program does not read.
    pub(crate) async fn write_stdin(&self, data: &[u8]) -> Result<()> {
        let mut stdin = self.stdin.lock().await;
        let pipe = stdin.as_mut().ok_or_else(|| self.refuse("has no open standard input"))?;
        pipe.write_all(data).await.map_err(|e| self.input_failed(&e))
    }

    /// Types into the terminal.
    pub(crate) async fn write_pty(&self, data: &[u8]) -> Result<()> {
        let pty = self.pty.as_ref().ok_or_else(|| self.refuse("has no terminal"))?;
        pty.write_all(data).await.map_err(|e| self.input_failed(&e))
    }

    /// Closes standard input, so that the program reads its end.
    pub(crate) async fn close_stdin(&self) -> Result<()> {
        if self.pty.is_some() {
            return Err(self.refuse("has a terminal, whose input cannot be closed"));
        }
        self.stdin.lock().await.take();
        Ok(())
    }

    /// Tells the terminal its size.
    pub(crate) fn resize(&self, size: (u16, u16)) -> Result<()> {
        let pty = self.pty.as_ref().ok_or_else(|| self.refuse("has no terminal"))?;
        pty.resize(size).map_err(|e| Error::io("resizing the terminal", &e))
    }

    /// Signals the whole group; one that has just ended is no error.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        if self.hub.ended() {
            return Err(Error::not_found(format!("process {} has ended", self.pid)));
        }
        match sys::kill_group(self.pid, signal) {
            Err(e) if e.raw_os_error() != Some(libc::ESRCH) => Err(Error::io("signalling", &e)),
            _ => Ok(()),
        }
    }

    fn refuse(&self, why: &str) -> Error {
        let message = format!("process {} {why}", self.pid);
        Error::new(connectrpc::ErrorCode::FailedPrecondition, message)
    }

    fn input_failed(&self, error: &std::io::Error) -> Error {
        self.refuse(&format!("does not take input: {error}"))
    }
}
