//! The writer of one capsule's log.
//!
//! ```text
//!  append ─▶ numbers ─▶ room: the oldest segments go ─▶ one write at the end of the open segment
//!                                                          └─ fails ─▶ the file is cut, nothing moved
//! ```
//! No write waits for the disk. Each outlives the agent, and a loss of power ends the guest too. A
//! reader skips what such a loss left incomplete.

use super::block;
use super::entry::{Entry, Position};
use super::segment::{self, SEGMENT_MAX, Scan, Span, State as FileState};
use daemon::lock;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// Bits of an entry's number below its time in milliseconds.
const COUNT_BITS: u32 = 20;
/// Greatest time that a number may have, in milliseconds.
const TIME_MAX: u64 = 1 << 43;

/// Amount of the guest's output that an append adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Advance {
    Nothing,
    /// Epoch and number of envd's last piece.
    Piece(u64, u64),
    /// Last bytes of the console, in hexadecimal digits.
    Console(String),
}

/// Part of a machine's console that the log has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Console {
    /// Process id and start of the machine.
    pub machine: (i32, u64),
    /// Bytes that the machine had written at the last look.
    pub written: u64,
    /// Bytes that the log has.
    pub taken: u64,
}

/// A capsule's log, as this process writes it.
pub(crate) struct CapsuleLog {
    dir: PathBuf,
    capsule_bytes: u64,
    state: Mutex<State>,
    /// Number of the newest entry.
    newest: watch::Sender<u64>,
    /// Part of the console that the log has. Whoever reads the console holds the lock.
    pub console: tokio::sync::Mutex<Option<Console>>,
    /// Lock of the task that reads envd's log.
    pub process: tokio::sync::Mutex<()>,
    /// Set while the host's disk has no room for logs.
    halted: AtomicBool,
}

struct State {
    closed: VecDeque<Closed>,
    open: Option<Open>,
    /// Number of the newest entry.
    last: u64,
    /// Amount of the guest's output in the log; `None` until it is read from the newest segment.
    position: Option<Position>,
}

struct Closed {
    span: Span,
    sent: bool,
    bytes: u64,
}

impl Closed {
    /// Returns the bytes that the segment counts.
    fn cost(&self) -> u64 {
        segment::cost(self.bytes)
    }
}

struct Open {
    /// Number in the file's name.
    first: u64,
    span: Option<Span>,
    bytes: u64,
}

impl CapsuleLog {
    /// Loads the log of a folder. Closes a segment that an earlier agent left open, without an
    /// incomplete batch at its end.
    pub(super) fn load(dir: PathBuf, capsule_bytes: u64) -> io::Result<Self> {
        let mut closed = VecDeque::new();
        for found in segment::list(&dir)? {
            match found.state {
                FileState::Closed { span, sent } => {
                    closed.push_back(Closed { span, sent, bytes: found.bytes });
                }
                FileState::Gone(_) => {}
                FileState::Open(_) => {
                    let scan = Scan::of(&fs::read(&found.path)?);
                    let Some(span) = scan.span() else {
                        fs::remove_file(&found.path)?;
                        continue;
                    };
                    let bytes = scan.length as u64;
                    File::options().write(true).open(&found.path)?.set_len(bytes)?;
                    close(&dir, &found.path, &span)?;
                    closed.push_back(Closed { span, sent: false, bytes });
                }
            }
        }
        let last = closed.iter().map(|segment| segment.span.last).max().unwrap_or(0);
        let state = State { closed, open: None, last, position: None };
        Ok(Self {
            dir,
            capsule_bytes,
            state: Mutex::new(state),
            newest: watch::Sender::new(last),
            console: tokio::sync::Mutex::default(),
            process: tokio::sync::Mutex::default(),
            halted: AtomicBool::new(false),
        })
    }

    /// Returns a watch of the newest entry's number.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// Reports whether somebody waits for an entry.
    pub(crate) fn is_watched(&self) -> bool {
        self.newest.receiver_count() > 0
    }

    /// Notes that the host's disk has no room for logs.
    pub(crate) fn halt(&self) {
        self.halted.store(true, Ordering::Relaxed);
    }

    /// Returns true once after the log stood still.
    pub(crate) fn go_on(&self) -> bool {
        self.halted.swap(false, Ordering::Relaxed)
    }

    /// Returns the amount of the guest's output in the log. May block.
    pub(crate) fn position(&self) -> Position {
        let mut state = self.lock();
        self.known_position(&mut state).clone()
    }

