//! `…/exec`: a command that runs to its end in one request, or continues in the background.

use super::extract::{Path, WithInput, capsule_id};
use crate::app::App;
use crate::auth::Caller;
use crate::error::{Error, Result};
use crate::load::{Load, Payer, UnderWay};
use crate::processes::{Command, Event, Events, Processes};
use crate::secret::random_hex;
use axum::Extension;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use http::StatusCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

const OUTPUT_MAX: usize = 8 << 20;
/// Bytes of output that take no room, and the step in which further room is taken.
const FREE: usize = 64 << 10;
const ROOM: usize = 256 << 10;
const TIMEOUT: u32 = 60;

/// Runs a command, and answers with its output and exit code.
#[utoipa::path(
    operation_id = "exec",
    post, path = "/v1/capsules/{id}/exec", tag = "processes", request_body = api::Exec,
    params(("id" = String, Path, description = "Id or name of the capsule")),
    responses(
        (status = 200, body = api::ExecResult),
        (status = 202, description = "The command was started in the background", body = api::ExecStarted),
        (status = 504, description = "The command was killed at its timeout", body = api::ErrorBody),
        (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn exec(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Extension(under_way): Extension<UnderWay>,
    WithInput(exec): WithInput<api::Exec>,
) -> Result<Response> {
    let command = command(&exec)?;
    let processes = Processes::of(&app, caller, capsule_id(&id)?).await?;
    let started = Instant::now();
    let tag = command.tag.clone();
    let (pid, events) = processes.start(command).await?;
    let sandbox_id = id;
    if exec.background {
        let tag = tag.unwrap_or_default();
        let body = api::ExecStarted { sandbox_id, cmd: exec.cmd, pid, tag };
        return Ok((StatusCode::ACCEPTED, axum::Json(body)).into_response());
    }
    let collect = collect(events, Room::new(&app.load, caller, under_way));
    let out = match &exec.stdin {
        None => collect.await?,
        Some(stdin) => tokio::select! {
            out = collect => out?,
            // Input and output flow at the same time, since a program may write before it has read
            // all.
            () = feed(&processes, pid, stdin.as_bytes()) => return Err(Error::GuestUnavailable),
        },
    };
    Ok(axum::Json(result(sandbox_id, exec.cmd, out, started.elapsed())).into_response())
}

/// Converts a request to the guest's form, and checks it.
fn command(exec: &api::Exec) -> Result<Command> {
    let default = (!exec.background).then_some(TIMEOUT);
    let made = || exec.background.then(|| format!("bg-{}", random_hex(4)));
    let command = Command {
        cmd: exec.cmd.clone(),
        args: exec.args.clone(),
        envs: exec.envs.clone(),
        cwd: exec.cwd.clone(),
        user: exec.user.clone(),
        tag: exec.tag.clone().or_else(made),
        timeout: exec.timeout.or(default),
        stdin: exec.stdin.is_some(),
        terminal: None,
    };
    command.check().map(|()| command)
}

/// Writes a program's whole input. The future never completes, so only the program's end does.
async fn feed(processes: &Processes, pid: u32, input: &[u8]) {
    // A program may leave its input unread, so a failure is no error.
    if processes.feed(pid, input, false).await.is_ok() {
        let _ = processes.close_stdin(pid).await;
    }
    std::future::pending::<()>().await;
}

/// Output of both streams, each up to its limit, and the exit code.
#[derive(Default)]
struct Collected {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    truncated: bool,
    exit_code: i32,
}

async fn collect(mut events: Events, mut room: Room<'_>) -> Result<Collected> {
    let mut out = Collected::default();
    while let Some(event) = events.next().await {
        match event? {
            Event::Stdout(data) => out.truncated |= append(&mut out.stdout, &data, &mut room),
            Event::Stderr(data) => out.truncated |= append(&mut out.stderr, &data, &mut room),
            Event::Exit(code) => out.exit_code = code,
        }
    }
    Ok(out)
}

/// Appends as much as there is room for. Returns `true` when some is left out.
fn append(to: &mut Vec<u8>, data: &[u8], room: &mut Room<'_>) -> bool {
    let kept = room.take(data.len().min(OUTPUT_MAX - to.len()));
    to.extend_from_slice(&data[..kept]);
    data.len() > kept
}

/// Room for output, taken from the caller's share of memory until the answer has ended.
struct Room<'a> {
    load: &'a Load,
    payer: Payer,
    under_way: UnderWay,
    left: usize,
}

impl<'a> Room<'a> {
    fn new(load: &'a Load, caller: Caller, under_way: UnderWay) -> Self {
        Self { load, payer: Payer::Caller(caller.holder()), under_way, left: FREE }
    }

    /// Takes as much of `bytes` as there is room for.
    fn take(&mut self, bytes: usize) -> usize {
        while self.left < bytes {
            let Ok(share) = self.load.room(self.payer, ROOM) else { break };
            self.under_way.hold(share);
            self.left += ROOM;
        }
        let taken = bytes.min(self.left);
        self.left -= taken;
        taken
    }
}

fn result(sandbox_id: String, cmd: String, out: Collected, took: Duration) -> api::ExecResult {
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
        sandbox_id,
        cmd,
        stdout,
        stderr,
        encoding: encoding.to_owned(),
        exit_code: out.exit_code,
        truncated: out.truncated,
        duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
    }
}
