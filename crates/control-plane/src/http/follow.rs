//! Server-sent events of a log that grows, until its end.

use crate::app::App;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use std::convert::Infallible;
use std::time::{Duration, Instant};

/// Silence after which a comment is sent, so that proxies keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Source of a log's events.
pub(super) trait Source: Send + 'static {
    /// Returns the next events, if any, and `true` with the last ones. `None` ends the stream, and
    /// the client connects again.
    fn next(&mut self) -> impl Future<Output = Option<(Vec<Event>, bool)>> + Send;
}

/// State of a followed log.
struct Following<T> {
    /// Absent once the last event was sent.
    source: Option<T>,
    /// Time of the last event.
    sent: Instant,
}

/// Answers with the events of a log, until the log or the platform ends.
pub(super) fn follow<T: Source>(app: &App, source: T) -> Response {
    let tasks = app.tasks.clone();
    let first = Following { source: Some(source), sent: Instant::now() };
    let batches = futures::stream::unfold(first, |state| state.next());
    let hello = futures::stream::iter([Event::default().comment("hello")]);
    let stopped = async move { tasks.stop_signal().wait().await };
    let frames = hello.chain(batches.flatten()).map(Ok::<_, Infallible>).take_until(stopped);
    Sse::new(frames.boxed()).into_response()
}

impl<T: Source> Following<T> {
    /// Returns the next events, or a comment after a silence.
    async fn next(mut self) -> Option<(futures::stream::Iter<std::vec::IntoIter<Event>>, Self)> {
        loop {
            let (mut events, is_last) = self.source.as_mut()?.next().await?;
            if is_last {
                self.source = None;
            } else if events.is_empty() && self.sent.elapsed() >= KEEP_ALIVE {
                events.push(Event::default().comment("wait"));
            }
            if !events.is_empty() {
                self.sent = Instant::now();
                return Some((futures::stream::iter(events), self));
            }
        }
    }
}
