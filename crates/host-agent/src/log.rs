//! Logs of this host's capsules, which outlive them: lines of consoles, of processes, and about the
//! capsules' lives.
//!
//! ```text
//!  capsule/logs ─▶ CapsuleLog::append ─▶ NUMBER.open ─ full, or the end ─▶ SPAN.log ─ sent ─▶ SPAN.sent
//!                  numbers, blocks        batches of blocks                  └──▶ removed: age, room, erase
//!                             removed here, but not yet from the store: SPAN.gone
//! ```
//! A log is a folder `logs/TEAM/CAPSULE` of segments. A segment is a file of blocks. A block has
//! compressed lines of JSON, and the times and numbers of their entries. The name of a closed
//! segment has its span, so a listing of the folder is the index. Blocks are written in batches,
//! and a batch is whole or does not count. Each batch says how much of the guest's output the log
//! has. So an agent that is killed neither repeats nor loses a line.
//!
//! Numbers of entries begin with the time, so a log that goes on at another host goes on in order.
//! This module knows nothing of running machines, and never decides who may read.

mod block;
mod entry;
mod fetched;
mod lines;
mod read;
mod segment;
mod writer;

pub(crate) use entry::{Entry, LogMode, Source};
pub(crate) use lines::Budget;
pub(crate) use read::{Location, Page, Part, Query, Reading, local};
pub(crate) use segment::{SEGMENT_MAX, Span};
pub(crate) use writer::{Advance, CapsuleLog, Console, now_ms};

use crate::config::LogLimits;
use crate::storage;
use daemon::lock;
use fetched::Fetched;
use segment::State;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use tokio::sync::{Semaphore, SemaphorePermit};
use types::CapsuleId;

/// Answers of guests that are taken apart at once. Each takes some MiB of memory.
const AT_ONCE: usize = 4;
/// Reads at once. Each takes some MiB of memory.
const READS: usize = 16;
/// All logs together take at most the disk's size divided by this figure.
const SHARE: u64 = 10;
/// Most logs on one host.
const LOGS_MAX: usize = if cfg!(test) { 20 } else { 100_000 };
/// Longest name of a team's folder, in bytes.
const TEAM_MAX: usize = 64;

/// A segment of a capsule's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SegmentRef {
    pub team: String,
    pub id: CapsuleId,
    pub span: Span,
}

impl SegmentRef {
    /// Returns the segment's name in its team's part of the store.
    pub(crate) fn stored_name(&self) -> String {
        format!("{}/{}", stored_folder(self.id), self.span.name())
    }
}

/// Returns the folder of a capsule's log in its team's part of the store.
pub(crate) fn stored_folder(id: CapsuleId) -> String {
    format!("{STORED}/{id}")
}

/// Folder of all logs in a team's part of the store.
pub(crate) const STORED: &str = "logs";

/// Segments whose state the store does not have yet.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// Closed segments that the store lacks.
    pub unsent: Vec<SegmentRef>,
    /// Segments that were removed here, and that the store still has.
    pub gone: Vec<SegmentRef>,
}

type Key = (String, CapsuleId);

/// A log on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    key: Key,
    /// Time of the newest entry, in milliseconds since 1970.
    newest_ms: u64,
    /// Bytes that the log's segments count.
    bytes: u64,
}

/// All logs of this host.
pub(crate) struct Logs {
    dir: PathBuf,
    limits: LogLimits,
    /// Logs that somebody writes or reads. There is never a second value for the same folder.
    open: Mutex<HashMap<Key, Weak<CapsuleLog>>>,
    busy: Semaphore,
    reads: Semaphore,
    /// Segments of the store that were read lately.
    pub fetched: Fetched,
}

impl Logs {
    pub(crate) fn new(dir: PathBuf, limits: LogLimits) -> Self {
        Self {
            dir,
            limits,
            open: Mutex::default(),
            busy: Semaphore::new(AT_ONCE),
            reads: Semaphore::new(READS),
            fetched: Fetched::default(),
        }
    }

    /// Reports whether this host has logs at all.
    pub(crate) fn is_on(&self) -> bool {
        self.limits.days > 0
    }

    /// Returns the time before which lines are too old, in milliseconds since 1970.
    pub(crate) fn oldest_ms(&self) -> u64 {
        let kept = u64::try_from(self.limits.kept().as_millis()).unwrap_or(u64::MAX);
        now_ms().saturating_sub(kept)
    }

