//! Programs in a capsule's guest, through envd's protocol: start, attach, feed, signal. Every route
//! and WebSocket uses this module, which first looks up a capsule of the caller's team.
//!
//! `guest` lists all processes of the guest and signals any of them. `terminals` lists the open
//! terminals.

mod guest;
mod terminals;

use crate::agent::Agent;
use crate::app::App;
use crate::auth::Caller;
use crate::capsules;
use crate::db::capsules::Capsule;
use crate::error::{Error, Result, printable};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use connectrpc::client::CallOptions;
use connectrpc::{ConnectError, ErrorCode};
use daemon::trace::TraceParent;
use futures::StreamExt;
use futures::stream::BoxStream;
use protocol::process as wire;
use protocol::process::__buffa::oneof::process_event::{Event as Wire, data_event::Output};
use protocol::process::__buffa::oneof::{process_input, process_selector};
use protocol::process::ProcessClient;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use types::{CapsuleId, names, resources};

/// Time limit of calls that answer at once.
const CALL: Duration = Duration::from_secs(30);
/// Longest time limit of a command, in seconds.
const DAY: u32 = 24 * 3600;
/// Variable that tells a program the trace of its request, in the form of the header.
const TRACE: &str = "TRACEPARENT";
/// Bytes of input that one call carries.
const INPUT_CHUNK: usize = 64 * 1024;

/// A program to start.
#[derive(Default)]
pub(crate) struct Command {
    pub cmd: String,
    pub args: Vec<String>,
    pub envs: BTreeMap<String, String>,
    pub cwd: Option<String>,
    /// User to run as; `None` for the guest's default.
    pub user: Option<String>,
    pub tag: Option<String>,
    /// Seconds after which the guest kills the whole group, whether or not anyone listens; at
    /// most a day.
    pub timeout: Option<u32>,
    pub stdin: bool,
    /// Columns and rows of a terminal.
    pub terminal: Option<(u16, u16)>,
}

impl Command {
    /// Checks the parts of a command that need no guest.
    ///
    /// # Errors
    /// The error names the wrong field.
    pub(crate) fn check(&self) -> Result<()> {
        if self.cmd.is_empty() {
            return Err(Error::invalid("cmd", "must not be empty"));
        }
        names::check_envs("envs", &self.envs)?;
        if let Some(timeout) = self.timeout {
            resources::in_range("timeout", timeout, 1, DAY)?;
        }
        Ok(())
    }
}

/// Output and end of a program.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    /// Exit code, as a shell counts: 128 and the signal's number when a signal ended the program.
    Exit(i32),
}

/// Events of a program, from the request to its end.
pub(crate) type Events = BoxStream<'static, Result<Event>>;

/// Name of a program: its pid or its tag.
#[derive(Debug, Clone)]
pub(crate) enum Selector {
    Pid(u32),
    Tag(String),
}

impl Selector {
    /// Parses a selector: a number is a pid, anything else a tag.
    pub(crate) fn parse(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Tag(text.to_owned()), Self::Pid)
    }

    fn wire(&self) -> wire::ProcessSelector {
        let selector = match self {
            Self::Pid(pid) => process_selector::Selector::Pid(*pid),
            Self::Tag(tag) => process_selector::Selector::Tag(tag.clone()),
        };
        wire::ProcessSelector { selector: Some(selector), ..Default::default() }
    }
}

/// The programs of one capsule.
#[derive(Clone)]
pub(crate) struct Processes {
    client: ProcessClient<Agent>,
    /// The capsule, as it was when these programs were requested.
    of: Arc<(App, Capsule)>,
    /// Set if requests are looks, which leave an idle capsule idle.
    passive: bool,
}

/// Begin of a program's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attached {
    pub pid: u32,
    /// Bytes of earlier output with which the events begin.
    pub replayed: u64,
}

impl Processes {
    /// Returns the programs of a capsule of the caller's team. A paused capsule is woken first if
    /// its `auto_resume` is set.
    pub(crate) async fn of(app: &App, caller: Caller, id: CapsuleId) -> Result<Self> {
        Self::for_read(app, caller, id, false).await
    }

    /// Returns the programs of a capsule of the caller's team for a read. A passive read wakes no
    /// capsule and does not count as activity.
    pub(crate) async fn for_read(
        app: &App,
        caller: Caller,
        id: CapsuleId,
        passive: bool,
    ) -> Result<Self> {
        let capsule = capsules::readable(app, caller, id, passive).await?;
        let agent = app.agent_of(&capsule)?;
        let agent = if passive { agent.passive() } else { agent };
        let client = agent.processes(id, &capsule.envd_token);
        Ok(Self { client, of: Arc::new((app.clone(), capsule)), passive })
    }

