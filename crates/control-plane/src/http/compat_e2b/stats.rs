//! Metrics of sandboxes and teams, in E2B's shapes and steps.

use super::request::SandboxRequest;
use super::sandbox_id;
use super::wire::{Metric, Metrics, MostMetric, TeamMetric};
use crate::app::App;
use crate::auth::Caller;
use crate::capsules;
use crate::db::capsules::Capsule;
use crate::error::{Error, Result};
use crate::http::extract::{Path, Query};
use crate::stats::series::Stats;
use crate::stats::{self, Window};
use axum::Json;
use axum::extract::State;
use std::sync::Arc;
use time::{Duration, OffsetDateTime};
use types::{CapsuleId, TeamId};

/// Most sandboxes whose metrics one request may ask for, as in E2B's service.
const SANDBOXES_MAX: usize = 100;
/// Latest time that a request may name, in seconds since 1970.
const LATEST: i64 = 253_402_300_799 / 2;
/// Largest time of a sandbox's series, and of a team's.
const DAYS_MAX: Duration = Duration::days(366);
const TEAM_DAYS_MAX: Duration = Duration::days(92);
/// Time of a team's series by default.
const TEAM_DAYS: Duration = Duration::days(7);
/// Lengths of windows in seconds, each with the step of shorter windows.
const STEPS: [(i64, i64); 5] =
    [(3600, 5), (6 * 3600, 30), (12 * 3600, 60), (86_400, 120), (7 * 86_400, 300)];
/// Step of longer windows, in seconds.
const LONG_STEP: i64 = 900;

/// A time window, in seconds since 1970.
#[derive(Debug, Default, serde::Deserialize)]
pub(super) struct Range {
    start: Option<i64>,
    end: Option<i64>,
}

impl Range {
    /// Returns the window, with these times in place of absent ones. Only the last part of a window
    /// that is longer than `most` counts.
    fn window(
        &self,
        (first, last): (OffsetDateTime, OffsetDateTime),
        most: Duration,
    ) -> Result<Window> {
        let to = time("end", self.end)?.unwrap_or(last);
        let from = time("start", self.start)?.unwrap_or_else(|| first.min(to));
        if from > to {
            return Err(Error::invalid("start", "must not be later than end"));
        }
        let seconds = (to - from).whole_seconds();
        let step = STEPS.iter().find(|(shorter, _)| seconds < *shorter);
        let step = step.map_or(LONG_STEP, |(_, step)| *step);
        Ok(Window { from: from.max(to - most), to, step })
    }
}

/// Reads a time in seconds since 1970.
fn time(field: &str, seconds: Option<i64>) -> Result<Option<OffsetDateTime>> {
    let Some(seconds) = seconds else { return Ok(None) };
    let valid = (0..=LATEST).contains(&seconds);
    let read = OffsetDateTime::from_unix_timestamp(seconds).ok().filter(|_| valid);
    let must = || Error::invalid(field, "must be a number of seconds since 1970");
    read.map(Some).ok_or_else(must)
}

/// Answers with the metrics of a sandbox, also after its end. A sandbox that the caller does not
/// have has none.
pub(super) async fn of_one(
    request: SandboxRequest,
    Query(range): Query<Range>,
) -> Result<Json<Vec<Metric>>> {
    let now = OffsetDateTime::now_utc();
    // A wrong window is an error, whoever asks.
    range.window((OffsetDateTime::UNIX_EPOCH, now), DAYS_MAX)?;
    let (app, caller) = (&request.app, request.caller);
    let Ok(id) = request.id() else { return Ok(Json(Vec::new())) };
    let capsule = match capsules::get_ever(app, caller, id).await {
        Ok(capsule) => capsule,
        Err(Error::NotFound(_)) => return Ok(Json(Vec::new())),
        Err(error) => return Err(error),
    };
    let bounds = match (range.start, range.end) {
        (Some(_), Some(_)) => (now, now),
        _ => stats::bounds(app, &capsule).await?,
    };
    // The sandbox may have ended before the window.
    let Ok(window) = range.window(bounds, DAYS_MAX) else { return Ok(Json(Vec::new())) };
    let steps = stats::history(app, &capsule, window).await?;
    Ok(Json(steps.iter().filter_map(|stats| Metric::new(&capsule, stats)).collect()))
}

#[derive(serde::Deserialize)]
pub(super) struct Sandboxes {
    sandbox_ids: Option<String>,
}

