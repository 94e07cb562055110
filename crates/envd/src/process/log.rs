//! The log: output of programs that nobody waits for, until the host has read it.
//!
//! A program is in the background from its start if it has a tag. Any other program is in the
//! background once the stream of its start has ended. The log has output of background programs,
//! or of all programs, or none, as the host says. Output of terminals is never in it.
//!
//! ```text
//!  Writer::add ─▶ unfinished line ─▶ piece ─▶ ring of the program ─▶ Log::read ─▶ acknowledged
//!                                               └─ no room ─▶ a mark with the dropped bytes
//! ```
//! A ring holds 1 MiB, and all rings together 4 MiB. The log is a part of the guest's memory, so it
//! outlives a pause. A reader's cursor is an epoch and a number. A cursor of the epoch before goes
//! on; any other cursor begins with the current epoch. So a copy of a guest repeats no line.

use super::Spec;
use super::exit::Exit;
use super::hub::Output;
use crate::lock::lock;
use bytes::Bytes;
use protocol::log::{COMMAND_MAX, Head, Kind, LINE_MAX, PIECE_COST, Piece, Query};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Most bytes of a program's ring.
const PROGRAM_MAX: usize = 1 << 20;
/// Most bytes of all rings.
const ALL_MAX: usize = 4 << 20;
/// Most bytes of an answer, whatever its reader asks for.
const ANSWER_MAX: usize = 1 << 20;
/// Longest wait for a piece.
const WAIT_MAX: Duration = Duration::from_secs(20);
/// Time after which an unfinished line becomes a piece.
const UNFINISHED: Duration = Duration::from_millis(500);
/// File with the count of programs that the kernel ended for lack of memory.
const VMSTAT: &str = "/proc/vmstat";

/// Choice of the output that the log has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    #[default]
    None,
    Background,
    All,
}

impl Mode {
    /// Reads the host's word. An unknown word stands for no log.
    pub(crate) fn parse(text: &str) -> Self {
        match text {
            "background" => Self::Background,
            "all" => Self::All,
            _ => Self::None,
        }
    }

    fn takes(self, background: bool) -> bool {
        match self {
            Self::None => false,
            Self::Background => background,
            Self::All => true,
        }
    }
}

/// Output of programs until the host has read it.
pub(crate) struct Log {
    state: Mutex<State>,
    /// Wakes readers that wait for a piece.
    added: Notify,
    /// Opened before the first program runs, so that no program can put another file there.
    vmstat: Option<File>,
}

impl Default for Log {
    fn default() -> Self {
        let vmstat = File::open(VMSTAT).ok();
        Self { state: Mutex::default(), added: Notify::new(), vmstat }
    }
}

#[derive(Default)]
struct State {
    mode: Mode,
    epoch: u64,
    /// Epoch before the current one.
    previous: u64,
    /// Number of the last piece before the current epoch.
    began: u64,
    /// Number of the last piece.
    last: u64,
    /// Rings by the number of their program. A program without output has none.
    rings: BTreeMap<u64, Ring>,
    bytes: usize,
    programs: u64,
}

/// Output of one program.
struct Ring {
    pid: u32,
    command: Arc<str>,
    pieces: VecDeque<Stored>,
    bytes: usize,
    /// Unfinished lines of standard output and standard error.
    unfinished: [Unfinished; 2],
}

#[derive(Default)]
struct Unfinished {
    bytes: Vec<u8>,
    since: Option<Instant>,
}

struct Stored {
    number: u64,
    at_ms: u64,
    kind: Kind,
    data: Bytes,
    dropped: u64,
}

impl Stored {
    fn cost(&self) -> usize {
        PIECE_COST + self.data.len()
    }
}

