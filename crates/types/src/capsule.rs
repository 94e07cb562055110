//! The states of a capsule and the moves between them. The database's compare-and-set, the agent's
//! policy and the documents all follow this table.
//!
//! ```text
//! starting ─▶ running ⇄ pausing ─▶ paused ⇄ resuming ─▶ running
//!     └──────────┴─────────┴─────────┴─────────┴──▶ stopping ─▶ stopped
//! (missing: the host is unreachable)     (error: the machine is lost; an earlier
//!                                         snapshot may be resumed)
//! ```

use crate::text_enum;

/// State of a capsule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CapsuleState {
    /// The row exists, and a host makes the machine.
    Starting,
    /// The guest answers.
    Running,
    /// Memory and disk are being saved.
    Pausing,
    /// Memory and disk, or the disk alone, are saved. No machine runs.
    Paused,
    /// A machine is being made from the saved state.
    Resuming,
    /// The host cannot be reached, so the capsule's state there is unknown.
    Missing,
    /// The machine is lost. An earlier saved state may be resumed.
    Error,
    /// The capsule is being removed.
    Stopping,
    /// The capsule is gone. Only its row is left.
    Stopped,
}

use CapsuleState::{
    Error, Missing, Paused, Pausing, Resuming, Running, Starting, Stopped, Stopping,
};

impl CapsuleState {
    /// Returns the states that this state may change to.
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

    /// Reports whether a change from this state to `to` is legal.
    #[must_use]
    pub fn may_become(self, to: Self) -> bool {
        self.next().contains(&to)
    }

    /// Returns the states that may change to this state.
    #[must_use]
    pub fn previous(self) -> Vec<Self> {
        Self::ALL.into_iter().filter(|from| from.may_become(self)).collect()
    }
}

text_enum!(CapsuleState, "status", {
    Starting = "starting",
    Running = "running",
    Pausing = "pausing",
    Paused = "paused",
    Resuming = "resuming",
    Missing = "missing",
    Error = "error",
    Stopping = "stopping",
    Stopped = "stopped",
});

/// Action at the end of a capsule's lifetime or idle time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OnTimeout {
    /// Save memory and disk.
    #[default]
    Pause,
    /// Save the disk alone.
    PauseDisk,
    /// Remove the capsule.
    Kill,
}

text_enum!(OnTimeout, "on_timeout", {
    Pause = "pause",
    PauseDisk = "pause_disk",
    Kill = "kill",
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_before_stopping_can_be_removed() {
        for state in CapsuleState::ALL {
            let removable = state.may_become(Stopping);
            assert_eq!(removable, !matches!(state, Stopping | Stopped), "{state}");
        }
    }

    #[test]
    fn stopped_is_final_and_reached_only_from_stopping() {
        assert!(Stopped.next().is_empty());
        for state in CapsuleState::ALL {
            assert!(!state.may_become(state), "{state} to itself");
            assert_eq!(state.as_str().parse::<CapsuleState>().unwrap(), state);
        }
        assert_eq!(Stopped.previous(), [Stopping]);
    }
}
