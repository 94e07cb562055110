//! Programs that callers start: one value each, alive until 30 s after its end.
//!
//! The leader of each is in a session and so a process group of its own. A signal reaches the whole
//! group; `SIGKILL` and a deadline end the whole control group, with whatever has a session of its
//! own in it. Both end with the leader: what it left behind runs on. Its output goes to its `hub`.
//! Callers that come later get the end, and the last output of processes that were left behind.

mod child;
mod endpoint;
pub(crate) mod exit;
pub(crate) mod hub;
mod pty;
pub(crate) mod registry;
mod start;

use crate::cgroup::Leaf;
use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::sys;
use child::Child;
use endpoint::Endpoint;
use exit::Exit;
use futures::future::join_all;
use hub::{Hub, Output, Subscription};
use pty::Pty;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::time::Instant;

/// Most bytes of a terminal that one message carries.
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
    pub spec: Arc<Spec>,
    pub hub: Arc<Hub>,
    stdin: AsyncMutex<Option<Endpoint>>,
    pty: Option<Pty>,
    /// Its control group, until the leader has ended.
    leaf: Mutex<Option<Leaf>>,
    /// Set once the leader has been waited for, so that its pid is free.
    gone: watch::Sender<bool>,
}

/// Where output comes from.
struct Source {
    end: Endpoint,
    output: Output,
    /// Bytes that one message carries.
    most: usize,
}

