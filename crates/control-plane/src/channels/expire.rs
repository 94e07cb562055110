//! Disables the channels whose maker's key has expired, since no request ends such a key. Their
//! deliveries wait from the key's end on: `take_due` looks at the key itself.

use crate::app::App;
use crate::audit::{By, Entry};
use crate::db;
use serde_json::json;
use std::time::Duration;

/// Between two rounds.
const ROUND: Duration = Duration::from_secs(5);

/// Runs round after round. A round that fails is logged.
pub(crate) async fn rounds(app: &App) {
    loop {
        if let Err(error) = round(app).await {
            tracing::warn!(%error, "disabling the channels of expired keys");
        }
        tokio::time::sleep(ROUND).await;
    }
}

async fn round(app: &App) -> sqlx::Result<()> {
    let mut tx = app.db.begin().await?;
    for (id, team) in db::channels::disable_expired(&mut *tx).await? {
        let reason = json!({ "reason": "the key that made it has expired" });
        let entry = Entry::new(team, By::SYSTEM, "channel.disable", id).with(reason);
        db::audit::write(&mut *tx, &entry).await?;
    }
    tx.commit().await
}
