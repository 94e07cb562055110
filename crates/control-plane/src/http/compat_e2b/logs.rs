//! Logs of sandboxes, in the shapes of E2B's two APIs. E2B's clients print messages on terminals, so
//! the control characters of a guest are escaped here.

use super::request::SandboxRequest;
use crate::db::build_logs::Level;
use crate::error::{Error, Result};
use crate::http::extract::Query;
use crate::logs::{self, LogEntry, PAGE};
use axum::Json;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use time::OffsetDateTime;

/// Most reads of the host for one answer.
const READS: usize = 4;
/// Longest text to look for, in bytes.
const SEARCH_MAX: usize = 256;

#[derive(Default, Deserialize)]
pub(super) struct AskedV1 {
    /// Time of the first line, in milliseconds since 1970.
    start: Option<i64>,
    limit: Option<u32>,
}

#[derive(Default, Deserialize)]
pub(super) struct Asked {
    /// First or, backward, last time, in milliseconds since 1970.
    cursor: Option<i64>,
    limit: Option<u32>,
    direction: Option<String>,
    level: Option<String>,
    search: Option<String>,
}

/// Lines in the first API's shape. Both lists have the same lines.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LogsV1 {
    logs: Vec<Line>,
    log_entries: Vec<Logged>,
}

#[derive(Serialize)]
struct Line {
    #[serde(with = "time::serde::rfc3339")]
    timestamp: OffsetDateTime,
    /// JSON object of `level`, `logger` and `message`, as E2B's command line reads it.
    line: String,
}

/// Lines in the second API's shape.
#[derive(Serialize)]
pub(super) struct Logs {
    logs: Vec<Logged>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Logged {
    #[serde(with = "time::serde::rfc3339")]
    timestamp: OffsetDateTime,
    message: String,
    level: Level,
    fields: BTreeMap<&'static str, String>,
}

impl Logged {
    fn new(entry: LogEntry) -> Self {
        let level = level(&entry);
        let mut fields = BTreeMap::from([("logger", inert(&entry.source))]);
        if !entry.stream.is_empty() {
            fields.insert("stream", inert(&entry.stream));
        }
        if let Some(pid) = entry.pid {
            fields.insert("pid", pid.to_string());
        }
        Self { timestamp: entry.at, message: inert(&entry.text), level, fields }
    }

