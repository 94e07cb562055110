//! Deletes old rows and adds up usage: once an hour, on the replica that leads, in small steps that
//! block nobody.

use crate::app::App;
use crate::db;
use std::time::Duration;

/// Time between two rounds, and between two steps of a round.
const ROUND: Duration = Duration::from_secs(3600);
const STEP: Duration = Duration::from_millis(200);
/// Most rows of a step, and most steps of a round.
const ROWS: i64 = 5000;
const STEPS: usize = 2000;
/// Age in days at which usage intervals are added up.
const INTERVALS: i32 = 3;

/// Runs rounds for ever. A failure is logged, and the next round tries again.
pub(crate) async fn rounds(app: &App) {
    loop {
        if let Err(error) = round(app).await {
            tracing::warn!(%error, "cannot delete old rows");
        }
        tokio::time::sleep(ROUND).await;
    }
}

async fn round(app: &App) -> sqlx::Result<()> {
    crate::builds::expire(app).await?;
    for _ in 0..STEPS {
        let mut more = db::retention::forget(&app.db, app.audit_days, ROWS).await?;
        more |= db::events::add_up(&app.db, INTERVALS, ROWS).await? > 0;
        if !more {
            break;
        }
        tokio::time::sleep(STEP).await;
    }
    Ok(())
}
