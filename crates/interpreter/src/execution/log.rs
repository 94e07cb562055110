//! The lines of one execution, and the places up to which clients have read them. Lines that a
//! client has yet to read are never dropped. Beyond them, the last 4 MiB are kept for later
//! clients.

use bytes::{Bytes, BytesMut};
use std::collections::{BTreeMap, VecDeque};
use tokio::time::Instant;

/// Bytes that clients may be behind before the kernel is held.
pub(super) const HIGH: usize = 4 << 20;
/// Bytes that clients may be behind when a held kernel is let go.
pub(super) const LOW: usize = 1 << 20;
/// Most bytes that are kept of lines that every client has read.
pub(super) const KEPT: usize = 4 << 20;
/// Bytes that a line costs beside its text.
const LINE: usize = 64;

/// The lines of an execution, numbered from 0.
#[derive(Debug, Default)]
pub(super) struct Log {
    lines: VecDeque<Bytes>,
    /// Cost of `lines`.
    bytes: usize,
    /// Number and size of the lines that were dropped from the front.
    dropped: u64,
    dropped_bytes: u64,
    cursors: BTreeMap<u64, Cursor>,
    opened: u64,
    held: bool,
    ended: Option<Instant>,
}

/// Place of a client in a log.
#[derive(Debug)]
struct Cursor {
    /// Number of the next line.
    at: u64,
    /// Cost of the lines from there on.
    behind: usize,
}

/// Result of a read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Lines(Bytes),
    /// There is nothing to read yet.
    Empty,
    /// The last line was read before.
    Ended,
}

/// Lines that a new client can no longer get, with about how many bytes they had.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Missing {
    pub lines: u64,
    pub bytes: u64,
}

impl Log {
    pub(super) fn push(&mut self, line: Bytes) {
        let cost = LINE + line.len();
        self.bytes += cost;
        self.lines.push_back(line);
        for cursor in self.cursors.values_mut() {
            cursor.behind += cost;
        }
        self.trim();
    }

    pub(super) fn end(&mut self, at: Instant) {
        self.ended = Some(at);
    }

