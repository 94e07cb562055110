//! `/v1/capsules/{id}/logs`: a capsule's log as pages of JSON, or followed as server-sent events.
//! Without parameters, the answer is the console's last output as bytes.

use super::extract::{Path, Query, capsule_id};
use super::follow;
use crate::app::App;
use crate::auth::Caller;
use crate::capsules;
use crate::error::{Error, Result};
use crate::logs::{self, Follow, LogEntry, PAGE, Source, is_cursor};
use axum::Json;
use axum::extract::State;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use http::header::{self, ACCEPT};
use http::{HeaderMap, StatusCode};
use std::sync::Arc;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use types::CapsuleId;
use types::resources::in_range;

/// Longest text to look for, in bytes.
const SEARCH_MAX: usize = 256;

#[derive(Debug, Default, PartialEq, Eq, serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Asked {
    /// Earliest time of an entry (RFC 3339).
    since: Option<String>,
    /// Time before which entries must lie (RFC 3339). Not with `follow`.
    until: Option<String>,
    /// Sources of the entries, separated by commas: `console`, `lifecycle`, `process`. The default is
    /// all.
    source: Option<String>,
    /// Text that each entry contains, at most 256 bytes. Upper and lower case differ.
    search: Option<String>,
    /// True to get server-sent events as entries come. The default is false, unless the header
    /// `Accept` is `text/event-stream`.
    follow: Option<bool>,
    /// Number of entries without `follow`, 1 to 1000. The default is 1000.
    limit: Option<u32>,
    /// Value of `next` of the previous page, or `cursor` of an entry.
    cursor: Option<String>,
    /// True to read backward, the newest entry first. Not with `follow`.
    backward: Option<bool>,
}

