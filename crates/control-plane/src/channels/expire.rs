//! Disables channels whose maker is a key that has expired, since no request marks that end. Their
//! deliveries stop when the key expires, since `take_due` checks the key itself.

use crate::app::App;
use crate::audit::{Actor, Entry};
use crate::db;
use serde_json::json;
use std::time::Duration;

/// Time between two rounds.
const ROUND: Duration = Duration::from_secs(5);

/// Runs round after round. A round that fails is logged.
pub(crate) async fn rounds(app: &App) {
    loop {
        if let Err(error) = round(app).await {
            tracing::warn!(%error, "cannot disable the channels of expired keys");
        }
        tokio::time::sleep(ROUND).await;
    }
}

async fn round(app: &App) -> sqlx::Result<()> {
    let mut tx = app.db.begin().await?;
    let by = Actor::SYSTEM.because("key_expired");
    for (id, team) in db::channels::disable_expired(&mut *tx, &by).await? {
        let reason = json!({ "reason": "the API key that created the channel has expired" });
        let entry = Entry::new(team, by, "channel.disable", id).with(reason);
        db::audit::write(&mut *tx, &entry).await?;
    }
    tx.commit().await
}
