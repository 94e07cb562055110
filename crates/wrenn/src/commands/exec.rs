//! `wrenn capsule exec`: passes on a command's input, output, signals and exit code.

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
use std::time::Instant;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// Maximum size of the input in one frame, in bytes.
const CHUNK: usize = 64 * 1024;
/// Maximum size of each output stream that `--json` prints, in bytes. The API's own limit is the
/// same.
const OUTPUT_MAX: usize = 8 << 20;

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
    let stdin = !exec.no_stdin && !std::io::stdin().is_terminal();
    let path = path(&exec.capsule, "")?;
    let Socket { mut sender, mut receiver } = client.socket(&format!("{path}/exec/stream")).await?;
    let mut words = exec.command.into_iter();
    let cmd = words.next().unwrap_or_default();
    let mut collected = (form == Form::Json).then(|| Collected::new(exec.capsule, cmd.clone()));
    let start = StreamRequest::Start {
        cmd,
        args: words.collect(),
        envs: exec.envs.into_iter().collect(),
        cwd: exec.cwd,
        user: exec.user,
        timeout: exec.timeout,
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
        | StreamEvent::Ping => anyhow::bail!("the first frame from the platform is not `start`"),
    };
    let signals = Signals::new()?;
    let show = async {
        loop {
            if let Some(code) = show(receiver.next().await?, collected.as_mut())? {
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
        // A local command, too, would end by SIGPIPE when its reader leaves.
        signal_process(client, &path, pid, "SIGTERM").await;
        return Ok(exit(128 + rustix::process::Signal::PIPE.as_raw()));
    }
    let code = code?;
    if let Some(collected) = collected {
        output::json(&collected.result(code))?;
    }
    Ok(exit(code))
}

/// Output of a command, collected to be printed as one value. Each stream is cut at a limit.
struct Collected {
    capsule: String,
    cmd: String,
    since: Instant,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    truncated: bool,
}

impl Collected {
    fn new(capsule: String, cmd: String) -> Self {
        let (stdout, stderr) = (Vec::new(), Vec::new());
        Self { capsule, cmd, since: Instant::now(), stdout, stderr, truncated: false }
    }

    fn stdout(&mut self, data: &[u8]) {
        self.truncated |= append(&mut self.stdout, data);
    }

    fn stderr(&mut self, data: &[u8]) {
        self.truncated |= append(&mut self.stderr, data);
    }

    /// Builds the value that the API returns for a command run in one request.
    fn result(self, exit_code: i32) -> api::ExecResult {
        let duration = self.since.elapsed();
        let (stdout, stderr, encoding) =
            match (String::from_utf8(self.stdout), String::from_utf8(self.stderr)) {
                (Ok(stdout), Ok(stderr)) => (stdout, stderr, "utf-8"),
                (stdout, stderr) => {
                    let encode = |text: Result<String, std::string::FromUtf8Error>| {
                        STANDARD.encode(text.map_or_else(|e| e.into_bytes(), String::into_bytes))
                    };
                    (encode(stdout), encode(stderr), "base64")
                }
            };
        api::ExecResult {
            sandbox_id: self.capsule,
            cmd: self.cmd,
            stdout,
            stderr,
            encoding: encoding.to_owned(),
            exit_code,
            truncated: self.truncated,
            duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// Appends data up to the limit. Returns `true` when some of it is left out.
fn append(to: &mut Vec<u8>, data: &[u8]) -> bool {
    let kept = data.len().min(OUTPUT_MAX - to.len());
    to.extend_from_slice(&data[..kept]);
    data.len() > kept
}

/// Prints or collects the output in a frame. Returns the exit code from the last frame.
fn show(frame: StreamEvent, collected: Option<&mut Collected>) -> anyhow::Result<Option<i32>> {
    match (frame, collected) {
        (StreamEvent::Stdout { data, encoding }, None) => output::raw(&bytes(data, encoding)?)?,
        (StreamEvent::Stderr { data, encoding }, None) => {
            output::raw_error(&bytes(data, encoding)?)?;
        }
        (StreamEvent::Stdout { data, encoding }, Some(to)) => to.stdout(&bytes(data, encoding)?),
        (StreamEvent::Stderr { data, encoding }, Some(to)) => to.stderr(&bytes(data, encoding)?),
        (StreamEvent::Exit { exit_code }, _) => return Ok(Some(exit_code)),
        // The program may end without reading its input, so this refusal of input is no failure.
        (StreamEvent::Error { code, .. }, _) if code == "conflict" => {}
        (StreamEvent::Error { code, data }, _) => return Err(Refused::frame(code, data)),
        (StreamEvent::Start { .. } | StreamEvent::Ping, _) => {}
    }
    Ok(None)
}

fn bytes(data: String, encoding: Option<String>) -> anyhow::Result<Vec<u8>> {
    match encoding {
        Some(_) => STANDARD.decode(data).context("the output is not valid base64"),
        None => Ok(data.into_bytes()),
    }
}

/// Converts a remote exit code to one of this process.
pub(super) fn exit(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1))
}

pub(super) type Input = mpsc::Receiver<Vec<u8>>;

/// Reads standard input on a thread of its own, since a blocking read cannot be cancelled.
pub(super) fn read_stdin() -> Input {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        let mut stdin = std::io::stdin().lock();
        // An empty chunk marks the end.
        loop {
            let read = stdin.read(&mut buffer).unwrap_or(0);
            if sender.blocking_send(buffer[..read].to_vec()).is_err() || read == 0 {
                return;
            }
        }
    });
    receiver
}

/// Passes standard input on, and then waits forever, so that only the program's end counts. A
/// failure to pass input is ignored, since the program may just have ended.
async fn feed(sender: &mut Sender, stdin: bool) -> anyhow::Result<i32> {
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

/// Signals a process by a request of its own, since input may wait on the socket. Errors are
/// ignored: a process that has just ended reports its own exit.
async fn signal_process(client: &Client, path: &str, pid: u32, name: &str) {
    let _ = client.delete(&format!("{path}/processes/{pid}?signal={name}")).await;
}

/// Signals that ask this process to end. They are caught before any output appears, since a user
/// may interrupt as soon as they see output.
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

    /// Passes signals on to the command: SIGTERM the first time, SIGKILL after that.
    async fn pass(mut self, client: &Client, path: &str, pid: u32) -> anyhow::Result<i32> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn collected(stdout: &[u8]) -> api::ExecResult {
        let mut collected = Collected::new("cl-x".to_owned(), "cmd".to_owned());
        collected.stdout(stdout);
        collected.stderr(b"err");
        collected.result(3)
    }

    #[test]
    fn collected_output_is_text_or_base64_and_is_truncated_at_limit() {
        let text = collected("ü".as_bytes());
        assert_eq!((text.stdout.as_str(), text.stderr.as_str()), ("ü", "err"));
        assert_eq!((text.encoding.as_str(), text.exit_code), ("utf-8", 3));
        let bytes = collected(b"\xff");
        assert_eq!((bytes.stdout.as_str(), bytes.stderr.as_str()), ("/w==", "ZXJy"));
        assert_eq!(bytes.encoding, "base64");
        let long = collected(&vec![b'x'; OUTPUT_MAX + 1]);
        assert!(long.truncated && long.stdout.len() == OUTPUT_MAX);
        assert!(!collected(&vec![b'x'; OUTPUT_MAX]).truncated);
    }
}
