//! Routes of metrics over time: of capsules, of the team and of hosts.

use super::extract::{Json as Body, Path, Query, capsule_id};
use crate::app::App;
use crate::auth::{Caller, Operator};
use crate::capsules;
use crate::db::capsules::Capsule;
use crate::db::stats::HostRow;
use crate::error::{Error, Result};
use crate::hosts::lifecycle;
use crate::stats::series::{self, Stats};
use crate::stats::{self, TeamStep, Window};
use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use std::sync::Arc;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};
use types::resources::in_range;
use types::{CapsuleId, HostId};
use utoipa::IntoParams;

/// Default and largest number of points in a series.
const POINTS: u32 = 120;
const POINTS_MAX: u32 = 1000;
/// Largest time of a series, in days.
const DAYS_MAX: i64 = 366;
/// Largest time of a team's series, in days.
const TEAM_DAYS_MAX: i64 = 92;
/// Most capsules of one request.
const CAPSULES_MAX: usize = 100;

/// Time of a series, and its number of points.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Range {
    /// Begin of the series, such as `2026-11-30T10:00:00Z`. The default is an hour before `to`.
    from: Option<String>,
    /// End of the series. The default is now.
    to: Option<String>,
    /// Most points of the series, 1 to 1000. The default is 120. The length of a step follows from
    /// it.
    points: Option<u32>,
    /// No effect: reads of metrics never wake a capsule.
    #[expect(dead_code, reason = "other reads of capsules have this parameter too")]
    passive: Option<bool>,
}

impl Range {
    /// Returns the window, of at most `days` days. Steps are multiples of `unit` seconds.
    fn window(&self, days: i64, unit: i64) -> Result<Window> {
        let Self { from, to, points, .. } = self;
        let to = time("to", to.as_deref())?.unwrap_or_else(OffsetDateTime::now_utc);
        let from = time("from", from.as_deref())?.unwrap_or(to - Duration::HOUR);
        let seconds = (to - from).whole_seconds();
        if seconds < 0 {
            return Err(Error::invalid("from", "must not be later than `to`"));
        }
        if seconds > days * 86_400 {
            let must = format!("must be at most {days} days before `to`");
            return Err(Error::invalid("from", must));
        }
        let points = points.unwrap_or(POINTS);
        in_range("points", points, 1, POINTS_MAX)?;
        let step = series::step(seconds, points.into());
        Ok(Window { from, to, step: series::floor(step + unit - 1, unit) })
    }
}

/// Parses a time between the years 1970 and 9000, so that sums with it stay valid.
fn time(field: &str, text: Option<&str>) -> Result<Option<OffsetDateTime>> {
    let wrong = || Error::invalid(field, "must be a time such as 2026-11-30T10:00:00Z");
    let Some(text) = text else { return Ok(None) };
    let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| wrong())?;
    match (1970..9000).contains(&time.year()) {
        true => Ok(Some(time)),
        false => Err(wrong()),
    }
}

