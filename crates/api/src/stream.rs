//! The frames of the WebSockets, each a JSON text message with a `type`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// What a client sends on `…/exec/stream` and `…/processes/{selector}/stream`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StreamRequest {
    /// The first frame of `…/exec/stream`.
    Start {
        /// A program's name or path; no shell interprets it.
        cmd: String,
        #[serde(default)]
        args: Vec<String>,
        #[serde(default)]
        envs: BTreeMap<String, String>,
        cwd: Option<String>,
        user: Option<String>,
        /// Seconds until the process group is killed; none when left out.
        timeout_sec: Option<u32>,
        /// Whether standard input is a pipe; otherwise it is empty.
        #[serde(default)]
        stdin: bool,
        tag: Option<String>,
        /// `base64` asks for all output in it; by default only what is no text comes so.
        encoding: Option<String>,
    },
    /// Bytes for standard input.
    Stdin {
        /// Base64.
        data: String,
    },
    /// The end of standard input.
    CloseStdin,
    /// `SIGTERM` or `SIGKILL` for the process group.
    Signal { signal: String },
    /// Kills the process group.
    Stop,
}

/// What the server sends there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StreamEvent {
    /// The process runs.
    Start { pid: u32 },
    /// Text, or base64 when `encoding` says so.
    Stdout {
        data: String,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        encoding: Option<String>,
    },
    /// As for standard output.
    Stderr {
        data: String,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        encoding: Option<String>,
    },
    /// The process ended; the last frame.
    Exit { exit_code: i32 },
    /// What was refused or failed; `code` as in other errors.
    Error { code: String, data: String },
    /// Nothing has happened for a while.
    Ping,
}

/// What a client sends on `…/pty`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PtyRequest {
    /// Starts a program on a terminal of its own; a first frame.
    Start {
        /// `/bin/bash` when left out.
        cmd: Option<String>,
        #[serde(default)]
        args: Vec<String>,
        /// 80 when left out.
        cols: Option<u16>,
        /// 24 when left out.
        rows: Option<u16>,
        #[serde(default)]
        envs: BTreeMap<String, String>,
        cwd: Option<String>,
        user: Option<String>,
    },
    /// Comes back to a terminal that was started before; a first frame.
    Connect { tag: String },
    /// What is typed.
    Input {
        /// Base64.
        data: String,
    },
    /// The terminal's new size.
    Resize { cols: u16, rows: u16 },
    /// Kills the program.
    Kill,
}

/// What the server sends there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PtyEvent {
    /// The program runs; the tag finds it again after a broken connection.
    Started { tag: String, pid: u32 },
    /// What the terminal shows.
    Output {
        /// Base64.
        data: String,
    },
    /// The program ended; the last frame.
    Exit { exit_code: i32 },
    /// What was refused or failed; after a fatal one the connection ends.
    Error { code: String, data: String, fatal: bool },
    /// Nothing has happened for a while.
    Ping,
}
