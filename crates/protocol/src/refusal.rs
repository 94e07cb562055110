//! Reasons why a host agent got no answer from a guest's port. A header of its own carries the
//! reason to the control plane. The agent removes this header from guests' answers.

/// Name of the header.
pub const REFUSAL: &str = "wrenn-refusal";

/// A reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The host has no such capsule, or its machine does not run.
    NotRunning,
    /// The capsule is paused.
    Paused,
    /// The capsule is being paused or resumed and takes no connection.
    Draining,
    /// As many requests as allowed are under way in the capsule.
    TooMany,
    /// No program listens at the port.
    PortClosed,
    /// The guest accepts no connection in time.
    Unreachable,
    /// The program ended the connection without an answer.
    Closed,
    /// The program's answer is not HTTP.
    Garbage,
    /// The program sent nothing for the longest allowed time.
    Silent,
}

impl Refusal {
    const ALL: [Self; 9] = [
        Self::NotRunning,
        Self::Paused,
        Self::Draining,
        Self::TooMany,
        Self::PortClosed,
        Self::Unreachable,
        Self::Closed,
        Self::Garbage,
        Self::Silent,
    ];

    /// Returns the header's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotRunning => "not-running",
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::TooMany => "too-many",
            Self::PortClosed => "port-closed",
            Self::Unreachable => "unreachable",
            Self::Closed => "closed",
            Self::Garbage => "garbage",
            Self::Silent => "silent",
        }
    }

    /// Reads the header's value.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| refusal.as_str().as_bytes() == value)
    }
}
