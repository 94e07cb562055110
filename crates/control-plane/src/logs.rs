//! Logs of capsules: pages, followers, and erasure. The capsule's host has the log. When that host
//! is gone, any host reads it from the store. No read wakes a capsule or counts as activity in it.
//!
//! An ended capsule's log stays readable for those who could read the living capsule's.

use crate::app::App;
use crate::audit::Entry;
use crate::auth::Caller;
use crate::capsules;
use crate::db;
use crate::db::capsules::Capsule;
use crate::db::logs::Marked;
use crate::error::{Error, Result};
use crate::load::Streaming;
use protocol::host;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use time::OffsetDateTime;
use types::{CapsuleId, CapsuleState, HostId, TeamId};

/// Most entries of one read.
pub(crate) const PAGE: u32 = 1000;
/// Time for which a host waits for a follower's next entry.
const WAIT: Duration = Duration::from_secs(5);
/// Shortest time between two reads of a follower that reach the end and bring nothing.
const LOOK: Duration = Duration::from_secs(1);
/// Longest cursor, in bytes.
const CURSOR_MAX: usize = 128;
/// Ended teams of one round of erasures, and capsules of one step.
const TEAMS: i64 = 100;
const STEP: usize = 500;

/// Source of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Console,
    Lifecycle,
    Process,
}

types::text_enum!(Source, "source", {
    Console = "console",
    Lifecycle = "lifecycle",
    Process = "process",
});

/// Conditions on entries, and the place where a read begins.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query {
    /// First time, in milliseconds since 1970.
    pub since_ms: Option<u64>,
    /// Time before which entries lie, in milliseconds since 1970.
    pub until_ms: Option<u64>,
    /// Sources of the entries; all when empty.
    pub sources: Vec<Source>,
    /// Text that each entry contains.
    pub search: String,
    /// Position after which, or before which, the read begins.
    pub cursor: Option<String>,
    /// Most entries, 1 to [`PAGE`].
    pub limit: u32,
    /// Set to read the newest entries first.
    pub backward: bool,
}

/// An entry of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogEntry {
    pub at: OffsetDateTime,
    pub source: String,
    pub stream: String,
    /// Line of a guest that nobody trusts. Bytes that are not UTF-8 are replaced.
    pub text: String,
    pub pid: Option<u32>,
    /// Begin of the process's command.
    pub command: String,
    pub cursor: String,
}

/// Entries of one read, in the order of the read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Page {
    pub entries: Vec<LogEntry>,
    /// Position of the next read.
    pub next: Option<String>,
    /// Set if the next read may have entries at once.
    pub more: bool,
    /// Bytes of output that were lost among the entries.
    pub dropped: u64,
}

impl From<host::LogEntry> for LogEntry {
    fn from(entry: host::LogEntry) -> Self {
        let text = String::from_utf8(entry.text);
        let text = text.unwrap_or_else(|raw| String::from_utf8_lossy(raw.as_bytes()).into_owned());
        let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(entry.at_ms) * 1_000_000);
        Self {
            at: at.unwrap_or(OffsetDateTime::UNIX_EPOCH),
            source: entry.source,
            stream: entry.stream,
            text,
            pid: entry.pid,
            command: entry.command,
            cursor: entry.cursor,
        }
    }
}

impl From<host::ReadLogResponse> for Page {
    fn from(answer: host::ReadLogResponse) -> Self {
        Self {
            entries: answer.entries.into_iter().map(LogEntry::from).collect(),
            next: Some(answer.cursor).filter(|cursor| is_cursor(cursor)),
            more: answer.more,
            dropped: answer.dropped,
        }
    }
}

