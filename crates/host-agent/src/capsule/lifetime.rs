//! Time limits of a capsule, and the action when they pass. The decisions here are pure; `manager`
//! carries them out.

use super::pause::PauseMode;
use std::time::Duration;

/// Due pauses that may fail because of the guest's agent. The next pause saves the guest as it is.
const SILENT_TRIES: u32 = 2;

/// Action on a capsule whose time is over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum OnTimeout {
    #[default]
    Pause,
    /// Pause that saves the disk without the memory.
    PauseDisk,
    Kill,
}

/// Time limits of one capsule.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Lifetime {
    /// End of the capsule's time by this machine's clock, in milliseconds since 1970; `None` is
    /// never.
    pub ends_at_ms: Option<i64>,
    pub on_timeout: OnTimeout,
    /// Seconds without activity after which the capsule is paused; 0 is never.
    pub idle_sec: u32,
    /// Milliseconds from `begin` until the capsule's time is over, instead of `ends_at_ms`.
    #[serde(default)]
    pub lasts_ms: u64,
}

/// Action that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    Pause,
    PauseDisk,
    Kill,
}

impl Due {
    /// Returns the mode of a pause after `silent_tries` pauses in a row that failed because of the
    /// guest's agent. Pure.
    pub(super) fn pause_mode(self, silent_tries: u32) -> PauseMode {
        if silent_tries >= SILENT_TRIES {
            return PauseMode::Frozen;
        }
        match self {
            Self::PauseDisk => PauseMode::Disk,
            Self::Pause | Self::Kill | Self::Nothing => PauseMode::Memory,
        }
    }
}

impl Lifetime {
    /// Sets the end of the capsule's time, for a capsule that runs from `now_ms` on.
    pub(crate) fn begin(&mut self, now_ms: i64) {
        if self.lasts_ms > 0 {
            let lasts = i64::try_from(self.lasts_ms).unwrap_or(i64::MAX);
            self.ends_at_ms = Some(now_ms.saturating_add(lasts));
            self.lasts_ms = 0;
        }
    }

    /// Returns the milliseconds until the capsule's time is over, at least 1; `None` is never.
    pub(crate) fn left_ms(&self, now_ms: i64) -> Option<u64> {
        let left = |end: i64| u64::try_from(end.saturating_sub(now_ms)).unwrap_or(0).max(1);
        self.ends_at_ms.map(left)
    }

    /// Returns the action that is due at a time, for a capsule that has been idle for so long.
    pub(crate) fn due(&self, now_ms: i64, idle: Duration) -> Due {
        let over = self.ends_at_ms.is_some_and(|end| end <= now_ms);
        match (over, self.on_timeout) {
            (true, OnTimeout::Kill) => Due::Kill,
            (true, OnTimeout::Pause) => Due::Pause,
            (true, OnTimeout::PauseDisk) => Due::PauseDisk,
            (false, _) if self.idle_sec > 0 && idle.as_secs() >= self.idle_sec.into() => Due::Pause,
            (false, _) => Due::Nothing,
        }
    }
}

/// Returns the current time in milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| i64::try_from(now.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_agent_delays_due_pause_but_does_not_prevent_it() {
        for (due, wanted) in [(Due::Pause, PauseMode::Memory), (Due::PauseDisk, PauseMode::Disk)] {
            assert_eq!(due.pause_mode(0), wanted);
            assert_eq!(due.pause_mode(SILENT_TRIES - 1), wanted);
            assert_eq!(due.pause_mode(SILENT_TRIES), PauseMode::Frozen);
        }
    }

    #[test]
    fn lifetime_end_is_absolute_and_idle_timeout_only_pauses() {
        let life = |ends_at_ms, on_timeout, idle_sec| Lifetime {
            ends_at_ms,
            on_timeout,
            idle_sec,
            lasts_ms: 0,
        };
        let day = Duration::from_secs(86_400);
        assert_eq!(Lifetime::default().due(i64::MAX, day), Due::Nothing);
        assert_eq!(life(Some(5), OnTimeout::Kill, 0).due(5, Duration::ZERO), Due::Kill);
        assert_eq!(life(Some(5), OnTimeout::Pause, 0).due(6, Duration::ZERO), Due::Pause);
        let disk = life(Some(5), OnTimeout::PauseDisk, 3);
        assert_eq!(disk.due(6, Duration::ZERO), Due::PauseDisk);
        assert_eq!(disk.due(4, day), Due::Pause);
        assert_eq!(life(Some(5), OnTimeout::Kill, 0).due(4, day), Due::Nothing);
        assert_eq!(life(Some(9), OnTimeout::Kill, 3).due(4, Duration::from_secs(3)), Due::Pause);
        let mut begun = Lifetime { lasts_ms: 7, ..Lifetime::default() };
        begun.begin(3);
        assert_eq!((begun.ends_at_ms, begun.lasts_ms), (Some(10), 0));
        assert_eq!((begun.left_ms(3), begun.left_ms(12)), (Some(7), Some(1)));
        assert_eq!(Lifetime::default().left_ms(3), None);
        assert_eq!(
            life(None, OnTimeout::Kill, 3).due(4, Duration::from_millis(2999)),
            Due::Nothing
        );
    }
}