/// Returns entries of a capsule's log. A capsule that was removed keeps its log for some days. A
/// read never resumes the capsule, and does not count as activity. With `follow`, each entry is an
/// event with its cursor as `id`, and `Last-Event-ID` continues after that entry. The event `end`
/// follows the last entry of a capsule that has ended. Without any parameter, the answer is the
/// last 64 KiB that the guest wrote to its console, as bytes.
#[utoipa::path(
    operation_id = "get_capsule_logs",
    get, path = "/v1/capsules/{id}/logs", tag = "capsules",
    params(
        ("id" = String, Path, description = "Id or name of the capsule"), Asked,
        ("last-event-id" = Option<String>, Header, description = "`id` of the last entry that the client received"),
    ),
    responses(
        (status = 200, description = "Entries; with `follow`, server-sent events of `LogEntry`; without parameters, raw console output", body = api::LogPage),
        (status = 503, description = "The capsule's host does not answer", body = api::ErrorBody),
        (status = "4XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    Query(asked): Query<Asked>,
) -> Result<Response> {
    let id = capsule_id(&id)?;
    let wants_events = accepts_events(&headers);
    if asked == Asked::default() && !wants_events {
        return console(&app, caller, id).await;
    }
    let query = asked.read()?;
    if asked.follow.unwrap_or(wants_events) {
        let query = asked.following(query, &headers)?;
        let entries = logs::follow(Arc::clone(&app), caller, id, query).await?;
        return Ok(follow::follow(&app, Entries(entries)));
    }
    let page = logs::read(&app, caller, id, &query).await?;
    let logs::Page { entries, next, more, dropped } = page;
    let items = entries.into_iter().map(logs::to_api).collect();
    Ok(Json(api::LogPage { items, next, more, dropped }).into_response())
}

/// Erases a capsule's log on its host and in the platform's store. A running capsule continues with
/// an empty log.
#[utoipa::path(
    operation_id = "erase_capsule_logs",
    delete, path = "/v1/capsules/{id}/logs", tag = "capsules",
    params(("id" = String, Path, description = "Id or name of the capsule")),
    responses(
        (status = 204), (status = "4XX", body = api::ErrorBody),
        (status = 503, description = "The host does not answer; the log is erased later", body = api::ErrorBody),
    )
)]
pub(crate) async fn erase(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode> {
    logs::erase(&app, caller, capsule_id(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Answers with the last output on the console of a capsule that has not ended.
async fn console(app: &App, caller: Caller, id: CapsuleId) -> Result<Response> {
    let capsule = capsules::get(app, caller, id).await?;
    let octets = [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    Ok((octets, app.agent_of(&capsule)?.logs(capsule.id).await?).into_response())
}

fn accepts_events(headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
    accept.is_some_and(|accept| accept.split(',').any(|kind| is_events(kind.trim())))
}

fn is_events(kind: &str) -> bool {
    let kind = kind.split(';').next().unwrap_or(kind);
    kind.trim().eq_ignore_ascii_case("text/event-stream")
}

impl Asked {
    /// Checks the parameters.
    fn read(&self) -> Result<logs::Query> {
        let limit = self.limit.unwrap_or(PAGE);
        in_range("limit", limit, 1, PAGE)?;
        let search = self.search.clone().unwrap_or_default();
        if search.len() > SEARCH_MAX {
            return Err(Error::invalid("search", format!("must be at most {SEARCH_MAX} bytes")));
        }
        Ok(logs::Query {
            since_ms: time("since", self.since.as_deref())?,
            until_ms: time("until", self.until.as_deref())?,
            sources: sources(self.source.as_deref())?,
            search,
            cursor: self.cursor.as_deref().map(|text| cursor("cursor", text)).transpose()?,
            limit,
            backward: self.backward.unwrap_or(false),
        })
    }

    /// Checks the parameters of a followed log, which begins after `Last-Event-ID`.
    fn following(&self, query: logs::Query, headers: &HeaderMap) -> Result<logs::Query> {
        for (field, is_set) in [("until", self.until.is_some()), ("backward", query.backward)] {
            if is_set {
                return Err(Error::invalid(
                    field,
                    "cannot be combined with `follow`; leave it out",
                ));
            }
        }
        let last = headers.get("last-event-id").filter(|last| !last.is_empty());
        let last = last.map(|last| cursor("last-event-id", last.to_str().unwrap_or("")));
        Ok(logs::Query { cursor: last.transpose()?.or(query.cursor), limit: PAGE, ..query })
    }
}

/// Reads a time as milliseconds since 1970. Earlier times count as 1970.
fn time(field: &str, text: Option<&str>) -> Result<Option<u64>> {
    let Some(text) = text else { return Ok(None) };
    let at = OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|_| Error::invalid(field, "must be a time such as 2026-11-26T12:00:00Z"))?;
    Ok(Some(u64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)))
}

fn sources(text: Option<&str>) -> Result<Vec<Source>> {
    let Some(text) = text else { return Ok(Vec::new()) };
    let mut sources = Vec::new();
    for name in text.split(',') {
        let source: Source = name.trim().parse()?;
        if !sources.contains(&source) {
            sources.push(source);
        }
    }
    Ok(sources)
}

fn cursor(field: &str, text: &str) -> Result<String> {
    match is_cursor(text) {
        true => Ok(text.to_owned()),
        false => Err(Error::invalid(field, "is not the cursor of a log")),
    }
}

/// Source of the events of a capsule's log.
struct Entries(Follow);

impl follow::Source for Entries {
    async fn next(&mut self) -> Option<(Vec<Event>, bool)> {
        let news = self.0.next().await.ok()?;
        let mut events: Vec<Event> = news.entries.into_iter().filter_map(frame).collect();
        if news.ended {
            events.push(Event::default().event("end").data("{}"));
        }
        Some((events, news.ended))
    }
}

/// Makes the event of an entry. A cursor that a frame cannot carry is left out.
fn frame(entry: LogEntry) -> Option<Event> {
    let event = match is_cursor(&entry.cursor) {
        true => Event::default().id(&entry.cursor),
        false => Event::default(),
    };
    event.json_data(logs::to_api(entry)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Asked {
        Asked { limit: Some(7), ..Asked::default() }
    }

    #[test]
    fn parameters_become_a_query() {
        let asked = Asked {
            since: Some("2026-01-01T00:00:00.5Z".to_owned()),
            until: Some("1969-01-01T00:00:00Z".to_owned()),
            source: Some("lifecycle, process,lifecycle".to_owned()),
            cursor: Some("12-1".to_owned()),
            ..asked()
        };
        let query = asked.read().unwrap();
        assert_eq!((query.since_ms, query.until_ms), (Some(1_767_225_600_500), Some(0)));
        assert_eq!(query.sources, [Source::Lifecycle, Source::Process]);
        assert_eq!((query.limit, query.cursor.as_deref()), (7, Some("12-1")));
    }

    #[test]
    fn error_of_a_parameter_names_it() {
        let some = |text: &str| Some(text.to_owned());
        for (asked, field) in [
            (Asked { since: some("yesterday"), ..asked() }, "since "),
            (Asked { until: some(""), ..asked() }, "until "),
            (Asked { source: some("lifecycle,disk"), ..asked() }, "source "),
            (Asked { source: some(""), ..asked() }, "source "),
            (Asked { search: Some("x".repeat(257)), ..asked() }, "search "),
            (Asked { cursor: some("a b"), ..asked() }, "cursor "),
            (Asked { limit: Some(0), ..asked() }, "limit "),
            (Asked { limit: Some(1001), ..asked() }, "limit "),
        ] {
            let error = asked.read().unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
    }

    #[test]
    fn followed_log_begins_after_the_last_event_and_has_no_end() {
        let mut headers = HeaderMap::new();
        let following =
            |asked: &Asked, headers: &HeaderMap| asked.following(asked.read().unwrap(), headers);
        let asked = Asked { cursor: Some("1".to_owned()), ..asked() };
        assert_eq!(following(&asked, &headers).unwrap().cursor.as_deref(), Some("1"));
        headers.insert("last-event-id", "2".parse().unwrap());
        assert_eq!(following(&asked, &headers).unwrap().cursor.as_deref(), Some("2"));
        headers.insert("last-event-id", "a b".parse().unwrap());
        assert!(following(&asked, &headers).is_err());
        headers.clear();
        let ends = Asked { until: Some("2026-01-01T00:00:00Z".to_owned()), ..asked };
        assert!(following(&ends, &headers).unwrap_err().to_string().starts_with("until "));
    }

    #[test]
    fn events_are_found_among_the_accepted_types() {
        let accepts = |text: &'static str| {
            accepts_events(&HeaderMap::from_iter([(ACCEPT, text.parse().unwrap())]))
        };
        assert!(accepts("text/event-stream") && accepts("text/html, Text/Event-Stream;q=0.9"));
        assert!(!accepts("*/*") && !accepts("application/json"));
        assert!(!accepts_events(&HeaderMap::new()));
    }
}
