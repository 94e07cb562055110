//! Time limits of a capsule, and the action when they pass. The decisions here are pure; `due`
//! carries them out. `None` is never, except in a record's file, where 0 is.

use std::time::Duration;

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
    /// Seconds without activity after which the capsule is paused; `None` is never.
    #[serde(with = "zero_is_none")]
    pub idle_sec: Option<u32>,
    /// Milliseconds from `begin` until the capsule's time is over, which then replace `ends_at_ms`.
    #[serde(default, with = "zero_is_none")]
    pub lasts_ms: Option<u64>,
}

/// Action that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    Nothing,
    Pause,
    PauseDisk,
    Kill,
}

/// Form of an optional number in a record's file, where 0 stands for `None`.
mod zero_is_none {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T, S>(number: &Option<T>, to: S) -> Result<S::Ok, S::Error>
    where
        T: Copy + Default + Serialize,
        S: Serializer,
    {
        number.unwrap_or_default().serialize(to)
    }

    pub(super) fn deserialize<'de, T, D>(from: D) -> Result<Option<T>, D::Error>
    where
        T: Default + PartialEq + Deserialize<'de>,
        D: Deserializer<'de>,
    {
        T::deserialize(from).map(|number| Some(number).filter(|number| *number != T::default()))
    }
}

impl Lifetime {
    /// Sets the end of the capsule's time, for a capsule that runs from `now_ms` on.
    pub(crate) fn begin(&mut self, now_ms: i64) {
        if let Some(lasts) = self.lasts_ms.take() {
            let lasts = i64::try_from(lasts).unwrap_or(i64::MAX);
            self.ends_at_ms = Some(now_ms.saturating_add(lasts));
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
        let idles = self.idle_sec.is_some_and(|most| idle.as_secs() >= u64::from(most));
        match (over, self.on_timeout) {
            (true, OnTimeout::Kill) => Due::Kill,
            (true, OnTimeout::Pause) => Due::Pause,
            (true, OnTimeout::PauseDisk) => Due::PauseDisk,
            (false, _) if idles => Due::Pause,
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
    fn lifetime_end_is_absolute_and_idle_timeout_only_pauses() {
        let life = |ends_at_ms, on_timeout, idle_sec: u32| Lifetime {
            ends_at_ms,
            on_timeout,
            idle_sec: Some(idle_sec).filter(|idle| *idle > 0),
            lasts_ms: None,
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
        let mut begun = Lifetime { lasts_ms: Some(7), ..Lifetime::default() };
        begun.begin(3);
        assert_eq!((begun.ends_at_ms, begun.lasts_ms), (Some(10), None));
        assert_eq!((begun.left_ms(3), begun.left_ms(12)), (Some(7), Some(1)));
        assert_eq!(Lifetime::default().left_ms(3), None);
        assert_eq!(
            life(None, OnTimeout::Kill, 3).due(4, Duration::from_millis(2999)),
            Due::Nothing
        );
    }

    #[test]
    fn lifetime_without_limits_is_zeroes_in_its_file() {
        let file = r#"{"ends_at_ms":null,"on_timeout":"Pause","idle_sec":0,"lasts_ms":0}"#;
        assert_eq!(serde_json::to_string(&Lifetime::default()).unwrap(), file);
        assert_eq!(serde_json::from_str::<Lifetime>(file).unwrap(), Lifetime::default());
        let (idle_sec, lasts_ms) = (Some(3), Some(7));
        let limited = Lifetime { idle_sec, lasts_ms, ..Lifetime::default() };
        let text = serde_json::to_string(&limited).unwrap();
        assert!(text.contains(r#""idle_sec":3,"lasts_ms":7"#), "{text}");
        assert_eq!(serde_json::from_str::<Lifetime>(&text).unwrap(), limited);
    }
}
