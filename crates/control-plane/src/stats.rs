//! Metrics of capsules, teams and hosts over time, for callers.
//!
//! ```text
//!  host: ring of 10 minutes ────────────────────────────── the end of the series ─┐
//!   │ minutes                                                                     ▼
//!   ▼                                                                           fold ─▶ caller
//!  collect ─▶ stats_fine: today and yesterday ─┬─ recent steps of less than 5 min ─▲
//!                                              └─▶ stats_coarse: the other steps ──┘
//! ```
//! A read never wakes a capsule, and does not count as activity. Metrics of a removed capsule are
//! readable as long as its row exists. Callers who could read the living capsule may read them.

pub(crate) mod collect;
pub(crate) mod series;

use crate::app::App;
use crate::auth::Caller;
use crate::db;
use crate::db::capsules::Capsule;
use crate::db::stats::{HostRow, TeamMoves};
use crate::error::{Error, Result};
use futures::StreamExt;
use series::{COARSE, Stats, fold};
use std::collections::HashMap;
use std::time::Duration as StdDuration;
use time::{Duration, OffsetDateTime};
use types::{CapsuleId, CapsuleState, HostId};

/// Time for which hosts remember samples.
const REMEMBERED: Duration = Duration::minutes(10);
/// Time after a capsule's last change for which its host may have samples of it.
const LATELY: Duration = Duration::minutes(20);
/// Longest wait for a host's samples. The tables answer without them.
const WAIT: StdDuration = StdDuration::from_secs(3);
/// Hosts that one request asks at a time.
const AT_ONCE: usize = 8;

/// Time of a series, and the length of its steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Window {
    pub from: OffsetDateTime,
    pub to: OffsetDateTime,
    /// Length of a step in seconds, a multiple of 5.
    pub step: i64,
}

/// Returns the steps of a capsule's series in which it ran.
pub(crate) async fn history(app: &App, capsule: &Capsule, window: Window) -> Result<Vec<Stats>> {
    let Window { from, to, step } = window;
    let now = OffsetDateTime::now_utc();
    let oldest = (now.date() - Duration::days(series::FINE_DAYS)).midnight().assume_utc();
    let mut all = Vec::new();
    let mut at = from;
    let coarse_to = if step >= COARSE { to } else { to.min(oldest - Duration::seconds(1)) };
    if from <= coarse_to {
        let begin = from - Duration::seconds(from.unix_timestamp().rem_euclid(COARSE));
        let rows = db::stats::coarse(&app.db, capsule.id, begin, coarse_to).await?;
        all.extend(rows.iter().map(Stats::of_coarse));
        let last = all.last().and_then(|last: &Stats| time_of(last.at + COARSE));
        at = at.max(last.unwrap_or(at)).max(if step >= COARSE { at } else { oldest });
    }
    let minute = at - Duration::seconds(at.unix_timestamp().rem_euclid(60));
    let rows = db::stats::fine(&app.db, capsule.id, minute, to).await?;
    all.extend(rows.iter().flat_map(Stats::of_minute));
    let last = rows.last().and_then(|row| time_of(row.at + 60));
    let since = at.max(last.unwrap_or(at));
    if to >= now - REMEMBERED {
        all.extend(recent(app, capsule, since).await);
    }
    // A sample that the host took for this call may be later than the call.
    let open = to >= now - Duration::seconds(5);
    let (begin, end) = (from.unix_timestamp(), if open { i64::MAX } else { to.unix_timestamp() });
    let inside = |one: &Stats| (series::floor(begin, step)..=end).contains(&one.at);
    let sizes = (u64::from(capsule.memory_mib) << 20, u64::from(capsule.disk_mib) << 20);
    let all = all.into_iter().filter(inside).map(|one| one.within(sizes.0, sizes.1));
    Ok(fold(all, step))
}

/// Returns the samples that the capsule's host has in memory since a time; none when the host does
/// not answer.
async fn recent(app: &App, capsule: &Capsule, since: OffsetDateTime) -> Vec<Stats> {
    let lately = OffsetDateTime::now_utc() - capsule.updated_at < LATELY;
    let Some(host) = capsule.host_id.filter(|_| may_have_run(capsule.state) || lately) else {
        return Vec::new();
    };
    if !app.fleet.known(host).is_some_and(|host| host.online) {
        return Vec::new();
    }
    let since = since.unix_timestamp();
    let since_ms = u64::try_from(since).unwrap_or(0).saturating_mul(1000);
    let (agent, ids) = (app.agent(host), [capsule.id]);
    let asked = agent.read_stats(&ids, Some(since_ms));
    let Ok(Ok(read)) = tokio::time::timeout(WAIT, asked).await else { return Vec::new() };
    let id = capsule.id.to_string();
    let own = read.iter().filter(|stats| stats.capsule_id == id);
    let samples = own.flat_map(|stats| &stats.samples).filter_map(Stats::of_sample);
    let mut samples: Vec<Stats> = samples.filter(|sample| sample.at >= since).collect();
    samples.sort_by_key(|sample| sample.at);
    samples
}

/// Reports whether a capsule in this state has a machine on its host.
fn may_have_run(state: CapsuleState) -> bool {
    match state {
        CapsuleState::Running | CapsuleState::Pausing | CapsuleState::Stopping => true,
        CapsuleState::Starting
        | CapsuleState::Paused
        | CapsuleState::Resuming
        | CapsuleState::Missing
        | CapsuleState::Error
        | CapsuleState::Stopped => false,
    }
}

