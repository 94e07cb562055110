//! `/v1/usage`: the usage of a team.

use super::extract::Query;
use crate::app::App;
use crate::auth::Caller;
use crate::db::events::Day;
use crate::error::{Error, Result};
use crate::usage;
use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use std::sync::Arc;
use time::macros::format_description;
use time::{Date, Duration, OffsetDateTime};
use utoipa::IntoParams;

/// Default and largest number of days in a range.
const DAYS: i64 = 30;
const DAYS_MAX: i64 = 366;

/// Range of days.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Range {
    /// First day, such as `2026-11-01`. The default is 29 days before the last.
    from: Option<String>,
    /// Last day. The default is today.
    to: Option<String>,
}

impl Range {
    /// Returns the first and the last day.
    pub(super) fn days(&self) -> Result<(Date, Date)> {
        let today = OffsetDateTime::now_utc().date();
        let to = day("to", self.to.as_deref())?.unwrap_or(today);
        let from = day("from", self.from.as_deref())?;
        let from = from.unwrap_or_else(|| to.saturating_sub(Duration::days(DAYS - 1)));
        if !(0..DAYS_MAX).contains(&(to - from).whole_days()) {
            let must = format!("must be at most {DAYS_MAX} days before `to`");
            return Err(Error::invalid("from", must));
        }
        Ok((from, to))
    }
}

fn day(field: &str, text: Option<&str>) -> Result<Option<Date>> {
    let wrong = |_| Error::invalid(field, "must be a day such as 2026-11-26");
    let parsed = text.map(|text| Date::parse(text, format_description!("[year]-[month]-[day]")));
    parsed.transpose().map_err(wrong)
}

/// Returns the team's usage by day in UTC. Usage is exact to the start and end of capsules and
/// snapshots. The usage of today ends at the present moment.
#[utoipa::path(
    operation_id = "get_usage",
    get, path = "/v1/usage", tag = "teams", params(Range),
    responses((status = 200, body = api::Usage), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(range): Query<Range>,
) -> Result<Json<api::Usage>> {
    let (from, to) = range.days()?;
    let rows = usage::by_day(&app, caller, from, to).await?;
    let to_api = |row: Day| api::DailyUsage {
        day: row.day,
        vcpu_seconds: row.vcpu_seconds,
        memory_mib_seconds: row.memory_mib_seconds,
        storage_mib_seconds: row.storage_mib_seconds,
    };
    Ok(Json(api::Usage { items: rows.into_iter().map(to_api).collect() }))
}
