//! The log of a capsule: entries of its console, its lifecycle and its processes.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

/// An entry of a capsule's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogEntry {
    /// Time when the host received the entry, to the millisecond.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Source of the entry: `console`, `lifecycle` or `process`.
    pub source: String,
    /// Stream of a process (`stdout`, `stderr` or `exit`), or kind of a lifecycle event. `dropped`
    /// marks an entry that stands in place of lost output. Absent for the console.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stream: String,
    /// Line as the guest wrote it. Bytes that are not UTF-8 are replaced. The guest is not trusted:
    /// the line may contain control characters, which a terminal would obey.
    pub text: String,
    /// Process id, for the source `process`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Beginning of the process's command, for the source `process`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub command: String,
    /// Cursor after this entry.
    pub cursor: String,
}

/// Answer to `GET /v1/capsules/{id}/logs` with parameters: one page, in the order of the read.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LogPage {
    pub items: Vec<LogEntry>,
    /// Value of `cursor` for the next page in the same direction. Absent when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// True if the next page may have items now. A page may have fewer items than requested, or
    /// none, although others follow.
    #[serde(default)]
    pub more: bool,
    /// Bytes of output that were lost among the entries that this page covers.
    #[serde(default)]
    pub dropped: u64,
}
