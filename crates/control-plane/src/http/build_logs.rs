//! `/v1/builds/{id}/logs`: a build's log as pages of JSON, or followed as server-sent events.

use super::builds::build_id;
use super::extract::{Path, Query};
use crate::app::App;
use crate::auth::Caller;
use crate::builds::{self, Follow};
use crate::db::build_logs::Level;
use crate::error::{Error, Result};
use axum::Json;
use axum::extract::State;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use http::HeaderMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use types::BuildId;
use types::resources::in_range;

/// Silence after which a comment is sent, so that proxies keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Largest page of lines, and the default.
const PAGE: u32 = 1000;

#[derive(Debug, Default, serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Asked {
    /// Number of the first line, from 1.
    from: Option<u64>,
    /// Number of lines without `follow`, 1 to 1000. The default is 1000.
    limit: Option<u32>,
    /// Lowest level: `debug`, `info`, `warn` or `error`.
    level: Option<String>,
    /// True to get server-sent events until the build has ended.
    #[serde(default)]
    follow: bool,
}

/// Returns lines of a build's log. With `follow`, each line is an event with its `seq` as `id`, and
/// `Last-Event-ID` continues after that line. The last event is `end` with the build.
#[utoipa::path(
    operation_id = "get_build_logs",
    get, path = "/v1/builds/{id}/logs", tag = "builds",
    params(
        ("id" = String, Path, description = "Id of the build"), Asked,
        ("last-event-id" = Option<String>, Header, description = "`id` of the last line that the client received"),
    ),
    responses((status = 200, body = api::BuildLog), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn logs(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    Query(asked): Query<Asked>,
) -> Result<Response> {
    let id = build_id(&id)?;
    let level: Level = asked.level.as_deref().map_or(Ok(Level::Debug), str::parse)?;
    let limit = asked.limit.unwrap_or(PAGE);
    in_range("limit", limit, 1, PAGE)?;
    if asked.follow {
        let from = last_event(&headers)?.map(|last| last.saturating_add(1)).or(asked.from);
        return follow(app, caller, id, from.unwrap_or(1), level).await;
    }
    let from = asked.from.unwrap_or(1).max(1);
    let (state, lines) = builds::lines(&app, caller, id, from, level, limit.into()).await?;
    let items: Vec<_> = lines.into_iter().map(builds::line_to_api).collect();
    let next = items.last().map_or(from, |line| line.seq.saturating_add(1));
    Ok(Json(api::BuildLog { items, next, status: state.to_string() }).into_response())
}

fn last_event(headers: &HeaderMap) -> Result<Option<u64>> {
    let Some(last) = headers.get("last-event-id").filter(|last| !last.is_empty()) else {
        return Ok(None);
    };
    let last = last.to_str().ok().and_then(|last| last.parse().ok());
    last.map(Some).ok_or_else(|| Error::invalid("last-event-id", "is not the number of a line"))
}

/// State of a followed log.
struct Following {
    app: Arc<App>,
    caller: Caller,
    id: BuildId,
    /// Absent once the last event was sent.
    follow: Option<Follow>,
    /// Time of the last event.
    told: Instant,
}

async fn follow(
    app: Arc<App>,
    caller: Caller,
    id: BuildId,
    from: u64,
    level: Level,
) -> Result<Response> {
    let follow = Some(builds::follow(&app, caller, id, from, level).await?);
    let tasks = app.tasks.clone();
    let first = Following { app, caller, id, follow, told: Instant::now() };
    let batches = futures::stream::unfold(first, |state| state.next());
    let hello = futures::stream::iter([Event::default().comment("hello")]);
    let stopped = async move { tasks.stop_signal().wait().await };
    let frames = hello.chain(batches.flatten()).map(Ok::<_, Infallible>).take_until(stopped);
    Ok(Sse::new(frames.boxed()).into_response())
}

impl Following {
    /// Returns the next events. An error ends the stream, and the client connects again.
    async fn next(mut self) -> Option<(futures::stream::Iter<std::vec::IntoIter<Event>>, Self)> {
        loop {
            let news = self.follow.as_mut()?.next().await.ok()?;
            let line = |line: crate::db::build_logs::Line| {
                let line = builds::line_to_api(line);
                Event::default().id(line.seq.to_string()).json_data(line).ok()
            };
            let mut out: Vec<Event> = news.lines.into_iter().filter_map(line).collect();
            if news.ended {
                out.push(self.end().await?);
                self.follow = None;
            } else if out.is_empty() && self.told.elapsed() >= KEEP_ALIVE {
                out.push(Event::default().comment("wait"));
            }
            if !out.is_empty() {
                self.told = Instant::now();
                return Some((futures::stream::iter(out), self));
            }
        }
    }

    /// Makes the last event, with the build.
    async fn end(&self) -> Option<Event> {
        let build = builds::get(&self.app, self.caller, self.id).await.ok()?;
        let shown = builds::to_api(&self.app, vec![build], true).await.ok()?;
        Event::default().event("end").json_data(shown.first()?).ok()
    }
}
