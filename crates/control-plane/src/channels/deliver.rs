//! Sends deliveries from the outbox. Any replica takes due deliveries, for a minute at a time. If
//! it dies before it settles them, they are taken again. A delivery therefore comes at least once,
//! and its id identifies repeats.

use super::{secret, signature};
use crate::app::App;
use crate::db::channels::{DeliveryState, Due};
use crate::{db, streams};
use futures::StreamExt;
use std::time::Duration;

/// Longest time between two looks for due deliveries, and the shortest.
const LOOK: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);
/// Time for which a delivery is taken, in seconds: longer than an attempt lasts.
const TAKEN: f64 = 60.0;
/// Deliveries that are taken at once, and that are sent at once.
const BATCH: i64 = 32;
const AT_ONCE: usize = 16;
/// Times before the next attempts, in seconds, 16 hours in all. After the last attempt, the
/// delivery has failed.
const AGAIN: [f64; 9] = [5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 7200.0, 14_400.0, 28_800.0];
/// Longest stored error of an attempt, in characters.
const WHY_MAX: usize = 300;

/// Sends deliveries for as long as the process lives.
pub(crate) fn spawn(app: &App) {
    let app = app.clone();
    app.tasks.clone().spawn(async move {
        let (mut stop, mut woken) = (app.tasks.stop_signal().wait(), app.streams.listen());
        loop {
            let looking = async {
                while round(&app).await {}
                // A receiver that missed messages counts as woken, too.
                let _ = tokio::time::timeout(LOOK, woken.recv()).await;
                tokio::time::sleep(PAUSE).await;
            };
            tokio::select! {
                () = looking => {}
                () = &mut stop => return,
            }
        }
    });
}

/// Sends due deliveries. Returns `true` if there may be more.
async fn round(app: &App) -> bool {
    let due = match db::channels::take_due(&app.db, TAKEN, BATCH).await {
        Ok(due) => due,
        Err(error) => {
            tracing::warn!(%error, "cannot read the pending deliveries");
            return false;
        }
    };
    let more = !due.is_empty();
    let sending = due.into_iter().map(|due| send(app, due));
    futures::stream::iter(sending).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    more
}

async fn send(app: &App, due: Due) {
    let (answer, error) = match attempt(app, &due).await {
        Ok(status) if (200..300).contains(&status) => (Some(status), None),
        Ok(status) => (Some(status), Some(format!("the receiver answered {status}"))),
        Err(error) => (None, Some(format!("{error:#}").chars().take(WHY_MAX).collect())),
    };
    let tries = usize::try_from(due.attempts).unwrap_or(usize::MAX);
    let again = AGAIN.get(tries.saturating_sub(1)).copied();
    let (state, again) = match (&error, again) {
        (None, _) => (DeliveryState::Done, 0.0),
        (Some(_), Some(again)) => (DeliveryState::Waiting, again),
        (Some(_), None) => (DeliveryState::Failed, 0.0),
    };
    metrics::counter!("wrenn_deliveries_total", "outcome" => state.as_str()).increment(1);
    let settled =
        db::channels::settle(&app.db, due.id, state, again, answer, error.as_deref()).await;
    let settled = match settled {
        Ok(()) if error.is_some() => db::channels::put_off(&app.db, due.channel_id, AGAIN[0]).await,
        settled => settled,
    };
    if let Err(error) = settled {
        tracing::warn!(%error, "cannot store the result of a delivery");
    }
}

/// Makes one attempt. Returns the status of the answer.
async fn attempt(app: &App, due: &Due) -> anyhow::Result<i32> {
    let event = streams::from_outbox(&due.body);
    let event = event.ok_or_else(|| anyhow::anyhow!("the event is missing from the outbox"))?;
    // The URL may date from a time when private addresses were allowed.
    let url = reqwest::Url::parse(&due.url)?;
    let private = app.accounts.private_channels;
    anyhow::ensure!(
        private || !super::guard::is_private_literal(&url),
        "the channel's URL has a private address"
    );
    let body = serde_json::to_vec(&event)?;
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    let secret = secret(app, due.channel_id, due.version);
    let request = app.channel_client.post(url).header("content-type", "application/json");
    let request = request.header("x-wrenn-event", &due.kind);
    let request = request.header("x-wrenn-delivery", due.id.to_string());
    let request = request.header("x-wrenn-timestamp", now.to_string());
    let request = request.header("x-wrenn-signature", signature(&secret, now, &body));
    // Only the status of the answer is read.
    Ok(request.body(body).send().await?.status().as_u16().into())
}
