//! The common part of both kinds of WebSocket: JSON frames, a time limit for the first frame, and
//! pings. Its two directions never wait for each other. A connection ends when its caller may no
//! longer have it open.

use super::extract::{Upgrade, parse};
use crate::error::{Error, Result};
use crate::processes::Processes;
use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use axum::response::Response;
use bytes::Bytes;
use daemon::trace::{Trace, scoped};
use futures::future::BoxFuture;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::sync::mpsc;

/// Largest frame of a client, in bytes.
const FRAME_MAX: usize = 1 << 20;
/// Frames of input that may wait for a program to read, before the client is held up.
const INPUT_BACKLOG: usize = 8;
/// Time that a client may take for its first frame.
const FIRST: Duration = Duration::from_secs(10);
/// Silence after which the server sends a ping.
const PING: Duration = Duration::from_secs(30);
/// Time that a client may take for the frames that end a connection.
const CLOSE: Duration = Duration::from_secs(1);

/// The client's direction.
pub(super) struct Incoming(SplitStream<WebSocket>);

/// The server's direction.
pub(super) struct Outgoing(SplitSink<WebSocket, Message>);

impl Upgrade {
    /// Serves a connection until `serve` is done or the caller's admission no longer holds, and
    /// closes it in order. `failed` makes the frame that gives the reason.
    pub(super) fn serve<F: Frame + 'static>(
        self,
        failed: fn(&Error) -> F,
        serve: impl for<'a> FnOnce(&'a mut Outgoing, &'a mut Incoming) -> BoxFuture<'a, ()>
        + Send
        + 'static,
    ) -> Response {
        let Self { upgrade, admission } = self;
        let trace = Trace::current();
        let run = move |socket: WebSocket| {
            scoped(trace, async move {
                let (sink, stream) = socket.split();
                let (mut outgoing, mut incoming) = (Outgoing(sink), Incoming(stream));
                let revoked = tokio::select! {
                    () = serve(&mut outgoing, &mut incoming) => None,
                    error = admission.revoked() => Some(error),
                };
                let last = revoked.as_ref().and_then(|error| failed(error).message());
                let reason = revoked.map(|error| CloseFrame {
                    code: close_code::POLICY,
                    reason: error.code().into(),
                });
                let _ = tokio::time::timeout(CLOSE, outgoing.close(last, reason)).await;
            })
        };
        // A message may be a single frame, and the library holds a whole frame before it checks the
        // message's size.
        upgrade.max_message_size(FRAME_MAX).max_frame_size(FRAME_MAX).on_upgrade(run)
    }
}

/// Message that a client has sent.
pub(super) enum Received<T> {
    Frame(T),
    Bytes(Bytes),
}

impl Incoming {
    /// Returns the next frame; `None` when the client has left.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> Option<Result<T>> {
        Some(match self.next_or_bytes().await? {
            Ok(Received::Frame(frame)) => Ok(frame),
            Ok(Received::Bytes(_)) => Err(Error::invalid("frame", "must be JSON text")),
            Err(error) => Err(error),
        })
    }

    /// Returns the next frame or raw bytes; `None` when the client has left.
    pub(super) async fn next_or_bytes<T>(&mut self) -> Option<Result<Received<T>>>
    where
        T: DeserializeOwned,
    {
        loop {
            match self.0.next().await?.ok()? {
                Message::Text(text) => return Some(parse(text.as_bytes()).map(Received::Frame)),
                Message::Binary(bytes) => return Some(Ok(Received::Bytes(bytes))),
                Message::Close(_) => return None,
                // The library answers pings.
                Message::Ping(_) | Message::Pong(_) => {}
            }
        }
    }

    /// Returns the first frame, which must arrive within 10 s.
    pub(super) async fn first<T: DeserializeOwned>(&mut self) -> Option<Result<T>> {
        let late = |_| Some(Err(Error::invalid("start", "did not arrive within 10 s")));
        tokio::time::timeout(FIRST, self.next()).await.unwrap_or_else(late)
    }
}

/// A message that is sent as one frame. Serializable types are sent as JSON.
pub(super) trait Frame {
    fn message(&self) -> Option<Message>;
}

impl<T: Serialize> Frame for T {
    fn message(&self) -> Option<Message> {
        Some(Message::Text(serde_json::to_string(self).ok()?.into()))
    }
}

impl Outgoing {
    /// Sends a frame; `false` when the client has left.
    pub(super) async fn send(&mut self, frame: &impl Frame) -> bool {
        let Some(message) = frame.message() else { return false };
        self.0.send(message).await.is_ok()
    }

    /// Ends the connection in order, after a last message.
    async fn close(&mut self, last: Option<Message>, reason: Option<CloseFrame>) {
        if let Some(last) = last {
            let _ = self.0.send(last).await;
        }
        let _ = self.0.send(Message::Close(reason)).await;
        let _ = self.0.close().await;
    }

    /// Carries `frames` and the messages of `beside` until a frame is the last or the client has
    /// left. Sends a ping after each silence.
    pub(super) async fn carry<F: Frame>(
        &mut self,
        mut frames: impl futures::Stream<Item = (F, bool)> + Unpin,
        mut beside: mpsc::Receiver<F>,
        ping: &F,
    ) {
        loop {
            let (frame, last) = tokio::select! {
                frame = frames.next() => match frame {
                    Some((frame, last)) => (frame, last),
                    None => return,
                },
                Some(frame) = beside.recv() => (frame, false),
                () = tokio::time::sleep(PING) => {
                    if !self.send(ping).await {
                        return;
                    }
                    continue;
                }
            };
            if !self.send(&frame).await || last {
                return;
            }
        }
    }
}

/// Input of a program.
pub(super) enum Input {
    Data(Vec<u8>),
    End,
}

/// Creates the queue of a program's input.
pub(super) fn inputs() -> (mpsc::Sender<Input>, mpsc::Receiver<Input>) {
    mpsc::channel(INPUT_BACKLOG)
}

/// Writes a program's input in order, beside everything else. A program that does not read can thus
/// still be signalled. The future never completes; the connection's end drops it.
pub(super) async fn feed<F>(
    processes: &Processes,
    (pid, terminal): (u32, bool),
    mut inputs: mpsc::Receiver<Input>,
    tell: &mpsc::Sender<F>,
    failed: impl Fn(&Error) -> F,
) {
    while let Some(input) = inputs.recv().await {
        let done = match input {
            Input::Data(data) => processes.feed(pid, &data, terminal).await,
            Input::End => processes.close_stdin(pid).await,
        };
        if let Err(error) = done {
            let _ = tell.send(failed(&error)).await;
        }
    }
    std::future::pending::<()>().await;
}
