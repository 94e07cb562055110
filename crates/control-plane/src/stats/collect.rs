//! Collects the minutes of all hosts, on the replica that leads: once a minute, oldest first. A host
//! keeps a batch until the next call acknowledges it, so a crash at any instant loses none. The
//! leader also makes coarse rows, and makes and drops the days of the tables.

use super::series::{self, FINE_DAYS};
use crate::app::App;
use crate::db;
use crate::db::stats::partitions::{self, Kept};
use crate::error::Result;
use futures::StreamExt;
use std::time::Duration as StdDuration;
use time::{Duration, OffsetDateTime};
use types::HostId;

/// Time between two rounds.
const ROUND: StdDuration = StdDuration::from_secs(60);
/// First rounds of a leader, which follow each other sooner, and the time between them. Hosts may
/// come back together with the leader.
const FIRST_ROUNDS: u32 = 6;
const FIRST_ROUND: StdDuration = StdDuration::from_secs(5);
/// Hosts that are asked at once, and most batches of a host in one round.
const AT_ONCE: usize = 8;
const BATCHES: usize = 64;
/// Time within which minutes usually arrive. Coarse rows are made afterwards.
const LATE: Duration = Duration::minutes(3);
/// Span of time whose coarse rows one statement makes.
const SPAN: Duration = Duration::hours(1);

/// Runs rounds for ever. A failure is logged, and the next round tries again.
pub(crate) async fn rounds(app: &App) {
    let (mut rolled, mut rounds) = (None, 0_u32);
    loop {
        if let Err(error) = round(app, &mut rolled).await {
            tracing::warn!(%error, "cannot collect stats");
        }
        rounds = rounds.saturating_add(1);
        let pause = if rounds < FIRST_ROUNDS { FIRST_ROUND } else { ROUND };
        tokio::time::sleep(pause).await;
    }
}

/// Collects from each host that is online. `rolled` is the end of the time whose coarse rows are
/// made.
async fn round(app: &App, rolled: &mut Option<OffsetDateTime>) -> Result<()> {
    let now = OffsetDateTime::now_utc();
    let today = now.date();
    let first = today - Duration::days(FINE_DAYS);
    let days = (app.metrics_days > 0).then_some(i64::from(app.metrics_days).min(3660));
    for (table, days) in [
        ("stats_fine", days.map(|_| FINE_DAYS)),
        ("stats_coarse", days.map(|days| days.max(FINE_DAYS))),
        ("stats_hosts", days.map(|days| days.max(FINE_DAYS))),
    ] {
        let kept = Kept { table, days };
        if let Err(error) = partitions::keep(&app.db, &kept, first, today).await {
            tracing::warn!(%error, table, "cannot make or drop the days of a table");
        }
    }
    let begin = first.midnight().assume_utc();
    let window = days.map(|_| (begin, now + Duration::minutes(5)));
    let online = app.fleet.all().into_iter().filter(|host| host.online).map(|host| host.id);
    let hosts: Vec<HostId> = online.collect();
    let collecting = hosts.into_iter().map(|host| collect_all(app, host, window));
    let collecting = futures::stream::iter(collecting).buffer_unordered(AT_ONCE);
    let earliest: Vec<OffsetDateTime> = collecting.filter_map(std::future::ready).collect().await;
    if days.is_none() {
        return Ok(());
    }
    db::stats::note_hosts(&app.db).await?;
    let from = earliest.into_iter().chain([rolled.unwrap_or(begin)]).min().unwrap_or(begin);
    // The beginning stands until all rows are made, so that a failure leaves none out.
    *rolled = Some(from);
    *rolled = Some(roll(app, from.max(begin), now).await?);
    Ok(())
}

/// Makes the coarse rows from the time `from`, and returns the end of their time.
async fn roll(app: &App, from: OffsetDateTime, now: OffsetDateTime) -> Result<OffsetDateTime> {
    let end = floor(now - LATE);
    let mut at = floor(from);
    while at < end {
        let to = (at + SPAN).min(end);
        db::stats::roll(&app.db, at, to).await?;
        at = to;
    }
    Ok(end)
}

/// Returns the last multiple of 5 minutes that is not after a time.
fn floor(at: OffsetDateTime) -> OffsetDateTime {
    at - Duration::seconds(at.unix_timestamp().rem_euclid(series::COARSE))
        - Duration::nanoseconds(at.nanosecond().into())
}

/// Collects the batches of a host. Returns the earliest minute that is new. A failure is logged.
async fn collect_all(
    app: &App,
    host: HostId,
    window: Option<(OffsetDateTime, OffsetDateTime)>,
) -> Option<OffsetDateTime> {
    let (mut acknowledged, mut earliest) = (None, None);
    for _ in 0..BATCHES {
        match collect(app, host, &mut acknowledged, window).await {
            Ok(Some(new)) => earliest = Some(earliest.map_or(new, |known| new.min(known))),
            Ok(None) if acknowledged.is_some() => {}
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(%host, %error, "cannot collect the stats of a host");
                break;
            }
        }
    }
    earliest
}

/// Collects one batch. `acknowledged` becomes the number of the batch, or `None` when there was
/// none. Without a window of time, the batch is dropped.
async fn collect(
    app: &App,
    host: HostId,
    acknowledged: &mut Option<u64>,
    window: Option<(OffsetDateTime, OffsetDateTime)>,
) -> Result<Option<OffsetDateTime>> {
    let batch = app.agent(host).collect_stats(*acknowledged).await?;
    let rows: Vec<_> = batch.rows.iter().filter_map(series::row).collect();
    let new = match window {
        Some(window) if !rows.is_empty() => db::stats::insert(&app.db, host, &rows, window).await?,
        Some(_) | None => None,
    };
    *acknowledged = batch.next;
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn coarse_rows_begin_at_multiples_of_five_minutes() {
        let at = datetime!(2026-12-01 10:14:59.9 UTC);
        assert_eq!(floor(at), datetime!(2026-12-01 10:10 UTC));
        assert_eq!(floor(floor(at)), floor(at));
    }
}
