//! Programs that callers start. Each is a value that lives at least 30 s beyond the program's end.
//!
//! ```text
//!  run::start       insert                     hub.end             forget_later
//!  ────┬───────────────────▶ runs ────────────────────▶ ended ───────────────────▶ forgotten
//!      │ Error                                            │    REMEMBER, hub.settled
//!      ▼                      pump: output to             │ a pipe is still open
//!   no program                subscribers                 ▼
//!                             wait: leader's end;       lingers: hub.keep takes the last
//!                             SIGKILL at the deadline   output, until hub.drained or forget
//! ```
//! `run::follow` carries a program from its start to `forget_later`.
//!
//! The program itself is the leader of a session and so of a process group. A signal reaches the
//! whole group. `SIGKILL` and a deadline end the whole control group, with processes in sessions of
//! their own. Neither does so after the leader's end: its other processes run on.
//!
//! Output goes to the program's `hub`, and output of programs in the background to the `log` too.
//! Later callers get the end, and the last output of processes that outlive the leader.

pub(crate) mod child;
mod endpoint;
pub(crate) mod exit;
pub(crate) mod hub;
pub(crate) mod log;
mod pty;
pub(crate) mod registry;
mod replay;
pub(crate) mod run;
mod shell;
pub(crate) mod signals;
mod start;
mod starting;
pub(crate) mod table;

use crate::cgroup::Leaf;
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::{clock, sys};
use child::Child;
use endpoint::Endpoint;
use hub::{Hub, Output};
use pty::Pty;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::time::Instant;

/// Bytes of a program's arguments and variables that lists show.
const SHOWN_MAX: usize = 16 * 1024;
/// Most bytes of a terminal in a message.
const PTY_CHUNK: usize = 16 * 1024;
/// Most bytes that a pipe can hold (`/proc/sys/fs/pipe-max-size`'s default).
const PIPE_MAX: usize = 1 << 20;
/// Time to wait for more output after the leader's end.
const DRAIN: Duration = Duration::from_millis(250);

/// A program that a caller asks for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spec {
    pub cmd: String,
    pub args: Vec<String>,
    pub envs: BTreeMap<String, String>,
    pub cwd: Option<String>,
    pub tag: Option<String>,
    /// Columns and rows of the terminal. `None` means pipes.
    pub terminal: Option<(u16, u16)>,
    /// Set if standard input is a pipe.
    pub stdin: bool,
}

impl Spec {
    /// Drops the arguments and variables beyond [`SHOWN_MAX`]. A program is listed until after its
    /// end, and lists of many long arguments would take the agent's memory.
    fn shorten(mut self) -> Self {
        let mut left = SHOWN_MAX;
        let mut fits = |text: usize| {
            left = left.saturating_sub(text + 1);
            left > 0
        };
        let args = self.args.iter().take_while(|arg| fits(arg.len())).count();
        if args < self.args.len() {
            self.args.truncate(args);
            self.args.push("…".to_owned());
            self.args.shrink_to_fit();
        }
        self.envs.retain(|name, value| fits(name.len() + value.len()));
        self
    }
}

/// A started program.
pub(crate) struct Process {
    pub pid: u32,
    pub spec: Spec,
    pub hub: Arc<Hub>,
    /// Time of the start, in milliseconds since 1970.
    pub started_ms: i64,
    /// Way of the output to the log.
    log: Arc<log::Writer>,
    stdin: AsyncMutex<Option<Endpoint>>,
    pty: Option<Pty>,
    /// The control group, until the leader has ended.
    leaf: Mutex<Option<Leaf>>,
    /// Set once the leader has been reaped, so that its pid is free.
    gone: watch::Sender<bool>,
}

/// A source of output.
struct Source {
    end: Endpoint,
    output: Output,
    /// Most bytes in a message.
    most: usize,
}

impl Process {
    /// Waits for the leader's end. Kills everything at the deadline.
    async fn wait(&self, child: &Child, deadline: Option<Instant>) -> std::io::Result<ExitStatus> {
        let status = tokio::select! {
            status = child.wait() => status,
            () = clock::until(deadline) => {
                // The leader may have just ended, which is no error.
                let _ = self.signal(Signal::KILL);
                child.wait().await
            }
        };
        self.gone.send_replace(true);
        self.hub.release();
        status
    }

    /// Carries output to its end. Returns `true` if some process may still write.
    ///
    /// Children of the leader may keep its pipes for ever. After the leader's end, no more is
    /// carried than the leader can have left in the pipe.
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
                        // After a busy time, the thread still finds output that the leader wrote in
                        // time.
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
            // A terminal ends with an error, a pipe with an empty read.
            let data = match read {
                Ok(data) if !data.is_empty() => data,
                Ok(_) | Err(_) => return false,
            };
            if let Some((_, left)) = &mut rest {
                *left = left.saturating_sub(data.len());
            }
            self.log.add(source.output, &data);
            self.hub.publish(source.output, data).await;
        }
    }

    /// Writes to standard input. Waits while the program does not read.
    pub(crate) async fn write_stdin(&self, data: &[u8]) -> Result<()> {
        let write = async {
            let stdin = self.stdin.lock().await;
            let pipe = stdin.as_ref().ok_or_else(|| self.refuse("has no open standard input"))?;
            pipe.write_all(data).await.map_err(|e| self.input_failed(&e))
        };
        self.unless_gone(write).await
    }

    /// Writes to the terminal.
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

    /// Waits for a write until the leader's end. Processes that outlive the leader may hold its
    /// input for ever.
    async fn unless_gone(&self, write: impl Future<Output = Result<()>>) -> Result<()> {
        let mut gone = self.gone.subscribe();
        tokio::select! {
            biased;
            done = write => done,
            _ = gone.wait_for(|gone| *gone) => Err(self.refuse("has ended")),
        }
    }

    /// Sets the terminal's size.
    pub(crate) fn resize(&self, size: (u16, u16)) -> Result<()> {
        let pty = self.pty.as_ref().ok_or_else(|| self.refuse("has no terminal"))?;
        pty.resize(size).map_err(|e| Error::io("cannot resize the terminal", &e))
    }

    /// Returns the terminal's size (columns, rows). `None` for a program without a terminal.
    pub(crate) fn terminal_size(&self) -> Option<(u16, u16)> {
        let pty = self.pty.as_ref()?;
        // The size at the start stands in for a size that the kernel does not tell.
        pty.size().ok().or(self.spec.terminal)
    }

    /// Signals the leader's process group. `SIGKILL` also ends the whole control group, if there is
    /// one. A leader that has just ended is no error. Processes that outlive it get no signal then.
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
            Err(e) if e.raw_os_error() != Some(libc::ESRCH) => {
                Err(Error::io("cannot signal the process", &e))
            }
            _ => Ok(()),
        }
    }

    fn leaf(&self) -> std::sync::MutexGuard<'_, Option<Leaf>> {
        lock(&self.leaf)
    }

    fn refuse(&self, why: &str) -> Error {
        let message = format!("process {} {why}", self.pid);
        Error::new(connectrpc::ErrorCode::FailedPrecondition, message)
    }

    fn input_failed(&self, error: &std::io::Error) -> Error {
        self.refuse(&format!("does not accept input: {error}"))
    }
}

#[cfg(test)]
mod tests;
