//! `…/exec/stream` and `…/processes/{selector}/stream`: a process over a WebSocket. The connection
//! carries its input and its output, which may be any bytes. A client that leaves does not end the
//! process and may attach to it again.

use super::extract::{Path, Upgrade, capsule_id};
use super::socket::{self, Incoming, Input, Outgoing};
use crate::app::App;
use crate::auth::Caller;
use crate::error::{Error, Result};
use crate::processes::{Command, Event, Events, Processes, Selector};
use api::{StreamEvent, StreamRequest};
use axum::extract::State;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use futures::stream::BoxStream;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Runs a command over a WebSocket. The client sends `StreamRequest` frames, and the server sends
/// `StreamEvent` frames.
#[utoipa::path(
    operation_id = "exec_stream",
    get, path = "/v1/capsules/{id}/exec/stream", tag = "processes",
    params(("id" = String, Path, description = "Id or name of the capsule")),
    responses((status = 101, description = "Switched to WebSocket"), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn exec(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    upgrade: Upgrade,
) -> Result<Response> {
    let processes = Processes::of(&app, caller, capsule_id(&id)?).await?;
    Ok(upgrade.serve(failed, |out, incoming| Box::pin(serve(out, incoming, processes, None))))
}

/// Attaches to a process over a WebSocket. The client receives all later output and the exit code.
#[utoipa::path(
    operation_id = "attach_process",
    get, path = "/v1/capsules/{id}/processes/{selector}/stream", tag = "processes",
    params(
        ("id" = String, Path, description = "Id or name of the capsule"),
        ("selector" = String, Path, description = "Process id or tag of the process")
    ),
    responses((status = 101, description = "Switched to WebSocket"), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn attach(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((id, selector)): Path<(String, String)>,
    upgrade: Upgrade,
) -> Result<Response> {
    let processes = Processes::of(&app, caller, capsule_id(&id)?).await?;
    // Connects before the upgrade, so that a missing process is a plain 404.
    let attached = processes.connect(&Selector::parse(&selector)).await?;
    let attached = Some(attached);
    Ok(upgrade.serve(failed, |out, incoming| Box::pin(serve(out, incoming, processes, attached))))
}

async fn serve(
    outgoing: &mut Outgoing,
    incoming: &mut Incoming,
    processes: Processes,
    attached: Option<(u32, Events)>,
) {
    let begun = match attached {
        Some(attached) => Ok((attached, false)),
        None => start(incoming, &processes).await,
    };
    let ((pid, events), all_base64) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            outgoing.send(&failed(&error)).await;
            return;
        }
    };
    if !outgoing.send(&StreamEvent::Start { pid }).await {
        return;
    }
    let (tell, beside) = mpsc::channel(8);
    let (input, inputs) = socket::inputs();
    tokio::select! {
        () = outgoing.carry(frames(events, all_base64), beside, &StreamEvent::Ping) => {}
        () = listen(incoming, &processes, pid, &input, &tell) => {}
        () = socket::feed(&processes, (pid, false), inputs, &tell, failed) => {}
    }
}

/// Starts the command of the first frame. Returns its pid and events, and whether all output is
/// base64.
async fn start(incoming: &mut Incoming, processes: &Processes) -> Result<((u32, Events), bool)> {
    let first = incoming.first().await.unwrap_or(Err(Error::GuestUnavailable))?;
    let StreamRequest::Start { cmd, args, envs, cwd, user, timeout, stdin, tag, encoding } = first
    else {
        return Err(Error::invalid("type", "must be `start` in the first frame"));
    };
    let all_base64 = match encoding.as_deref() {
        None => false,
        Some("base64") => true,
        Some(_) => return Err(Error::invalid("encoding", "must be `base64` or absent")),
    };
    let command = Command { cmd, args, envs, cwd, user, tag, timeout, stdin, terminal: None };
    command.check()?;
    Ok((processes.start(command).await?, all_base64))
}

fn failed(error: &Error) -> StreamEvent {
    StreamEvent::Error { code: error.code().to_owned(), data: error.to_string() }
}

/// Executes the client's frames until the client leaves.
async fn listen(
    incoming: &mut Incoming,
    processes: &Processes,
    pid: u32,
    input: &mpsc::Sender<Input>,
    tell: &mpsc::Sender<StreamEvent>,
) {
    while let Some(frame) = incoming.next().await {
        let done = match frame {
            Ok(frame) => obey(frame, processes, pid, input).await,
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            // Sending fails only when the other direction has ended, which ends this one too.
            let _ = tell.send(failed(&error)).await;
        }
    }
}

