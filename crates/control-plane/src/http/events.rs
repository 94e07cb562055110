//! `/v1/events`: a team's past events, in pages, and as they happen, as server-sent events.

use super::extract::Query;
use super::paging::{cursor, paged};
use crate::app::App;
use crate::auth::Caller;
use crate::channels::{EVENTS, read_kind};
use crate::db::events::{Event as Row, Filter};
use crate::error::{Error, Result};
use crate::events;
use crate::streams::{parse_resource, to_api};
use axum::Json;
use axum::extract::State;
use axum::response::sse::{Event, Sse};
use futures::StreamExt;
use futures::stream::BoxStream;
use http::{HeaderMap, HeaderValue};
use serde::Deserialize;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use utoipa::IntoParams;
use uuid::Uuid;

/// Silence after which a comment is sent, so that proxies keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Filters and page of a list of events.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventQuery {
    /// Value of `next` from the previous page, or the `id` of an event.
    before: Option<String>,
    /// Number of events, 1 to 100. The default is 100.
    limit: Option<u32>,
    /// Id of the resource that the events are about.
    resource: Option<String>,
    /// Kinds of events, separated by commas, such as `capsule.error,capsule.missing`.
    kind: Option<String>,
}

/// Lists past events of the team, newest first. Events are kept for 30 days. A stream with the `id`
/// of the first page's first event as `Last-Event-ID` misses no event.
#[utoipa::path(
    operation_id = "list_events",
    get, path = "/v1/events", tag = "events",
    params(EventQuery),
    responses(
        (status = 200, description = "Page of events", body = api::EventPage),
        (status = "4XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(wanted): Query<EventQuery>,
) -> Result<Json<api::EventPage>> {
    let (before, limit) = cursor(wanted.before.as_deref(), wanted.limit, "an event")?;
    let resource = read_resource(wanted.resource.as_deref())?;
    let filter = Filter { resource, kinds: read_kinds(wanted.kind.as_deref())? };
    let rows = events::history(&app, caller, &filter, before, limit + 1).await?;
    let (items, next) = paged(rows, limit, to_api, |event: &api::Event| event.id.clone());
    Ok(Json(api::EventPage { items, next }))
}

fn read_resource(id: Option<&str>) -> Result<Option<Uuid>> {
    let wrong = || Error::invalid("resource", "is not the id of a resource with events");
    id.map(|id| parse_resource(id).ok_or_else(wrong)).transpose()
}

/// Reads kinds of events that are separated by commas, each once.
fn read_kinds(names: Option<&str>) -> Result<Vec<&'static str>> {
    let mut kinds = Vec::with_capacity(EVENTS.len());
    for name in names.into_iter().flat_map(|names| names.split(',')) {
        let kind = read_kind("kind", name)?;
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    Ok(kinds)
}

/// Resource of a stream of events.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct StreamQuery {
    /// Id of the resource that the events are about. Without it, the stream has all events.
    resource: Option<String>,
}

/// Streams the events of the team: changes of capsules, snapshots, builds, keys, members, limits
/// and hosts. With `Last-Event-ID`, the stream continues after that event, on any control plane.
/// Events are kept for 30 days. An older `Last-Event-ID` is refused with `cursor_expired` (410).
#[utoipa::path(
    operation_id = "stream_events",
    get, path = "/v1/events/stream", tag = "events",
    params(
        StreamQuery,
        ("last-event-id" = Option<String>, Header, description = "`id` of the last event that the client received"),
    ),
    responses(
        (status = 200, description = "Server-sent events: `data` holds an event as JSON, and `event` its kind",
            content_type = "text/event-stream", body = api::Event),
        (status = "4XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn stream(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(wanted): Query<StreamQuery>,
    headers: HeaderMap,
) -> Result<Frames> {
    let resource = read_resource(wanted.resource.as_deref())?;
    open(&app, caller, &headers, resource, frame).await
}

/// Frames of an event stream.
pub(super) type Frames = Sse<BoxStream<'static, std::result::Result<Event, Infallible>>>;

/// Opens a stream of a team's events, of all resources or one. `frame` turns each event into a
/// frame, or leaves it out.
pub(super) async fn open(
    app: &App,
    caller: Caller,
    headers: &HeaderMap,
    resource: Option<Uuid>,
    frame: fn(Row) -> Option<Event>,
) -> Result<Frames> {
    let wrong = || Error::invalid("last-event-id", "is not the id of an event");
    let last = headers.get("last-event-id").filter(|id| !id.is_empty());
    let read = |id: &HeaderValue| id.to_str().ok().and_then(|id| id.parse().ok());
    let after = last.map(|id| read(id).ok_or_else(wrong)).transpose()?;
    let shares = app.load.stream(caller.team, caller.holder())?;
    let stream = app.streams.open(caller.team, resource, shares, after).await?;
    let tasks = app.tasks.clone();
    let batches =
        futures::stream::unfold((stream, Instant::now()), move |(mut stream, told)| async move {
            loop {
                // An error ends the stream. The client then continues with `Last-Event-ID`.
                let events = stream.next().await.ok()?;
                let mut out: Vec<_> = events.into_iter().filter_map(frame).collect();
                if out.is_empty() {
                    if told.elapsed() < KEEP_ALIVE {
                        continue;
                    }
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
