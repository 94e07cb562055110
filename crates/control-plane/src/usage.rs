//! The usage of a team: by day, and as samples of its running capsules. Both read many rows, so a
//! team has few such reads at a time.

use crate::app::App;
use crate::auth::Caller;
use crate::db;
use crate::db::events::{Day, Point};
use crate::error::Result;
use time::Date;

/// Returns the usage of the caller's team by day in UTC, from the first day to the last.
pub(crate) async fn by_day(app: &App, caller: Caller, from: Date, to: Date) -> Result<Vec<Day>> {
    let _place = app.load.long_read(caller.team).await?;
    Ok(db::events::usage(&app.db, caller.team, from, to).await?)
}

/// Samples the running capsules of the caller's team at `points` times over the last `seconds`.
pub(crate) async fn series(
    app: &App,
    caller: Caller,
    seconds: i32,
    points: i32,
) -> Result<Vec<Point>> {
    let _place = app.load.long_read(caller.team).await?;
    Ok(db::events::series(&app.db, caller.team, seconds, points).await?)
}
