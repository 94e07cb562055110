//! Lines of an execution's stream. Reading is pure: bytes in, lines out, in any division of the
//! bytes.

use serde_json::{Map, Value};

/// Longest line, in bytes. A value of a result may have 32 MiB, and a result has several values.
const LINE_MAX: usize = 256 << 20;

/// A line of an execution.
#[derive(Debug, PartialEq, serde::Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Line {
    ExecutionStarted {
        execution_id: String,
    },
    Stdout {
        text: String,
    },
    Stderr {
        text: String,
    },
    Result(Map<String, Value>),
    Error {
        name: String,
        value: String,
        traceback: String,
    },
    /// Missing output. With `lines`, the line stands for so many lines.
    Omitted {
        #[serde(default)]
        bytes: u64,
        lines: Option<u64>,
    },
    Keepalive,
    EndOfExecution,
    #[serde(other)]
    Other,
}

impl Line {
    /// Reads a line of JSON.
    ///
    /// # Errors
    /// When the line is not an object with a type.
    pub(super) fn read(line: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(line)
    }

    /// Returns the number of lines that the line counts for when a client attaches again.
    pub(super) fn count(&self) -> u64 {
        match self {
            Self::Keepalive => 0,
            Self::Omitted { lines, .. } => lines.unwrap_or(1),
            Self::ExecutionStarted { .. }
            | Self::Stdout { .. }
            | Self::Stderr { .. }
            | Self::Result(_)
            | Self::Error { .. }
            | Self::EndOfExecution
            | Self::Other => 1,
        }
    }
}

/// A line that is too long.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the platform sent a line of over {LINE_MAX} bytes")]
pub(super) struct TooLong;

/// Bytes of a stream whose line has not ended.
#[derive(Default)]
pub(super) struct Splitter {
    bytes: Vec<u8>,
    /// Number of the first bytes that hold no line feed.
    searched: usize,
}

impl Splitter {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// When a line is too long.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        if self.bytes.len() + bytes.len() > LINE_MAX {
            return Err(TooLong);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Returns the next whole line, without its line feed.
    pub(super) fn next(&mut self) -> Option<Vec<u8>> {
        let found = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n');
        let Some(found) = found else {
            self.searched = self.bytes.len();
            return None;
        };
        let end = self.searched + found;
        let rest = self.bytes.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.bytes, rest);
        line.truncate(end);
        self.searched = 0;
        Some(line)
    }

    /// Forgets the beginning of a line, which comes again from its start.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        Line::read(text.as_bytes()).unwrap()
    }

    #[test]
    fn lines_are_the_same_in_any_division_of_the_bytes() {
        let text = "{\"a\":1}\n{\"b\":2}\n\nunfinished";
        for size in 1..text.len() {
            let (mut splitter, mut lines) = (Splitter::default(), Vec::new());
            for part in text.as_bytes().chunks(size) {
                splitter.feed(part).unwrap();
                lines.extend(std::iter::from_fn(|| splitter.next()));
            }
            assert_eq!(lines, [&b"{\"a\":1}"[..], b"{\"b\":2}", b""], "parts of {size} bytes");
        }
    }

    #[test]
    fn unknown_types_are_read_and_count_as_lines() {
        assert_eq!(line(r#"{"type":"future","x":1}"#), Line::Other);
        assert_eq!(line(r#"{"type":"number_of_executions","execution_count":1}"#), Line::Other);
        assert_eq!(line(r#"{"type":"future"}"#).count(), 1);
        assert!(Line::read(b"[]").is_err() && Line::read(b"{}").is_err());
    }

    #[test]
    fn keepalives_count_nothing_and_omitted_lines_count_themselves() {
        assert_eq!(line(r#"{"type":"keepalive"}"#).count(), 0);
        assert_eq!(line(r#"{"type":"omitted","bytes":9,"lines":4}"#).count(), 4);
        assert_eq!(line(r#"{"type":"omitted","bytes":9}"#).count(), 1);
        assert_eq!(line(r#"{"type":"stdout","text":"x","timestamp":"t"}"#).count(), 1);
    }
}
