//! Reads what a kernel publishes, and the ids of the requests that caused it.

use crate::kernel::message::{Formats, Incoming, word};
use crate::kernel::{Bundle, Failure, Kind, Stream};
use serde::Deserialize;
use serde_json::Value;

/// Request that caused a message. Its id has the form `SESSION:RUN:PART`, so that a later
/// interpreter can read it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cause {
    /// Number of the run, or 0.
    pub run: u64,
    pub part: Part,
}

/// Part of a run to which a request belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Silent code before the user's.
    Before,
    /// The user's code.
    Code,
    /// Silent code after the user's.
    After,
    /// A request that only wakes the kernel, or asks for its facts.
    Info,
    /// A question by its number.
    Question(u64),
    /// A request of another client, or no request at all.
    Other,
}

impl Cause {
    /// Makes the id of a request.
    pub(super) fn id(self, session: &str) -> String {
        let run = self.run;
        match self.part {
            Part::Before => format!("{session}:{run}:a"),
            Part::Code => format!("{session}:{run}:c"),
            Part::After => format!("{session}:{run}:r"),
            Part::Info => format!("{session}:{run}:i"),
            Part::Question(number) => format!("{session}:{run}:q{number}"),
            Part::Other => format!("{session}:{run}:-"),
        }
    }

    /// Reads the id of a request.
    pub(super) fn read(id: &str) -> Self {
        let unknown = Self { run: 0, part: Part::Other };
        let mut fields = id.rsplitn(3, ':');
        let (Some(part), Some(run), Some(_)) = (fields.next(), fields.next(), fields.next()) else {
            return unknown;
        };
        let part = match part {
            "a" => Part::Before,
            "c" => Part::Code,
            "r" => Part::After,
            "i" => Part::Info,
            other => match other.strip_prefix('q').and_then(|number| number.parse().ok()) {
                Some(number) => Part::Question(number),
                None => Part::Other,
            },
        };
        run.parse().map_or(unknown, |run| Self { run, part })
    }
}

/// A message that a kernel published.
#[derive(Debug)]
pub(in crate::kernel) enum Published {
    Busy,
    Idle,
    /// Events for clients, in order.
    Events(Vec<Kind>),
}

#[derive(Deserialize)]
struct StreamContent {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    text: Option<String>,
}

/// Reads a message. A message that cannot be read becomes a line on standard error.
pub(in crate::kernel) fn read(message: &Incoming) -> Published {
    let events = match message.kind.as_str() {
        "status" => return status(message),
        "stream" => stream(message),
        "display_data" | "update_display_data" => data(message, false),
        "execute_result" => data(message, true),
        "execute_input" => message.tree().map(|content| count(&content).into_iter().collect()),
        "error" => message.tree().map(|content| vec![Kind::Error(failure(&content))]),
        _ => return Published::Events(Vec::new()),
    };
    Published::Events(events.unwrap_or_else(|why| vec![unreadable(&message.kind, &why)]))
}

fn status(message: &Incoming) -> Published {
    let content = message.tree().unwrap_or_default();
    match content.get("execution_state").and_then(Value::as_str) {
        Some("busy") => Published::Busy,
        Some("idle") => Published::Idle,
        _ => Published::Events(Vec::new()),
    }
}

fn stream(message: &Incoming) -> Result<Vec<Kind>, String> {
    let content: StreamContent = message.parse()?;
    let stream = match content.name.as_deref() {
        Some("stderr") => Stream::Stderr,
        _ => Stream::Stdout,
    };
    let text = content.text.filter(|text| !text.is_empty());
    Ok(text.map(|text| Kind::Text(stream, text)).into_iter().collect())
}

fn data(message: &Incoming, main: bool) -> Result<Vec<Kind>, String> {
    let data = Formats::of(message)?.0;
    Ok(vec![Kind::Data(Bundle { main, data })])
}

/// Reads the count of executions out of a message or a reply.
pub(super) fn count(content: &Value) -> Option<Kind> {
    content.get("execution_count").and_then(Value::as_u64).map(Kind::Count)
}

