//! Lines of a guest's output: where they are cut, and how many of them one read may add.

use super::entry::{Entry, Source};
use protocol::log::LINE_MAX;

/// Bytes that a line costs beside its text and command.
const LINE_COST: usize = 64;

/// Cuts output into lines of bounded length. A carriage return before a line's end is a part of the
/// end.
fn cut(output: &[u8], mut each: impl FnMut(&[u8])) {
    for line in output.split_inclusive(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let mut line = line.strip_suffix(b"\r").unwrap_or(line);
        while line.len() > LINE_MAX {
            let (part, rest) = line.split_at(boundary(line));
            each(part);
            line = rest;
        }
        each(line);
    }
}

/// Returns a place near [`LINE_MAX`] that is not inside of a character.
fn boundary(line: &[u8]) -> usize {
    let begins = |at: &usize| line[*at] & 0xc0 != 0x80;
    (LINE_MAX - 3..=LINE_MAX).rev().find(begins).unwrap_or(LINE_MAX)
}

/// Entries of one read of a guest's output, up to a number of bytes. The rest is counted.
pub(crate) struct Budget {
    left: usize,
    dropped: u64,
    entries: Vec<Entry>,
}

impl Budget {
    pub(crate) fn new(most: usize) -> Self {
        Self { left: most, dropped: 0, entries: Vec::new() }
    }

    /// Adds output as lines like `like`, whose text is replaced. Bytes that are no UTF-8 are
    /// replaced too.
    pub(crate) fn add(&mut self, like: &Entry, output: &[u8]) {
        cut(output, |line| {
            let cost = line.len() + like.command.len() + LINE_COST;
            // Once a line was dropped, later lines are dropped too, so that none seems to follow.
            if self.dropped > 0 || self.left < cost {
                self.dropped = self.dropped.saturating_add(line.len() as u64 + 1);
                return;
            }
            self.left -= cost;
            let text = String::from_utf8_lossy(line).into_owned();
            self.entries.push(Entry { text, ..like.clone() });
        });
    }

    /// Adds a mark of the guest in place of dropped bytes, for a line like `like`.
    pub(crate) fn add_mark(&mut self, like: &Entry, bytes: u64) {
        let cost = like.command.len() + LINE_COST;
        if self.dropped > 0 || self.left < cost {
            self.dropped = self.dropped.saturating_add(bytes);
            return;
        }
        self.left -= cost;
        let Entry { text, dropped, .. } = Entry::dropped(like.source, like.at_ms, bytes);
        self.entries.push(Entry { text, dropped, ..like.clone() });
    }

    /// Adds an entry whose size the guest does not choose.
    pub(crate) fn push(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    /// Returns the entries, and an entry for dropped bytes if there are any.
    pub(crate) fn finish(mut self, source: Source, at_ms: u64) -> Vec<Entry> {
        if self.dropped > 0 {
            self.entries.push(Entry::dropped(source, at_ms, self.dropped));
        }
        self.entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(output: &[u8]) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        cut(output, |line| all.push(line.to_vec()));
        all
    }

    #[test]
    fn output_is_cut_at_line_ends_and_at_the_longest_line() {
        assert_eq!(lines(b"a\r\n\nb\rc"), [&b"a"[..], b"", b"b\rc"]);
        assert!(lines(b"").is_empty());
        let long = lines(&[b'x'; 2 * LINE_MAX + 1]);
        assert_eq!(long.iter().map(Vec::len).collect::<Vec<_>>(), [LINE_MAX, LINE_MAX, 1]);
        // A character of three bytes is not cut in two.
        let text = "€".repeat(LINE_MAX);
        for part in lines(text.as_bytes()) {
            assert!(part.len() <= LINE_MAX && String::from_utf8(part).is_ok());
        }
        let hostile = lines(&[0x80; LINE_MAX + 2]);
        assert_eq!(hostile.iter().map(Vec::len).collect::<Vec<_>>(), [LINE_MAX, 2]);
    }

    #[test]
    fn hostile_bytes_become_text_and_stay_data() {
        let like = Entry::new(Source::Console, "", 5, String::new());
        let mut budget = Budget::new(1 << 20);
        budget.add(&like, b"\x1b]0;title\x07\xff\0\n");
        let entries = budget.finish(Source::Console, 5);
        assert_eq!(entries[0].text, "\u{1b}]0;title\u{7}\u{fffd}\0");
        let json = serde_json::to_string(&entries[0]).unwrap();
        assert!(!json.chars().any(char::is_control), "{json}");
    }

    #[test]
    fn lines_beyond_the_budget_are_counted_in_one_entry() {
        let like = Entry::new(Source::Process, "stdout", 5, String::new());
        let mut budget = Budget::new(3 * (LINE_COST + 4));
        budget.add(&like, b"0123\n0123\n0123\n0123\n");
        budget.add(&like, b"\n");
        let entries = budget.finish(Source::Process, 9);
        assert_eq!(entries.len(), 4);
        assert_eq!((entries[3].stream.as_str(), entries[3].dropped), ("dropped", 6));
        // Marks take room too.
        let mut budget = Budget::new(LINE_COST);
        for _ in 0..3 {
            budget.add_mark(&like, 10);
        }
        let dropped: Vec<u64> =
            budget.finish(Source::Process, 9).iter().map(|entry| entry.dropped).collect();
        assert_eq!(dropped, [10, 20]);
        // Empty lines take room too.
        let mut budget = Budget::new(1 << 20);
        budget.add(&like, &[b'\n'; 1 << 20]);
        assert!(budget.finish(Source::Process, 9).len() <= (1 << 20) / LINE_COST + 1);
    }
}