    /// Returns the folder of a capsule's log; `None` for a team whose name is no folder's.
    pub(crate) fn folder(&self, team: &str, id: CapsuleId) -> Option<PathBuf> {
        Some(self.team_folder(team)?.join(id.to_string()))
    }

    fn team_folder(&self, team: &str) -> Option<PathBuf> {
        is_team(team).then(|| self.dir.join(team))
    }

    /// Opens the log of a capsule, which may be new. May block.
    ///
    /// # Errors
    /// Fails when the folder cannot be made or read.
    pub(crate) fn open(&self, team: &str, id: CapsuleId) -> io::Result<Arc<CapsuleLog>> {
        let dir = self.folder(team, id).ok_or(io::ErrorKind::InvalidInput)?;
        // The lock is held during the load, so that no other call loads the same folder.
        let mut open = lock(&self.open);
        let key = (team.to_owned(), id);
        if let Some(log) = open.get(&key).and_then(Weak::upgrade) {
            return Ok(log);
        }
        open.retain(|_, log| log.strong_count() > 0);
        make_folder(&dir)?;
        let log = Arc::new(CapsuleLog::load(dir, self.limits.capsule_bytes())?);
        open.insert(key, Arc::downgrade(&log));
        Ok(log)
    }

    /// Returns the log of a capsule, if somebody writes or reads it now. May block while another log
    /// is loaded.
    pub(crate) fn find(&self, team: &str, id: CapsuleId) -> Option<Arc<CapsuleLog>> {
        lock(&self.open).get(&(team.to_owned(), id)).and_then(Weak::upgrade)
    }

    /// Waits for a place to take a guest's answer apart.
    pub(crate) async fn place(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.busy.acquire().await.ok()
    }

