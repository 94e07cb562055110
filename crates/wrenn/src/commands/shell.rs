//! `wrenn capsule shell`: connects a terminal in a capsule to the user's own terminal.

use super::capsule::path;
use super::exec::{exit, read_stdin};
use crate::cli;
use crate::client::{Client, Receiver, Refused, Sender, Socket};
use crate::output;
use anyhow::Context;
use api::{PtyEvent, PtyRequest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crossterm::terminal;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

const SIZE: (u16, u16) = (80, 24);

/// Program to run on a terminal in a capsule.
pub(super) struct Program {
    pub capsule: String,
    pub user: Option<String>,
    pub command: Vec<String>,
    pub envs: BTreeMap<String, String>,
    pub cwd: Option<String>,
}

pub(super) async fn shell(shell: cli::Shell, client: &Client) -> anyhow::Result<ExitCode> {
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

/// Runs a program on a terminal until it ends. Every key goes to the program.
pub(super) async fn run(program: Program, client: &Client) -> anyhow::Result<ExitCode> {
    let Socket { mut sender, receiver } = client.socket(&path(&program.capsule, "/pty")?).await?;
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
    sender.send(&start).await?;
    // Output and input run concurrently: a program that reads no input still shows its output.
    tokio::select! {
        code = show(receiver) => code,
        never = type_in(sender) => never,
        // An ordinary return restores the terminal.
        _ = daemon::terminated() => anyhow::bail!("the shell was asked to end"),
    }
}

/// Shows the terminal's output until the program ends.
async fn show(mut receiver: Receiver) -> anyhow::Result<ExitCode> {
    let mut raw = None;
    loop {
        match receiver.next().await? {
            // Raw mode starts only now, so that an earlier refusal is printed on an unchanged
            // terminal.
            PtyEvent::Started { .. } => raw = Some(Raw::enter()?),
            PtyEvent::Output { data } => {
                output::raw(&STANDARD.decode(data).context("the output is not valid base64")?)?;
            }
            PtyEvent::Exit { exit_code } => {
                drop(raw);
                return Ok(exit(exit_code));
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
async fn type_in(mut sender: Sender) -> anyhow::Result<ExitCode> {
    let mut keys = read_stdin();
    let mut resized = signal(SignalKind::window_change())?;
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
