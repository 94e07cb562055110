//! `…/pty`: a terminal over a WebSocket. A client that leaves can come back to it by its tag.

use super::extract::{Path, Upgrade, capsule_id};
use super::socket::{self, FRAME_MAX, Incoming, Input};
use crate::app::App;
use crate::auth::{Caller, random_hex};
use crate::error::{Error, Result};
use crate::processes::{Command, Event, Events, Processes, Selector};
use api::{PtyEvent, PtyRequest};
use axum::extract::State;
use axum::extract::ws::WebSocket;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use std::sync::Arc;
use tokio::sync::mpsc;

const SHELL: &str = "/bin/bash";
const SIZE: (u16, u16) = (80, 24);

/// Open a terminal over a WebSocket. Frames: `PtyRequest` from the client, `PtyEvent` from the
/// server.
#[utoipa::path(
    operation_id = "open_pty",
    get, path = "/v1/capsules/{id}/pty", tag = "processes",
    params(("id" = String, Path, description = "Id of the capsule")),
    responses((status = 101, description = "WebSocket"), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn open(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Upgrade(upgrade): Upgrade,
) -> Result<Response> {
    let processes = Processes::of(&app, caller, capsule_id(&id)?).await?;
    Ok(upgrade.max_message_size(FRAME_MAX).on_upgrade(|socket| serve(socket, processes)))
}

async fn serve(socket: WebSocket, processes: Processes) {
    let (mut outgoing, mut incoming) = socket::split(socket);
    let (tag, pid, events) = match begin(&mut incoming, &processes).await {
        Ok(begun) => begun,
        Err(error) => {
            outgoing.send(&failed(&error, true)).await;
            return outgoing.close().await;
        }
    };
    if !outgoing.send(&PtyEvent::Started { tag, pid }).await {
        return;
    }
    let frames = events.map(|event| match event {
        Ok(Event::Stdout(data) | Event::Stderr(data)) => {
            (PtyEvent::Output { data: STANDARD.encode(data) }, false)
        }
        Ok(Event::Exit(exit_code)) => (PtyEvent::Exit { exit_code }, true),
        Err(error) => (failed(&error, true), true),
    });
    let (tell, beside) = mpsc::channel(8);
    let (input, inputs) = socket::inputs();
    let refused = |error: &Error| failed(error, false);
    let here = tokio::select! {
        here = outgoing.carry(frames, beside, &PtyEvent::Ping) => here,
        () = listen(&mut incoming, &processes, pid, &input, &tell) => false,
        () = socket::feed(&processes, (pid, true), inputs, &tell, refused) => false,
    };
    if here {
        outgoing.close().await;
    }
}

/// Starts, or comes back to, what the first frame asks for.
async fn begin(incoming: &mut Incoming, processes: &Processes) -> Result<(String, u32, Events)> {
    match incoming.first().await.unwrap_or(Err(Error::GuestUnavailable))? {
        PtyRequest::Start { cmd, args, cols, rows, envs, cwd, user } => {
            let tag = format!("pty-{}", random_hex(4));
            let mut command = Command {
                cmd: cmd.unwrap_or_else(|| SHELL.to_owned()),
                args,
                envs,
                cwd,
                user,
                tag: Some(tag.clone()),
                terminal: Some((cols.unwrap_or(SIZE.0), rows.unwrap_or(SIZE.1))),
                ..Command::default()
            };
            let term = "xterm-256color".to_owned();
            command.envs.entry("TERM".to_owned()).or_insert(term);
            command.check()?;
            let (pid, events) = processes.start(command).await?;
            Ok((tag, pid, events))
        }
        PtyRequest::Connect { tag } => {
            let (pid, events) = processes.connect(&Selector::Tag(tag.clone())).await?;
            Ok((tag, pid, events))
        }
        PtyRequest::Input { .. } | PtyRequest::Resize { .. } | PtyRequest::Kill => {
            Err(Error::invalid("type", "of the first frame must be `start` or `connect`"))
        }
    }
}

fn failed(error: &Error, fatal: bool) -> PtyEvent {
    PtyEvent::Error { code: error.code().to_owned(), data: error.to_string(), fatal }
}

/// Does what the client's frames ask for, until it leaves.
async fn listen(
    incoming: &mut Incoming,
    processes: &Processes,
    pid: u32,
    input: &mpsc::Sender<Input>,
    tell: &mpsc::Sender<PtyEvent>,
) {
    while let Some(frame) = incoming.next().await {
        let done = match frame {
            Ok(frame) => obey(frame, processes, pid, input).await,
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            // The other direction has ended when this fails, and so will this one.
            let _ = tell.send(failed(&error, false)).await;
        }
    }
}

async fn obey(
    frame: PtyRequest,
    processes: &Processes,
    pid: u32,
    input: &mpsc::Sender<Input>,
) -> Result<()> {
    match frame {
        PtyRequest::Start { .. } | PtyRequest::Connect { .. } => {
            Err(Error::invalid("type", "`start` and `connect` may come only once, first"))
        }
        PtyRequest::Input { data } => {
            let data = STANDARD.decode(data);
            let data = data.map_err(|_| Error::invalid("data", "must be base64"))?;
            input.send(Input::Data(data)).await.map_err(|_| Error::GuestUnavailable)
        }
        PtyRequest::Resize { cols, rows } => processes.resize(pid, (cols, rows)).await,
        PtyRequest::Kill => processes.signal(&Selector::Pid(pid), "SIGKILL").await,
    }
}
