//! What is forgotten, and added up, in time: by whoever leads, once an hour, in steps that hold
//! nobody up.

use crate::app::App;
use crate::db;
use std::time::Duration;

/// Between two rounds, and between two steps of one.
const ROUND: Duration = Duration::from_secs(3600);
const STEP: Duration = Duration::from_millis(200);
/// Rows of a step, and steps of a round.
const ROWS: i64 = 5000;
const STEPS: usize = 2000;
/// After how many days spans of usage are added up.
const SPANS: i32 = 3;

/// Round after round; what fails is logged and tried again in the next.
pub(crate) async fn rounds(app: &App) {
    loop {
        if let Err(error) = round(app).await {
            tracing::warn!(%error, "forgetting what is old");
        }
        tokio::time::sleep(ROUND).await;
    }
}

async fn round(app: &App) -> sqlx::Result<()> {
    for _ in 0..STEPS {
        let mut more = db::retention::forget(&app.db, app.audit_days, ROWS).await?;
        more |= db::events::add_up(&app.db, SPANS, ROWS).await? > 0;
        if !more {
            break;
        }
        tokio::time::sleep(STEP).await;
    }
    Ok(())
}
