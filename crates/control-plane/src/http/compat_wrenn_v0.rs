//! API of the earlier system of the same name, below `/api`, as its Python package `wrenn` calls
//! it. Most routes lead to this system's own under another path. This module holds those with a
//! different shape. They are not in the OpenAPI document; `docs/e2b.md` lists them.

use super::events;
use super::events::Frames;
use super::extract::{Json as Body, Path, Query, capsule_id};
use super::routes::Routes;
use super::rules::{CHANGE_ALL, READ, READ_ALL};
use super::usage::Range as Days;
use crate::app::App;
use crate::auth::Caller;
use crate::db::capsule_list::Filter;
use crate::db::events::{Day, Point};
use crate::db::snapshots::Snapshot;
use crate::error::{Error, Result};
use crate::stats::series::{self, Stats};
use crate::stats::{self, Window};
use crate::{capsules, snapshots, streams, templates, usage};
use axum::Json;
use axum::extract::State;
use http::{HeaderMap, Method, StatusCode, Uri};
use serde_json::{Value, json};
use std::sync::{Arc, LazyLock};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use types::PLATFORM_TEAM;

/// Mark of a request that was rewritten from the earlier API to this system's own path.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CompatRequest;

const ROOT: &str = "/api";
/// Largest number of capsules in a list.
const LIST_MAX: i64 = 1000;
/// Number of points in a series.
const POINTS: i32 = 60;

/// Method and pattern of each route, without `ROOT`.
static SERVED: LazyLock<Vec<(Method, String)>> = LazyLock::new(|| {
    let routes = register(Routes::default());
    let below_root = |(method, pattern): (&Method, &str)| {
        Some((method.clone(), pattern.strip_prefix(ROOT)?.to_owned()))
    };
    routes.rules().routes().filter_map(below_root).collect()
});

/// Adds the routes of the earlier system's API that have a shape of their own.
pub(super) fn register(routes: Routes) -> Routes {
    routes
        .get("/api/v1/capsules", READ, list)
        .get("/api/v1/capsules/stats", READ_ALL, running)
        .get("/api/v1/capsules/usage", READ_ALL, used)
        .get("/api/v1/capsules/{id}/metrics", READ, metrics)
        .get("/api/v1/snapshots", READ_ALL, list_snapshots)
        .post("/api/v1/snapshots", CHANGE_ALL, create_snapshot)
        .get("/api/v1/events/stream", READ_ALL, stream)
}

/// Rewrites a request to this system's own path. Returns `None` for a route that this module
/// serves, and outside `ROOT`.
pub(crate) fn ours(method: &Method, uri: &Uri) -> Option<Uri> {
    let rest = uri.path().strip_prefix(ROOT).filter(|rest| rest.starts_with("/v1/"))?;
    if SERVED.iter().any(|(of, pattern)| method == of && fits(pattern, rest)) {
        return None;
    }
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    format!("{rest}{query}").parse().ok()
}

fn fits(pattern: &str, path: &str) -> bool {
    let (mut pattern, mut path) = (pattern.split('/'), path.split('/'));
    loop {
        match (pattern.next(), path.next()) {
            (None, None) => return true,
            (Some(part), Some(word)) if part == word || part.starts_with('{') => {}
            _ => return false,
        }
    }
}

