//! Sends what the outbox has. Any replica takes what is due, for a minute at a time; what it does
//! not settle, since it died, is taken again. So a delivery comes at least once, and its id tells
//! whoever gets it twice.

use super::{secret, signature};
use crate::app::App;
use crate::db;
use crate::db::channels::Due;
use crate::streams;
use futures::StreamExt;
use std::time::Duration;
use types::{ChannelId, DeliveryId};

/// Between two looks for what is due, unless something happens, and then at least.
const LOOK: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);
/// For how long one is taken, which is longer than a try lasts, in seconds.
const TAKEN: f64 = 60.0;
/// Taken at once, and sent at once.
const BATCH: i64 = 32;
const AT_ONCE: usize = 16;
/// Before another try, in seconds; after the last, it is given up: 16 hours in all.
const AGAIN: [f64; 9] = [5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 7200.0, 14_400.0, 28_800.0];
/// What is kept of why a try failed, in characters.
const WHY_MAX: usize = 300;

/// Delivers for as long as the process lives.
pub(crate) fn keep(app: &App) {
    let app = app.clone();
    app.tasks.clone().spawn(async move {
        let (mut stop, mut woken) = (app.tasks.stop_signal().wait(), app.streams.listen());
        loop {
            let looking = async {
                while round(&app).await {}
                // Words that were missed are words, too.
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

/// Sends what is due. Returns whether there may be more.
async fn round(app: &App) -> bool {
    let due = match db::channels::take_due(&app.db, TAKEN, BATCH).await {
        Ok(due) => due,
        Err(error) => {
            tracing::warn!(%error, "looking for deliveries");
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
        Ok(status) => (Some(status), Some(format!("it answered {status}"))),
        Err(error) => (None, Some(format!("{error:#}").chars().take(WHY_MAX).collect())),
    };
    let tries = usize::try_from(due.attempts).unwrap_or(usize::MAX);
    let again = AGAIN.get(tries.saturating_sub(1)).copied();
    let (status, again) = match (&error, again) {
        (None, _) => ("done", 0.0),
        (Some(_), Some(again)) => ("waiting", again),
        (Some(_), None) => ("failed", 0.0),
    };
    metrics::counter!("wrenn_deliveries_total", "outcome" => status).increment(1);
    let settled =
        db::channels::settle(&app.db, due.id, status, again, answer, error.as_deref()).await;
    let settled = match settled {
        Ok(()) if error.is_some() => db::channels::put_off(&app.db, due.channel_id, AGAIN[0]).await,
        settled => settled,
    };
    if let Err(error) = settled {
        tracing::warn!(%error, "noting a delivery");
    }
}

/// Tries once. Returns the answer's status.
async fn attempt(app: &App, due: &Due) -> anyhow::Result<i32> {
    let event = streams::from_outbox(&due.body);
    let event = event.ok_or_else(|| anyhow::anyhow!("the outbox holds no event"))?;
    // It may have been put there when it was still allowed.
    let url = reqwest::Url::parse(&due.url)?;
    let private = app.accounts.private_channels;
    anyhow::ensure!(private || !super::guard::is_private_literal(&url), "a private address");
    let body = serde_json::to_vec(&event)?;
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    let secret = secret(app, ChannelId(due.channel_id), due.version);
    let request = app.channel_client.post(url).header("content-type", "application/json");
    let request = request.header("x-wrenn-event", &due.kind);
    let request = request.header("x-wrenn-delivery", DeliveryId(due.id).to_string());
    let request = request.header("x-wrenn-timestamp", now.to_string());
    let request = request.header("x-wrenn-signature", signature(&secret, now, &body));
    // Nothing of what it answers but the status is read.
    Ok(request.body(body).send().await?.status().as_u16().into())
}