    /// Makes a call. `refused` turns a refusal into an error. If the guest does not answer, the
    /// error tells whether the capsule was paused meanwhile.
    async fn done_or<T>(
        &self,
        call: impl Future<Output = std::result::Result<T, ConnectError>>,
        refused: impl Fn(&ConnectError) -> Error,
    ) -> Result<T> {
        let (app, capsule) = &*self.of;
        match call.await {
            Ok(answer) => Ok(answer),
            Err(error) => {
                let error = refused(&error);
                Err(capsules::classify_read(app, capsule, self.passive, error).await)
            }
        }
    }

    /// Makes a call for a running program.
    async fn done<T>(
        &self,
        call: impl Future<Output = std::result::Result<T, ConnectError>>,
    ) -> Result<T> {
        self.done_or(call, refused).await
    }

    /// Waits for the first event of a program. Gives up a guest that fails its health check
    /// meanwhile.
    async fn begins<T>(&self, begin: impl Future<Output = Result<T>>) -> Result<T> {
        let (app, capsule) = &*self.of;
        capsules::unless_silent(app, capsule, begin).await
    }

    /// Starts a program and returns its pid with its events.
    pub(crate) async fn start(&self, command: Command) -> Result<(u32, Events)> {
        let mut options = CallOptions::default();
        if let Some(timeout) = command.timeout {
            options = options.with_timeout(Duration::from_secs(timeout.into()));
        }
        if let Some(user) = &command.user {
            let basic = format!("Basic {}", STANDARD.encode(format!("{user}:")));
            options = options.with_header("authorization", basic);
        }
        let timeout = command.timeout.unwrap_or(0);
        let asked = Instant::now();
        let not_started = move |error: &ConnectError| {
            // The call has the same time limit, and may end a moment before the guest reports the
            // end.
            let is_over = timeout > 0 && asked.elapsed() >= Duration::from_secs(timeout.into());
            not_started(error, timeout, is_over)
        };
        let begin = async {
            let start = self.client.start_with_options(request(command), options);
            let stream = self.done_or(start, not_started).await?;
            let events = futures::stream::unfold(stream, |mut stream| async move {
                let message = stream.message::<wire::StartResponse>().await;
                let event = message.map(|m| Some(m?.to_owned_message().event.into_option()));
                Some((event.transpose()?, stream))
            });
            self.begun(events.boxed(), timeout, not_started).await
        };
        self.begins(Box::pin(begin)).await.map(|(attached, events)| (attached.pid, events))
    }

    /// Attaches to a program. Its events are the output from now on, and its end.
    pub(crate) async fn connect(&self, selector: &Selector) -> Result<(u32, Events)> {
        self.attach(selector, false).await.map(|(attached, events)| (attached.pid, events))
    }

    /// Attaches to a program. With `replay`, its events begin with the last output of its terminal.
    pub(crate) async fn attach(
        &self,
        selector: &Selector,
        replay: bool,
    ) -> Result<(Attached, Events)> {
        let process = selector.wire().into();
        let request = wire::ConnectRequest { process, replay, ..Default::default() };
        let begin = async {
            let stream = self.done_or(self.client.connect(request), not_attached).await?;
            let events = futures::stream::unfold(stream, |mut stream| async move {
                let message = stream.message::<wire::ConnectResponse>().await;
                let event = message.map(|m| Some(m?.to_owned_message().event.into_option()));
                Some((event.transpose()?, stream))
            });
            self.begun(events.boxed(), 0, not_attached).await
        };
        self.begins(Box::pin(begin)).await
    }

    /// Writes to a program's standard input or terminal. Waits while the program does not read.
    pub(crate) async fn feed(&self, pid: u32, data: &[u8], terminal: bool) -> Result<()> {
        for chunk in data.chunks(INPUT_CHUNK) {
            let chunk = chunk.to_vec();
            let input = match terminal {
                true => process_input::Input::Pty(chunk),
                false => process_input::Input::Stdin(chunk),
            };
            let input = wire::ProcessInput { input: Some(input), ..Default::default() };
            let send = wire::SendInputRequest {
                process: Selector::Pid(pid).wire().into(),
                input: input.into(),
                ..Default::default()
            };
            // The call has no time limit, since a program may read as late as it likes.
            self.done(self.client.send_input(send)).await?;
        }
        Ok(())
    }

