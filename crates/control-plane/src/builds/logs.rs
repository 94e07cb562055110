//! Logs of builds: pages, and followers who get each line soon after it is stored.

use crate::app::App;
use crate::auth::Caller;
use crate::db;
use crate::db::build_logs::{Level, Line};
use crate::db::builds::BuildState;
use crate::error::{Error, Result};
use crate::load::Streaming;
use sqlx::PgPool;
use std::time::Duration;
use types::BuildId;

/// Time between two looks of a follower. A line is visible within a second.
const LOOK: Duration = Duration::from_millis(300);
/// Most lines of one read.
const PAGE: i64 = 500;

/// Returns the build's state and up to `limit` lines from number `from` on. The state is read first:
/// a build that has ended writes no more lines.
pub(crate) async fn lines(
    app: &App,
    caller: Caller,
    id: BuildId,
    from: u64,
    level: Level,
    limit: i64,
) -> Result<(BuildState, Vec<Line>)> {
    let state = super::get(app, caller, id).await?.state;
    Ok((state, db::build_logs::from(&app.db, id, from, level, limit).await?))
}

/// A follower of a build's log.
pub(crate) struct Follow {
    db: PgPool,
    id: BuildId,
    /// Number of the next line.
    from: u64,
    level: Level,
    /// Shares of the streams that the team and the caller hold.
    _shares: Streaming,
}

/// Lines that a follower gets at once.
pub(crate) struct News {
    pub lines: Vec<Line>,
    /// Set with the last lines of a build that has ended.
    pub ended: bool,
}

/// Opens a log from number `from` on.
pub(crate) async fn follow(
    app: &App,
    caller: Caller,
    id: BuildId,
    from: u64,
    level: Level,
) -> Result<Follow> {
    super::get(app, caller, id).await?;
    let shares = app.load.stream(caller.team, caller.holder())?;
    Ok(Follow { db: app.db.clone(), id, from, level, _shares: shares })
}

impl Follow {
    /// Returns the next lines, or no lines after a short time.
    pub(crate) async fn next(&mut self) -> Result<News> {
        // The state comes first, so that no line is missed after the end.
        let progress = db::builds::progress(&self.db, self.id).await?;
        let state = progress.ok_or(Error::NotFound("build"))?.state;
        let lines = db::build_logs::from(&self.db, self.id, self.from, self.level, PAGE).await?;
        if let Some(last) = lines.last() {
            self.from = last.seq.saturating_add(1);
        }
        let all = i64::try_from(lines.len()).unwrap_or(PAGE) < PAGE;
        let ended = all && state.has_ended();
        if lines.is_empty() && !ended {
            tokio::time::sleep(LOOK).await;
        }
        Ok(News { lines, ended })
    }
}

/// Converts a line to the API's form.
pub(crate) fn line_to_api(line: Line) -> api::BuildLine {
    api::BuildLine {
        seq: line.seq,
        at: line.at,
        level: line.level.to_string(),
        step: line.step.and_then(|step| u32::try_from(step).ok()),
        text: line.text,
    }
}
