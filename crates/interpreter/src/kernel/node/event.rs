//! Events of the host: one JSON object a line. The user's code runs in the same process and can
//! write there too. A line that is no event is skipped.

use crate::kernel::{Bundle, Failure, Kind, Stream};
use serde_json::{Map, Value};

/// A line of the host.
#[derive(Debug)]
pub(in crate::kernel) enum Line {
    Event(u64, Kind),
    /// The run of this number has ended, or is not under way.
    Ended(u64),
    Answer(u64, Value),
}

/// Fields of a line, of which each kind has some.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct Fields {
    run: u64,
    text: Option<String>,
    data: Option<Value>,
    main: bool,
    error: Option<Error>,
    ended: Option<u64>,
    state: Option<State>,
    answer: Option<u64>,
    value: Value,
}

#[derive(Debug, serde::Deserialize)]
struct Error {
    name: String,
    value: String,
    traceback: String,
}

/// Answer to `hello`.
#[derive(Debug, serde::Deserialize)]
struct State {
    run: u64,
    busy: bool,
}

/// Reads a line. Returns `None` for a line that says nothing.
pub(in crate::kernel) fn read(line: &[u8]) -> Option<Line> {
    let fields: Fields = match serde_json::from_slice(line) {
        Ok(fields) => fields,
        Err(_) => serde_json::from_str(&mended(&String::from_utf8_lossy(line))).ok()?,
    };
    let run = fields.run;
    if let Some(run) = fields.ended {
        return Some(Line::Ended(run));
    }
    if let Some(id) = fields.answer {
        return Some(Line::Answer(id, fields.value));
    }
    if let Some(state) = fields.state {
        return (!state.busy).then_some(Line::Ended(state.run));
    }
    if let Some(Error { name, value, traceback }) = fields.error {
        return Some(Line::Event(run, Kind::Error(Failure { name, value, traceback })));
    }
    output(fields.text.as_deref(), fields.data?, fields.main).map(|kind| Line::Event(run, kind))
}

fn output(stream: Option<&str>, data: Value, main: bool) -> Option<Kind> {
    match (stream, data) {
        (Some("stdout"), Value::String(text)) => Some(Kind::Text(Stream::Stdout, text)),
        (Some("stderr"), Value::String(text)) => Some(Kind::Text(Stream::Stderr, text)),
        (None, Value::Object(data)) => Some(bundle(data, main)),
        _ => None,
    }
}

fn bundle(data: Map<String, Value>, main: bool) -> Kind {
    Kind::Data(Bundle { main, data })
}

/// Replaces escapes of halves of characters, which JavaScript has alone and Rust does not. The host
/// writes whole characters without escapes.
fn mended(line: &str) -> String {
    let mut mended = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find('\\') {
        let (head, tail) = rest.split_at(at);
        mended.push_str(head);
        let (text, length) = escape(tail);
        mended.push_str(text);
        rest = &tail[length..];
    }
    mended + rest
}

/// Returns the replacement and the length of an escape at the start of text.
fn escape(text: &str) -> (&str, usize) {
    if is_half(text) {
        return ("\u{fffd}", 6);
    }
    let length = 1 + text.chars().nth(1).map_or(0, char::len_utf8);
    (&text[..length], length)
}

/// Tells if text begins with an escape from `\ud800` to `\udfff`.
fn is_half(text: &str) -> bool {
    let digits = text.strip_prefix("\\u").and_then(|rest| rest.get(..4));
    let code = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
    code.is_some_and(|code| (0xd800..=0xdfff).contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(line: &[u8]) -> Option<(u64, Stream, String)> {
        let Line::Event(run, Kind::Text(stream, text)) = read(line)? else { return None };
        Some((run, stream, text))
    }

    #[test]
    fn events_of_each_kind_are_read() {
        let found = text(br#"{"text":"stderr","data":"a\u0000b","run":3}"#).unwrap();
        assert_eq!(found, (3, Stream::Stderr, "a\0b".to_owned()));
        let line = read(br#"{"data":{"text/plain":"1"},"main":true,"run":4}"#).unwrap();
        let Line::Event(4, Kind::Data(bundle)) = line else { panic!("{line:?}") };
        assert!(bundle.main && bundle.data["text/plain"] == "1");
        let line = read(br#"{"error":{"name":"E","value":"v","traceback":"t"},"run":5}"#).unwrap();
        assert!(matches!(line, Line::Event(5, Kind::Error(failure)) if failure.name == "E"));
        assert!(matches!(read(br#"{"ended":6}"#), Some(Line::Ended(6))));
        assert!(matches!(read(br#"{"answer":7,"value":[]}"#), Some(Line::Answer(7, _))));
    }

    #[test]
    fn state_of_an_idle_host_ends_its_run() {
        assert!(matches!(read(br#"{"state":{"run":2,"busy":false}}"#), Some(Line::Ended(2))));
        assert!(read(br#"{"state":{"run":2,"busy":true}}"#).is_none());
    }

    #[test]
    fn lines_that_are_no_events_are_skipped() {
        let odd = [r#"{"text":"other","data":"x"}"#, r#"{"data":[1]}"#];
        for line in ["", "{", "[]", "1", "{}"].into_iter().chain(odd) {
            assert!(read(line.as_bytes()).is_none(), "{line}");
        }
        assert!(read(b"\xff\xfe").is_none());
    }

    #[test]
    fn halves_of_characters_are_replaced() {
        let found = text(br#"{"text":"stdout","data":"a\ud800\\ud800\"\udc00","run":1}"#).unwrap();
        assert_eq!(found.2, "a\u{fffd}\\ud800\"\u{fffd}");
    }
}