    fn to_line(&self) -> Line {
        let mut line = json!({ "level": self.level, "message": self.message });
        for (name, value) in &self.fields {
            line[*name] = value.as_str().into();
        }
        Line { timestamp: self.timestamp, line: line.to_string() }
    }
}

/// Answers with the lines from a time on, the oldest first.
pub(super) async fn v1(
    request: SandboxRequest,
    Query(asked): Query<AskedV1>,
) -> Result<Json<LogsV1>> {
    let query = logs::Query { since_ms: milliseconds(asked.start), ..logs::Query::default() };
    let entries = collect(&request, query, Level::Debug, asked.limit).await?;
    let log_entries: Vec<Logged> = entries.into_iter().map(Logged::new).collect();
    let logs = log_entries.iter().map(Logged::to_line).collect();
    Ok(Json(LogsV1 { logs, log_entries }))
}

/// Answers with the lines from a time on or, by default, with the lines before it, the newest first.
pub(super) async fn v2(request: SandboxRequest, Query(asked): Query<Asked>) -> Result<Json<Logs>> {
    let (query, least) = read(&asked)?;
    let entries = collect(&request, query, least, asked.limit).await?;
    Ok(Json(Logs { logs: entries.into_iter().map(Logged::new).collect() }))
}

/// Checks the parameters of the second API. Returns the lowest level, too.
fn read(asked: &Asked) -> Result<(logs::Query, Level)> {
    let backward = match asked.direction.as_deref() {
        None | Some("backward") => true,
        Some("forward") => false,
        Some(_) => return Err(Error::invalid("direction", "must be `forward` or `backward`")),
    };
    let least: Level = asked.level.as_deref().map_or(Ok(Level::Debug), str::parse)?;
    let search = asked.search.clone().unwrap_or_default();
    if search.len() > SEARCH_MAX {
        return Err(Error::invalid("search", format!("must be at most {SEARCH_MAX} bytes")));
    }
    let at = milliseconds(asked.cursor);
    let (since_ms, until_ms) = if backward { (None, at) } else { (at, None) };
    Ok((logs::Query { since_ms, until_ms, search, backward, ..logs::Query::default() }, least))
}

/// Converts a time. Times before 1970 count as 1970.
fn milliseconds(at: Option<i64>) -> Option<u64> {
    at.map(|at| u64::try_from(at).unwrap_or(0))
}

/// Reads up to `limit` entries of a level or above, in the order of the read.
async fn collect(
    request: &SandboxRequest,
    mut query: logs::Query,
    least: Level,
    limit: Option<u32>,
) -> Result<Vec<LogEntry>> {
    let id = request.id()?;
    let limit = limit.unwrap_or(PAGE).clamp(1, PAGE);
    let mut found: Vec<LogEntry> = Vec::new();
    for _ in 0..READS {
        query.limit = limit.saturating_sub(u32::try_from(found.len()).unwrap_or(limit));
        if query.limit == 0 {
            break;
        }
        let page = logs::read(&request.app, request.caller, id, &query).await?;
        found.extend(page.entries.into_iter().filter(|entry| level(entry) >= least));
        if !page.more || page.next.is_none() {
            break;
        }
        query.cursor = page.next;
    }
    Ok(found)
}

/// Returns the level of an entry. A guest tells no levels, so only the stream counts.
fn level(entry: &LogEntry) -> Level {
    match entry.stream.as_str() {
        "stderr" => Level::Warn,
        _ => Level::Info,
    }
}

/// Escapes the characters of a guest's text that a terminal would obey. Pure.
fn inert(text: &str) -> String {
    let turns = |c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut out = String::with_capacity(text.len());
    for c in text.trim_end_matches(['\r', '\n']).chars() {
        if (c.is_control() && c != '\t') || turns(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(stream: &str, text: &str) -> LogEntry {
        LogEntry {
            at: OffsetDateTime::UNIX_EPOCH,
            source: "process".to_owned(),
            stream: stream.to_owned(),
            text: text.to_owned(),
            pid: Some(7),
            command: "sh".to_owned(),
            cursor: "1".to_owned(),
        }
    }

    #[test]
    fn line_is_json_that_the_command_line_of_e2b_reads() {
        let line = Logged::new(entry("stderr", "a \"b\"\r\n")).to_line();
        let read: serde_json::Value = serde_json::from_str(&line.line).unwrap();
        let fields = [("level", "warn"), ("logger", "process"), ("stream", "stderr"), ("pid", "7")];
        assert!(fields.iter().all(|(name, value)| read[name] == *value), "{read}");
        assert_eq!(read["message"], "a \"b\"");
        let shown = serde_json::to_value(&line).unwrap();
        assert_eq!(shown["timestamp"], "1970-01-01T00:00:00Z");
    }

    #[test]
    fn control_characters_of_a_guest_are_escaped() {
        assert_eq!(inert("\u{1b}[2Jx\ry\u{9b}1m"), "\\u{1b}[2Jx\\u{d}y\\u{9b}1m");
        assert_eq!(inert("a\tü\u{202e}b\n"), "a\tü\\u{202e}b");
    }

    #[test]
    fn entries_of_standard_error_are_warnings() {
        assert_eq!(level(&entry("stderr", "")), Level::Warn);
        assert_eq!(level(&entry("stdout", "")), Level::Info);
        assert_eq!(level(&entry("", "")), Level::Info);
    }

    #[test]
    fn parameters_of_the_second_api_become_a_query() {
        let (query, least) = read(&Asked { cursor: Some(-5), ..Asked::default() }).unwrap();
        assert_eq!((query.backward, query.until_ms, query.since_ms), (true, Some(0), None));
        assert_eq!(least, Level::Debug);
        let text = |text: &str| Some(text.to_owned());
        let forward = Asked { cursor: Some(7), direction: text("forward"), ..Asked::default() };
        let (query, _) = read(&forward).unwrap();
        assert_eq!((query.backward, query.until_ms, query.since_ms), (false, None, Some(7)));
        for wrong in [
            Asked { direction: text("up"), ..Asked::default() },
            Asked { level: text("loud"), ..Asked::default() },
            Asked { search: Some("x".repeat(257)), ..Asked::default() },
        ] {
            assert!(read(&wrong).is_err());
        }
    }
}
