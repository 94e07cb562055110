//! Frames of the WebSockets, each a JSON text message with a `type`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Frame that a client sends on `…/exec/stream` and `…/processes/{selector}/stream`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", remote = "Self")]
pub enum StreamRequest {
    /// Starts a command. This frame is the first frame of `…/exec/stream`.
    Start {
        /// Name or path of a program. No shell interprets it.
        cmd: String,
        #[serde(default)]
        args: Vec<String>,
        #[serde(default)]
        envs: BTreeMap<String, String>,
        cwd: Option<String>,
        user: Option<String>,
        /// Seconds until the process group is killed. By default, there is no limit.
        timeout: Option<u32>,
        /// True to connect standard input to a pipe. Otherwise standard input is empty.
        #[serde(default)]
        stdin: bool,
        tag: Option<String>,
        /// `base64` selects base64 for all output. By default, only output that is not text is in
        /// base64.
        encoding: Option<String>,
    },
    /// Writes bytes to standard input.
    Stdin {
        /// Bytes in base64.
        data: String,
    },
    /// Closes standard input.
    CloseStdin,
    /// Sends a signal to the process group: `TERM`, `KILL`, `INT`, `HUP`, `STOP`, `CONT`, `USR1` or
    /// `USR2`, with or without `SIG`.
    Signal { signal: String },
    /// Kills the process group.
    Stop,
}

/// Frame that the server sends on `…/exec/stream` and `…/processes/{selector}/stream`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StreamEvent {
    /// The process runs.
    Start { pid: u32 },
    /// Standard output as text, or as base64 if `encoding` is `base64`.
    Stdout {
        data: String,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        encoding: Option<String>,
    },
    /// Standard error, in the form of `stdout`.
    Stderr {
        data: String,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        encoding: Option<String>,
    },
    /// The process has ended. This is the last frame.
    Exit { exit_code: i32 },
    /// A request was refused or failed. `code` is a code of `ErrorDetail`.
    Error { code: String, data: String },
    /// Sign of life after a silence.
    Ping,
}

/// Frame that a client sends on `…/pty`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PtyRequest {
    /// Starts a program on a new terminal. Only valid as the first frame.
    Start {
        /// Name or path of a program. The default is `/bin/bash`.
        cmd: Option<String>,
        #[serde(default)]
        args: Vec<String>,
        /// Width in columns. The default is 80.
        cols: Option<u16>,
        /// Height in rows. The default is 24.
        rows: Option<u16>,
        #[serde(default)]
        envs: BTreeMap<String, String>,
        cwd: Option<String>,
        user: Option<String>,
    },
    /// Connects to an existing terminal. Only valid as the first frame.
    Connect {
        /// Tag or process id of the terminal.
        tag: String,
        /// True to begin with the terminal's last output, at most 256 KiB. All later output
        /// follows, without a gap and without repetition.
        #[serde(default)]
        replay: bool,
    },
    /// Sets the most bytes of output that the client may have unacknowledged. Beyond it, the server
    /// sends no output and the program waits. Without this frame, there is no limit.
    Window {
        /// From 1 to 16,777,216 bytes. All output of this connection counts.
        bytes: u32,
    },
    /// Acknowledges output that the client has processed.
    Ack {
        /// Bytes since the last acknowledgement, before their encoding in base64.
        bytes: u32,
    },
    /// Types bytes into the terminal.
    Input {
        /// Bytes in base64.
        data: String,
    },
    /// Changes the terminal's size.
    Resize { cols: u16, rows: u16 },
    /// Kills the program.
    Kill,
}

/// Frame that the server sends on `…/pty`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PtyEvent {
    /// The program runs. After a broken connection, the tag finds the program again.
    Started {
        tag: String,
        pid: u32,
        /// Bytes of earlier output with which the output begins. Absent without `replay`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        replayed: Option<u64>,
    },
    /// Output of the terminal.
    Output {
        /// Bytes in base64.
        data: String,
    },
    /// The program has ended. This is the last frame.
    Exit { exit_code: i32 },
    /// A request was refused or failed. The connection ends after a fatal error.
    Error { code: String, data: String, fatal: bool },
    /// Sign of life after a silence.
    Ping,
}
