//! `/v1/builds/{id}/logs`: a build's log as pages of JSON, or followed as server-sent events.

use super::builds::build_id;
use super::extract::{Path, Query};
use super::follow;
use crate::app::App;
use crate::auth::Caller;
use crate::builds::{self, Follow};
use crate::db::build_logs::Level;
use crate::error::{Error, Result};
use axum::Json;
use axum::extract::State;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use std::sync::Arc;
use types::BuildId;
use types::resources::in_range;

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
        let follow = builds::follow(&app, caller, id, from.unwrap_or(1), level).await?;
        let lines = Lines { app: Arc::clone(&app), caller, id, follow };
        return Ok(follow::follow(&app, lines));
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

/// Source of the events of a build's log.
struct Lines {
    app: Arc<App>,
    caller: Caller,
    id: BuildId,
    follow: Follow,
}

impl follow::Source for Lines {
    async fn next(&mut self) -> Option<(Vec<Event>, bool)> {
        let news = self.follow.next().await.ok()?;
        let line = |line: crate::db::build_logs::Line| {
            let line = builds::line_to_api(line);
            Event::default().id(line.seq.to_string()).json_data(line).ok()
        };
        let mut events: Vec<Event> = news.lines.into_iter().filter_map(line).collect();
        if news.ended {
            events.push(self.end().await?);
        }
        Some((events, news.ended))
    }
}

impl Lines {
    /// Makes the last event, with the build.
    async fn end(&self) -> Option<Event> {
        let build = builds::get(&self.app, self.caller, self.id).await.ok()?;
        let shown = builds::to_api(&self.app, vec![build], true).await.ok()?;
        Event::default().event("end").json_data(shown.first()?).ok()
    }
}
