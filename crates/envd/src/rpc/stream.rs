//! The frame of a server stream: its messages, keepalives while there are none, and its deadline.

use crate::clock::until;
use crate::process::hub;
use connectrpc::{ConnectError, RequestContext};
use futures::Stream;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

const KEEPALIVE_DEFAULT: Duration = Duration::from_secs(90);

/// Trigger of a message.
pub(super) enum Tick<E> {
    Event(E),
    KeepAlive,
}

/// Source of a stream's events.
pub(super) trait Events: Send + 'static {
    type Event: Send;

    /// Waits for the next event. Returns `None` after the last. An error ends the stream.
    fn next_event(
        &mut self,
    ) -> impl Future<Output = Option<Result<Self::Event, ConnectError>>> + Send;
}

impl<E: Send + 'static> Events for mpsc::Receiver<E> {
    type Event = E;

    async fn next_event(&mut self) -> Option<Result<E, ConnectError>> {
        self.recv().await.map(Ok)
    }
}

impl Events for hub::Subscription {
    type Event = hub::Event;

    async fn next_event(&mut self) -> Option<Result<hub::Event, ConnectError>> {
        self.next().await.map(|event| event.map_err(ConnectError::from))
    }
}

/// Deadline of a stream, and time without messages between two keepalives.
#[derive(Clone, Copy)]
pub(super) struct Timing {
    pub deadline: Option<Instant>,
    keepalive: Duration,
}

impl Timing {
    /// Reads `Connect-Timeout-Ms` and `Keepalive-Ping-Interval`.
    pub(super) fn of(ctx: &RequestContext) -> Self {
        let asked = ctx.header(protocol::KEEPALIVE_INTERVAL);
        let seconds = asked.and_then(|v| v.to_str().ok()?.parse().ok()).filter(|s| *s > 0);
        Self {
            deadline: ctx.time_remaining().map(|left| Instant::now() + left),
            keepalive: seconds.map_or(KEEPALIVE_DEFAULT, Duration::from_secs),
        }
    }
}

/// Turns events into messages until `render` marks the last, the events end, or the deadline
/// passes. At the deadline, the stream ends with `deadline_exceeded`. The deadline comes before
/// events, so that events without a pause cannot hold it off.
pub(super) fn stream<E, M>(
    first: M,
    events: E,
    timing: Timing,
    render: impl Fn(Tick<E::Event>) -> (M, bool) + Send + 'static,
) -> impl Stream<Item = Result<M, ConnectError>> + Send
where
    E: Events,
    M: Send + 'static,
{
    let state = (Some(first), events, false, render);
    futures::stream::unfold(state, move |(first, mut events, done, render)| async move {
        if let Some(first) = first {
            return Some((Ok(first), (None, events, done, render)));
        }
        if done {
            return None;
        }
        tokio::select! {
            biased;
            () = until(timing.deadline) => {
                let error = ConnectError::deadline_exceeded(protocol::DEADLINE_PASSED);
                Some((Err(error), (None, events, true, render)))
            }
            event = events.next_event() => match event? {
                Ok(event) => {
                    let (message, last) = render(Tick::Event(event));
                    Some((Ok(message), (None, events, last, render)))
                }
                Err(error) => Some((Err(error), (None, events, true, render))),
            },
            () = tokio::time::sleep(timing.keepalive) => {
                let (message, last) = render(Tick::KeepAlive);
                Some((Ok(message), (None, events, last, render)))
            }
        }
    })
}
