//! `wrenn capsule shell`: connects a terminal in a capsule to the user's own terminal. A terminal
//! outlives its connection: after a broken one, the shell attaches to its terminal again.
//!
//! ```text
//!  start, connect ──▶ attached ── exit ──▶ the program's exit code
//!                      ▲     │
//!                      │     │ the connection breaks
//!                      │     ▼
//!                      └── lost ── refused, or no answer for `PATIENCE` ──▶ error
//! ```

use super::capsule::path;
use super::exec::{Input, exit, read_stdin};
use crate::cli;
use crate::client::{Client, Receiver, Refused, Sender, Socket, is_passing};
use crate::output;
use anyhow::Context;
use api::{PtyEvent, PtyRequest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crossterm::terminal;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

const SIZE: (u16, u16) = (80, 24);
/// Time between two tries to attach again: first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// Time after a broken connection in which the shell tries to attach again.
const PATIENCE: Duration = Duration::from_secs(300);
/// Key that gives up a broken connection.
const CTRL_C: u8 = 3;
/// Clears our terminal, whose contents the replay then shows.
const CLEAR: &[u8] = b"\x1b[H\x1b[2J";

/// Program to run on a terminal in a capsule.
pub(super) struct Program {
    pub capsule: String,
    pub user: Option<String>,
    pub command: Vec<String>,
    pub envs: BTreeMap<String, String>,
    pub cwd: Option<String>,
}

pub(super) async fn shell(shell: cli::Shell, client: &Client) -> anyhow::Result<ExitCode> {
    if let Some(wanted) = shell.attach {
        let tag = match wanted {
            Some(tag) => tag,
            None => newest(&shell.capsule, client).await?,
        };
        let first = PtyRequest::Connect { tag, replay: true };
        return session(&shell.capsule, first, client).await;
    }
    let command = vec!["/bin/bash".to_owned(), "-i".to_owned(), "-l".to_owned()];
    let program = Program {
        capsule: shell.capsule,
        user: shell.user,
        command,
        envs: BTreeMap::new(),
        cwd: None,
    };
    run(program, client).await
}

/// Returns the name of the terminal that was opened last.
async fn newest(capsule: &str, client: &Client) -> anyhow::Result<String> {
    let path = path(capsule, "/terminals?passive=true")?;
    let list: api::TerminalList = client.get(&path).await?;
    let newest = list.terminals.into_iter().max_by_key(|terminal| terminal.started_at);
    let newest = newest.map(|terminal| terminal.tag.unwrap_or_else(|| terminal.pid.to_string()));
    newest.ok_or_else(|| {
        output::not_found("the capsule has no open terminal; leave out --attach".to_owned())
    })
}

/// Runs a program on a terminal until it ends. Every key goes to the program.
pub(super) async fn run(program: Program, client: &Client) -> anyhow::Result<ExitCode> {
    let (cols, rows) = terminal::size().unwrap_or(SIZE);
    let mut envs = program.envs;
    if let Some(term) = cli::terminal_type() {
        envs.entry("TERM".to_owned()).or_insert(term);
    }
    let mut words = program.command.into_iter();
    let start = PtyRequest::Start {
        cmd: words.next(),
        args: words.collect(),
        cols: Some(cols),
        rows: Some(rows),
        envs,
        cwd: program.cwd,
        user: program.user,
    };
    session(&program.capsule, start, client).await
}

/// Connects to a terminal until its program ends. `first` starts the terminal or connects to it.
async fn session(capsule: &str, first: PtyRequest, client: &Client) -> anyhow::Result<ExitCode> {
    let path = path(capsule, "/pty")?;
    let socket = client.socket(&path).await?;
    let mut session = Session {
        keys: read_stdin(),
        resized: signal(SignalKind::window_change())?,
        raw: None,
        tag: None,
    };
    tokio::select! {
        code = session.keep(socket, first, &path, client) => code,
        // An ordinary return restores the terminal.
        _ = daemon::terminated() => anyhow::bail!("the shell was asked to end"),
    }
}

/// The user's end of a terminal, over all its connections.
struct Session {
    keys: Input,
    resized: Signal,
    raw: Option<Raw>,
    /// Name of the terminal, once a connection has told it.
    tag: Option<String>,
}

/// End of a connection to a terminal.
enum Ended {
    /// The program has ended.
    Exit(ExitCode),
    /// The connection broke, and the terminal is still there.
    Lost(anyhow::Error),
}

impl Session {
    /// Carries the terminal over one connection after another.
    async fn keep(
        &mut self,
        socket: Socket,
        first: PtyRequest,
        path: &str,
        client: &Client,
    ) -> anyhow::Result<ExitCode> {
        let mut ended = self.carry(socket, &first).await?;
        loop {
            let lost = match ended {
                Ended::Exit(code) => return Ok(code),
                Ended::Lost(error) => error,
            };
            let Some(tag) = self.tag.clone() else { return Err(lost) };
            output::raw_error(b"\r\n[the connection broke; attaching again]\r\n")?;
            let connect = PtyRequest::Connect { tag, replay: true };
            ended = self.attach_again(&connect, path, client, lost).await?;
        }
    }

    /// Attaches to the terminal again. Returns the end of the connection that succeeds.
    ///
    /// # Errors
    /// The platform's refusal, or `lost` after [`PATIENCE`] or at Ctrl-C.
    async fn attach_again(
        &mut self,
        connect: &PtyRequest,
        path: &str,
        client: &Client,
        lost: anyhow::Error,
    ) -> anyhow::Result<Ended> {
        let (since, mut pause) = (Instant::now(), PAUSES.0);
        while since.elapsed() < PATIENCE {
            if !self.rest(pause).await {
                break;
            }
            pause = (2 * pause).min(PAUSES.1);
            match client.socket(path).await {
                Ok(socket) => return self.carry(socket, connect).await,
                Err(error) if error.is::<Refused>() && !is_passing(&error) => return Err(error),
                Err(_) => {}
            }
        }
        Err(lost)
    }

    /// Waits before another try. Returns `false` when the user presses Ctrl-C, which is no signal in
    /// raw mode. Other keys are dropped.
    async fn rest(&mut self, pause: Duration) -> bool {
        let until = tokio::time::Instant::now() + pause;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return true,
                Some(keys) = self.keys.recv() => {
                    if keys.contains(&CTRL_C) {
                        return false;
                    }
                }
            }
        }
    }

    /// Carries one connection to its end. Output and input run concurrently: a program that reads
    /// no input still shows its output.
    async fn carry(&mut self, socket: Socket, first: &PtyRequest) -> anyhow::Result<Ended> {
        let Socket { mut sender, receiver } = socket;
        let connects = matches!(first, PtyRequest::Connect { .. });
        let (cols, rows) = terminal::size().unwrap_or(SIZE);
        let sent = async {
            sender.send(first).await?;
            match connects {
                true => sender.send(&PtyRequest::Resize { cols, rows }).await,
                false => Ok(()),
            }
        };
        if let Err(error) = sent.await {
            return Ok(Ended::Lost(error));
        }
        let Self { keys, resized, raw, tag } = self;
        let clears = connects && std::io::stdout().is_terminal();
        tokio::select! {
            ended = show(receiver, raw, tag, clears) => ended,
            never = type_in(sender, keys, resized) => never,
        }
    }
}