    /// Closes a program's standard input.
    pub(crate) async fn close_stdin(&self, pid: u32) -> Result<()> {
        let process = Selector::Pid(pid).wire().into();
        let close = wire::CloseStdinRequest { process, ..Default::default() };
        self.done(self.client.close_stdin_with_options(close, call())).await.map(|_| ())
    }

    /// Sets the size of a terminal.
    pub(crate) async fn resize(&self, pid: u32, (cols, rows): (u16, u16)) -> Result<()> {
        let request = wire::UpdateRequest {
            process: Selector::Pid(pid).wire().into(),
            pty: terminal((cols, rows)).into(),
            ..Default::default()
        };
        self.done(self.client.update_with_options(request, call())).await.map(|_| ())
    }

    /// Sends a signal to a program's whole group, or to another process of the guest alone.
    pub(crate) async fn signal(&self, selector: &Selector, name: &str) -> Result<()> {
        let name = guest::signal_name(name)?;
        // Every envd knows these two signals, for programs that it started.
        let known = match name {
            "KILL" => Some(wire::Signal::SIGNAL_SIGKILL),
            "TERM" => Some(wire::Signal::SIGNAL_SIGTERM),
            _ => None,
        };
        if let Some(signal) = known {
            let sent = self.signal_started(selector, signal).await;
            let is_other = matches!(sent, Err(Error::NotFound(_)));
            if !is_other || matches!(selector, Selector::Tag(_)) {
                return sent;
            }
        }
        self.signal_any(selector, name, known.is_some()).await
    }

    /// Signals a program that envd started.
    async fn signal_started(&self, selector: &Selector, signal: wire::Signal) -> Result<()> {
        let request = wire::SendSignalRequest {
            process: selector.wire().into(),
            signal: signal.into(),
            ..Default::default()
        };
        self.done(self.client.send_signal_with_options(request, call())).await.map(|_| ())
    }

    /// Returns the running programs.
    pub(crate) async fn list(&self) -> Result<Vec<api::Process>> {
        let list = self.client.list_with_options(wire::ListRequest::default(), call());
        let answer = self.done(list).await?.into_owned();
        let to_api = |p: wire::ProcessInfo| {
            let config = p.config.into_option().unwrap_or_default();
            api::Process { pid: p.pid, cmd: config.cmd, args: config.args, tag: p.tag }
        };
        Ok(answer.processes.into_iter().map(to_api).collect())
    }
}

fn call() -> CallOptions {
    CallOptions::default().with_timeout(CALL)
}

fn terminal((cols, rows): (u16, u16)) -> wire::PTY {
    let size = wire::pty::Size { cols: cols.into(), rows: rows.into(), ..Default::default() };
    wire::PTY { size: size.into(), ..Default::default() }
}

fn request(command: Command) -> wire::StartRequest {
    let mut envs = command.envs;
    if let Some(trace) = TraceParent::current() {
        envs.entry(TRACE.to_owned()).or_insert_with(|| trace.to_string());
    }
    let config = wire::ProcessConfig {
        cmd: command.cmd,
        args: command.args,
        envs: envs.into_iter().collect(),
        cwd: command.cwd,
        ..Default::default()
    };
    wire::StartRequest {
        process: config.into(),
        pty: command.terminal.map(terminal).into(),
        tag: command.tag,
        stdin: Some(command.stdin),
        ..Default::default()
    }
}

type Raw = BoxStream<'static, std::result::Result<Option<wire::ProcessEvent>, ConnectError>>;

impl Processes {
    /// Takes the first event off a stream. The stream ends after `timeout` seconds.
    async fn begun(
        &self,
        mut raw: Raw,
        timeout: u32,
        refused: impl Fn(&ConnectError) -> Error,
    ) -> Result<(Attached, Events)> {
        let first = self.done_or(async { raw.next().await.transpose() }, refused).await?;
        let Some(Wire::Start(start)) = first.flatten().and_then(|e| e.event) else {
            return Err(Error::GuestUnavailable);
        };
        let attached = Attached { pid: start.pid, replayed: start.replayed };
        let events = raw.filter_map(move |event| async move {
            match event {
                Ok(event) => Some(Ok(read(event?.event?)?)),
                Err(e) if e.code == ErrorCode::DeadlineExceeded => {
                    Some(Err(Error::TimedOut(timeout)))
                }
                Err(e) if e.code == ErrorCode::ResourceExhausted => Some(Err(Error::OutputNotRead)),
                // envd ends a started stream with no other error, so the connection has failed.
                Err(error) => {
                    tracing::debug!(%error, "the output stream of a program ended early");
                    Some(Err(Error::GuestUnavailable))
                }
            }
        });
        // A stream that breaks off is an error, not an end. A stream that has ended is read to its
        // last byte, so that its connection can serve again.
        let state = (events.boxed(), Arc::clone(&self.of), false);
        let checked = futures::stream::unfold(state, |(mut events, of, done)| async move {
            if done {
                let rest = events.collect::<Vec<_>>();
                let _ = tokio::time::timeout(Duration::from_secs(1), rest).await;
                return None;
            }
            let event = match events.next().await.unwrap_or(Err(Error::GuestUnavailable)) {
                Ok(event) => Ok(event),
                Err(error) => Err(capsules::classify_failure(&of.0, &of.1, error).await),
            };
            let done = !matches!(event, Ok(Event::Stdout(_) | Event::Stderr(_)));
            Some((event, (events, of, done)))
        });
        Ok((attached, checked.boxed()))
    }
}