impl Log {
    /// Returns the writer of a program's output.
    pub(super) fn writer(self: &Arc<Self>, pid: u32, spec: &Spec) -> Arc<Writer> {
        let mut state = self.lock();
        state.programs += 1;
        let key = state.programs;
        drop(state);
        let tagged = spec.tag.as_ref().is_some_and(|tag| !tag.is_empty());
        Arc::new(Writer {
            log: Arc::clone(self),
            key,
            pid,
            command: command(spec),
            terminal: spec.terminal.is_some(),
            background: AtomicBool::new(tagged),
        })
    }

    /// Sets the output that the log has. Without any, earlier pieces are dropped.
    pub(crate) fn set_mode(&self, mode: Mode) {
        let mut state = self.lock();
        state.mode = mode;
        if mode == Mode::None {
            state.clear();
        }
    }

    /// Begins an epoch. A copy of a guest drops the pieces of the guest that was copied.
    pub(crate) fn begin_epoch(&self, epoch: u64, is_copy: bool) {
        let mut state = self.lock();
        state.previous = std::mem::replace(&mut state.epoch, epoch);
        if is_copy {
            state.clear();
        }
        state.began = state.last;
        drop(state);
        self.added.notify_waiters();
    }

    /// Answers a read: drops the pieces up to the cursor, and waits for a later piece.
    pub(crate) async fn read(&self, query: &Query) -> Vec<u8> {
        let until = Instant::now() + Duration::from_millis(query.wait_ms).min(WAIT_MAX);
        loop {
            let mut added = std::pin::pin!(self.added.notified());
            // The wait is set up before the read, so that no piece in between is missed.
            added.as_mut().enable();
            let Look { body, any, due } = self.look(query);
            if any || Instant::now() >= until {
                return body;
            }
            tokio::select! {
                () = added => {}
                () = tokio::time::sleep_until(due.map_or(until, |due| due.min(until))) => {}
            }
        }
    }

    fn look(&self, query: &Query) -> Look {
        let oom_kills = self.oom_kills();
        let mut state = self.lock();
        state.finish_old(Instant::now());
        let after = state.start(query);
        state.acknowledge(after);
        let head = Head { epoch: state.epoch, after, oom_kills };
        let (body, any) = state.answer(&head, query.most.min(ANSWER_MAX));
        Look { body, any, due: state.due() }
    }

