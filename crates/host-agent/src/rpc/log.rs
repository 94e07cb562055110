//! Conversions between the messages about logs and the agent's own types. All are pure.

use crate::capsule::Error;
use crate::log::{Entry, Page, Query, Source};
use protocol::host;

/// Longest text to search for, in bytes.
const SEARCH_MAX: usize = 256;
/// Most entries of an answer.
const LIMIT_MAX: u32 = 1000;
/// Most sources of a request.
const SOURCES_MAX: usize = 8;

impl TryFrom<&host::ReadLogRequest> for Query {
    type Error = Error;

    fn try_from(request: &host::ReadLogRequest) -> Result<Self, Error> {
        if request.search.len() > SEARCH_MAX {
            let why = format!("search: must be at most {SEARCH_MAX} bytes");
            return Err(Error::Invalid(why));
        }
        let source = |text: &String| {
            let unknown =
                || Error::Invalid("sources: must be console, lifecycle or process".to_owned());
            Source::parse(text).ok_or_else(unknown)
        };
        let sources = request.sources.iter().take(SOURCES_MAX).map(source);
        let limit = match request.limit {
            0 => LIMIT_MAX,
            given => given.min(LIMIT_MAX),
        };
        Ok(Self {
            since_ms: request.since_ms,
            until_ms: request.until_ms,
            sources: sources.collect::<Result<_, _>>()?,
            search: request.search.clone(),
            cursor: parse_cursor(&request.cursor)?,
            limit: usize::try_from(limit).unwrap_or_default(),
            backward: request.backward,
        })
    }
}

/// Reads a cursor; `None` for the empty one.
fn parse_cursor(text: &str) -> Result<Option<u64>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = |_| Error::Invalid("cursor: must come from an earlier answer".to_owned());
    u64::from_str_radix(text, 16).map(Some).map_err(wrong)
}

fn cursor(number: u64) -> String {
    format!("{number:016x}")
}

impl From<Page> for host::ReadLogResponse {
    fn from(page: Page) -> Self {
        Self {
            entries: page.entries.into_iter().map(From::from).collect(),
            cursor: page.cursor.map(cursor).unwrap_or_default(),
            dropped: page.dropped,
            more: page.more,
            ..Default::default()
        }
    }
}

impl From<Entry> for host::LogEntry {
    fn from(entry: Entry) -> Self {
        Self {
            at_ms: entry.at_ms,
            source: entry.source.as_str().to_owned(),
            stream: entry.stream,
            text: entry.text.into_bytes(),
            cursor: cursor(entry.number),
            pid: entry.pid,
            command: entry.command,
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(request: host::ReadLogRequest) -> Result<Query, String> {
        Query::try_from(&request).map_err(|error| error.to_string())
    }

    #[test]
    fn cursor_of_an_entry_is_read_back() {
        let entry =
            Entry { number: 77, ..Entry::new(Source::Lifecycle, "pause", 5, "x".to_owned()) };
        let page = Page { entries: vec![entry], cursor: Some(u64::MAX), ..Page::default() };
        let answer = host::ReadLogResponse::from(page);
        assert_eq!(parse_cursor(&answer.cursor).unwrap(), Some(u64::MAX));
        assert_eq!(parse_cursor(&answer.entries[0].cursor).unwrap(), Some(77));
        assert_eq!(parse_cursor("").unwrap(), None);
    }

    #[test]
    fn wrong_field_of_a_read_is_named() {
        let good = host::ReadLogRequest::default();
        assert_eq!(query(good.clone()).unwrap().limit, 1000);
        let source = host::ReadLogRequest { sources: vec!["stdout".to_owned()], ..good.clone() };
        assert!(query(source).unwrap_err().starts_with("sources: "));
        let cursor = host::ReadLogRequest { cursor: "x".to_owned(), ..good.clone() };
        assert!(query(cursor).unwrap_err().starts_with("cursor: "));
        let search = host::ReadLogRequest { search: "x".repeat(257), ..good };
        assert!(query(search).unwrap_err().starts_with("search: "));
    }
}
