//! Processes and terminals of a capsule.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

/// A process that was started over the API.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Process {
    /// Process id in the guest.
    pub pid: u32,
    /// Name or path of the program.
    pub cmd: String,
    /// Arguments of the program.
    pub args: Vec<String>,
    /// Tag that identifies the process besides its pid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
}

/// Answer to `GET /v1/capsules/{id}/processes`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ProcessList {
    pub processes: Vec<Process>,
}

/// Any process of the guest. The guest reports all fields, and can report false ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestProcess {
    /// Process id in the guest.
    pub pid: u32,
    /// Process id of the parent.
    pub ppid: u32,
    /// Number of ancestors in the list.
    pub depth: u32,
    /// Name of the account, or its number.
    pub user: String,
    /// Command line, at most 4 KiB. The name in brackets stands in for a command line that cannot
    /// be read.
    pub command: String,
    /// State as the kernel's letter, such as `R`, `S`, `T` or `Z`.
    pub state: String,
    /// Tag of a process that was started over the API.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tag: Option<String>,
    /// Processor time since the start, in milliseconds.
    pub cpu_ms: u64,
    /// Resident memory, in bytes.
    pub memory_bytes: u64,
    /// Time of the start. Each pause of the capsule moves the time by the length of the pause.
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
}

/// Answer to `GET /v1/capsules/{id}/processes?all=true`: at most 4,096 processes, without the
/// kernel's threads. Parents stand before their children.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestProcessList {
    /// Time of the list by the guest's clock. CPU use is the difference of `cpu_ms` between two
    /// lists, divided by the difference of their times.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// True if the guest has more processes.
    pub truncated: bool,
    pub processes: Vec<GuestProcess>,
}

/// Answer to `GET /v1/capsules/{id}/processes`, with `all=true` the second form.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Processes {
    Started(ProcessList),
    All(GuestProcessList),
}

/// A program that runs on a terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Terminal {
    /// Process id in the guest.
    pub pid: u32,
    /// Tag that identifies the terminal besides its pid.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tag: Option<String>,
    /// Command line of the program, at most 512 bytes.
    pub command: String,
    /// Width in columns.
    pub cols: u16,
    /// Height in rows.
    pub rows: u16,
    /// Time of the start.
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    /// Number of connections that receive the terminal's output.
    pub clients: u32,
}

/// Answer to `GET /v1/capsules/{id}/terminals`: at most 256 terminals.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TerminalList {
    pub terminals: Vec<Terminal>,
}
