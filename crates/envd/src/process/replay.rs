//! The last output of a terminal, kept for clients that attach to it later.

use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most bytes that are kept of a terminal.
const MOST: usize = 256 << 10;
/// Most bytes that are kept of all terminals together, beside [`LEAST`] of each.
const TOTAL: usize = 8 << 20;
/// Bytes that every terminal may keep. The kernel limits the number of terminals (`pty/max`).
const LEAST: usize = 4 << 10;
/// Bytes in which the first line's begin is looked for.
const LINE: usize = 4 << 10;

/// The last output of one terminal.
pub(super) struct Replay {
    bytes: VecDeque<u8>,
    /// Set once earlier output was dropped.
    is_cut: bool,
    /// Bytes that all terminals keep.
    total: Arc<AtomicUsize>,
}

impl Replay {
    /// Makes an empty replay, whose bytes count in `total`.
    pub(super) fn new(total: Arc<AtomicUsize>) -> Self {
        Self { bytes: VecDeque::new(), is_cut: false, total }
    }

    /// Appends output, and drops the oldest beyond the bounds.
    pub(super) fn keep(&mut self, data: &[u8]) {
        let before = self.bytes.len();
        let others = self.total.load(Ordering::Relaxed).saturating_sub(before);
        let most = TOTAL.saturating_sub(others).clamp(LEAST, MOST);
        let data_kept = &data[data.len().saturating_sub(most)..];
        let surplus = (before + data_kept.len()).saturating_sub(most).min(before);
        self.is_cut |= surplus > 0 || data_kept.len() < data.len();
        self.bytes.drain(..surplus);
        self.reserve(data_kept.len());
        self.bytes.extend(data_kept);
        self.total.fetch_add(self.bytes.len(), Ordering::Relaxed);
        self.total.fetch_sub(before, Ordering::Relaxed);
    }

    /// Makes room for `more` bytes. The buffer doubles, but never beyond [`MOST`].
    fn reserve(&mut self, more: usize) {
        let wanted = self.bytes.len() + more;
        if wanted > self.bytes.capacity() {
            let capacity = (2 * self.bytes.capacity()).clamp(wanted, MOST.max(wanted));
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
    }

    /// Returns the kept output. Output that lost its beginning starts with a line. A start within a
    /// character or an escape sequence would damage the screen.
    pub(super) fn bytes(&self) -> Bytes {
        let line = self.bytes.iter().take(LINE).position(|byte| *byte == b'\n');
        let start = line.filter(|_| self.is_cut).map_or(0, |at| at + 1);
        self.bytes.iter().skip(start).copied().collect()
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_output_is_kept_from_the_begin_of_a_line() {
        let mut replay = Replay::new(Arc::default());
        replay.keep(b"partial");
        assert_eq!(replay.bytes(), "partial");
        replay.keep(&[b'x'; MOST - 4]);
        replay.keep(b"\nlast");
        assert_eq!(replay.bytes.len(), MOST);
        let mut longer = Replay::new(Arc::default());
        longer.keep(&[&[b'x'; MOST][..], b"\nlast"].concat());
        assert_eq!(longer.bytes().len(), MOST, "no line begins in the first bytes");
        longer.keep(&[&b"a\n"[..], &[b'y'; MOST - 2]].concat());
        assert_eq!(longer.bytes(), vec![b'y'; MOST - 2]);
        assert!(longer.bytes.capacity() <= MOST, "{}", longer.bytes.capacity());
    }

    #[test]
    fn all_replays_together_stay_within_their_bound() {
        let total = Arc::new(AtomicUsize::default());
        let full = TOTAL / MOST;
        let mut replays: Vec<_> = (0..full + 8).map(|_| Replay::new(Arc::clone(&total))).collect();
        for replay in &mut replays {
            for _ in 0..2 * MOST / 1000 {
                replay.keep(&[b'x'; 1000]);
            }
        }
        assert_eq!(replays[0].bytes.len(), MOST);
        assert_eq!(replays[full + 7].bytes.len(), LEAST);
        assert!(total.load(Ordering::Relaxed) <= TOTAL + 8 * LEAST);
        drop(replays);
        assert_eq!(total.load(Ordering::Relaxed), 0);
    }
}
