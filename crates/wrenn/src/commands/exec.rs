//! `wrenn capsule exec`: a command's input, output, signals and exit code, passed on.

use super::capsule::path;
use crate::cli;
use crate::client::{Client, Refused, Sender, Socket};
use crate::output::{self, Form};
use anyhow::Context;
use api::{StreamEvent, StreamRequest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::io::{IsTerminal, Read};
use std::process::ExitCode;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// Bytes of input that one frame carries.
const CHUNK: usize = 64 * 1024;

pub(super) async fn exec(exec: cli::Exec, client: &Client, form: Form) -> anyhow::Result<ExitCode> {
    if exec.tty {
        let shell = super::shell::Program {
            capsule: exec.capsule,
            user: exec.user,
            command: exec.command,
            envs: exec.envs.into_iter().collect(),
            cwd: exec.cwd,
        };
        return super::shell::run(shell, client).await;
    }
    if form == Form::Json {
        return whole(exec, client).await;
    }
    let stdin = !exec.no_stdin && !std::io::stdin().is_terminal();
    let path = path(&exec.capsule, "")?;
    let Socket { mut sender, mut receiver } = client.socket(&format!("{path}/exec/stream")).await?;
    let mut words = exec.command.into_iter();
    let start = StreamRequest::Start {
        cmd: words.next().unwrap_or_default(),
        args: words.collect(),
        envs: exec.envs.into_iter().collect(),
        cwd: exec.cwd,
        user: exec.user,
        timeout_sec: exec.timeout,
        stdin,
        tag: None,
        encoding: Some("base64".to_owned()),
    };
    sender.send(&start).await?;
    let pid = match receiver.next().await? {
        StreamEvent::Start { pid } => pid,
        StreamEvent::Error { code, data } => return Err(Refused::frame(code, data)),
        StreamEvent::Stdout { .. }
        | StreamEvent::Stderr { .. }
        | StreamEvent::Exit { .. }
        | StreamEvent::Ping => anyhow::bail!("the platform's first frame tells no start"),
    };
    let signals = Signals::new()?;
    let show = async {
        loop {
            if let Some(code) = show(receiver.next().await?)? {
                return Ok(code);
            }
        }
    };
    let code = tokio::select! {
        code = show => code,
        never = feed(&mut sender, stdin) => never,
        never = signals.pass(client, &path, pid) => never,
    };
    if let Err(error) = &code
        && output::reader_left(error)
    {
        // As a local command would end whose reader leaves.
        signal_process(client, &path, pid, "SIGTERM").await;
        return Ok(exit(128 + rustix::process::Signal::PIPE.as_raw()));
    }
    code
}

/// Writes what a frame brings; the last one gives the exit code.
fn show(frame: StreamEvent) -> anyhow::Result<Option<ExitCode>> {
    match frame {
        StreamEvent::Stdout { data, encoding } => output::raw(&bytes(data, encoding)?)?,
        StreamEvent::Stderr { data, encoding } => output::raw_error(&bytes(data, encoding)?)?,
        StreamEvent::Exit { exit_code } => return Ok(Some(exit(exit_code))),
        // The program may end without having read its input.
        StreamEvent::Error { code, .. } if code == "conflict" => {}
        StreamEvent::Error { code, data } => return Err(Refused::frame(code, data)),
        StreamEvent::Start { .. } | StreamEvent::Ping => {}
    }
    Ok(None)
}

fn bytes(data: String, encoding: Option<String>) -> anyhow::Result<Vec<u8>> {
    match encoding {
        Some(_) => STANDARD.decode(data).context("output that is no base64"),
        None => Ok(data.into_bytes()),
    }
}

/// A remote exit code as ours.
pub(super) fn exit(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1))
}

type Input = mpsc::Receiver<Vec<u8>>;

/// Reads standard input on a thread of its own, since a read of it cannot be given up.
pub(super) fn read_stdin() -> Input {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        let mut stdin = std::io::stdin().lock();
        // An empty piece is the end.
        loop {
            let read = stdin.read(&mut buffer).unwrap_or(0);
            if sender.blocking_send(buffer[..read].to_vec()).is_err() || read == 0 {
                return;
            }
        }
    });
    receiver
}

/// Passes standard input on, and then waits for ever, so that only the program's end counts;
/// also when it cannot be passed on, since the program may just have ended.
async fn feed(sender: &mut Sender, stdin: bool) -> anyhow::Result<ExitCode> {
    if stdin {
        let _ = pass_input(sender).await;
    }
    std::future::pending().await
}

async fn pass_input(sender: &mut Sender) -> anyhow::Result<()> {
    let mut input = read_stdin();
    while let Some(data) = input.recv().await.filter(|data| !data.is_empty()) {
        sender.send(&StreamRequest::Stdin { data: STANDARD.encode(data) }).await?;
    }
    sender.send(&StreamRequest::CloseStdin).await
}

/// Signals a process. Not over the socket, where input may wait; one that has just ended says
/// so itself.
async fn signal_process(client: &Client, path: &str, pid: u32, name: &str) {
    let _ = client.delete(&format!("{path}/processes/{pid}?signal={name}")).await;
}

/// What asks us to end. Made before anything of the command is shown: whoever has seen some of
/// it may interrupt.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Asks the command to end when we are asked to; the second time, kills it.
    async fn pass(mut self, client: &Client, path: &str, pid: u32) -> anyhow::Result<ExitCode> {
        let mut name = "SIGTERM";
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => {}
                _ = self.terminate.recv() => {}
            }
            signal_process(client, path, pid, name).await;
            name = "SIGKILL";
        }
    }
}

/// Runs a command to its end and prints all of it as one value.
async fn whole(exec: cli::Exec, client: &Client) -> anyhow::Result<ExitCode> {
    let mut stdin = None;
    if !exec.no_stdin && !std::io::stdin().is_terminal() {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("reading standard input as text")?;
        stdin = Some(text);
    }
    let mut words = exec.command.into_iter();
    let body = api::Exec {
        cmd: words.next().unwrap_or_default(),
        args: words.collect(),
        envs: exec.envs.into_iter().collect(),
        cwd: exec.cwd,
        user: exec.user,
        timeout_sec: Some(exec.timeout.unwrap_or(24 * 3600)),
        stdin,
        background: false,
        tag: None,
    };
    let result: api::ExecResult = client.post(&path(&exec.capsule, "/exec")?, &body).await?;
    output::json(&result)?;
    Ok(exit(result.exit_code))
}