/// Answers with the metrics of the running sandboxes among those asked for. The others are left
/// out.
pub(super) async fn of_many(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(asked): Query<Sandboxes>,
) -> Result<Json<Metrics>> {
    let ids = asked.sandbox_ids.ok_or_else(|| Error::invalid("sandbox_ids", "is required"))?;
    let ids: Vec<&str> = ids.split(',').filter(|id| !id.is_empty()).collect();
    if ids.len() > SANDBOXES_MAX {
        let message = format!("must name at most {SANDBOXES_MAX} sandboxes");
        return Err(Error::invalid("sandbox_ids", message));
    }
    let ids: Vec<CapsuleId> = ids.iter().filter_map(|id| sandbox_id(id).ok()).collect();
    let latest = stats::latest(&app, caller, &ids).await?;
    let metric =
        |(row, stats): &(Capsule, Stats)| Some((row.id.to_string(), Metric::new(row, stats)?));
    Ok(Json(Metrics { sandboxes: latest.iter().filter_map(metric).collect() }))
}

/// Answers with the running sandboxes of the caller's team over time.
pub(super) async fn of_team(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(team): Path<String>,
    Query(range): Query<Range>,
) -> Result<Json<Vec<TeamMetric>>> {
    own_team(caller, &team)?;
    Ok(Json(team_metrics(&app, caller, &range).await?))
}

/// Query of a team's largest value.
#[derive(Debug, serde::Deserialize)]
pub(super) struct MostOf {
    start: Option<i64>,
    end: Option<i64>,
    metric: Option<String>,
}

/// Answers with the largest value of a team's series.
pub(super) async fn most_of_team(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(team): Path<String>,
    Query(wanted): Query<MostOf>,
) -> Result<Json<MostMetric>> {
    own_team(caller, &team)?;
    let rate = match wanted.metric.as_deref() {
        Some("concurrent_sandboxes") => false,
        Some("sandbox_start_rate") => true,
        _ => {
            let must = "must be concurrent_sandboxes or sandbox_start_rate";
            return Err(Error::invalid("metric", must));
        }
    };
    let range = Range { start: wanted.start, end: wanted.end };
    let all = team_metrics(&app, caller, &range).await?;
    let most = TeamMetric::most(&all, rate);
    most.map(Json).ok_or_else(|| Error::invalid("start", "must not be in the future"))
}

/// Checks that a path names the caller's team. E2B's service refuses another team by 403.
fn own_team(caller: Caller, team: &str) -> Result<()> {
    match team.parse::<TeamId>().is_ok_and(|team| team == caller.team) {
        true => Ok(()),
        false => Err(Error::Forbidden("a membership of the team in the path")),
    }
}

/// Returns the series of the caller's team.
async fn team_metrics(app: &App, caller: Caller, range: &Range) -> Result<Vec<TeamMetric>> {
    let now = OffsetDateTime::now_utc();
    let to = time("end", range.end)?.unwrap_or(now);
    let window = range.window((to - TEAM_DAYS, now), TEAM_DAYS_MAX)?;
    let steps = stats::team(app, caller, window).await?;
    let seconds = u32::try_from(window.step).unwrap_or(1);
    Ok(steps.iter().filter_map(|step| TeamMetric::new(step, seconds)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_follows_the_length_of_the_window() {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let step = |seconds: i64| {
            let range = Range { start: Some(1_800_000_000 - seconds), end: Some(1_800_000_000) };
            range.window((now, now), DAYS_MAX).unwrap().step
        };
        let hours = [0, 1, 5, 6, 11, 12, 23, 24, 167, 168].map(|hours| step(hours * 3600));
        assert_eq!(hours, [5, 30, 30, 60, 60, 120, 120, 300, 300, 900]);
        assert_eq!(step(3599), 5);
    }

    #[test]
    fn window_without_times_is_that_of_the_figures_and_a_wrong_one_is_refused() {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let first = now - Duration::minutes(5);
        let window = Range::default().window((first, now), DAYS_MAX).unwrap();
        assert_eq!((window.from, window.to, window.step), (first, now, 5));
        let wrong = |start, end| Range { start, end }.window((first, now), DAYS_MAX).is_err();
        assert!(wrong(Some(2), Some(1)) && wrong(Some(-1), None) && wrong(None, Some(i64::MAX)));
        assert!(wrong(Some(1_800_000_001), None));
        let all = Range { start: Some(0), end: None }.window((first, now), DAYS_MAX).unwrap();
        assert_eq!(all.from, now - DAYS_MAX);
    }
}
