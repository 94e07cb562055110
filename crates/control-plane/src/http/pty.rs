//! `…/pty`: a terminal over a WebSocket. A client that leaves can connect to it again by its tag,
//! and have the last output replayed.

mod window;

use super::compat_wrenn_v0::CompatRequest;
use super::extract::{Path, Query, Upgrade, capsule_id};
use super::socket::{self, Frame, Incoming, Input, Outgoing, Received};
use crate::app::App;
use crate::auth::Caller;
use crate::error::{Error, Result};
use crate::processes::{Command, Events, Processes, Selector};
use crate::secret::random_hex;
use api::{PtyEvent, PtyRequest};
use axum::Extension;
use axum::extract::State;
use axum::extract::ws::Message;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use types::resources::in_range;
use window::{Piece, WINDOW_MAX, Window, paced};

const SHELL: &str = "/bin/bash";
const SIZE: (u16, u16) = (80, 24);
/// Time that input may wait for the program before the window is lifted.
const HELD_UP: Duration = Duration::from_secs(1);

#[derive(serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Form {
    /// True to receive the terminal's output as raw bytes in binary frames.
    #[serde(default)]
    binary: bool,
}

/// Opens a terminal over a WebSocket. The client sends `PtyRequest` frames, and the server sends
/// `PtyEvent` frames. A binary frame from the client holds typed bytes.
#[utoipa::path(
    operation_id = "open_pty",
    get, path = "/v1/capsules/{id}/pty", tag = "processes",
    params(("id" = String, Path, description = "Id or name of the capsule"), Form),
    responses((status = 101, description = "Switched to WebSocket"), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn open(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Query(form): Query<Form>,
    compat: Option<Extension<CompatRequest>>,
    upgrade: Upgrade,
) -> Result<Response> {
    let processes = Processes::of(&app, caller, capsule_id(&id)?).await?;
    let binary = form.binary || compat.is_some();
    let fatal = |error: &Error| failed(error, true);
    Ok(upgrade.serve(fatal, move |out, incoming| Box::pin(serve(out, incoming, processes, binary))))
}

/// Frame that the server sends on a terminal's connection.
enum Sent {
    Event(PtyEvent),
    /// Raw output of the terminal.
    Bytes(Bytes),
}

impl Frame for Sent {
    fn message(&self) -> Option<Message> {
        match self {
            Self::Event(event) => event.message(),
            Self::Bytes(bytes) => Some(Message::Binary(bytes.clone())),
        }
    }
}

async fn serve(
    outgoing: &mut Outgoing,
    incoming: &mut Incoming,
    processes: Processes,
    binary: bool,
) {
    let Begun { started, pid, events } = match begin(incoming, &processes).await {
        Ok(begun) => begun,
        Err(error) => {
            outgoing.send(&failed(&error, true)).await;
            return;
        }
    };
    if !outgoing.send(&started).await {
        return;
    }
    let window = Arc::new(Window::default());
    let frames = paced(events, Arc::clone(&window)).map(move |piece| match piece {
        Ok(Piece::Output(data)) if binary => (Sent::Bytes(data), false),
        Ok(Piece::Output(data)) => {
            (Sent::Event(PtyEvent::Output { data: STANDARD.encode(data) }), false)
        }
        Ok(Piece::Exit(exit_code)) => (Sent::Event(PtyEvent::Exit { exit_code }), true),
        Err(error) => (failed(&error, true), true),
    });
    let (tell, beside) = mpsc::channel(8);
    let (input, inputs) = socket::inputs();
    let client = Client { processes: &processes, pid, input, window: &window };
    let refused = |error: &Error| failed(error, false);
    tokio::select! {
        () = outgoing.carry(frames, beside, &Sent::Event(PtyEvent::Ping)) => {}
        () = client.listen(incoming, &tell) => {}
        () = socket::feed(&processes, (pid, true), inputs, &tell, refused) => {}
    }
}

/// A terminal that a connection has started or connected to.
struct Begun {
    /// First frame for the client.
    started: PtyEvent,
    pid: u32,
    events: Events,
}

/// Starts or connects to a terminal, as the first frame asks.
async fn begin(incoming: &mut Incoming, processes: &Processes) -> Result<Begun> {
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
            Ok(Begun { started: PtyEvent::Started { tag, pid, replayed: None }, pid, events })
        }
        PtyRequest::Connect { tag, replay } => {
            let (attached, events) = processes.attach(&Selector::parse(&tag), replay).await?;
            let (pid, replayed) = (attached.pid, replay.then_some(attached.replayed));
            Ok(Begun { started: PtyEvent::Started { tag, pid, replayed }, pid, events })
        }
        PtyRequest::Input { .. }
        | PtyRequest::Resize { .. }
        | PtyRequest::Window { .. }
        | PtyRequest::Ack { .. }
        | PtyRequest::Kill => {
            Err(Error::invalid("type", "must be `start` or `connect` in the first frame"))
        }
    }
}

fn failed(error: &Error, fatal: bool) -> Sent {
    let (code, data) = (error.code().to_owned(), error.to_string());
    Sent::Event(PtyEvent::Error { code, data, fatal })
}

/// The client's direction of a connection.
struct Client<'a> {
    processes: &'a Processes,
    pid: u32,
    input: mpsc::Sender<Input>,
    window: &'a Window,
}

impl Client<'_> {
    /// Executes the client's frames until the client leaves.
    async fn listen(&self, incoming: &mut Incoming, tell: &mpsc::Sender<Sent>) {
        while let Some(frame) = incoming.next_or_bytes().await {
            let done = match frame {
                Ok(Received::Frame(frame)) => self.obey(frame).await,
                Ok(Received::Bytes(bytes)) => self.type_in(bytes.into()).await,
                Err(error) => Err(error),
            };
            if let Err(error) = done {
                // Sending fails only when the other direction has ended, which ends this one too.
                let _ = tell.send(failed(&error, false)).await;
            }
        }
    }

    /// Hands input to the program. A program that waits for an acknowledgement of its output may
    /// read no input. The acknowledgement comes behind this input. So the window is lifted
    /// meanwhile.
    async fn type_in(&self, data: Vec<u8>) -> Result<()> {
        let place = match tokio::time::timeout(HELD_UP, self.input.reserve()).await {
            Ok(place) => place,
            Err(_) => {
                let _lifted = self.window.lift();
                self.input.reserve().await
            }
        };
        place.map_err(|_| Error::GuestUnavailable)?.send(Input::Data(data));
        Ok(())
    }

    async fn obey(&self, frame: PtyRequest) -> Result<()> {
        match frame {
            PtyRequest::Start { .. } | PtyRequest::Connect { .. } => {
                Err(Error::invalid("type", "`start` and `connect` may only be the first frame"))
            }
            PtyRequest::Input { data } => {
                let data = STANDARD.decode(data);
                let data = data.map_err(|_| Error::invalid("data", "must be base64"))?;
                self.type_in(data).await
            }
            PtyRequest::Resize { cols, rows } => {
                self.processes.resize(self.pid, (cols, rows)).await
            }
            PtyRequest::Window { bytes } => {
                in_range("bytes", bytes, 1, WINDOW_MAX)?;
                self.window.set(bytes);
                Ok(())
            }
            PtyRequest::Ack { bytes } => self.window.acknowledge(bytes),
            PtyRequest::Kill => self.processes.signal(&Selector::Pid(self.pid), "KILL").await,
        }
    }
}
