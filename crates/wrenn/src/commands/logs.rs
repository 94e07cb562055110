//! `wrenn capsule logs`: the log of a capsule, a line for each entry. A followed log survives cut
//! connections and restarts of the platform: it goes on after the last entry that came.

use super::capsule::path;
use super::follow::{self, Retry};
use super::template::printable;
use super::{query, sse};
use crate::cli;
use crate::client::Client;
use crate::output::{self, Form};
use anyhow::Context;
use api::{LogEntry, LogPage};
use futures::StreamExt;
use std::fmt::Write;
use std::time::SystemTime;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Most entries that one request returns.
const PAGE: usize = 1000;
/// Number of the newest entries that are shown by default.
const LINES: u32 = 1000;

/// Prints the log of a capsule, as text or as one line of JSON for each entry.
pub(super) async fn logs(wanted: &cli::Logs, client: &Client, form: Form) -> anyhow::Result<()> {
    let log = Log { client, path: path(&wanted.capsule, "/logs")?, wanted, form };
    match log.print().await {
        Err(error) if output::reader_left(&error) => Ok(()),
        printed => printed,
    }
}

/// Log of a capsule, and the wanted part of it.
struct Log<'a> {
    client: &'a Client,
    path: String,
    wanted: &'a cli::Logs,
    form: Form,
}

/// Position of a follower.
struct Position {
    /// Cursor of the last entry that came.
    cursor: Option<String>,
    retry: Retry,
}

