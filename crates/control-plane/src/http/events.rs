//! `/v1/events/stream`: a team's events as they happen, as server-sent events.

use crate::app::App;
use crate::auth::Caller;
use crate::db::events::Event as Row;
use crate::error::{Error, Result};
use crate::streams::{parse_cursor, to_api};
use axum::extract::State;
use axum::response::sse::{Event, Sse};
use futures::StreamExt;
use futures::stream::BoxStream;
use http::HeaderMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Silence after which a comment is sent, so that proxies keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Streams the events of the team's capsules, snapshots and hosts. With `Last-Event-ID`, the stream
/// continues after that event. Events are kept for 30 days.
#[utoipa::path(
    operation_id = "stream_events",
    get, path = "/v1/events/stream", tag = "events",
    params(("last-event-id" = Option<String>, Header, description = "`id` of the last event that the client received")),
    responses(
        (status = 200, description = "Server-sent events: `data` holds an event as JSON, and `event` its kind",
            content_type = "text/event-stream", body = api::Event),
        (status = "4XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn stream(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Frames> {
    open(&app, caller, &headers, frame).await
}

/// Frames of an event stream.
pub(super) type Frames = Sse<BoxStream<'static, std::result::Result<Event, Infallible>>>;

/// Opens a stream of a team's events. `frame` turns each event into a frame, or leaves it out.
pub(super) async fn open(
    app: &App,
    caller: Caller,
    headers: &HeaderMap,
    frame: fn(Row) -> Option<Event>,
) -> Result<Frames> {
    let wrong = || Error::invalid("last-event-id", "is not the id of an event");
    let last = headers.get("last-event-id").filter(|id| !id.is_empty());
    let after =
        last.map(|id| id.to_str().ok().and_then(parse_cursor).ok_or_else(wrong)).transpose()?;
    let shares = app.load.stream(caller.team, caller.holder())?;
    let stream = app.streams.open(caller.team, shares, after).await?;
    let tasks = app.tasks.clone();
    let batches =
        futures::stream::unfold((stream, Instant::now()), move |(mut stream, told)| async move {
            loop {
                // An error ends the stream. The client then continues with `Last-Event-ID`.
                let events = stream.next().await.ok()?;
                let quiet = events.is_empty();
                if quiet && told.elapsed() < KEEP_ALIVE {
                    continue;
                }
                let mut out: Vec<_> = events.into_iter().filter_map(frame).collect();
                if quiet {
                    out.push(Event::default().comment(""));
                }
                return Some((futures::stream::iter(out), (stream, Instant::now())));
            }
        });
    let hello = futures::stream::iter([Event::default().comment("hello")]);
    let stopped = async move { tasks.stop_signal().wait().await };
    let frames = hello.chain(batches.flatten()).map(Ok).take_until(stopped);
    Ok(Sse::new(frames.boxed()))
}

fn frame(event: Row) -> Option<Event> {
    let event = to_api(event);
    let frame = Event::default().id(event.id.clone()).event(event.event.clone());
    frame.json_data(event).ok()
}
