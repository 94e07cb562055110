//! Commands in a capsule: run one to its end, list, kill.

use super::capsules::capsule_id;
use super::json;
use crate::app::App;
use crate::auth::Caller;
use crate::capsules;
use crate::error::{Error, Result};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use connectrpc::client::CallOptions;
use connectrpc::{ConnectError, ErrorCode};
use http::StatusCode;
use protocol::process as wire;
use protocol::process::__buffa::oneof::process_event::{Event, data_event::Output};
use protocol::process::__buffa::oneof::{process_input, process_selector};
use std::sync::Arc;
use std::time::{Duration, Instant};
use types::{names, resources};

const OUTPUT_MAX: usize = 8 << 20;
const TIMEOUT: u32 = 60;
const DAY: u32 = 24 * 3600;

/// Both streams of a command, each up to its limit.
#[derive(Default)]
struct Collected {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    truncated: bool,
    exit_code: i32,
    ended: bool,
}

impl Collected {
    fn take(&mut self, event: Event) {
        match event {
            Event::Data(data) => match data.output {
                Some(Output::Stdout(data) | Output::Pty(data)) => {
                    self.truncated |= append(&mut self.stdout, &data);
                }
                Some(Output::Stderr(data)) => self.truncated |= append(&mut self.stderr, &data),
                None => {}
            },
            Event::End(end) => {
                self.ended = true;
                self.exit_code = if end.exited { end.exit_code } else { signal_code(&end.status) };
            }
            Event::Start(_) | Event::Keepalive(_) => {}
        }
    }
}

fn append(to: &mut Vec<u8>, data: &[u8]) -> bool {
    let room = OUTPUT_MAX - to.len();
    to.extend_from_slice(&data[..data.len().min(room)]);
    data.len() > room
}

/// The shell's exit code for a process that a signal ended.
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

#[expect(clippy::wildcard_enum_match_arm, reason = "the library may add codes")]
pub(crate) async fn exec(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<api::ExecResult>> {
    let exec: api::Exec = json(&body)?;
    if exec.cmd.is_empty() {
        return Err(Error::invalid("cmd", "must not be empty"));
    }
    names::check_envs("envs", &exec.envs)?;
    let timeout = exec.timeout_sec.unwrap_or(TIMEOUT);
    resources::in_range("timeout_sec", timeout, 1, DAY)?;
    let capsule = capsules::running(&app, caller, capsule_id(&id)?).await?;
    let client = app.agent.processes(capsule.id(), &capsule.envd_token);
    let started = Instant::now();
    let mut options = CallOptions::default().with_timeout(Duration::from_secs(timeout.into()));
    if let Some(user) = &exec.user {
        let basic = format!("Basic {}", STANDARD.encode(format!("{user}:")));
        options = options.with_header("authorization", basic);
    }
    let stdin = exec.stdin.clone();
    let config = wire::ProcessConfig {
        cmd: exec.cmd,
        args: exec.args,
        envs: exec.envs.into_iter().collect(),
        cwd: exec.cwd,
        ..Default::default()
    };
    let request = wire::StartRequest {
        process: config.into(),
        stdin: Some(stdin.is_some()),
        ..Default::default()
    };
    let fail = |e: ConnectError| match e.code {
        ErrorCode::DeadlineExceeded => {
            Error::invalid("timeout_sec", format!("of {timeout} passed; the command was killed"))
        }
        _ => Error::from_guest(&e),
    };
    let mut stream = client.start_with_options(request, options).await.map_err(fail)?;
    let mut out = Collected::default();
    while let Some(message) = stream.message::<wire::StartResponse>().await.map_err(fail)? {
        let message = message.to_owned_message();
        let Some(event) = message.event.into_option().and_then(|e| e.event) else { continue };
        if let (Event::Start(start), Some(input)) = (&event, &stdin) {
            feed(&client, start.pid, input).await?;
        }
        out.take(event);
    }
    if !out.ended {
        return Err(Error::HostUnavailable);
    }
    Ok(Json(result(out, started.elapsed())))
}

async fn feed(
    client: &wire::ProcessClient<connectrpc::client::HttpClient>,
    pid: u32,
    input: &str,
) -> Result<()> {
    let process = || wire::ProcessSelector {
        selector: Some(process_selector::Selector::Pid(pid)),
        ..Default::default()
    };
    let data = input.as_bytes().to_vec();
    let input = wire::ProcessInput {
        input: Some(process_input::Input::Stdin(data)),
        ..Default::default()
    };
    let send = wire::SendInputRequest {
        process: process().into(),
        input: input.into(),
        ..Default::default()
    };
    // A command that does not read its input is no error.
    let _ = client.send_input(send).await;
    let close = wire::CloseStdinRequest { process: process().into(), ..Default::default() };
    let _ = client.close_stdin(close).await;
    Ok(())
}

fn result(out: Collected, took: Duration) -> api::ExecResult {
    let texts = (String::from_utf8(out.stdout), String::from_utf8(out.stderr));
    let (stdout, stderr, encoding) = match texts {
        (Ok(stdout), Ok(stderr)) => (stdout, stderr, "utf-8"),
        (stdout, stderr) => {
            let encode = |text: std::result::Result<String, std::string::FromUtf8Error>| {
                STANDARD.encode(text.map_or_else(|e| e.into_bytes(), String::into_bytes))
            };
            (encode(stdout), encode(stderr), "base64")
        }
    };
    api::ExecResult {
        stdout,
        stderr,
        encoding: encoding.to_owned(),
        exit_code: out.exit_code,
        truncated: out.truncated,
        duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
    }
}

pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<api::ProcessList>> {
    let capsule = capsules::running(&app, caller, capsule_id(&id)?).await?;
    let client = app.agent.processes(capsule.id(), &capsule.envd_token);
    let answer = client.list(wire::ListRequest::default()).await;
    let answer = answer.map_err(|e| Error::from_guest(&e))?.into_owned();
    let shown = |p: wire::ProcessInfo| {
        let config = p.config.into_option().unwrap_or_default();
        api::Process { pid: p.pid, cmd: config.cmd, args: config.args, tag: p.tag }
    };
    Ok(Json(api::ProcessList { processes: answer.processes.into_iter().map(shown).collect() }))
}

#[derive(serde::Deserialize)]
pub(crate) struct Kill {
    signal: Option<String>,
}

pub(crate) async fn kill(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((id, selector)): Path<(String, String)>,
    Query(kill): Query<Kill>,
) -> Result<StatusCode> {
    let signal = match kill.signal.as_deref() {
        None | Some("SIGKILL") => wire::Signal::SIGNAL_SIGKILL,
        Some("SIGTERM") => wire::Signal::SIGNAL_SIGTERM,
        Some(_) => return Err(Error::invalid("signal", "must be SIGKILL or SIGTERM")),
    };
    let capsule = capsules::running(&app, caller, capsule_id(&id)?).await?;
    let client = app.agent.processes(capsule.id(), &capsule.envd_token);
    let selector = match selector.parse() {
        Ok(pid) => process_selector::Selector::Pid(pid),
        Err(_) => process_selector::Selector::Tag(selector),
    };
    let process = wire::ProcessSelector { selector: Some(selector), ..Default::default() };
    let request = wire::SendSignalRequest {
        process: process.into(),
        signal: signal.into(),
        ..Default::default()
    };
    client.send_signal(request).await.map_err(|e| Error::from_guest(&e))?;
    Ok(StatusCode::NO_CONTENT)
}