fn time_of(seconds: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(seconds).ok()
}

/// Returns the times of a capsule's first and last metrics, as far as the platform knows. Both are
/// recent for a capsule without rows.
pub(crate) async fn bounds(
    app: &App,
    capsule: &Capsule,
) -> Result<(OffsetDateTime, OffsetDateTime)> {
    let now = OffsetDateTime::now_utc();
    let known = db::stats::bounds(&app.db, capsule.id).await?;
    let (first, last) = known.unwrap_or((now - REMEMBERED, now - REMEMBERED));
    let end = last + Duration::minutes(5);
    let last =
        if capsule.state == CapsuleState::Running { now } else { end.max(capsule.updated_at) };
    Ok((first.min(last), last.min(now)))
}

/// Returns the latest metrics of running capsules that the caller may see.
pub(crate) async fn latest(
    app: &App,
    caller: Caller,
    ids: &[CapsuleId],
) -> Result<Vec<(Capsule, Stats)>> {
    let rows = db::stats::running(&app.db, caller.team, ids).await?;
    let mut by_host: HashMap<HostId, Vec<CapsuleId>> = HashMap::new();
    let mut rows: HashMap<String, Capsule> = rows
        .into_iter()
        .filter(|row| caller.sees(row))
        .map(|row| (row.id.to_string(), row))
        .collect();
    // A host that is known to be away would only be waited for.
    let may_answer = |id: &HostId| app.fleet.known(*id).is_none_or(|host| host.online);
    for row in rows.values() {
        if let Some(host) = row.host_id.filter(may_answer) {
            by_host.entry(host).or_default().push(row.id);
        }
    }
    let asking = by_host.into_iter().map(|(host, ids)| async move {
        let agent = app.agent(host);
        let read = tokio::time::timeout(WAIT, agent.read_stats(&ids, None)).await;
        read.ok().and_then(Result::ok).unwrap_or_default()
    });
    let asking = futures::stream::iter(asking).buffer_unordered(AT_ONCE);
    let answers: Vec<Vec<protocol::host::CapsuleStats>> = asking.collect().await;
    let latest = answers.into_iter().flatten().filter_map(|answer| {
        let stats = Stats::of_sample(answer.samples.last()?)?;
        let row = rows.remove(&answer.capsule_id)?;
        let sizes = (u64::from(row.memory_mib) << 20, u64::from(row.disk_mib) << 20);
        Some((row, stats.within(sizes.0, sizes.1)))
    });
    Ok(latest.collect())
}

/// Running capsules of a team in one step of a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TeamStep {
    /// Beginning of the step, in seconds since 1970.
    pub at: i64,
    /// Most capsules that ran at the same time.
    pub most: u64,
    /// Machines that began.
    pub starts: u64,
}

/// Returns a team's series, with a value for each step up to now.
pub(crate) async fn team(app: &App, caller: Caller, window: Window) -> Result<Vec<TeamStep>> {
    let _place = app.load.long_read(caller.team).await?;
    let from = series::floor(window.from.unix_timestamp(), window.step);
    let to = window.to.min(OffsetDateTime::now_utc());
    let begin = time_of(from).ok_or_else(|| Error::invalid("from", "is out of range"))?;
    let moves = db::stats::team_moves(&app.db, caller.team, (begin, to), window.step).await?;
    Ok(steps(&moves, (from, to.unix_timestamp()), window.step))
}

/// Fills the steps between the moves of a team's capsules. Pure.
fn steps(moves: &[TeamMoves], (from, to): (i64, i64), step: i64) -> Vec<TeamStep> {
    let mut moves = moves.iter().peekable();
    let count = |number: i64| u64::try_from(number).unwrap_or(0);
    let mut running = 0;
    let mut all = Vec::new();
    for (number, at) in (from..=to).step_by(usize::try_from(step).unwrap_or(1)).enumerate() {
        let is_now = |moved: &&TeamMoves| usize::try_from(moved.step).is_ok_and(|n| n == number);
        let (most, starts) = match moves.next_if(is_now) {
            Some(moved) => {
                let most = moved.most.max(running);
                running = moved.last;
                (most, moved.starts)
            }
            None => (running, 0),
        };
        all.push(TeamStep { at, most: count(most), starts: count(starts) });
    }
    all
}

/// Returns the steps of a host's series in which it was online.
pub(crate) async fn host(app: &App, id: HostId, window: Window) -> Result<Vec<HostRow>> {
    let range = (window.from, window.to);
    Ok(db::stats::host_series(&app.db, id, range, window.step).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_without_moves_keep_the_capsules_that_run() {
        let moved = |step, most, last, starts| TeamMoves { step, most, last, starts };
        let moves = [moved(0, 2, 2, 0), moved(2, 5, 1, 3), moved(4, 1, 0, 0)];
        let steps = steps(&moves, (100, 159), 10);
        let all: Vec<(i64, u64, u64)> = steps.iter().map(|s| (s.at, s.most, s.starts)).collect();
        let wanted = [(100, 2, 0), (110, 2, 0), (120, 5, 3), (130, 1, 0), (140, 1, 0), (150, 0, 0)];
        assert_eq!(all, wanted);
    }
}
