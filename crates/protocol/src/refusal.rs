//! Why a host agent did not get an answer from a guest's port: told to the control plane by a
//! header of its own, which no guest's answer carries past the agent.

/// The header.
pub const REFUSAL: &str = "wrenn-refusal";

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The host has no such capsule, or its machine does not run.
    NotRunning,
    /// The capsule is paused.
    Paused,
    /// The capsule is being paused or resumed and takes no connection.
    Draining,
    /// As many requests as may be are under way in the capsule.
    TooMany,
    /// No program listens at the port.
    PortClosed,
    /// The guest takes no connection in time.
    Unreachable,
    /// The program ended the connection without an answer.
    Closed,
    /// What the program answered is not HTTP.
    Garbage,
    /// The program said nothing for as long as may be.
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

    /// The header's value.
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