    pub(super) fn ended(&self) -> Option<Instant> {
        self.ended
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the number of open cursors.
    pub(super) fn cursors(&self) -> usize {
        self.cursors.len()
    }

    pub(super) fn is_held(&self) -> bool {
        self.held
    }

    /// Opens a cursor after the first lines. Returns its key, and the lines that are dropped. A
    /// client that has more lines than there are read the log of an earlier interpreter, so it gets
    /// this one from its start.
    pub(super) fn open(&mut self, after: u64) -> (u64, Option<Missing>) {
        let end = self.dropped + self.lines.len() as u64;
        let after = if after > end { 0 } else { after };
        let at = after.max(self.dropped);
        let skipped = usize::try_from(at - self.dropped).unwrap_or(usize::MAX);
        let behind = self.lines.iter().skip(skipped).map(|line| LINE + line.len()).sum();
        self.opened += 1;
        self.cursors.insert(self.opened, Cursor { at, behind });
        let missing = self.dropped.checked_sub(after).filter(|lines| *lines > 0);
        let missing = missing.map(|lines| Missing { lines, bytes: self.share(lines) });
        (self.opened, missing)
    }

    /// Estimates the size of the last of the dropped lines. Exact for all of them.
    fn share(&self, lines: u64) -> u64 {
        let bytes = u128::from(self.dropped_bytes) * u128::from(lines) / u128::from(self.dropped);
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// Reads lines of at most `max` bytes, or one line that is longer.
    pub(super) fn take(&mut self, key: u64, max: usize) -> Taken {
        let Some(cursor) = self.cursors.get_mut(&key) else { return Taken::Ended };
        let skipped = usize::try_from(cursor.at - self.dropped).unwrap_or(usize::MAX);
        let mut lines = self.lines.iter().skip(skipped);
        let Some(first) = lines.next() else {
            return if self.ended.is_some() { Taken::Ended } else { Taken::Empty };
        };
        let mut count = 1;
        let mut size = first.len();
        for line in lines.take_while(|line| {
            size += line.len();
            size <= max
        }) {
            count += 1;
            cursor.behind = cursor.behind.saturating_sub(LINE + line.len());
        }
        cursor.behind = cursor.behind.saturating_sub(LINE + first.len());
        cursor.at += count as u64;
        let taken = join(self.lines.range(skipped..skipped + count));
        self.trim();
        Taken::Lines(taken)
    }

    pub(super) fn close(&mut self, key: u64) {
        self.cursors.remove(&key);
        self.trim();
    }

    pub(super) fn close_all(&mut self) {
        self.cursors.clear();
        self.trim();
    }

    /// Returns a change of the wish to hold the kernel.
    pub(super) fn pressure(&mut self) -> Option<bool> {
        let behind = self.cursors.values().map(|cursor| cursor.behind).max().unwrap_or(0);
        let held = if self.held { behind >= LOW } else { behind > HIGH };
        (std::mem::replace(&mut self.held, held) != held).then_some(held)
    }

    /// Drops the oldest lines above `KEPT`, unless a client has yet to read them.
    fn trim(&mut self) {
        let read = self.cursors.values().map(|cursor| cursor.at).min().unwrap_or(u64::MAX);
        while self.bytes > KEPT && self.dropped < read {
            let Some(line) = self.lines.pop_front() else { return };
            self.bytes -= LINE + line.len();
            self.dropped += 1;
            self.dropped_bytes += line.len() as u64;
        }
    }
}

fn join<'a>(lines: impl ExactSizeIterator<Item = &'a Bytes> + Clone) -> Bytes {
    if lines.len() == 1 {
        return lines.clone().next().cloned().unwrap_or_default();
    }
    let mut joined = BytesMut::with_capacity(lines.clone().map(Bytes::len).sum());
    for line in lines {
        joined.extend_from_slice(line);
    }
    joined.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(size: usize) -> Bytes {
        Bytes::from(vec![b'x'; size])
    }

    fn read_all(log: &mut Log, key: u64) -> usize {
        let mut total = 0;
        while let Taken::Lines(lines) = log.take(key, 1 << 16) {
            total += lines.len();
        }
        total
    }

    #[test]
    fn reader_gets_every_line_in_order_and_then_the_end() {
        let mut log = Log::default();
        let (key, missing) = log.open(0);
        assert_eq!((log.take(key, 10), missing), (Taken::Empty, None));
        for text in ["ab", "cd", "efghijklmnop", "q"] {
            log.push(Bytes::from(text));
        }
        log.end(Instant::now());
        assert_eq!(log.take(key, 10), Taken::Lines("abcd".into()));
        assert_eq!(log.take(key, 10), Taken::Lines("efghijklmnop".into()));
        assert_eq!(log.take(key, 10), Taken::Lines("q".into()));
        assert_eq!(log.take(key, 10), Taken::Ended);
    }

    #[test]
    fn kernel_is_held_above_four_mebibytes_and_let_go_below_one() {
        let mut log = Log::default();
        let (key, _) = log.open(0);
        let mut changes = Vec::new();
        for _ in 0..100 {
            log.push(line(64 << 10));
            changes.extend(log.pressure());
        }
        assert_eq!(changes, [true]);
        let behind = |log: &Log| log.cursors[&key].behind;
        while let Taken::Lines(_) = log.take(key, 1) {
            if let Some(held) = log.pressure() {
                assert!(!held && behind(&log) < LOW && behind(&log) > LOW - (70 << 10));
                changes.push(held);
            }
        }
        assert_eq!(changes, [true, false]);
    }

    #[test]
    fn no_line_is_dropped_before_the_slowest_client_read_it() {
        let mut log = Log::default();
        let (slow, _) = log.open(0);
        let (quick, _) = log.open(0);
        for _ in 0..200 {
            log.push(line(64 << 10));
        }
        assert_eq!(read_all(&mut log, quick), 200 << 16);
        assert!(log.bytes() > KEPT && log.dropped == 0);
        assert_eq!(read_all(&mut log, slow), 200 << 16);
        assert!(log.bytes() <= KEPT && log.dropped > 0);
    }

    #[test]
    fn client_that_leaves_frees_its_lines_and_the_kernel() {
        let mut log = Log::default();
        let (key, _) = log.open(0);
        for _ in 0..100 {
            log.push(line(64 << 10));
        }
        assert_eq!(log.pressure(), Some(true));
        log.close(key);
        assert_eq!(log.pressure(), Some(false));
        assert!(log.bytes() <= KEPT);
        assert_eq!(log.take(key, 1), Taken::Ended);
    }

    #[test]
    fn later_client_is_told_the_dropped_lines() {
        let mut log = Log::default();
        for _ in 0..100 {
            log.push(line(64 << 10));
        }
        let dropped = log.dropped;
        assert!(dropped > 30);
        let (_, missing) = log.open(0);
        assert_eq!(missing, Some(Missing { lines: dropped, bytes: dropped << 16 }));
        let (_, missing) = log.open(10);
        assert_eq!(missing.unwrap().lines, dropped - 10);
        let (key, missing) = log.open(98);
        assert_eq!((missing, read_all(&mut log, key)), (None, 2 << 16));
        let (key, missing) = log.open(100);
        assert_eq!((missing, log.take(key, 1)), (None, Taken::Empty));
    }

    #[test]
    fn client_of_an_earlier_log_gets_this_one_from_its_start() {
        let mut log = Log::default();
        log.push(Bytes::from("a"));
        let (key, missing) = log.open(50);
        assert_eq!((missing, log.take(key, 10)), (None, Taken::Lines("a".into())));
    }

    #[test]
    fn many_small_lines_cost_more_than_their_text() {
        let mut log = Log::default();
        for _ in 0..(KEPT / LINE) {
            log.push(line(2));
        }
        assert!(log.bytes() <= KEPT && log.dropped > 0);
    }
}