    /// Reads the count of programs that the kernel ended for lack of memory.
    fn oom_kills(&self) -> Option<u64> {
        let mut text = vec![0; 16 << 10];
        let count = self.vmstat.as_ref()?.read_at(&mut text, 0).ok()?;
        parse_oom_kills(&String::from_utf8_lossy(&text[..count]))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// Result of one read of the log.
struct Look {
    body: Vec<u8>,
    /// Set if the body has a piece.
    any: bool,
    /// Time at which an unfinished line becomes a piece.
    due: Option<Instant>,
}

fn parse_oom_kills(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

impl State {
    fn clear(&mut self) {
        self.rings.clear();
        self.bytes = 0;
    }

    /// Returns the number after which a reader with this cursor goes on.
    fn start(&self, query: &Query) -> u64 {
        match (query.epoch, query.number) {
            (Some(epoch), Some(number)) if epoch == self.epoch => number.min(self.last),
            (Some(epoch), Some(number)) if epoch == self.previous && number <= self.began => number,
            _ => self.began,
        }
    }

    /// Drops the pieces up to a number.
    fn acknowledge(&mut self, number: u64) {
        let bytes = &mut self.bytes;
        self.rings.retain(|_, ring| {
            while let Some(first) = ring.pieces.front().filter(|piece| piece.number <= number) {
                let cost = first.cost();
                ring.pieces.pop_front();
                ring.bytes -= cost;
                *bytes -= cost;
            }
            !ring.is_empty()
        });
    }

    /// Makes an answer from the head and the oldest pieces.
    fn answer(&self, head: &Head, most: usize) -> (Vec<u8>, bool) {
        let mut found: Vec<(&Ring, &Stored)> = Vec::new();
        for ring in self.rings.values() {
            found.extend(ring.pieces.iter().map(|piece| (ring, piece)));
        }
        found.sort_unstable_by_key(|(_, piece)| piece.number);
        let mut body = Vec::new();
        line(&mut body, head);
        let (mut cost, mut any) = (0, false);
        for (ring, piece) in found {
            cost += piece.cost();
            if any && cost > most {
                break;
            }
            any = true;
            let about = Piece {
                number: piece.number,
                at_ms: piece.at_ms,
                pid: ring.pid,
                command: ring.command.to_string(),
                kind: piece.kind,
                bytes: piece.data.len(),
                dropped: piece.dropped,
            };
            line(&mut body, &about);
            body.extend_from_slice(&piece.data);
        }
        (body, any)
    }

    /// Returns the time at which the oldest unfinished line becomes a piece.
    fn due(&self) -> Option<Instant> {
        let unfinished = self.rings.values().flat_map(|ring| &ring.unfinished);
        unfinished.filter_map(|line| line.since).min().map(|since| since + UNFINISHED)
    }

    /// Makes pieces of unfinished lines that have waited long enough.
    fn finish_old(&mut self, now: Instant) {
        let is_old = |line: &Unfinished| line.since.is_some_and(|since| since + UNFINISHED <= now);
        let old = self.rings.iter().filter(|(_, ring)| ring.unfinished.iter().any(is_old));
        let keys: Vec<u64> = old.map(|(key, _)| *key).collect();
        for key in keys {
            self.finish(key);
        }
    }

    /// Makes pieces of a program's unfinished lines.
    fn finish(&mut self, key: u64) {
        for (stream, kind) in [(0, Kind::Stdout), (1, Kind::Stderr)] {
            let Some(ring) = self.rings.get_mut(&key) else { return };
            let line = std::mem::take(&mut ring.unfinished[stream]).bytes;
            ring.bytes -= line.len();
            self.bytes -= line.len();
            if !line.is_empty() {
                self.push(key, kind, line.into());
            }
        }
    }

    /// Adds output of a program that has a ring.
    fn add(&mut self, key: u64, stream: usize, data: &[u8]) {
        let kind = if stream == 0 { Kind::Stdout } else { Kind::Stderr };
        let ends = data.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let (whole, rest) = data.split_at(ends);
        let Some(ring) = self.rings.get_mut(&key) else { return };
        let line = &mut ring.unfinished[stream];
        let mut piece = Vec::new();
        if !whole.is_empty() {
            piece = std::mem::take(line).bytes;
            ring.bytes -= piece.len();
            self.bytes -= piece.len();
            piece.extend_from_slice(whole);
        }
        if !rest.is_empty() {
            line.since.get_or_insert_with(Instant::now);
            line.bytes.extend_from_slice(rest);
            ring.bytes += rest.len();
            self.bytes += rest.len();
        }
        let long = line.bytes.len() >= LINE_MAX;
        if !piece.is_empty() {
            self.push(key, kind, piece.into());
        }
        if long {
            self.finish(key);
        }
        self.make_room(key);
    }

    /// Adds a piece to a program's ring.
    fn push(&mut self, key: u64, kind: Kind, data: Bytes) {
        let Some(ring) = self.rings.get_mut(&key) else { return };
        self.last += 1;
        let piece = Stored { number: self.last, at_ms: now_ms(), kind, data, dropped: 0 };
        ring.bytes += piece.cost();
        self.bytes += piece.cost();
        ring.pieces.push_back(piece);
    }

    /// Drops the oldest pieces of a ring that is full, and of the largest rings when all together
    /// are full.
    fn make_room(&mut self, key: u64) {
        while self.rings.get(&key).is_some_and(|ring| ring.bytes > PROGRAM_MAX) {
            self.evict(key);
        }
        while self.bytes > ALL_MAX {
            let largest = self.rings.iter().max_by_key(|(_, ring)| ring.bytes);
            let Some(key) = largest.map(|(key, _)| *key) else { return };
            self.evict(key);
        }
    }

    fn evict(&mut self, key: u64) {
        let Some(ring) = self.rings.get_mut(&key) else { return };
        let before = ring.bytes;
        ring.evict();
        self.bytes -= before - ring.bytes;
        if ring.is_empty() {
            self.rings.remove(&key);
        }
    }
}

impl Ring {
    fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.unfinished.iter().all(|line| line.bytes.is_empty())
    }

    /// Puts a mark in place of the oldest piece, and of a mark before it. A ring without another
    /// piece loses everything.
    fn evict(&mut self) {
        let is_mark = |piece: &&Stored| piece.kind == Kind::Dropped;
        let mark = self.pieces.front().filter(is_mark).map(|mark| mark.dropped);
        if mark.is_some() {
            self.pieces.pop_front();
            self.bytes -= PIECE_COST;
        }
        let Some(oldest) = self.pieces.pop_front() else {
            (self.bytes, self.unfinished) = (0, Default::default());
            return;
        };
        self.bytes -= oldest.cost();
        let dropped = mark.unwrap_or(0) + oldest.data.len() as u64;
        let mark = Stored { kind: Kind::Dropped, data: Bytes::new(), dropped, ..oldest };
        self.bytes += mark.cost();
        self.pieces.push_front(mark);
    }
}

/// Writer of a program's output to the log.
pub(crate) struct Writer {
    log: Arc<Log>,
    key: u64,
    pid: u32,
    command: Arc<str>,
    terminal: bool,
    /// Set once nobody waits for the program.
    background: AtomicBool,
}

impl Writer {
    /// Adds output, if the log has output of this program.
    pub(super) fn add(&self, output: Output, data: &[u8]) {
        let stream = match output {
            Output::Stdout => 0,
            Output::Stderr => 1,
            Output::Pty => return,
        };
        if let Some(mut state) = self.open() {
            state.add(self.key, stream, data);
            drop(state);
            self.log.added.notify_waiters();
        }
    }

    /// Adds the program's end, if the log has output of this program.
    pub(super) fn exit(&self, exit: &Exit) {
        if let Some(mut state) = self.open() {
            state.finish(self.key);
            state.push(self.key, Kind::Exit, exit.status.clone().into());
            state.make_room(self.key);
            drop(state);
            self.log.added.notify_waiters();
        }
    }

    /// Puts the program into the background, since the stream of its start has ended.
    pub(super) fn leave(&self) {
        self.background.store(true, Ordering::Relaxed);
    }

    /// Returns the log's state with a ring for this program; `None` if the log takes nothing of it.
    fn open(&self) -> Option<MutexGuard<'_, State>> {
        let background = self.background.load(Ordering::Relaxed);
        let mut state = self.log.lock();
        if self.terminal || !state.mode.takes(background) {
            return None;
        }
        state.rings.entry(self.key).or_insert_with(|| Ring {
            pid: self.pid,
            command: Arc::clone(&self.command),
            pieces: VecDeque::new(),
            bytes: 0,
            unfinished: Default::default(),
        });
        Some(state)
    }
}

/// Presence of the caller who started a program. A drop puts the program into the background.
pub(super) struct Presence(pub Arc<Writer>);

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// Returns the beginning of a program's command.
fn command(spec: &Spec) -> Arc<str> {
    let mut text = spec.cmd.clone();
    for arg in &spec.args {
        if text.len() >= COMMAND_MAX {
            break;
        }
        text.push(' ');
        text.push_str(&arg[..arg.floor_char_boundary(COMMAND_MAX)]);
    }
    text.truncate(text.floor_char_boundary(COMMAND_MAX));
    text.into()
}

fn line(body: &mut Vec<u8>, value: &impl serde::Serialize) {
    // Neither writing to memory nor these types can fail.
    let _ = serde_json::to_writer(&mut *body, value);
    body.push(b'\n');
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
