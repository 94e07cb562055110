//! Deletes old rows and adds up usage once an hour, adds up counts of capsules every few seconds, and
//! erases logs that wait for it every half a minute. The replica that leads does so, in small steps
//! that block nobody.

use crate::app::App;
use crate::db;
use std::time::Duration;

/// Time between two rounds, and between two steps of a round.
const ROUND: Duration = Duration::from_secs(3600);
/// Time between two looks for logs to erase.
const ERASURES: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(200);
/// Most rows of a step, and most steps of a round.
const ROWS: i64 = 5000;
const STEPS: usize = 2000;
/// Age in days at which usage intervals are added up. Series of a team read the younger ones.
const INTERVALS: i32 = 8;

/// Time between two rounds that add up the counts of capsules, and most rows of a step.
const COUNTS: Duration = Duration::from_secs(10);
const DELTAS: i64 = 20_000;

/// Adds up the counts of capsules for ever, so that readers have few rows to add.
pub(crate) async fn add_up_counts(app: &App) {
    loop {
        match db::capsule_counts::add_up(&app.db, DELTAS).await {
            Ok(true) => tokio::time::sleep(STEP).await,
            Ok(false) => tokio::time::sleep(COUNTS).await,
            Err(error) => {
                tracing::warn!(%error, "cannot add up the counts of capsules");
                tokio::time::sleep(COUNTS).await;
            }
        }
    }
}

/// Erases the logs that wait for it, for ever. Their hosts may have been out of reach before.
pub(crate) async fn erase_logs(app: &App) {
    loop {
        if let Err(error) = crate::logs::erase_pending(app).await {
            tracing::warn!(%error, "cannot look for logs to erase");
        }
        tokio::time::sleep(ERASURES).await;
    }
}

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