    /// Adds entries, whose numbers are replaced, together with the amount of the guest's output
    /// that they stand for. Both count, or neither. May block.
    ///
    /// # Errors
    /// Fails when the disk takes no data. The log then stays as it was.
    pub(crate) fn append(&self, entries: Vec<Entry>, advance: &Advance) -> io::Result<()> {
        self.append_under_lock(self.lock(), entries, advance)
    }

    /// Adds entries as [`Self::append`] does, unless the log has other pieces than up to `before`.
    /// So an append that a task began and did not await adds no line twice. May block.
    ///
    /// # Errors
    /// Fails like [`Self::append`].
    pub(crate) fn append_after(
        &self,
        before: Option<(u64, u64)>,
        entries: Vec<Entry>,
        advance: &Advance,
    ) -> io::Result<()> {
        let mut state = self.lock();
        if self.known_position(&mut state).piece != before {
            return Ok(());
        }
        self.append_under_lock(state, entries, advance)
    }

    fn append_under_lock(
        &self,
        mut state: MutexGuard<'_, State>,
        mut entries: Vec<Entry>,
        advance: &Advance,
    ) -> io::Result<()> {
        let before = self.known_position(&mut state).clone();
        let position = advanced(&before, advance);
        let epoch = |position: &Position| position.piece.map(|(epoch, _)| epoch);
        if entries.is_empty() && epoch(&position) == epoch(&before) {
            // Output without an entry comes again after a crash, and adds no entry again.
            state.position = Some(position);
            return Ok(());
        }
        let now = now_ms();
        let mut number = state.last.max((now.min(TIME_MAX) << COUNT_BITS).saturating_sub(1));
        for entry in &mut entries {
            number += 1;
            entry.number = number;
        }
        let last = entries.last().map_or(state.last, |entry| entry.number);
        let none = Span { first: last, last, min_ms: now, max_ms: now };
        let (batch, span) = block::batch(&position, &entries, none)?;
        self.write(&mut state, &batch, span)?;
        (state.last, state.position) = (last, Some(position));
        drop(state);
        self.newest.send_replace(last);
        Ok(())
    }

    /// Writes a batch at the end of the open segment, or of a new one.
    fn write(&self, state: &mut State, batch: &[u8], span: Span) -> io::Result<()> {
        let bytes = batch.len() as u64;
        let most = SEGMENT_MAX.min(self.capsule_bytes / 4);
        if state.open.as_ref().is_some_and(|open| open.bytes > 0 && open.bytes + bytes > most) {
            self.close_open(state)?;
        }
        self.make_room(state, bytes)?;
        let open = state.open.get_or_insert(Open { first: span.first, span: None, bytes: 0 });
        let path = self.dir.join(segment::open_name(open.first));
        if open.bytes == 0 {
            // The folder may have been removed with the last segment.
            super::make_folder(&self.dir)?;
        }
        let file = File::options().write(true).create(true).truncate(false).open(&path)?;
        if let Err(error) = file.write_all_at(batch, open.bytes) {
            let _ = file.set_len(open.bytes);
            return Err(error);
        }
        open.bytes += bytes;
        open.span = Some(open.span.as_ref().map_or(span.clone(), |known| known.joined(&span)));
        Ok(())
    }

    /// Removes the oldest segments until there is room for some bytes more.
    fn make_room(&self, state: &mut State, bytes: u64) -> io::Result<()> {
        let closed: u64 = state.closed.iter().map(Closed::cost).sum();
        let mut all = closed + state.open.as_ref().map_or(0, |open| open.bytes) + bytes;
        while all > self.capsule_bytes && !state.closed.is_empty() {
            all -= self.remove_oldest(state)?;
        }
        Ok(())
    }

    /// Removes the oldest closed segment. Returns the bytes that it counted.
    fn remove_oldest(&self, state: &mut State) -> io::Result<u64> {
        let Some(oldest) = state.closed.front() else { return Ok(0) };
        let path = self.dir.join(segment::closed_name(&oldest.span, oldest.sent));
        match oldest.sent {
            true => leave_name(&path, &self.dir.join(segment::gone_name(&oldest.span)))?,
            false => remove(&path)?,
        }
        let bytes = oldest.cost();
        state.closed.pop_front();
        Ok(bytes)
    }

    /// Closes the open segment, so that it can be sent. May block.
    ///
    /// # Errors
    /// Fails when the file cannot be renamed.
    pub(crate) fn close(&self) -> io::Result<()> {
        self.close_open(&mut self.lock())
    }

    fn close_open(&self, state: &mut State) -> io::Result<()> {
        let Some(Open { first, span: Some(span), bytes }) = &state.open else { return Ok(()) };
        close(&self.dir, &self.dir.join(segment::open_name(*first)), span)?;
        let closed = Closed { span: span.clone(), sent: false, bytes: *bytes };
        state.open = None;
        state.closed.push_back(closed);
        Ok(())
    }