async fn list(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<Vec<api::Capsule>>> {
    let filter = Filter { limit: LIST_MAX, ..Filter::default() };
    let rows = capsules::list(&app, caller, filter).await?;
    Ok(Json(rows.into_iter().map(capsules::to_api).collect()))
}

#[derive(serde::Deserialize)]
struct Range {
    range: Option<String>,
}

impl Range {
    /// Returns the range as written and in seconds.
    fn read(&self, default: &str) -> Result<(String, i32)> {
        let range = self.range.as_deref().unwrap_or(default);
        let units = [('m', 60), ('h', 3600), ('d', 86_400)];
        let seconds = units.iter().find_map(|(unit, seconds)| {
            let number: i32 = range.strip_suffix(*unit)?.parse().ok()?;
            Some(number.saturating_mul(*seconds))
        });
        let seconds = seconds.unwrap_or(0);
        if !(1..=30 * 86_400).contains(&seconds) {
            return Err(Error::invalid("range", "must have a form such as 5m, 1h or 30d"));
        }
        Ok((range.to_owned(), seconds))
    }
}

/// Returns a team's running capsules over time, from the intervals of their usage. Older ones
/// survive only as daily sums, and do not appear.
async fn running(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(range): Query<Range>,
) -> Result<Json<Value>> {
    let (name, seconds) = range.read("1h")?;
    let series = usage::series(&app, caller, seconds, POINTS).await?;
    let most = |of: fn(&Point) -> i64| series.iter().map(of).max().unwrap_or(0);
    let now = series.last();
    let labels: Vec<_> = series.iter().filter_map(|p| p.at.format(&Rfc3339).ok()).collect();
    let all = |of: fn(&Point) -> i64| series.iter().map(of).collect::<Vec<_>>();
    Ok(Json(json!({
        "range": name,
        "current": {
            "running_count": now.map(|p| p.running),
            "vcpus_reserved": now.map(|p| p.vcpus),
            "memory_mb_reserved": now.map(|p| p.memory_mib),
        },
        "peaks": {
            "running_count": most(|p| p.running),
            "vcpus": most(|p| p.vcpus),
            "memory_mb": most(|p| p.memory_mib),
        },
        "series": {
            "labels": labels,
            "running": all(|p| p.running),
            "vcpus": all(|p| p.vcpus),
            "memory_mb": all(|p| p.memory_mib),
        },
    })))
}

async fn used(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(range): Query<Days>,
) -> Result<Json<Value>> {
    let (from, to) = range.days()?;
    let days = usage::by_day(&app, caller, from, to).await?;
    let point = |day: &Day| {
        json!({
            "date": day.day.to_string(),
            "cpu_minutes": day.vcpu_seconds / 60.0,
            "ram_mb_minutes": day.memory_mib_seconds / 60.0,
        })
    };
    let points: Vec<_> = days.iter().map(point).collect();
    Ok(Json(json!({ "from": from.to_string(), "to": to.to_string(), "points": points })))
}

/// Returns the metrics of a capsule over a range of time.
async fn metrics(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Query(range): Query<Range>,
) -> Result<Json<Value>> {
    let (name, seconds) = range.read("10m")?;
    let capsule = capsules::get_ever(&app, caller, capsule_id(&id)?).await?;
    let to = OffsetDateTime::now_utc();
    let step = series::step(seconds.into(), POINTS.into());
    let window = Window { from: to - time::Duration::seconds(seconds.into()), to, step };
    let steps = stats::history(&app, &capsule, window).await?;
    let point = |now: &Stats| {
        json!({
            "timestamp_unix": now.at,
            "cpu_pct": now.cpu_mean,
            "mem_bytes": now.guest_memory.unwrap_or(now.memory),
            "disk_bytes": now.disk.unwrap_or(0),
        })
    };
    let points: Vec<_> = steps.iter().map(point).collect();
    Ok(Json(json!({ "sandbox_id": id, "range": name, "points": points })))
}

#[derive(serde::Deserialize)]
struct Kind {
    r#type: Option<String>,
}

/// Lists templates and snapshots, which the earlier system did not distinguish.
async fn list_snapshots(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(kind): Query<Kind>,
) -> Result<Json<Vec<Value>>> {
    let wanted = |kind_of: &str| kind.r#type.as_deref().is_none_or(|kind| kind == kind_of);
    let mut all = Vec::new();
    if wanted("base") {
        for row in templates::list(&app, caller).await? {
            let row = row.template;
            let platform = row.team_id == PLATFORM_TEAM;
            all.push(json!({
                "name": row.name,
                "type": "base",
                "vcpus": row.vcpus,
                "memory_mb": row.memory_mib,
                "created_at": time_of(row.created_at),
                "platform": platform,
                "protected": platform,
            }));
        }
    }
    if wanted("snapshot") {
        let rows = snapshots::list(&app, caller, None, None, LIST_MAX).await?;
        all.extend(rows.into_iter().map(template));
    }
    Ok(Json(all))
}

fn time_of(at: OffsetDateTime) -> Option<String> {
    at.format(&Rfc3339).ok()
}

fn template(row: Snapshot) -> Value {
    let snapshot = snapshots::to_api(row);
    json!({
        "name": snapshot.name,
        "type": "snapshot",
        "vcpus": snapshot.vcpus,
        "memory_mb": snapshot.memory_mib,
        "size_bytes": snapshot.size_bytes,
        "created_at": time_of(snapshot.created_at),
        "platform": false,
        "protected": false,
    })
}

#[derive(serde::Deserialize)]
struct NewSnapshot {
    sandbox_id: String,
    name: Option<String>,
}

#[derive(serde::Deserialize)]
struct Over {
    #[serde(default)]
    overwrite: bool,
}

async fn create_snapshot(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(over): Query<Over>,
    Body(wanted): Body<NewSnapshot>,
) -> Result<(StatusCode, Json<Value>)> {
    let wanted = api::CreateSnapshot {
        capsule_id: wanted.sandbox_id,
        name: wanted.name,
        overwrite: over.overwrite,
        memory: None,
    };
    let taken = capsules::snapshot(&app, caller, wanted).await?;
    Ok((StatusCode::CREATED, Json(template(taken))))
}

async fn stream(State(app): State<Arc<App>>, caller: Caller, headers: HeaderMap) -> Result<Frames> {
    events::open(&app, caller, &headers, None, |event| {
        let event = render(&streams::to_api(event))?;
        axum::response::sse::Event::default().json_data(event).ok()
    })
    .await
}

/// Writes an event in the earlier system's words. The earlier system named the completed request,
/// such as `capsule.create`. Returns `None` for kinds of events that it did not have.
fn render(event: &api::Event) -> Option<Value> {
    let before = event.data["previous"].as_str().unwrap_or("");
    let (kind, outcome) = match (event.event.as_str(), before) {
        ("capsule.running", "starting") => ("capsule.create", Some("success")),
        ("capsule.running", "resuming") => ("capsule.resume", Some("success")),
        ("capsule.paused", _) => ("capsule.pause", Some("success")),
        ("capsule.destroyed", _) => ("capsule.destroy", Some("success")),
        ("template.snapshot.created", _) => ("template.snapshot.create", Some("success")),
        ("template.snapshot.deleted", _) => ("template.snapshot.delete", Some("success")),
        ("host.up", _) => ("host.up", None),
        ("host.down", _) => ("host.down", None),
        ("capsule.created" | "capsule.running" | "capsule.error" | "capsule.missing", _) => {
            ("capsule.state.changed", None)
        }
        _ => return None,
    };
    let to = event.event.rsplit('.').next().unwrap_or("");
    let changed = json!({ "from": before, "to": to });
    Some(json!({
        "event": kind,
        "outcome": outcome,
        "resource": { "id": event.resource_id, "type": event.resource_type },
        "metadata": if kind == "capsule.state.changed" { changed } else { json!({}) },
        "timestamp": time_of(event.created_at),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v0_paths_with_own_shape_stay_and_others_are_rewritten() {
        let to = |method: Method, path: &str| {
            ours(&method, &path.parse().unwrap()).map(|uri| uri.to_string())
        };
        for (method, path) in [
            (Method::GET, "/api/v1/capsules"),
            (Method::GET, "/api/v1/capsules/stats?range=1h"),
            (Method::GET, "/api/v1/capsules/cl-1/metrics"),
            (Method::POST, "/api/v1/snapshots?overwrite=true"),
            (Method::GET, "/v1/capsules"),
            (Method::GET, "/api/v2/capsules"),
            (Method::GET, "/apiv1/x"),
        ] {
            assert_eq!(to(method, path), None, "{path}");
        }
        for (method, path) in [
            (Method::POST, "/api/v1/capsules"),
            (Method::GET, "/api/v1/capsules/cl-1"),
            (Method::DELETE, "/api/v1/snapshots/x?y=z"),
        ] {
            assert_eq!(to(method, path).as_deref(), path.strip_prefix("/api"), "{path}");
        }
    }

    #[test]
    fn event_is_rendered_as_the_completed_request() {
        let event = |kind: &str, data: Value| api::Event {
            id: "1-1".to_owned(),
            team_id: String::new(),
            event: kind.to_owned(),
            resource_type: "capsule".to_owned(),
            resource_id: "cl-1".to_owned(),
            actor: None,
            generation: Some(2),
            data,
            created_at: OffsetDateTime::UNIX_EPOCH,
        };
        let made = render(&event("capsule.running", json!({ "previous": "starting" }))).unwrap();
        assert_eq!(
            (&made["event"], &made["outcome"]),
            (&json!("capsule.create"), &json!("success"))
        );
        let lost = render(&event("capsule.missing", json!({ "previous": "running" }))).unwrap();
        assert_eq!(lost["event"], "capsule.state.changed");
        assert_eq!(lost["metadata"], json!({ "from": "running", "to": "missing" }));
        for kind in ["template.build.ready", "capsule.pausing", "capsule.changed", "key.created"] {
            assert_eq!(render(&event(kind, json!({ "previous": "running" }))), None, "{kind}");
        }
    }

    #[test]
    fn stats_ranges_are_parsed_and_bounded() {
        let read = |text: &str| Range { range: Some(text.to_owned()) }.read("1h").map(|r| r.1).ok();
        assert_eq!(
            (read("5m"), read("24h"), read("30d")),
            (Some(300), Some(86_400), Some(2_592_000))
        );
        assert_eq!(
            (read("31d"), read("x"), read(""), read("-1m"), read("é")),
            (None, None, None, None, None)
        );
    }
}
