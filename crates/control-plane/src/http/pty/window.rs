//! The window of a terminal's connection: the output that may be sent before the client
//! acknowledges it. Beyond it, the server reads no more of the terminal. Once the buffers on the
//! way are full, the program waits.

use crate::error::{Error, Result};
use crate::processes::{Event, Events};
use bytes::Bytes;
use daemon::lock;
use futures::StreamExt;
use futures::stream::BoxStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;

/// Largest window, in bytes.
pub(super) const WINDOW_MAX: u32 = 16 << 20;
/// Most bytes of a frame of output.
const FRAME: usize = 64 * 1024;
/// Time for which a full window may stay full.
const UNREAD: Duration = Duration::from_secs(300);

/// Window of one connection. Clients that never set it have none.
#[derive(Default)]
pub(super) struct Window {
    state: Mutex<State>,
    /// Wakes the stream of output, which is the only waiter.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Most unacknowledged bytes; `None` without a limit.
    limit: Option<u64>,
    unacknowledged: u64,
    /// Set while no acknowledgement can be read.
    lifted: bool,
}

impl State {
    /// Returns the size of the next piece of output; `None` while the window is full.
    fn room(&self) -> Option<usize> {
        let Some(limit) = self.limit.filter(|_| !self.lifted) else { return Some(FRAME) };
        let left = limit.saturating_sub(self.unacknowledged);
        (left > 0).then(|| usize::try_from(left).unwrap_or(FRAME).min(FRAME))
    }
}

impl Window {
    /// Sets the most bytes that may be unacknowledged.
    pub(super) fn set(&self, bytes: u32) {
        self.change(|state| state.limit = Some(bytes.into()));
    }

    /// Acknowledges output.
    ///
    /// # Errors
    /// `Invalid` for more bytes than were sent. Nothing changes then.
    pub(super) fn acknowledge(&self, bytes: u32) -> Result<()> {
        let mut state = lock(&self.state);
        let left = state.unacknowledged.checked_sub(bytes.into());
        state.unacknowledged = left.ok_or_else(|| {
            Error::invalid("bytes", "must not be more than the unacknowledged output")
        })?;
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// Lifts the limit until the returned value is dropped.
    pub(super) fn lift(&self) -> Lifted<'_> {
        self.change(|state| state.lifted = true);
        Lifted(self)
    }

    fn change(&self, with: impl FnOnce(&mut State)) {
        with(&mut lock(&self.state));
        self.changed.notify_one();
    }

    /// Waits for room. Returns the size of the next piece of output.
    ///
    /// # Errors
    /// `OutputNotRead` when the client acknowledges nothing for too long.
    async fn room(&self) -> Result<usize> {
        let wait = async {
            loop {
                let room = lock(&self.state).room();
                match room {
                    Some(room) => return room,
                    // A change between the check and the wait is kept for the wait.
                    None => self.changed.notified().await,
                }
            }
        };
        tokio::time::timeout(UNREAD, wait).await.map_err(|_| Error::OutputNotRead)
    }

    /// Takes the next piece of output, as far as there is room.
    async fn take(&self, data: &mut Bytes) -> Result<Bytes> {
        let room = self.room().await?;
        let piece = data.split_to(room.min(data.len()));
        let sent = u64::try_from(piece.len()).unwrap_or(u64::MAX);
        lock(&self.state).unacknowledged += sent;
        Ok(piece)
    }
}

/// Time in which a window has no limit.
pub(super) struct Lifted<'a>(&'a Window);

impl Drop for Lifted<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.lifted = false);
    }
}

/// Output and end of a terminal's program.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Output(Bytes),
    Exit(i32),
}

/// Passes events on as the window allows.
pub(super) fn paced(events: Events, window: Arc<Window>) -> BoxStream<'static, Result<Piece>> {
    let state = (events, window, Bytes::new());
    let paced = futures::stream::unfold(state, |(mut events, window, mut rest)| async move {
        while rest.is_empty() {
            match events.next().await? {
                Ok(Event::Stdout(data) | Event::Stderr(data)) => rest = data.into(),
                Ok(Event::Exit(code)) => {
                    return Some((Ok(Piece::Exit(code)), (events, window, rest)));
                }
                Err(error) => return Some((Err(error), (events, window, rest))),
            }
        }
        let piece = window.take(&mut rest).await.map(Piece::Output);
        Some((piece, (events, window, rest)))
    });
    paced.boxed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn events(pieces: &[&[u8]]) -> Events {
        let events: Vec<Result<Event>> =
            pieces.iter().map(|piece| Ok(Event::Stdout(piece.to_vec()))).collect();
        futures::stream::iter(events).chain(futures::stream::iter([Ok(Event::Exit(3))])).boxed()
    }

    fn output(text: &[u8]) -> Option<Piece> {
        Some(Piece::Output(Bytes::copy_from_slice(text)))
    }

    async fn next(stream: &mut BoxStream<'static, Result<Piece>>) -> Option<Piece> {
        stream.next().await.transpose().unwrap()
    }

    #[tokio::test]
    async fn full_window_holds_output_until_it_is_acknowledged() {
        let window = Arc::new(Window::default());
        window.set(4);
        let mut stream = paced(events(&[b"ab", b"cdefg"]), Arc::clone(&window));
        assert_eq!(next(&mut stream).await, output(b"ab"));
        assert_eq!(next(&mut stream).await, output(b"cd"));
        assert!(stream.next().now_or_never().is_none(), "the window is full");
        window.acknowledge(1).unwrap();
        assert_eq!(next(&mut stream).await, output(b"e"));
        assert!(stream.next().now_or_never().is_none(), "the window is full again");
        window.set(5);
        assert_eq!(next(&mut stream).await, output(b"f"));
        window.acknowledge(5).unwrap();
        assert_eq!(next(&mut stream).await, output(b"g"));
        assert_eq!(next(&mut stream).await, Some(Piece::Exit(3)));
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn connection_without_window_gets_all_output_in_frames() {
        let window = Arc::new(Window::default());
        let mut stream = paced(events(&[&[b'x'; FRAME + 1], b""]), Arc::clone(&window));
        assert_eq!(next(&mut stream).await, output(&[b'x'; FRAME]));
        assert_eq!(next(&mut stream).await, output(b"x"));
        assert_eq!(next(&mut stream).await, Some(Piece::Exit(3)));
        window.acknowledge(u32::try_from(FRAME).unwrap() + 1).unwrap();
        let error = window.acknowledge(1).unwrap_err();
        assert!(error.to_string().starts_with("bytes must not be more"), "{error}");
    }

    #[tokio::test]
    async fn lifted_window_lets_output_pass_until_it_is_back() {
        let window = Arc::new(Window::default());
        window.set(1);
        let mut stream = paced(events(&[b"a", b"b", b"c"]), Arc::clone(&window));
        assert_eq!(next(&mut stream).await, output(b"a"));
        assert!(stream.next().now_or_never().is_none());
        let lifted = window.lift();
        assert_eq!(next(&mut stream).await, output(b"b"));
        drop(lifted);
        assert!(stream.next().now_or_never().is_none());
        window.acknowledge(2).unwrap();
        assert_eq!(next(&mut stream).await, output(b"c"));
    }
}