async fn obey(
    frame: StreamRequest,
    processes: &Processes,
    pid: u32,
    input: &mpsc::Sender<Input>,
) -> Result<()> {
    let queue = async |entry| input.send(entry).await.map_err(|_| Error::GuestUnavailable);
    match frame {
        StreamRequest::Start { .. } => {
            Err(Error::invalid("type", "`start` may only be the first frame"))
        }
        StreamRequest::Stdin { data } => {
            let data = STANDARD.decode(data);
            let data = data.map_err(|_| Error::invalid("data", "must be base64"))?;
            queue(Input::Data(data)).await
        }
        StreamRequest::CloseStdin => queue(Input::End).await,
        StreamRequest::Signal { signal } => processes.signal(&Selector::Pid(pid), &signal).await,
        StreamRequest::Stop => processes.signal(&Selector::Pid(pid), "SIGKILL").await,
    }
}

/// Turns events into frames. The flag marks the last frame.
fn frames(events: Events, all_base64: bool) -> BoxStream<'static, (StreamEvent, bool)> {
    let (mut out, mut err) = (Text::new(all_base64), Text::new(all_base64));
    events
        .flat_map(move |event| {
            let stdout = |(data, encoding)| (StreamEvent::Stdout { data, encoding }, false);
            let stderr = |(data, encoding)| (StreamEvent::Stderr { data, encoding }, false);
            let mut frames: Vec<_> = match &event {
                Ok(Event::Stdout(data)) => out.push(data).into_iter().map(stdout).collect(),
                Ok(Event::Stderr(data)) => err.push(data).into_iter().map(stderr).collect(),
                Ok(Event::Exit(_)) | Err(_) => {
                    let rest = out.rest().into_iter().map(stdout);
                    rest.chain(err.rest().into_iter().map(stderr)).collect()
                }
            };
            match event {
                Ok(Event::Exit(exit_code)) => frames.push((StreamEvent::Exit { exit_code }, true)),
                Err(error) => frames.push((failed(&error), true)),
                Ok(Event::Stdout(_) | Event::Stderr(_)) => {}
            }
            futures::stream::iter(frames)
        })
        .boxed()
}

/// Encoder of one output stream. Text stays text, and other bytes become base64. A character that
/// is split between two pieces waits until it is complete.
struct Text {
    all_base64: bool,
    begun: Vec<u8>,
}

/// Longest UTF-8 character, in bytes.
const CHARACTER_MAX: usize = 4;

type Data = (String, Option<String>);

impl Text {
    fn new(all_base64: bool) -> Self {
        Self { all_base64, begun: Vec::new() }
    }

    fn push(&mut self, data: &[u8]) -> Option<Data> {
        self.begun.extend_from_slice(data);
        let bytes = std::mem::take(&mut self.begun);
        if self.all_base64 {
            return Some(encoded(&bytes));
        }
        match String::from_utf8(bytes) {
            Ok(text) => Some((text, None)),
            Err(error) => {
                let whole = error.utf8_error().valid_up_to();
                let unfinished = error.utf8_error().error_len().is_none();
                let mut bytes = error.into_bytes();
                if !unfinished {
                    return Some(encoded(&bytes));
                }
                self.begun = bytes.split_off(whole);
                debug_assert!(self.begun.len() < CHARACTER_MAX);
                let text = String::from_utf8(bytes).ok().filter(|text| !text.is_empty())?;
                Some((text, None))
            }
        }
    }

    /// Returns the bytes of an incomplete character at the end of the stream.
    fn rest(&mut self) -> Option<Data> {
        let rest = std::mem::take(&mut self.begun);
        (!rest.is_empty()).then(|| encoded(&rest))
    }
}

fn encoded(bytes: &[u8]) -> Data {
    (STANDARD.encode(bytes), Some("base64".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utf8_split_across_chunks_stays_text_and_bytes_are_base64() {
        let mut text = Text::new(false);
        assert_eq!(text.push("aé".as_bytes()), Some(("aé".to_owned(), None)));
        assert_eq!(text.push(b"x\xe2\x82"), Some(("x".to_owned(), None)));
        assert_eq!(text.push(b"\xac"), Some(("€".to_owned(), None)));
        assert_eq!(text.push(b"\xff\x00"), Some(encoded(b"\xff\x00")));
        assert_eq!(text.push(b"\xe2"), None);
        assert_eq!(text.rest(), Some(encoded(b"\xe2")));
        assert_eq!(text.rest(), None);
        let mut all = Text::new(true);
        assert_eq!(all.push(b"a"), Some(encoded(b"a")));
    }
}
