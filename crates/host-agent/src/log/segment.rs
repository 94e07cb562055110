//! Segments: files of blocks. The name of a closed segment has its span.
//!
//! | name | segment |
//! |---|---|
//! | `NUMBER.open` | is written, or was when its agent was killed |
//! | `SPAN.log` | is closed |
//! | `SPAN.sent` | is closed, and the store has it |
//! | `SPAN.gone` | was removed here, and has to be removed from the store |

use super::block::Head;
use super::entry::{Entry, Position};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Most bytes of a segment, unless one batch alone is larger.
pub(crate) const SEGMENT_MAX: u64 = 4 << 20;

/// Bytes that a closed segment counts at least. A capsule that pauses often makes small segments,
/// so this bounds their number.
const COST_MIN: u64 = 64 << 10;

/// Numbers and times of the first and the last entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    pub first: u64,
    pub last: u64,
    /// Least and greatest time, in milliseconds since 1970.
    pub min_ms: u64,
    pub max_ms: u64,
}

impl Span {
    /// Returns the span of one entry.
    pub(super) fn of(entry: &Entry) -> Self {
        let Entry { number, at_ms, .. } = *entry;
        Self { first: number, last: number, min_ms: at_ms, max_ms: at_ms }
    }

    /// Returns the span of both.
    pub(super) fn joined(&self, other: &Self) -> Self {
        Self {
            first: self.first.min(other.first),
            last: self.last.max(other.last),
            min_ms: self.min_ms.min(other.min_ms),
            max_ms: self.max_ms.max(other.max_ms),
        }
    }

    /// Returns the span as a part of a file's name.
    pub(crate) fn name(&self) -> String {
        let Self { first, last, min_ms, max_ms } = self;
        format!("{first:016x}-{last:016x}-{min_ms:012x}-{max_ms:012x}")
    }

    /// Reads [`Self::name`].
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let mut numbers = name.split('-').map(|text| u64::from_str_radix(text, 16));
        let mut next = || numbers.next()?.ok();
        let span = Self { first: next()?, last: next()?, min_ms: next()?, max_ms: next()? };
        // A name of another form would not be found again.
        (span.name() == name).then_some(span)
    }
}

/// State of a segment's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    Open(u64),
    Closed {
        span: Span,
        sent: bool,
    },
    /// The file is empty. Its name outlives an agent that is killed before the store lost the
    /// segment.
    Gone(Span),
}

/// File of a segment in a log's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub state: State,
    pub path: PathBuf,
    pub bytes: u64,
}

impl Found {
    /// Returns the number of the first entry.
    fn first(&self) -> u64 {
        match &self.state {
            State::Open(first) => *first,
            State::Closed { span, .. } | State::Gone(span) => span.first,
        }
    }
}

/// Returns the bytes that a closed segment counts.
pub(super) fn cost(bytes: u64) -> u64 {
    bytes.max(COST_MIN)
}

/// Returns the name of an open segment's file.
pub(super) fn open_name(first: u64) -> String {
    format!("{first:016x}.open")
}

/// Returns the name of a closed segment's file.
pub(super) fn closed_name(span: &Span, sent: bool) -> String {
    format!("{}.{}", span.name(), if sent { "sent" } else { "log" })
}

/// Returns the name that a segment leaves until the store has lost it.
pub(super) fn gone_name(span: &Span) -> String {
    format!("{}.gone", span.name())
}

fn parse(name: &str) -> Option<State> {
    let (stem, kind) = name.rsplit_once('.')?;
    match kind {
        "open" => Some(State::Open(u64::from_str_radix(stem, 16).ok()?)),
        "log" => Some(State::Closed { span: Span::parse(stem)?, sent: false }),
        "sent" => Some(State::Closed { span: Span::parse(stem)?, sent: true }),
        "gone" => Some(State::Gone(Span::parse(stem)?)),
        _ => None,
    }
}

/// Lists the segments of a log's folder, the oldest first. A missing folder has none.
pub(super) fn list(dir: &Path) -> io::Result<Vec<Found>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry?;
        let Some(state) = entry.file_name().to_str().and_then(parse) else { continue };
        // A file that was renamed meanwhile is found by the next listing.
        let Ok(about) = entry.metadata() else { continue };
        all.push(Found { state, path: entry.path(), bytes: about.len() });
    }
    // Names of segments that begin with the same number are in the order of their ends.
    all.sort_by(|a, b| a.first().cmp(&b.first()).then_with(|| a.path.cmp(&b.path)));
    Ok(all)
}

/// Blocks of a segment that belong to whole batches.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Heads of the blocks, with their places in the segment.
    pub blocks: Vec<(usize, Head)>,
    /// Bytes of the whole batches.
    pub length: usize,
}

impl Scan {
    /// Finds the whole batches of a segment. Everything after the first damaged or missing block
    /// does not count.
    pub(super) fn of(bytes: &[u8]) -> Self {
        let (mut scan, mut at, mut whole) = (Self::default(), 0, 0);
        while let Some(head) = bytes.get(at..).and_then(Head::read) {
            let start = at;
            at += head.length();
            let ends = head.left == 0;
            scan.blocks.push((start, head));
            if ends {
                (scan.length, whole) = (at, scan.blocks.len());
            }
        }
        scan.blocks.truncate(whole);
        scan
    }

    /// Returns the span of all blocks; `None` without blocks.
    pub(super) fn span(&self) -> Option<Span> {
        let spans = self.blocks.iter().map(|(_, head)| head.span.clone());
        spans.reduce(|all, span| all.joined(&span))
    }
}

/// Returns the position in the last block of a segment.
pub(super) fn last_position(bytes: &[u8]) -> Option<Position> {
    let scan = Scan::of(bytes);
    let (at, head) = scan.blocks.last()?;
    Some(head.lines(&bytes[*at..]).ok()?.position)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_segments_are_read_back_and_other_names_are_ignored() {
        let span = Span { first: 1, last: u64::MAX, min_ms: 3, max_ms: 1 << 41 };
        for sent in [false, true] {
            let name = closed_name(&span, sent);
            assert_eq!(parse(&name), Some(State::Closed { span: span.clone(), sent }));
        }
        assert_eq!(parse(&gone_name(&span)), Some(State::Gone(span)));
        assert_eq!(parse(&open_name(77)), Some(State::Open(77)));
        for other in ["", "x.log", "1-2-3.log", "1-2-3-4.log", "1.closed", "+1.opened", "a"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