/// Returns a capsule's metrics over time, also after its removal. The last minutes come from the
/// capsule's host, and are absent while the host does not answer. The read never wakes a capsule.
#[utoipa::path(
    operation_id = "get_capsule_metrics",
    get, path = "/v1/capsules/{id}/metrics", tag = "metrics",
    params(("id" = String, Path, description = "Id or name of the capsule"), Range),
    responses((status = 200, body = api::MetricsSeries), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn history(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Query(range): Query<Range>,
) -> Result<Json<api::MetricsSeries>> {
    let capsule = capsules::get_ever(&app, caller, capsule_id(&id)?).await?;
    let window = range.window(DAYS_MAX, series::FINE)?;
    let steps = stats::history(&app, &capsule, window).await?;
    let items = steps.iter().filter_map(|stats| point(&capsule, stats)).collect();
    Ok(Json(api::MetricsSeries { step_sec: seconds(window.step), items }))
}

/// Returns the latest metrics of several capsules. Capsules that do not run, and ids of no capsule
/// of the team, are left out.
#[utoipa::path(
    operation_id = "get_latest_metrics",
    post, path = "/v1/capsules/metrics", tag = "metrics", request_body = api::LatestMetrics,
    responses((status = 200, body = api::LatestMetricsMap), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn latest(
    State(app): State<Arc<App>>,
    caller: Caller,
    Body(wanted): Body<api::LatestMetrics>,
) -> Result<Json<api::LatestMetricsMap>> {
    if wanted.ids.len() > CAPSULES_MAX {
        return Err(Error::invalid("ids", format!("must name at most {CAPSULES_MAX} capsules")));
    }
    let ids: Vec<CapsuleId> = wanted.ids.iter().filter_map(|id| id.parse().ok()).collect();
    let latest = stats::latest(&app, caller, &ids).await?;
    let item = |(capsule, stats): &(Capsule, Stats)| {
        Some((capsule.id.to_string(), point(capsule, stats)?))
    };
    Ok(Json(api::LatestMetricsMap { items: latest.iter().filter_map(item).collect() }))
}

/// Returns the running capsules of the team over time, and the starts of capsules. Machines that
/// ended more than 8 days ago are absent.
#[utoipa::path(
    operation_id = "get_team_metrics",
    get, path = "/v1/metrics", tag = "metrics", params(Range),
    responses((status = 200, body = api::TeamMetrics), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn team(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(range): Query<Range>,
) -> Result<Json<api::TeamMetrics>> {
    let window = range.window(TEAM_DAYS_MAX, series::FINE)?;
    let steps = stats::team(&app, caller, window).await?;
    let item = |step: TeamStep| {
        let at = OffsetDateTime::from_unix_timestamp(step.at).ok()?;
        let (concurrent_capsules, starts) = (step.most, step.starts);
        Some(api::TeamMetricsPoint { at, concurrent_capsules, starts })
    };
    let items = steps.into_iter().filter_map(item).collect();
    Ok(Json(api::TeamMetrics { step_sec: seconds(window.step), items }))
}

/// Returns the load of a host over time.
#[utoipa::path(
    operation_id = "get_host_metrics_history",
    get, path = "/v1/hosts/{id}/metrics/history", tag = "metrics",
    params(("id" = String, Path, description = "Id of the host"), Range),
    responses((status = 200, body = api::HostMetrics), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn host(
    State(app): State<Arc<App>>,
    _operator: Operator,
    Path(id): Path<String>,
    Query(range): Query<Range>,
) -> Result<Json<api::HostMetrics>> {
    let id: HostId = id.parse().map_err(|_| Error::NotFound("host"))?;
    lifecycle::get(&app, id).await?;
    let window = range.window(DAYS_MAX, series::COARSE)?;
    let rows = stats::host(&app, id, window).await?;
    let items = rows.iter().filter_map(host_point).collect();
    Ok(Json(api::HostMetrics { step_sec: seconds(window.step), items }))
}

fn host_point(row: &HostRow) -> Option<api::HostMetricsPoint> {
    let count = |number: i64| u64::try_from(number).unwrap_or(0);
    let small = |number: i32| u32::try_from(number).unwrap_or(0);
    Some(api::HostMetricsPoint {
        at: OffsetDateTime::from_unix_timestamp(row.at).ok()?,
        cpu_load_percent: small(row.cpu_load_percent),
        free_memory_mib: count(row.free_memory_mib),
        free_disk_mib: count(row.free_disk_mib),
        capsules: small(row.capsules),
        used_vcpus: small(row.used_vcpus),
        used_memory_mib: count(row.used_memory_mib),
    })
}

/// Converts stats of a capsule to the API's form. Returns `None` for a time out of range.
fn point(capsule: &Capsule, stats: &Stats) -> Option<api::MetricsPoint> {
    Some(api::MetricsPoint {
        at: OffsetDateTime::from_unix_timestamp(stats.at).ok()?,
        cpu_percent: series::percent(stats.cpu_mean),
        cpu_max_percent: stats.cpu_max,
        memory_used: stats.memory,
        memory_total: u64::from(capsule.memory_mib) << 20,
        disk_total: u64::from(capsule.disk_mib) << 20,
        guest_memory_used: stats.guest_memory,
        guest_memory_cache: stats.cache,
        guest_disk_used: stats.disk,
        network_received: stats.received,
        network_sent: stats.sent,
        oom_kills: stats.oom_kills,
        guest_oom_kills: stats.guest_oom_kills,
        source: if stats.from_host { "host" } else { "guest" }.to_owned(),
        gap: stats.begins,
    })
}

fn seconds(step: i64) -> u32 {
    u32::try_from(step).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(from: &str, to: &str, points: Option<u32>) -> Range {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Range { from: given(from), to: given(to), points, passive: None }
    }

    #[test]
    fn window_is_an_hour_by_default_and_refuses_what_is_out_of_range() {
        let window = Range::default().window(1, 5).unwrap();
        assert_eq!((window.to - window.from, window.step), (Duration::HOUR, 35));
        let day = range("2026-11-01T00:00:00Z", "2026-11-02T00:00:00Z", Some(10));
        assert_eq!(day.window(1, 300).unwrap().step, 8700);
        let wrong = |from: &str, to: &str, points| {
            let error = range(from, to, points).window(1, 5).err().map(|error| error.to_string());
            error.unwrap_or_default()
        };
        assert!(wrong("x", "", None).starts_with("from must be a time"));
        assert!(wrong("", "2026-11-02", None).starts_with("to must be a time"));
        assert!(wrong("", "9999-12-31T23:59:59Z", None).starts_with("to must be a time"));
        let (a, b) = ("2026-11-01T00:00:00Z", "2026-11-03T00:00:00Z");
        assert!(wrong(b, a, None).starts_with("from must not be later"));
        assert!(wrong(a, b, None).starts_with("from must be at most 1 days"));
        assert!(wrong("", "", Some(0)).starts_with("points must be"));
        assert!(wrong("", "", Some(1001)).starts_with("points must be"));
    }
}