/// Starts a program as the account called `account`. Returns it with the first subscription, which
/// is made before its output is read, so that none is lost. At the deadline it is killed with its
/// control group, whether or not anyone listens. `vars` are what the guest knows of itself.
pub(crate) async fn start(
    guest: &Arc<Guest>,
    account: String,
    spec: Spec,
    vars: Vec<(&'static str, String)>,
    deadline: Option<Instant>,
) -> Result<(Arc<Process>, Subscription)> {
    let spec = Arc::new(spec);
    let started = start::start(guest, account, &spec, vars, deadline).await?;
    let process = Arc::new(Process {
        pid: started.child.pid(),
        spec,
        hub: guest.processes.hub(),
        stdin: AsyncMutex::new(started.stdin),
        pty: started.pty,
        leaf: Mutex::new(started.leaf),
        gone: watch::Sender::new(false),
    });
    let events = process.hub.subscribe()?;
    guest.processes.insert(&process);
    let (guest, followed) = (Arc::clone(guest), Arc::clone(&process));
    tokio::spawn(follow(guest, followed, started.child, started.sources, deadline));
    Ok((process, events))
}

/// Carries output to the hub until the program's end and tells the end. Afterwards reads on for
/// processes that it left behind.
async fn follow(
    guest: Arc<Guest>,
    process: Arc<Process>,
    child: Child,
    sources: Vec<Source>,
    deadline: Option<Instant>,
) {
    let pumps = join_all(sources.iter().map(|source| process.pump(source)));
    let (status, open) = tokio::join!(process.wait(&child, deadline), pumps);
    drop(child);
    process.hub.end(&Exit::from(status));
    if let Some(leaf) = process.leaf().take() {
        guest.cgroups.end(leaf);
    }
    let open = sources.into_iter().zip(open).filter_map(|(source, open)| open.then_some(source));
    let open: Vec<Source> = open.collect();
    if !open.is_empty()
        && let Some(place) = guest.processes.drain()
    {
        guest.processes.linger(&process.hub);
        let hub = Arc::clone(&process.hub);
        tokio::spawn(async move {
            drain(&hub, &open).await;
            drop(place);
        });
    }
    // Writers have left it, since the leader has ended.
    process.stdin.lock().await.take();
    guest.processes.forget_later(process).await;
}

/// Reads the pipes of an ended program until nobody holds them. So no process that was left behind
/// waits or gets `SIGPIPE`.
async fn drain(hub: &Hub, sources: &[Source]) {
    join_all(sources.iter().map(|source| drain_one(hub, source))).await;
    hub.drained();
}

async fn drain_one(hub: &Hub, source: &Source) {
    while let Ok(data) = source.end.read(source.most).await {
        if data.is_empty() {
            return;
        }
        hub.keep(source.output, &data);
        // A process that never rests leaves the thread to others between two pieces.
        tokio::task::yield_now().await;
    }
}

impl Process {
    /// Waits for the leader's end; kills everything at the deadline.
    async fn wait(&self, child: &Child, deadline: Option<Instant>) -> std::io::Result<ExitStatus> {
        let status = tokio::select! {
            status = child.wait() => status,
            () = crate::rpc::stream::until(deadline) => {
                // One that has just ended needs no killing.
                let _ = self.signal(Signal::KILL);
                child.wait().await
            }
        };
        self.gone.send_replace(true);
        self.hub.release();
        status
    }

    /// Carries output until there is no more, and returns whether somebody may write still.
    /// Children of the leader may keep its pipes for ever. After the leader's end, only what it
    /// can have left there is carried.
    async fn pump(&self, source: &Source) -> bool {
        let mut gone = self.gone.subscribe();
        let mut rest: Option<(Instant, usize)> = None;
        loop {
            if rest.is_none() && *gone.borrow_and_update() {
                rest = Some((Instant::now() + DRAIN, PIPE_MAX));
            }
            let read = source.end.read(source.most);
            let read = match rest {
                Some((_, 0)) => return true,
                Some((until, _)) => match tokio::time::timeout_at(until, read).await {
                    Ok(read) => read,
                    Err(_) => {
                        tokio::task::yield_now().await;
                        // A thread that was busy finds output that the leader left in time.
                        match source.end.read_now(source.most) {
                            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return true,
                            read => read,
                        }
                    }
                },
                None => tokio::select! {
                    biased;
                    read = read => read,
                    _ = gone.changed() => continue,
                },
            };
            // A terminal ends with an error, a pipe with nothing more to read.
            let data = match read {
                Ok(data) if !data.is_empty() => data,
                Ok(_) | Err(_) => return false,
            };
            if let Some((_, left)) = &mut rest {
                *left = left.saturating_sub(data.len());
            }
            self.hub.publish(source.output, data).await;
        }
    }

    /// Feeds standard input; waits while the program does not read.
    pub(crate) async fn write_stdin(&self, data: &[u8]) -> Result<()> {
        let write = async {
            let stdin = self.stdin.lock().await;
            let pipe = stdin.as_ref().ok_or_else(|| self.refuse("has no open standard input"))?;
            pipe.write_all(data).await.map_err(|e| self.input_failed(&e))
        };
        self.unless_gone(write).await
    }

    /// Types into the terminal.
    pub(crate) async fn write_pty(&self, data: &[u8]) -> Result<()> {
        let pty = self.pty.as_ref().ok_or_else(|| self.refuse("has no terminal"))?;
        let write = async { pty.write_all(data).await.map_err(|e| self.input_failed(&e)) };
        self.unless_gone(write).await
    }

    /// Closes standard input, so that the program reads its end.
    pub(crate) async fn close_stdin(&self) -> Result<()> {
        if self.pty.is_some() {
            return Err(self.refuse("has a terminal, whose input cannot be closed"));
        }
        self.stdin.lock().await.take();
        Ok(())
    }

    /// Waits for a write until the leader's end. Processes that it left behind may hold its input
    /// for ever.
    async fn unless_gone(&self, write: impl Future<Output = Result<()>>) -> Result<()> {
        let mut gone = self.gone.subscribe();
        tokio::select! {
            biased;
            done = write => done,
            _ = gone.wait_for(|gone| *gone) => Err(self.refuse("has ended")),
        }
    }

    /// Tells the terminal its size.
    pub(crate) fn resize(&self, size: (u16, u16)) -> Result<()> {
        let pty = self.pty.as_ref().ok_or_else(|| self.refuse("has no terminal"))?;
        pty.resize(size).map_err(|e| Error::io("resizing the terminal", &e))
    }

    /// Signals the leader's process group; `SIGKILL` ends its whole control group too, where there
    /// is one. A leader that has just ended is no error, and nothing that it left behind is reached.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        if self.hub.ended() {
            return Err(Error::not_found(format!("process {} has ended", self.pid)));
        }
        if *self.gone.borrow() {
            return Ok(());
        }
        if signal == Signal::KILL
            && let Some(leaf) = self.leaf().as_ref()
        {
            leaf.kill();
        }
        match sys::kill_group(self.pid, signal) {
            Err(e) if e.raw_os_error() != Some(libc::ESRCH) => Err(Error::io("signalling", &e)),
            _ => Ok(()),
        }
    }

    fn leaf(&self) -> std::sync::MutexGuard<'_, Option<Leaf>> {
        self.leaf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuse(&self, why: &str) -> Error {
        let message = format!("process {} {why}", self.pid);
        Error::new(connectrpc::ErrorCode::FailedPrecondition, message)
    }

    fn input_failed(&self, error: &std::io::Error) -> Error {
        self.refuse(&format!("does not take input: {error}"))
    }
}

#[cfg(test)]
mod tests;