/// Reads an error out of a message or a reply.
pub(super) fn failure(content: &Value) -> Failure {
    let lines = content.get("traceback").and_then(Value::as_array).into_iter().flatten();
    let lines: Vec<&str> = lines.filter_map(Value::as_str).collect();
    Failure {
        name: word(content, "ename").unwrap_or_else(|| "Error".to_owned()),
        value: word(content, "evalue").unwrap_or_default(),
        traceback: lines.join("\n"),
    }
}

/// Returns the failure that a reply tells of.
pub(super) fn reply_failure(content: &Value) -> Option<Failure> {
    match word(content, "status")?.as_str() {
        "error" => Some(failure(content)),
        "abort" | "aborted" => Some(Failure {
            name: "ExecutionAborted".to_owned(),
            value: "Execution was aborted".to_owned(),
            traceback: String::new(),
        }),
        _ => None,
    }
}

/// Describes a failure of the silent code around a run.
pub(super) fn setup_failed(failure: &Failure) -> String {
    format!("[variables could not be set: {}: {}]\n", failure.name, failure.value)
}

fn unreadable(kind: &str, why: &str) -> Kind {
    let text = format!("[a message of the kernel ({kind}) could not be read: {why}]\n");
    Kind::Text(Stream::Stderr, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::message::Signer;
    use bytes::Bytes;
    use serde_json::json;

    fn published(kind: &str, content: &str) -> Published {
        let header = json!({"msg_type": kind}).to_string();
        let parts = ["<IDS|MSG>", "", &header, "{}", "{}", content];
        let frames = parts.map(|part| Bytes::copy_from_slice(part.as_bytes()));
        read(&Signer::new("").read(&frames).unwrap())
    }

    fn events(kind: &str, content: &str) -> Vec<Kind> {
        let Published::Events(events) = published(kind, content) else { panic!("no events") };
        events
    }

    fn text(kind: &str, content: &str) -> String {
        format!("{:?}", events(kind, content))
    }

    #[test]
    fn ids_are_read_as_they_were_made() {
        let parts = [Part::Before, Part::Code, Part::After, Part::Info, Part::Question(12)];
        for part in parts {
            let cause = Cause { run: 7, part };
            assert_eq!(Cause::read(&cause.id("session")), cause);
        }
        for id in ["", "c", "1:c", "s:x:c", "s:-1:c", "s:99999999999999999999:c", "s:1:z", "s:1:q"]
        {
            assert_eq!(Cause::read(id).part, Part::Other, "{id}");
        }
    }

    #[test]
    fn output_becomes_events() {
        let stderr = text("stream", r#"{"name":"stderr","text":"a\ud800"}"#);
        assert_eq!(stderr, "[Text(Stderr, \"a\u{fffd}\")]");
        assert_eq!(text("stream", r#"{"text":"a"}"#), "[Text(Stdout, \"a\")]");
        assert_eq!(text("stream", r#"{"name":"stdout","text":""}"#), "[]");
        let result = text("execute_result", r#"{"data":{"text/plain":"1"},"execution_count":2}"#);
        assert!(result.contains("main: true") && result.contains("text/plain"), "{result}");
        assert!(text("display_data", "{}").contains("main: false"));
        assert_eq!(text("execute_input", r#"{"execution_count":3}"#), "[Count(3)]");
        assert_eq!(text("execute_input", "{}"), "[]");
        assert_eq!(text("clear_output", "{}"), "[]");
    }

    #[test]
    fn error_joins_the_lines_of_its_traceback() {
        let error = json!({"ename": "E", "evalue": "v", "traceback": ["a", "b", 3]});
        let wanted = Failure { name: "E".into(), value: "v".into(), traceback: "a\nb".into() };
        assert_eq!(failure(&error), wanted);
        assert_eq!(failure(&json!({})).name, "Error");
    }

    #[test]
    fn status_and_unreadable_content_are_told_apart() {
        assert!(matches!(published("status", r#"{"execution_state":"busy"}"#), Published::Busy));
        assert!(matches!(published("status", r#"{"execution_state":"idle"}"#), Published::Idle));
        assert!(events("status", r#"{"execution_state":"starting"}"#).is_empty());
        assert!(events("status", "{").is_empty());
        assert!(text("stream", "{").contains("could not be read"));
        assert!(text("execute_result", "3").contains("could not be read"));
    }
}
