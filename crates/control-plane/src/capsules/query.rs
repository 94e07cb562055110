//! Reads of a team's capsules for callers: pages, searches and the rest of a lifetime.

use crate::app::App;
use crate::auth::Caller;
use crate::db;
use crate::db::capsules::{Capsule, Search};
use crate::error::Result;
use std::time::Duration;
use types::CapsuleId;

/// Returns a page of the capsules that the caller may see, newest first.
pub(crate) async fn list(
    app: &App,
    caller: Caller,
    before: Option<CapsuleId>,
    limit: i64,
) -> Result<Vec<Capsule>> {
    Ok(db::capsules::list(&app.db, caller.team, caller.confinement, before, limit).await?)
}

/// Returns a page of the caller's capsules that meet the conditions, in the order of their start.
pub(crate) async fn search(app: &App, caller: Caller, search: &Search<'_>) -> Result<Vec<Capsule>> {
    Ok(db::capsules::search(&app.db, caller.team, search).await?)
}

/// Returns the rest of a capsule's lifetime by the database's clock. Returns `None` for a lifetime
/// without an end.
pub(crate) async fn time_left(app: &App, capsule: &Capsule) -> Result<Option<Duration>> {
    match capsule.ends_at {
        Some(_) => Ok(db::capsules::left(&app.db, capsule.id).await?),
        None => Ok(None),
    }
}