/// Reports whether a text may be a cursor, whose form only hosts know.
pub(crate) fn is_cursor(text: &str) -> bool {
    (1..=CURSOR_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Returns the host to read a capsule's log from: its own or, without that, one with the store.
fn reader(app: &App, capsule: &Capsule) -> Result<HostId> {
    let is_online = |id: &HostId| app.fleet.known(*id).is_some_and(|host| host.online);
    let own = capsule.host_id.filter(is_online);
    own.or_else(|| app.fleet.with_store()).or(capsule.host_id).ok_or(Error::HostUnavailable)
}

async fn page(app: &App, capsule: &Capsule, query: &Query, wait: Duration) -> Result<Page> {
    let host = reader(app, capsule)?;
    let answer = app.agent(host).read_log(request(capsule, query, wait)).await;
    match answer {
        Ok(answer) => Ok(answer.into()),
        // The host has nothing of this capsule, whose row exists.
        Err(Error::NotFound(_)) => Ok(Page { next: query.cursor.clone(), ..Page::default() }),
        Err(error) => Err(error),
    }
}

fn request(capsule: &Capsule, query: &Query, wait: Duration) -> host::ReadLogRequest {
    host::ReadLogRequest {
        capsule_id: capsule.id.to_string(),
        team_id: capsule.team_id.to_string(),
        since_ms: query.since_ms,
        // The host includes the last time.
        until_ms: query.until_ms.map(|ms| ms.saturating_sub(1)),
        sources: query.sources.iter().map(ToString::to_string).collect(),
        search: query.search.clone(),
        cursor: query.cursor.clone().unwrap_or_default(),
        limit: query.limit,
        backward: query.backward,
        wait_ms: u32::try_from(wait.as_millis()).unwrap_or(0),
        ..Default::default()
    }
}

/// Returns a page of a capsule's log.
pub(crate) async fn read(app: &App, caller: Caller, id: CapsuleId, query: &Query) -> Result<Page> {
    let capsule = capsules::get_ever(app, caller, id).await?;
    page(app, &capsule, query, Duration::ZERO).await
}

/// A follower of a capsule's log.
pub(crate) struct Follow {
    app: Arc<App>,
    caller: Caller,
    id: CapsuleId,
    query: Query,
    /// Page that was read when the follower came.
    first: Option<Page>,
    /// Shares of the streams that the team and the caller hold.
    _shares: Streaming,
}

/// Entries that a follower gets at once.
pub(crate) struct News {
    pub entries: Vec<LogEntry>,
    /// Set with the last news of a capsule that has ended.
    pub ended: bool,
}

/// Follows a capsule's log from the query's cursor on. The follower goes along with the capsule when
/// it pauses, resumes or moves.
pub(crate) async fn follow(
    app: Arc<App>,
    caller: Caller,
    id: CapsuleId,
    query: Query,
) -> Result<Follow> {
    let shares = app.load.stream(caller.team, caller.holder())?;
    let first = Some(read(&app, caller, id, &query).await?);
    Ok(Follow { app, caller, id, query, first, _shares: shares })
}

impl Follow {
    /// Returns the next entries, or none after some seconds.
    pub(crate) async fn next(&mut self) -> Result<News> {
        let (page, is_over) = match self.first.take() {
            Some(first) => (first, false),
            None => self.look().await?,
        };
        let ended = is_over && page.entries.is_empty() && !page.more;
        if page.next.is_some() {
            self.query.cursor = page.next;
        }
        Ok(News { entries: page.entries, ended })
    }

    /// Reads on. Reports whether the capsule had ended before the read.
    async fn look(&mut self) -> Result<(Page, bool)> {
        let begun = Instant::now();
        // The state comes first, so that no entry is missed after the end.
        let capsule = capsules::get_ever(&self.app, self.caller, self.id).await?;
        let is_over = capsule.state == CapsuleState::Stopped;
        let wait = if is_over { Duration::ZERO } else { WAIT };
        let page = page(&self.app, &capsule, &self.query, wait).await?;
        if page.entries.is_empty() && !page.more {
            // A host that does not wait would otherwise be asked without a pause.
            tokio::time::sleep(LOOK.saturating_sub(begun.elapsed())).await;
        }
        Ok((page, is_over))
    }
}

/// Erases a capsule's log from its host and from the store. If the host does not answer, the log is
/// erased later.
pub(crate) async fn erase(app: &App, caller: Caller, id: CapsuleId) -> Result<()> {
    let capsule = capsules::get_ever(app, caller, id).await?;
    let mut tx = app.db.begin().await?;
    let mark =
        db::logs::mark(&mut *tx, caller.team, id).await?.ok_or(Error::NotFound("capsule"))?;
    let entry = Entry::new(caller.team, caller.by, "capsule.erase_logs", id);
    db::audit::write(&mut *tx, &entry).await?;
    tx.commit().await?;
    let at = app.clone();
    let erased = app.tasks.detached(async move { erase_marked(&at, &capsule, mark).await }).await;
    erased.unwrap_or(Err(Error::HostUnavailable))
}

/// Erases a log that is marked, and removes the mark. A later mark stays, since its erasure may
/// fail.
async fn erase_marked(app: &App, capsule: &Capsule, mark: OffsetDateTime) -> Result<()> {
    // Without its host and without a store, nothing is left of the log.
    if let Some(host) = eraser(app, capsule).await? {
        app.agent(host).erase_log(Some(capsule.id), capsule.team_id).await?;
    }
    Ok(db::logs::unmark(&app.db, capsule.team_id, capsule.id, mark).await?)
}

/// Returns the host that erases a log. Only the capsule's own host can, as long as it exists, since
/// it may have parts that the store lacks.
async fn eraser(app: &App, capsule: &Capsule) -> Result<Option<HostId>> {
    let is_known = |id: &HostId| app.fleet.known(*id).is_some();
    if capsule.host_id.is_some_and(|id| !is_known(&id)) {
        app.fleet.read().await?;
    }
    Ok(capsule.host_id.filter(is_known).or_else(|| app.fleet.with_store()))
}

/// Erases the logs of teams that have ended, and logs that could not be erased before. A failure is
/// logged, and the next round tries again.
pub(crate) async fn erase_pending(app: &App) -> sqlx::Result<()> {
    for team in db::logs::list_ended_teams(&app.db, TEAMS).await? {
        if let Err(error) = erase_of_team(app, team).await {
            tracing::warn!(%team, %error, "cannot erase the logs of an ended team");
        }
    }
    erase_of_capsules(app).await
}

/// Erases all logs of a team that has ended. Each host may have some.
async fn erase_of_team(app: &App, team: TeamId) -> Result<()> {
    // A replica that has just become the leader may know no host yet.
    app.fleet.read().await?;
    for host in app.fleet.all() {
        app.agent(host.id).erase_log(None, team).await?;
    }
    Ok(db::logs::set_team_erased(&app.db, team).await?)
}

/// Erases the logs of capsules that are marked.
async fn erase_of_capsules(app: &App) -> sqlx::Result<()> {
    let limit = i64::try_from(STEP).unwrap_or(i64::MAX);
    let (mut after, mut silent) = (None, HashSet::new());
    loop {
        let marked = db::logs::list_marked(&app.db, after, limit).await?;
        after = marked.last().map(|last| last.capsule.id);
        let is_last = marked.len() < STEP;
        for Marked { capsule, erase_logs_since } in &marked {
            if silent.contains(&capsule.host_id) {
                continue;
            }
            if let Err(error) = erase_marked(app, capsule, *erase_logs_since).await {
                tracing::warn!(id = %capsule.id, %error, "cannot erase the log of a capsule");
                silent.insert(capsule.host_id);
            }
        }
        if is_last {
            return Ok(());
        }
    }
}

/// Converts an entry to the API's form.
pub(crate) fn to_api(entry: LogEntry) -> api::LogEntry {
    let LogEntry { at, source, stream, text, pid, command, cursor } = entry;
    api::LogEntry { at, source, stream, text, pid, command, cursor }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_bytes_and_times_of_an_entry_are_replaced() {
        let entry = host::LogEntry {
            at_ms: u64::MAX,
            text: b"a\xff\x1b[1m".to_vec(),
            ..Default::default()
        };
        let shown = LogEntry::from(entry);
        assert_eq!(shown.at, OffsetDateTime::UNIX_EPOCH);
        assert_eq!(shown.text, "a\u{fffd}\u{1b}[1m");
    }

    #[test]
    fn text_that_breaks_a_stream_is_no_cursor() {
        assert!(is_cursor("12-7.a_B"));
        for text in ["", "a b", "a\nb", "a\0", "ü", &"1".repeat(CURSOR_MAX + 1)] {
            assert!(!is_cursor(text), "{text:?}");
        }
    }
}