    /// Removes the closed segments whose lines are all older than a time. The log of a capsule that
    /// `is_living` keeps the amount of the guest's output. May block.
    pub(super) fn retire(
        &self,
        oldest_ms: u64,
        is_living: impl FnOnce() -> bool,
    ) -> io::Result<()> {
        let mut state = self.lock();
        let is_old = |span: &Span| span.max_ms < oldest_ms;
        if state.open.as_ref().and_then(|open| open.span.as_ref()).is_some_and(is_old) {
            self.close_open(&mut state)?;
        }
        while state.closed.front().is_some_and(|oldest| is_old(&oldest.span)) {
            // The position is in the newest segment.
            self.known_position(&mut state);
            self.remove_oldest(&mut state)?;
        }
        self.keep_position(&mut state, is_living)
    }

    /// Removes all entries. The log of a capsule that `is_living` keeps the amount of the guest's
    /// output. May block.
    pub(super) fn erase(&self, is_living: impl FnOnce() -> bool) -> io::Result<()> {
        let mut state = self.lock();
        self.known_position(&mut state);
        self.close_open(&mut state)?;
        while !state.closed.is_empty() {
            self.remove_oldest(&mut state)?;
        }
        self.keep_position(&mut state, is_living)
    }

    /// Writes the amount of a living guest's output if no segment is left that has it. Otherwise the
    /// next machine or agent would log the same output again.
    fn keep_position(&self, state: &mut State, is_living: impl FnOnce() -> bool) -> io::Result<()> {
        if !state.closed.is_empty() || state.open.as_ref().is_some_and(|open| open.span.is_some()) {
            return Ok(());
        }
        let position = self.known_position(state).clone();
        if position == Position::default() || !is_living() {
            return Ok(());
        }
        let (last, now) = (state.last, now_ms());
        let none = Span { first: last, last, min_ms: now, max_ms: now };
        let (batch, span) = block::batch(&position, &[], none)?;
        self.write(state, &batch, span)
    }

    /// Marks a closed segment as one that the store has; false if it is gone. May block.
    pub(super) fn mark_sent(&self, span: &Span) -> io::Result<bool> {
        let mut state = self.lock();
        let Some(found) = state.closed.iter_mut().find(|segment| segment.span == *span) else {
            return Ok(false);
        };
        let path = |sent| self.dir.join(segment::closed_name(span, sent));
        fs::rename(path(false), path(true))?;
        found.sent = true;
        Ok(true)
    }

    /// Returns the time of the newest entry, and the bytes that all segments count; `None` without
    /// segments.
    pub(super) fn size(&self) -> Option<(u64, u64)> {
        let state = self.lock();
        let open = state.open.as_ref().and_then(|open| Some((open.span.as_ref()?, open.bytes)));
        let closed = state.closed.iter().map(|segment| (&segment.span, segment.cost()));
        let sizes = closed.chain(open).map(|(span, bytes)| (span.max_ms, bytes));
        sizes.reduce(|(newest, all), (at_ms, bytes)| (newest.max(at_ms), all + bytes))
    }

    /// Reports whether the log has no entry.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let state = self.lock();
        state.closed.is_empty() && state.open.is_none()
    }

    /// Returns the position, which is read from the newest segment at first. A segment that cannot
    /// be read has none; the log then begins with the guest's epoch.
    fn known_position<'a>(&self, state: &'a mut State) -> &'a mut Position {
        let newest =
            state.closed.back().map(|newest| segment::closed_name(&newest.span, newest.sent));
        state.position.get_or_insert_with(|| {
            let bytes = newest.and_then(|name| fs::read(self.dir.join(name)).ok());
            bytes.and_then(|bytes| segment::last_position(&bytes)).unwrap_or_default()
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn advanced(position: &Position, advance: &Advance) -> Position {
    let mut position = position.clone();
    match advance {
        Advance::Nothing => {}
        Advance::Piece(epoch, number) => position.piece = Some((*epoch, *number)),
        Advance::Console(last) => position.console.clone_from(last),
    }
    position
}

/// Gives an open segment's file the name of a closed one.
fn close(dir: &Path, path: &Path, span: &Span) -> io::Result<()> {
    fs::rename(path, dir.join(segment::closed_name(span, false)))
}

/// Empties a segment's file, and gives it the name by which the store is to lose the segment.
fn leave_name(path: &Path, gone: &Path) -> io::Result<()> {
    match fs::rename(path, gone) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        renamed => renamed?,
    }
    File::options().write(true).open(gone)?.set_len(0)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Returns the time in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}
