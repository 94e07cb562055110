//! Reads of the audit log for callers. A read may be long, so a team has few at a time.

use crate::app::App;
use crate::auth::{Caller, Operator};
use crate::db;
use crate::db::audit::{Filter, Row};
use crate::error::Result;
use types::{AuditLogId, PLATFORM_TEAM, TeamId};

/// Returns a page of the log of the caller's team, newest first.
pub(crate) async fn of_team(
    app: &App,
    caller: Caller,
    filter: &Filter,
    before: Option<AuditLogId>,
    limit: i64,
) -> Result<Vec<Row>> {
    page(app, Some(caller.team), filter, before, limit).await
}

/// Returns a page of the log of all teams, newest first.
pub(crate) async fn of_platform(
    app: &App,
    _: Operator,
    filter: &Filter,
    before: Option<AuditLogId>,
    limit: i64,
) -> Result<Vec<Row>> {
    page(app, None, filter, before, limit).await
}

/// Reads a page. The place among the long reads is free again before the client gets the page,
/// since clients may be slow.
async fn page(
    app: &App,
    team: Option<TeamId>,
    filter: &Filter,
    before: Option<AuditLogId>,
    limit: i64,
) -> Result<Vec<Row>> {
    let _place = app.load.long_read(team.unwrap_or(PLATFORM_TEAM)).await?;
    Ok(db::audit::list(&app.db, team, filter, before, limit).await?)
}