impl Log<'_> {
    async fn print(&self) -> anyhow::Result<()> {
        let lines = self.wanted.lines.or(self.wanted.since.is_none().then_some(LINES));
        let cursor = match lines {
            Some(lines) => self.newest(usize::try_from(lines)?).await?,
            None => self.all().await?,
        };
        if self.wanted.follow { self.follow(cursor).await } else { Ok(()) }
    }

    /// Prints the newest entries. Returns the cursor of the last one.
    async fn newest(&self, lines: usize) -> anyhow::Result<Option<String>> {
        // At least one entry is read, since its cursor is needed.
        let wanted = lines.max(1);
        let (mut entries, mut cursor): (Vec<LogEntry>, Option<String>) = (Vec::new(), None);
        while entries.len() < wanted {
            let left = wanted - entries.len();
            let page = self.page(cursor.as_ref(), left.min(PAGE), true).await?;
            entries.extend(page.items);
            cursor = page.next;
            if !page.more || cursor.is_none() {
                break;
            }
        }
        entries.reverse();
        self.show(&entries[entries.len().saturating_sub(lines)..])?;
        Ok(entries.last().map(|entry| entry.cursor.clone()))
    }

    /// Prints all entries, up to the newest one at the beginning. Returns the cursor of the last one.
    async fn all(&self) -> anyhow::Result<Option<String>> {
        // A guest may write faster than this command reads, so the end is found first.
        let newest = self.page(None, 1, true).await?;
        let end = newest.items.first().map(|entry| entry.at);
        let mut cursor: Option<String> = None;
        loop {
            let page = self.page(cursor.as_ref(), PAGE, false).await?;
            self.show(&page.items)?;
            let is_past = page.items.last().is_some_and(|entry| Some(entry.at) > end);
            cursor = page.next.or(cursor);
            if is_past || !page.more {
                return Ok(cursor);
            }
        }
    }

    /// Returns the query fields of every request.
    fn fields(&self) -> Vec<(&'static str, Option<String>)> {
        let time = |at: Option<OffsetDateTime>| at.and_then(|at| at.format(&Rfc3339).ok());
        let sources = Some(self.wanted.source.join(",")).filter(|sources| !sources.is_empty());
        vec![
            ("since", time(self.wanted.since)),
            ("until", time(self.wanted.until)),
            ("source", sources),
            ("search", self.wanted.search.clone()),
        ]
    }

    async fn page(
        &self,
        cursor: Option<&String>,
        limit: usize,
        backward: bool,
    ) -> anyhow::Result<LogPage> {
        let mut fields = self.fields();
        fields.push(("limit", Some(limit.to_string())));
        fields.push(("cursor", cursor.cloned()));
        fields.push(("backward", backward.then(|| "true".to_owned())));
        self.client.get(&query(&self.path, &fields)).await
    }

    fn show(&self, entries: &[LogEntry]) -> anyhow::Result<()> {
        let mut out = String::new();
        for entry in entries {
            writeln!(out, "{}", line(entry, self.form)?)?;
        }
        if out.is_empty() { Ok(()) } else { output::raw(out.as_bytes()) }
    }

    /// Prints new entries until the capsule has ended.
    async fn follow(&self, cursor: Option<String>) -> anyhow::Result<()> {
        let mut position = Position { cursor, retry: Retry::new() };
        loop {
            position.retry.wait().await;
            if self.stream(&mut position).await? {
                return Ok(());
            }
        }
    }

    /// Prints the entries of one connection. Returns `false` when the connection broke, and `true`
    /// after the last entry of a capsule that has ended.
    async fn stream(&self, position: &mut Position) -> anyhow::Result<bool> {
        let mut fields = self.fields();
        fields.push(("follow", Some("true".to_owned())));
        let path = query(&self.path, &fields);
        let answer = match follow::open(self.client, &path, position.cursor.as_deref()).await {
            Ok(answer) => answer,
            Err(error) if position.retry.can_mend(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        position.retry.answered();
        let mut bytes = answer.bytes_stream().boxed();
        let (mut reader, mut events) = (sse::Reader::default(), Vec::new());
        while let Ok(Some(Ok(part))) = tokio::time::timeout(follow::QUIET, bytes.next()).await {
            position.retry.answered();
            reader.feed(&part, &mut events)?;
            if self.take(&std::mem::take(&mut events), position)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Prints entries of events. Reports whether the last one has come. Events of unknown names are
    /// left out.
    fn take(&self, events: &[sse::Event], position: &mut Position) -> anyhow::Result<bool> {
        let what = "the platform sent an event that is no log entry";
        let mut entries: Vec<LogEntry> = Vec::new();
        let mut ended = false;
        for event in events {
            match event.name.as_str() {
                "" | "message" => {
                    entries.push(serde_json::from_str(&event.data).context(what)?);
                }
                "end" => ended = true,
                _ => {}
            }
        }
        if let Some(last) = entries.last() {
            position.cursor = Some(last.cursor.clone());
            position.retry.progressed();
        }
        self.show(&entries)?;
        Ok(ended)
    }
}

/// Formats an entry as one line. The text comes from a guest, so a terminal must not obey it.
fn line(entry: &LogEntry, form: Form) -> anyhow::Result<String> {
    if form == Form::Json {
        return Ok(inert(&serde_json::to_string(entry)?));
    }
    let at = SystemTime::from(entry.at.max(OffsetDateTime::UNIX_EPOCH));
    let at = humantime::format_rfc3339_millis(at);
    let is_process = entry.source == "process" && !entry.stream.is_empty();
    let label = if is_process { &entry.stream } else { &entry.source };
    Ok(format!("{at} {:<9} {}", printable(label), printable(&entry.text)))
}

/// Escapes the characters of a JSON text that a terminal would obey. JSON itself escapes only those
/// of ASCII.
fn inert(json: &str) -> String {
    let obeyed = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if obeyed(c) {
            // Writing to a string never fails.
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn entry(stream: &str, text: &str) -> LogEntry {
        LogEntry {
            at: OffsetDateTime::UNIX_EPOCH + Duration::from_millis(1500),
            source: "process".to_owned(),
            stream: stream.to_owned(),
            text: text.to_owned(),
            pid: Some(7),
            command: "sh".to_owned(),
            cursor: "1".to_owned(),
        }
    }

    #[test]
    fn line_has_time_stream_and_text_without_escapes() {
        let shown = |stream, text| line(&entry(stream, text), Form::Human).unwrap();
        assert_eq!(shown("stderr", "hi"), "1970-01-01T00:00:01.500Z stderr    hi");
        assert_eq!(shown("", "\u{1b}[31mred\u{1b}]0;x\u{7}"), {
            "1970-01-01T00:00:01.500Z process   red\\x1b]0;x\\u{7}"
        });
        assert_eq!(shown("", "10%\r20%\n"), "1970-01-01T00:00:01.500Z process   20%");
    }

    #[test]
    fn json_of_an_entry_is_one_inert_line_with_all_of_the_text() {
        let text = "a\u{1b}[2J\n\u{9b}1m\u{202e}b";
        let shown = line(&entry("stdout", text), Form::Json).unwrap();
        assert!(shown.is_ascii() && !shown.chars().any(char::is_control), "{shown}");
        let read: LogEntry = serde_json::from_str(&shown).unwrap();
        assert_eq!(read, entry("stdout", text));
    }
}
