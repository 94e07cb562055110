//! The history of a team's events, in pages. `streams.rs` has the events as they happen.

use crate::app::App;
use crate::auth::Caller;
use crate::db;
use crate::db::events::{Cursor, Event, Filter};
use crate::error::Result;

/// Returns a page of the events of the caller's team, newest first. Without `before`, the page
/// begins with the last event that is certain.
pub(crate) async fn history(
    app: &App,
    caller: Caller,
    filter: &Filter,
    before: Option<Cursor>,
    limit: i64,
) -> Result<Vec<Event>> {
    let before = before.unwrap_or(Cursor::END);
    Ok(db::events::history(&app.db, caller.team, filter, before, limit).await?)
}
