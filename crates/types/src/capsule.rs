//! The states of a capsule and the moves between them: the one table that the database's
//! compare-and-set, the agent's policy and the documents go by.
//!
//! ```text
//! starting ─▶ running ⇄ pausing ─▶ paused ⇄ resuming ─▶ running
//!     └──────────┴─────────┴─────────┴─────────┴──▶ stopping ─▶ stopped
//! (missing: the host is unreachable)     (error: the machine is lost; what was kept of it
//!                                         before may be resumed)
//! ```

use std::fmt;
use std::str::FromStr;

/// Where a capsule is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CapsuleState {
    /// Its row exists; a host is making the machine.
    Starting,
    /// The guest answers.
    Running,
    /// Memory and disk are being kept.
    Pausing,
    /// Kept; no machine runs.
    Paused,
    /// A machine is being made from what was kept.
    Resuming,
    /// Its host cannot be reached; what it is there is not known.
    Missing,
    /// Its machine is lost. What was kept of it earlier may be resumed.
    Error,
    /// It is being removed.
    Stopping,
    /// Gone. Only the row is left.
    Stopped,
}

use CapsuleState::{
    Error, Missing, Paused, Pausing, Resuming, Running, Starting, Stopped, Stopping,
};

impl CapsuleState {
    /// Every state, in the order of a life.
    pub const ALL: [Self; 9] =
        [Starting, Running, Pausing, Paused, Resuming, Missing, Error, Stopping, Stopped];

    /// The states that this one may leave to.
    #[must_use]
    pub const fn next(self) -> &'static [Self] {
        match self {
            Starting => &[Running, Error, Stopping],
            Running => &[Pausing, Stopping, Missing, Error],
            Pausing => &[Paused, Running, Stopping, Missing, Error],
            Paused => &[Resuming, Stopping, Error],
            Resuming => &[Running, Paused, Stopping, Missing, Error],
            Missing => &[Running, Paused, Error, Stopping],
            Error => &[Resuming, Stopping],
            Stopping => &[Stopped],
            Stopped => &[],
        }
    }

    /// Whether a move from this state to `to` is legal.
    #[must_use]
    pub fn may_become(self, to: Self) -> bool {
        self.next().contains(&to)
    }

    /// The states that may move to `self`.
    #[must_use]
    pub fn previous(self) -> Vec<Self> {
        Self::ALL.into_iter().filter(|from| from.may_become(self)).collect()
    }

    /// The word on the wire and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Starting => "starting",
            Running => "running",
            Pausing => "pausing",
            Paused => "paused",
            Resuming => "resuming",
            Missing => "missing",
            Error => "error",
            Stopping => "stopping",
            Stopped => "stopped",
        }
    }
}

impl fmt::Display for CapsuleState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that names no state.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a capsule state")]
pub struct UnknownState(String);

impl FromStr for CapsuleState {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, UnknownState> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| UnknownState(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_but_the_last_can_be_removed() {
        for state in CapsuleState::ALL {
            let removable = state.may_become(Stopping);
            assert_eq!(removable, !matches!(state, Stopping | Stopped), "{state}");
        }
    }

    #[test]
    fn the_end_is_final_and_every_state_reaches_it() {
        assert!(Stopped.next().is_empty());
        for state in CapsuleState::ALL {
            assert!(!state.may_become(state), "{state} to itself");
            assert_eq!(state.as_str().parse::<CapsuleState>().unwrap(), state);
        }
        assert_eq!(Stopped.previous(), [Stopping]);
    }
}