    /// Waits for a place to read a log.
    pub(crate) async fn place_of_read(&self) -> Option<SemaphorePermit<'_>> {
        self.reads.acquire().await.ok()
    }

    /// Erases the log of a capsule, or all logs of a team. Unknown logs are success. A capsule that
    /// `is_living` may add lines later. May block.
    ///
    /// # Errors
    /// Fails when a file cannot be removed. The call may be repeated.
    pub(crate) fn erase(
        &self,
        team: &str,
        id: Option<CapsuleId>,
        is_living: &dyn Fn(CapsuleId) -> bool,
    ) -> io::Result<()> {
        let Some(folder) = self.team_folder(team) else { return Ok(()) };
        let ids = id.map_or_else(|| capsules(&folder), |id| vec![id]);
        for id in ids {
            if folder.join(id.to_string()).exists() {
                self.open(team, id)?.erase(|| is_living(id))?;
                let _ = fs::remove_dir(folder.join(id.to_string()));
            }
        }
        let _ = fs::remove_dir(folder);
        Ok(())
    }

    /// Closes segments that nobody writes, and removes lines that are too old, and whole logs when
    /// all together are too many or too large. A capsule that `is_living` may add lines later. May
    /// block.
    pub(crate) fn retire(&self, is_living: &dyn Fn(CapsuleId) -> bool) {
        let oldest = if self.is_on() { self.oldest_ms() } else { u64::MAX };
        let mut left = Vec::new();
        for key in self.all() {
            match self.retire_one(&key, oldest, is_living) {
                Ok(held) => left.extend(held),
                Err(error) => {
                    tracing::warn!(id = %key.1, %error, "cannot remove old lines of a log");
                }
            }
        }
        let most = match storage::capacity(&self.dir).0 {
            0 => u64::MAX,
            total => total / SHARE,
        };
        for Held { key, newest_ms, .. } in surplus(left, LOGS_MAX, most) {
            if let Err(error) = self.retire_one(&key, newest_ms.saturating_add(1), is_living) {
                tracing::warn!(id = %key.1, %error, "cannot remove a log");
            }
        }
    }

    /// Removes the lines of a log before a time, and the log's folder with the last line. Returns
    /// what is left.
    fn retire_one(
        &self,
        key: &Key,
        oldest_ms: u64,
        is_living: &dyn Fn(CapsuleId) -> bool,
    ) -> io::Result<Option<Held>> {
        let (team, id) = key;
        let log = self.open(team, *id)?;
        log.retire(oldest_ms, || self.is_on() && is_living(*id))?;
        let size = log.size();
        if let Some(dir) = self.folder(team, *id).filter(|_| size.is_none()) {
            // A folder that has a file again meanwhile stays.
            let _ = fs::remove_dir(dir);
        }
        Ok(size.map(|(newest_ms, bytes)| Held { key: key.clone(), newest_ms, bytes }))
    }

    /// Lists the segments whose state the store does not have yet. May block.
    pub(crate) fn pending(&self) -> Pending {
        let mut pending = Pending::default();
        for (team, id) in self.all() {
            let Some(dir) = self.folder(&team, id) else { continue };
            for found in segment::list(&dir).unwrap_or_default() {
                let of = |span| SegmentRef { team: team.clone(), id, span };
                match found.state {
                    State::Closed { span, sent: false } => pending.unsent.push(of(span)),
                    State::Gone(span) => pending.gone.push(of(span)),
                    State::Closed { sent: true, .. } | State::Open(_) => {}
                }
            }
        }
        pending
    }

    /// Returns the file of a closed segment that the store lacks.
    pub(crate) fn file(&self, segment: &SegmentRef) -> Option<PathBuf> {
        let dir = self.folder(&segment.team, segment.id)?;
        Some(dir.join(segment::closed_name(&segment.span, false)))
    }

    /// Marks a segment as one that the store has. Returns false when the segment was removed
    /// meanwhile. May block.
    ///
    /// # Errors
    /// Fails when the folder cannot be read.
    pub(crate) fn mark_sent(&self, segment: &SegmentRef) -> io::Result<bool> {
        let known = self.folder(&segment.team, segment.id).is_some_and(|dir| dir.exists());
        if !known {
            return Ok(false);
        }
        self.open(&segment.team, segment.id)?.mark_sent(&segment.span)
    }

    /// Notes that the store has lost a segment that was removed here. May block.
    ///
    /// # Errors
    /// Fails when the segment's name cannot be removed.
    pub(crate) fn mark_lost(&self, segment: &SegmentRef) -> io::Result<()> {
        let Some(dir) = self.folder(&segment.team, segment.id) else { return Ok(()) };
        match fs::remove_file(dir.join(segment::gone_name(&segment.span))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // A folder that has other files stays.
        let _ = fs::remove_dir(dir);
        Ok(())
    }

    /// Lists the logs of this host.
    fn all(&self) -> Vec<Key> {
        let teams = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let names = teams.filter_map(|entry| entry.file_name().into_string().ok());
        let teams = names.filter(|team| is_team(team));
        let of = |team: String| {
            let found = capsules(&self.dir.join(&team));
            found.into_iter().map(move |id| (team.clone(), id))
        };
        teams.flat_map(of).collect()
    }
}

/// Chooses the logs that go, so that the rest is few and small enough. Each comes from the team with
/// the most bytes, and its last line is that team's oldest. Pure.
fn surplus(held: Vec<Held>, count_max: usize, bytes_max: u64) -> Vec<Held> {
    let mut count = held.len();
    let mut bytes = held.iter().fold(0_u64, |all, log| all.saturating_add(log.bytes));
    let mut teams: HashMap<String, (u64, Vec<Held>)> = HashMap::new();
    for log in held {
        let (of_team, logs) = teams.entry(log.key.0.clone()).or_default();
        *of_team = of_team.saturating_add(log.bytes);
        logs.push(log);
    }
    for (_, logs) in teams.values_mut() {
        logs.sort_unstable_by_key(|log| Reverse(log.newest_ms));
    }
    let mut gone = Vec::new();
    while count > count_max || bytes > bytes_max {
        let largest = teams.values_mut().max_by_key(|(of_team, _)| *of_team);
        let Some((of_team, logs)) = largest else { break };
        let Some(log) = logs.pop() else { break };
        *of_team = of_team.saturating_sub(log.bytes);
        bytes = bytes.saturating_sub(log.bytes);
        count -= 1;
        gone.push(log);
    }
    gone
}

/// Reports whether a team's name may be a folder's.
pub(crate) fn is_team(team: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=TEAM_MAX).contains(&team.len()) && team.bytes().all(plain)
}

/// Lists the capsules that have a log in a team's folder.
fn capsules(team: &Path) -> Vec<CapsuleId> {
    let entries = fs::read_dir(team).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Makes a log's folder. Only this user may read it, since it has output of guests.
fn make_folder(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

#[cfg(test)]
mod tests;
