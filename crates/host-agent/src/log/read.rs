//! Reads of a log: which segments and blocks a query needs, and which entries it gets. A read
//! decodes a bounded number of bytes, and returns the position of the next read.

use super::entry::{Entry, Source};
use super::segment::{self, Scan, Span, State};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most entries of a page.
const ENTRIES_MAX: usize = 1000;
/// Most bytes of a page's texts.
const TEXT_MAX: usize = 1 << 20;
/// Most bytes of lines that a read takes apart.
const WORK_MAX: usize = 16 << 20;

/// Query for entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Query {
    /// Times of the first and the last entry, in milliseconds since 1970.
    pub since_ms: Option<u64>,
    pub until_ms: Option<u64>,
    /// Sources; none stands for all.
    pub sources: Vec<Source>,
    /// Text that each entry contains.
    pub search: String,
    /// Number after which or, backward, before which the entries are.
    pub cursor: Option<u64>,
    /// Most entries, at most [`ENTRIES_MAX`].
    pub limit: usize,
    /// Set for the newest entry first.
    pub backward: bool,
}

/// Answer to a query.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Page {
    pub entries: Vec<Entry>,
    /// Cursor of the next query; `None` if there is nothing to go on from.
    pub cursor: Option<u64>,
    /// Bytes that were dropped among the entries that were looked at.
    pub dropped: u64,
    /// Set if the read ended at a limit.
    pub more: bool,
}

/// A segment that may have entries of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub span: Span,
    pub location: Location,
}

/// Location of a segment's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Location {
    /// Bytes that were read already.
    Bytes(Arc<Vec<u8>>),
    /// A file of this host.
    File(PathBuf),
    /// The store.
    Store,
}

/// Lists the segments of a log's folder, the oldest first. May block.
///
/// # Errors
/// Fails when the folder cannot be read.
pub(crate) fn local(dir: &Path) -> io::Result<Vec<Part>> {
    let mut parts = Vec::new();
    for found in segment::list(dir)? {
        match found.state {
            State::Closed { span, .. } => {
                parts.push(Part { span, location: Location::File(found.path) });
            }
            State::Gone(_) => {}
            State::Open(_) => {
                let bytes = fs::read(&found.path)?;
                if let Some(span) = Scan::of(&bytes).span() {
                    parts.push(Part { span, location: Location::Bytes(Arc::new(bytes)) });
                }
            }
        }
    }
    Ok(parts)
}

/// A read under way.
pub(crate) struct Reading {
    query: Query,
    page: Page,
    /// Bytes of lines that were taken apart.
    work: usize,
    /// Bytes of texts in the page.
    text: usize,
}

impl Reading {
    pub(crate) fn new(query: Query) -> Self {
        Self { query, page: Page::default(), work: 0, text: 0 }
    }

    /// Reports whether a span may have entries of the answer.
    pub(crate) fn wants(&self, span: &Span) -> bool {
        let Query { since_ms, until_ms, .. } = self.query;
        self.is_ahead(span)
            && since_ms.is_none_or(|since| span.max_ms >= since)
            && until_ms.is_none_or(|until| span.min_ms <= until)
    }

    /// Reports whether a span goes beyond the entries that were looked at. A segment that was closed
    /// and sent during the read may be there twice.
    fn is_ahead(&self, span: &Span) -> bool {
        let backward = self.query.backward;
        self.page.cursor.or(self.query.cursor).is_none_or(|cursor| match backward {
            true => span.first < cursor,
            false => span.last > cursor,
        })
    }

    /// Reports whether the page has reached a limit, and notes then that there is more.
    pub(crate) fn ends(&mut self) -> bool {
        let full = self.page.entries.len() >= self.query.limit.clamp(1, ENTRIES_MAX)
            || self.text >= TEXT_MAX
            || self.work >= WORK_MAX;
        self.page.more |= full;
        full
    }

    /// Takes the entries of a segment. May block for a moment.
    ///
    /// # Errors
    /// Fails when an intact block has something else than lines of a log.
    pub(crate) fn scan(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut blocks = Scan::of(bytes).blocks;
        if self.query.backward {
            blocks.reverse();
        }
        for (at, head) in blocks {
            if !self.wants(&head.span) {
                continue;
            }
            if self.ends() {
                return Ok(());
            }
            self.work += head.raw;
            let mut entries = head.lines(&bytes[at..])?.entries;
            if self.query.backward {
                entries.reverse();
            }
            for entry in entries {
                if self.is_ahead(&Span::of(&entry)) && !self.take(entry) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Looks at an entry. Returns false at a limit; the entry is then left to the next read.
    fn take(&mut self, entry: Entry) -> bool {
        let full = self.page.entries.len() >= self.query.limit.clamp(1, ENTRIES_MAX);
        if full || self.text >= TEXT_MAX {
            self.page.more = true;
            return false;
        }
        self.page.cursor = Some(entry.number);
        let Query { since_ms, until_ms, sources, search, .. } = &self.query;
        let in_time = since_ms.is_none_or(|since| entry.at_ms >= since)
            && until_ms.is_none_or(|until| entry.at_ms <= until);
        if !in_time || !(sources.is_empty() || sources.contains(&entry.source)) {
            return true;
        }
        self.page.dropped = self.page.dropped.saturating_add(entry.dropped);
        if entry.text.contains(search.as_str()) {
            self.text += entry.text.len();
            self.page.entries.push(entry);
        }
        true
    }

    /// Ends the read. A read forward can go on from the last entry that it looked at. A read
    /// backward that met no limit has nothing to go on to.
    pub(crate) fn finish(self) -> Page {
        let mut page = self.page;
        page.cursor = match (self.query.backward, page.more) {
            (true, false) => None,
            (true, true) | (false, _) => page.cursor.or(self.query.cursor),
        };
        page
    }
}

/// Returns a page of the segments in a log's folder. May block.
#[cfg(test)]
pub(super) fn page(dir: &Path, query: Query) -> io::Result<Page> {
    let mut parts = local(dir)?;
    if query.backward {
        parts.reverse();
    }
    let mut reading = Reading::new(query);
    for part in parts {
        if !reading.wants(&part.span) {
            continue;
        }
        if reading.ends() {
            break;
        }
        match part.location {
            Location::Bytes(bytes) => reading.scan(&bytes)?,
            Location::File(path) => reading.scan(&fs::read(path)?)?,
            Location::Store => {}
        }
    }
    Ok(reading.finish())
}