/// Shows the terminal's output until the program ends or the connection breaks.
async fn show(
    mut receiver: Receiver,
    raw: &mut Option<Raw>,
    name: &mut Option<String>,
    clears: bool,
) -> anyhow::Result<Ended> {
    loop {
        let frame = match receiver.next().await {
            Ok(frame) => frame,
            Err(error) => return Ok(Ended::Lost(error)),
        };
        match frame {
            // Raw mode starts only now, so that an earlier refusal is printed on an unchanged
            // terminal.
            PtyEvent::Started { tag, .. } => {
                *name = Some(tag);
                if raw.is_none() {
                    *raw = Some(Raw::enter()?);
                }
                if clears {
                    output::raw(CLEAR)?;
                }
            }
            PtyEvent::Output { data } => {
                output::raw(&STANDARD.decode(data).context("the output is not valid base64")?)?;
            }
            PtyEvent::Exit { exit_code } => {
                *raw = None;
                return Ok(Ended::Exit(exit(exit_code)));
            }
            // Other connections took the output, and the terminal is still there.
            PtyEvent::Error { code, data, fatal: true } if code == "output_not_read" => {
                return Ok(Ended::Lost(Refused::frame(code, data)));
            }
            PtyEvent::Error { code, data, fatal: true } => {
                return Err(Refused::frame(code, data));
            }
            PtyEvent::Error { .. } | PtyEvent::Ping => {}
        }
    }
}

/// Sends keys and changes of the terminal's size. The program may run on after the end of our
/// input. When sending fails, the program may just have ended; its exit tells.
async fn type_in(
    mut sender: Sender,
    keys: &mut Input,
    resized: &mut Signal,
) -> anyhow::Result<Ended> {
    loop {
        let frame = tokio::select! {
            Some(data) = keys.recv() => match data.is_empty() {
                true => continue,
                false => PtyRequest::Input { data: STANDARD.encode(data) },
            },
            _ = resized.recv() => match terminal::size() {
                Ok((cols, rows)) => PtyRequest::Resize { cols, rows },
                Err(_) => continue,
            },
        };
        if sender.send(&frame).await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Raw mode of the terminal, in which every key is passed on. Dropping it restores the terminal.
struct Raw(bool);

impl Raw {
    fn enter() -> anyhow::Result<Self> {
        let terminal = std::io::stdin().is_terminal();
        if terminal {
            terminal::enable_raw_mode().context("cannot set up the terminal")?;
        }
        Ok(Self(terminal))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if self.0 {
            let _ = terminal::disable_raw_mode();
        }
    }
}
