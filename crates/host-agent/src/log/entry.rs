//! Entries of a log, and the setting that chooses them.

use serde::{Deserialize, Serialize};

/// Choice of the output that a capsule's log has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogMode {
    /// There is no log.
    None,
    /// Output of start commands and of programs in the background.
    #[default]
    Background,
    /// Output of all programs.
    All,
}

impl LogMode {
    /// Reads the word of a command; the empty word is the default.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "none" => Some(Self::None),
            "" | "background" => Some(Self::Background),
            "all" => Some(Self::All),
            _ => None,
        }
    }

    /// Returns the word by which envd knows the choice.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Background => "background",
            Self::All => "all",
        }
    }
}

/// Source of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Source {
    /// The guest's console.
    Console,
    /// The agent, about the capsule's lifecycle.
    Lifecycle,
    /// A program of the guest.
    Process,
}

impl Source {
    /// Reads the source's name.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Console, Self::Lifecycle, Self::Process].into_iter().find(|it| it.as_str() == text)
    }

    /// Returns the source's name.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Console => "console",
            Self::Lifecycle => "lifecycle",
            Self::Process => "process",
        }
    }
}

/// A line of a log. The short names keep the lines of JSON short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Number of the entry, which is its cursor. Later entries have higher numbers.
    #[serde(rename = "i")]
    pub number: u64,
    /// Milliseconds since 1970.
    #[serde(rename = "t")]
    pub at_ms: u64,
    #[serde(rename = "s")]
    pub source: Source,
    /// Stream of the source; empty for the console.
    #[serde(rename = "k", default, skip_serializing_if = "String::is_empty")]
    pub stream: String,
    #[serde(rename = "x")]
    pub text: String,
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Beginning of the process's command.
    #[serde(rename = "c", default, skip_serializing_if = "String::is_empty")]
    pub command: String,
    /// Bytes that the entry stands for.
    #[serde(rename = "d", default, skip_serializing_if = "is_zero")]
    pub dropped: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Entry {
    /// Returns an entry without number, process or dropped bytes.
    pub(crate) fn new(source: Source, stream: &str, at_ms: u64, text: String) -> Self {
        Self {
            number: 0,
            at_ms,
            source,
            stream: stream.to_owned(),
            text,
            pid: None,
            command: String::new(),
            dropped: 0,
        }
    }

    /// Returns the entry in place of bytes that were dropped.
    pub(crate) fn dropped(source: Source, at_ms: u64, bytes: u64) -> Self {
        let text = format!("{bytes} bytes of output were dropped");
        Self { dropped: bytes, ..Self::new(source, "dropped", at_ms, text) }
    }
}

/// Amount of the guest's output that the log has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// Epoch of envd's last piece in the log, with the piece's number.
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    pub piece: Option<(u64, u64)>,
    /// Last bytes of the console in the log, in hexadecimal digits.
    #[serde(rename = "c", default, skip_serializing_if = "String::is_empty")]
    pub console: String,
}
