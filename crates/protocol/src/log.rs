//! The wire of envd's log, between envd and the host agent.
//!
//! An answer is a [`Head`] and then pieces. Head and pieces are lines of JSON. The bytes of a piece
//! follow its line.

use serde::{Deserialize, Serialize};

/// Path at which the host reads output of programs that nobody waits for. The query is a [`Query`].
/// A POST with `none`, `background` or `all` sets the output that there is to read.
pub const PATH: &str = "/log";
/// Longest line of a log, in bytes.
pub const LINE_MAX: usize = 16 << 10;
/// Bytes that a piece costs beside its contents.
pub const PIECE_COST: usize = 256;
/// Longest command that a piece names, in bytes.
pub const COMMAND_MAX: usize = 200;

/// Query of a read. The cursor is `epoch` and `number` together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    /// Epoch of the last answer that the reader has kept.
    pub epoch: Option<u64>,
    /// Number of the last piece that the reader has kept. envd drops this piece and earlier ones.
    pub number: Option<u64>,
    /// Most bytes of pieces, with their costs.
    pub most: usize,
    /// Milliseconds to wait for a piece.
    #[serde(default)]
    pub wait_ms: u64,
}

/// First line of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Epoch of the guest.
    pub epoch: u64,
    /// Number of the last piece before the answer's pieces.
    pub after: u64,
    /// Programs that the guest's kernel ended so far, since memory ran out; `None` if unknown.
    pub oom_kills: Option<u64>,
}

/// Kind of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Output.
    Stdout,
    /// Error output.
    Stderr,
    /// End of the program, with its status as the text.
    Exit,
    /// Mark in place of output that was dropped.
    Dropped,
}

impl Kind {
    /// Returns the kind's name, which is the stream of its log lines.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Exit => "exit",
            Self::Dropped => "dropped",
        }
    }
}

/// Line before the bytes of a piece.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Number of the piece. Later pieces have higher numbers.
    pub number: u64,
    /// Milliseconds since 1970, by the guest's clock.
    pub at_ms: u64,
    /// Process id of the program.
    pub pid: u32,
    /// Beginning of the command.
    pub command: String,
    /// Kind of the piece.
    pub kind: Kind,
    /// Count of the bytes that follow the line.
    pub bytes: usize,
    /// Count of the bytes that a mark stands for.
    #[serde(default)]
    pub dropped: u64,
}
