//! Lines of the wire: one JSON object each, in ASCII. Both of E2B's SDKs break on other characters:
//! JavaScript's decodes each network chunk alone, Python's splits lines at U+2028 and U+0085 too.

use crate::kernel::{Failure, Stream};
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value};
use std::io;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Most bytes of text in a line, before its escapes. SDKs take longer than linear time for a line.
pub(crate) const TEXT_MAX: usize = 64 * 1024;

/// A line of an execution's stream.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Line<'a> {
    ExecutionStarted {
        execution_id: &'a str,
        context_id: &'a str,
    },
    NumberOfExecutions {
        execution_count: u64,
    },
    Stdout {
        text: &'a str,
        timestamp: String,
    },
    Stderr {
        text: &'a str,
        timestamp: String,
    },
    Result(Map<String, Value>),
    Error {
        name: &'a str,
        value: &'a str,
        traceback: &'a str,
    },
    /// Output that is missing here. With `lines`, this line stands for so many lines of the log, of
    /// which it tells about how many bytes they had.
    Omitted {
        bytes: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        lines: Option<u64>,
    },
    Keepalive,
    EndOfExecution,
}

impl<'a> Line<'a> {
    /// Makes a line of output, with the current time.
    pub(crate) fn text(stream: Stream, text: &'a str) -> Self {
        let timestamp = now();
        match stream {
            Stream::Stdout => Self::Stdout { text, timestamp },
            Stream::Stderr => Self::Stderr { text, timestamp },
        }
    }

    pub(crate) fn error(failure: &'a Failure) -> Self {
        let Failure { name, value, traceback } = failure;
        Self::Error { name, value, traceback }
    }

    /// Encodes the line, with its line feed.
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(256);
        let mut serializer = serde_json::Serializer::with_formatter(&mut out, Ascii);
        if self.serialize(&mut serializer).is_err() {
            // No value of these types fails. An empty line would fail in Python's SDK.
            out = br#"{"type":"keepalive"}"#.to_vec();
        }
        out.push(b'\n');
        Bytes::from(out)
    }
}

/// Returns the current time as RFC 3339.
pub(crate) fn now() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
}

/// Splits text into pieces of at most `TEXT_MAX` bytes, at borders of characters.
pub(crate) fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (piece, after) = rest.split_at(rest.floor_char_boundary(TEXT_MAX));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Writes JSON with every character beyond `~` escaped, in pairs of surrogates where needed.
struct Ascii;

impl serde_json::ser::Formatter for Ascii {
    fn write_string_fragment<W>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        let mut rest = fragment;
        while let Some(at) = rest.find(|c: char| c > '~') {
            let (plain, special) = rest.split_at(at);
            writer.write_all(plain.as_bytes())?;
            let end = special.find(|c: char| c <= '~').unwrap_or(special.len());
            let (special, after) = special.split_at(end);
            for unit in special.encode_utf16() {
                write!(writer, "\\u{unit:04x}")?;
            }
            rest = after;
        }
        writer.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn text(text: &str) -> String {
        let line = Line::Stdout { text, timestamp: "T".to_owned() };
        String::from_utf8(line.encode().to_vec()).unwrap()
    }

    #[test]
    fn characters_beyond_tilde_are_escaped_and_read_back_equal() {
        let hard = "a\u{2028}\u{2029}\u{85}\u{7f}\u{0}\u{1f}é😀~\"\\\n\u{FFFF}\u{10FFFF}z";
        let line = text(hard);
        assert!(line.bytes().all(|byte| (0x20..=0x7e).contains(&byte) || byte == b'\n'), "{line}");
        assert_eq!(line.matches('\n').count(), 1);
        assert!(line.contains("\\u2028\\u2029\\u0085\\u007f"), "{line}");
        assert!(line.contains("\\ud83d\\ude00"), "{line}");
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["text"], hard);
    }

    #[test]
    fn keys_of_results_are_escaped_too() {
        let Value::Object(map) = json!({"é": {"ü": ["\u{2028}"]}}) else { panic!("no object") };
        let line = Line::Result(map).encode();
        assert!(line.is_ascii());
        let value: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(value, json!({"type": "result", "é": {"ü": ["\u{2028}"]}}));
    }

    #[test]
    fn lines_have_their_type_and_no_other_field() {
        let of = |line: Line<'_>| serde_json::from_slice::<Value>(&line.encode()).unwrap();
        assert_eq!(of(Line::Keepalive), json!({"type": "keepalive"}));
        assert_eq!(of(Line::EndOfExecution), json!({"type": "end_of_execution"}));
        let count = Line::NumberOfExecutions { execution_count: 3 };
        assert_eq!(of(count), json!({"type": "number_of_executions", "execution_count": 3}));
        let failure =
            Failure { name: "A".to_owned(), value: String::new(), traceback: String::new() };
        let error = json!({"type": "error", "name": "A", "value": "", "traceback": ""});
        assert_eq!(of(Line::error(&failure)), error);
    }

    #[test]
    fn pieces_end_at_borders_of_characters_and_lose_nothing() {
        let long = format!("x{}", "😀".repeat(40_000));
        let cut: Vec<&str> = pieces(&long).collect();
        assert!(cut.len() >= 3 && cut.iter().all(|piece| piece.len() <= TEXT_MAX));
        assert_eq!(cut.concat(), long);
        assert_eq!(pieces("").count(), 0);
    }

    #[test]
    fn time_of_text_is_iso_8601() {
        let line = Line::text(Stream::Stderr, "x").encode();
        let value: Value = serde_json::from_slice(&line).unwrap();
        let time = value["timestamp"].as_str().unwrap();
        assert!(OffsetDateTime::parse(time, &Rfc3339).is_ok(), "{time}");
        assert_eq!(value["type"], "stderr");
    }
}