fn read(event: Wire) -> Option<Event> {
    match event {
        Wire::Data(data) => match data.output? {
            Output::Stdout(data) | Output::Pty(data) => Some(Event::Stdout(data)),
            Output::Stderr(data) => Some(Event::Stderr(data)),
        },
        Wire::End(end) => {
            Some(Event::Exit(if end.exited { end.exit_code } else { signal_code(&end.status) }))
        }
        Wire::Start(_) | Wire::Keepalive(_) => None,
    }
}

/// Returns the shell's exit code for a process that a signal ended.
fn signal_code(status: &str) -> i32 {
    let signal = match status.strip_prefix("signal: ").unwrap_or("killed") {
        "hangup" => 1,
        "interrupt" => 2,
        "quit" => 3,
        "illegal instruction" => 4,
        "aborted" => 6,
        "floating point exception" => 8,
        "segmentation fault" => 11,
        "broken pipe" => 13,
        "alarm clock" => 14,
        "terminated" => 15,
        other => other.parse().unwrap_or(9),
    };
    128 + signal
}

/// Converts the refusal of a call for a running program.
fn refused(error: &ConnectError) -> Error {
    match error.code == ErrorCode::NotFound {
        true => Error::NotFound("process"),
        false => Error::from_guest(error),
    }
}

/// Converts the refusal to attach to a program.
fn not_attached(error: &ConnectError) -> Error {
    match error.code == ErrorCode::ResourceExhausted {
        true => Error::TooManyReaders,
        false => refused(error),
    }
}

/// Converts the refusal to start a program with a time limit of `timeout` seconds. `is_over` is set
/// when that time has passed.
#[expect(clippy::wildcard_enum_match_arm, reason = "the rest means the same everywhere")]
fn not_started(error: &ConnectError, timeout: u32, is_over: bool) -> Error {
    let message = printable(error.message.as_deref().unwrap_or_default());
    match error.code {
        ErrorCode::NotFound => Error::CommandNotFound(message),
        ErrorCode::PermissionDenied => Error::CommandNotExecutable(message),
        ErrorCode::DeadlineExceeded if is_over || message == protocol::DEADLINE_PASSED => {
            Error::TimedOut(timeout)
        }
        _ => Error::from_guest(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_command_and_non_executable_file_have_distinct_errors() {
        let told = |code, message: &str| {
            let error = not_started(&ConnectError::new(code, message), 7, false);
            (error.status().as_u16(), error.code(), error.to_string())
        };
        let missing = told(ErrorCode::NotFound, "cannot run 'x'");
        assert_eq!(missing, (400, "command_not_found", "cannot run 'x'".to_owned()));
        let plain = told(ErrorCode::PermissionDenied, "cannot run 'y'");
        assert_eq!(plain, (400, "command_not_executable", "cannot run 'y'".to_owned()));
        assert_eq!(told(ErrorCode::InvalidArgument, "cwd").1, "invalid_request");
        assert_eq!(told(ErrorCode::DeadlineExceeded, protocol::DEADLINE_PASSED).1, "timeout");
        assert_eq!(told(ErrorCode::DeadlineExceeded, "no answer").1, "guest_unavailable");
        let late = ConnectError::new(ErrorCode::DeadlineExceeded, "no answer");
        assert_eq!(not_started(&late, 7, true).code(), "timeout");
    }

    #[test]
    fn numeric_selector_is_a_pid_and_signal_codes_follow_the_shell() {
        assert!(matches!(Selector::parse("12"), Selector::Pid(12)));
        assert!(matches!(Selector::parse("pty-1"), Selector::Tag(tag) if tag == "pty-1"));
        assert_eq!(signal_code("signal: killed"), 137);
        assert_eq!(signal_code("signal: segmentation fault"), 139);
        assert_eq!(signal_code("signal: 31"), 159);
    }
}
