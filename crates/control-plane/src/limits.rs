//! Limits on the holdings and the requests of a team and of a key. `load.rs` has the limits of one
//! control plane. A team without a limit of its own has the platform's default, or else the figure
//! in this file. The API and the database write 0 for no limit.

use daemon::lock;
use quick_cache::sync::Cache;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use types::{Isolation, LogPolicy};
use uuid::Uuid;

/// Most metadata that a capsule may carry, in bytes.
pub(crate) const METADATA_MAX: usize = 16 * 1024;
/// Most ports of a capsule that may be public.
pub(crate) const PUBLIC_PORTS_MAX: usize = 64;
/// Longest key or token that is looked at, in bytes.
pub(crate) const TOKEN_MAX: usize = 2000;
/// Requests per second that one address may make to sign in, sign up or sign in elsewhere. Twice as
/// many may come at once.
pub(crate) const STRANGERS_PER_SEC: Option<NonZeroU32> = NonZeroU32::new(20);
/// Most counters of teams and keys that are kept in memory.
const COUNTED: usize = 100_000;

/// Limits of a team or a key; `None` means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Capsules in any state but `stopped`.
    pub capsules: Option<NonZeroU32>,
    /// Virtual processors of capsules that have a machine.
    pub vcpus: Option<NonZeroU32>,
    pub memory_mib: Option<NonZeroU64>,
    /// Snapshots with a name. Only a team has this limit.
    pub snapshots: Option<NonZeroU32>,
    /// Storage of snapshots and paused capsules on the hosts' disks. Only a team has this limit.
    pub storage_mib: Option<NonZeroU64>,
    /// Templates. Only a team has this limit.
    pub templates: Option<NonZeroU32>,
    /// Builds under way at once. Only a team has this limit.
    pub builds: Option<NonZeroU32>,
    /// Versions of templates on the hosts' disks. Only a team has this limit.
    pub template_mib: Option<NonZeroU64>,
    pub creates_per_sec: Option<NonZeroU32>,
    pub requests_per_sec: Option<NonZeroU32>,
    /// Lowest isolation tier of the team's capsules. Only a team has this limit.
    pub isolation: Isolation,
    /// Output that the logs of the team's new capsules keep. Only a team has this setting.
    pub logs: LogPolicy,
}

impl Limits {
    pub(crate) const NONE: Self = Self {
        capsules: None,
        vcpus: None,
        memory_mib: None,
        snapshots: None,
        storage_mib: None,
        templates: None,
        builds: None,
        template_mib: None,
        creates_per_sec: None,
        requests_per_sec: None,
        isolation: Isolation::None,
        logs: LogPolicy::Background,
    };
    /// Limits of a team for which an admin has set no others.
    pub(crate) const DEFAULT: Self = Self {
        capsules: NonZeroU32::new(1000),
        vcpus: NonZeroU32::new(4000),
        memory_mib: NonZeroU64::new(4 << 20),
        snapshots: NonZeroU32::new(1000),
        storage_mib: NonZeroU64::new(1 << 20),
        templates: NonZeroU32::new(1000),
        builds: NonZeroU32::new(2),
        template_mib: NonZeroU64::new(1 << 18),
        creates_per_sec: NonZeroU32::new(100),
        requests_per_sec: NonZeroU32::new(1000),
        isolation: Isolation::None,
        logs: LogPolicy::Background,
    };

    /// Reports whether a new capsule must be checked against counts.
    pub(crate) fn counts(&self) -> bool {
        self.capsules.is_some() || self.vcpus.is_some() || self.memory_mib.is_some()
    }
}

/// Current holdings of a team or a key.
#[derive(Debug, Clone, Copy, Default, sqlx::FromRow)]
pub(crate) struct Held {
    pub capsules: i64,
    pub vcpus: i64,
    pub memory_mib: i64,
}

/// Snapshots and storage that a team keeps.
#[derive(Debug, Clone, Copy, Default, sqlx::FromRow)]
pub(crate) struct Stored {
    /// Snapshots with a name.
    pub snapshots: i64,
    /// Bytes on the hosts' disks of snapshots and paused capsules.
    pub storage_bytes: i64,
}

/// Names the limit that a team with these holdings exceeds; `None` when it is within. Pure.
pub(crate) fn beyond_storage(limits: &Limits, stored: Stored) -> Option<String> {
    let snapshots = whole(stored.snapshots);
    if let Some(most) = limits.snapshots.filter(|most| snapshots > u64::from(most.get())) {
        return Some(format!("{} of {most} snapshots are in use", snapshots - 1));
    }
    let bytes = whole(stored.storage_bytes);
    let most = limits.storage_mib.filter(|most| bytes > most.get().saturating_mul(1 << 20))?;
    Some(format!("{} of {most} MiB of storage would be in use", bytes.div_ceil(1 << 20)))
}

fn whole(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

/// Names the limit that `more` would exceed; `None` when there is room. Pure.
pub(crate) fn beyond(limits: &Limits, held: Held, more: Held) -> Option<String> {
    let rows = [
        ("capsules", limits.capsules.map(NonZeroU64::from), held.capsules, more.capsules),
        ("vCPUs", limits.vcpus.map(NonZeroU64::from), held.vcpus, more.vcpus),
        ("MiB of memory", limits.memory_mib, held.memory_mib, more.memory_mib),
    ];
    rows.into_iter().find_map(|(what, limit, held, more)| {
        let limit = limit?;
        let over = more > 0 && whole(held) + whole(more) > limit.get();
        over.then(|| format!("{held} of {limit} {what} are in use"))
    })
}

/// Returns the most that may be held before `more` is added. [`beyond`] finds nothing for these
/// holdings, and something for any larger ones. Pure.
pub(crate) fn most_before(limits: &Limits, more: Held) -> Held {
    let most = |limit: Option<u64>, more: i64| match limit {
        Some(limit) if more > 0 => i64::try_from(limit).unwrap_or(i64::MAX) - more,
        _ => i64::MAX,
    };
    Held {
        capsules: most(limits.capsules.map(|most| most.get().into()), more.capsules),
        vcpus: most(limits.vcpus.map(|most| most.get().into()), more.vcpus),
        memory_mib: most(limits.memory_mib.map(NonZeroU64::get), more.memory_mib),
    }
}

/// Kinds of events with a limit per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Per {
    Request,
    Create,
}

/// Rate limiter of one replica. It passes `rate` events a second, and twice as many at once.
pub(crate) struct Limiter(Cache<(Uuid, Per), Arc<Mutex<Option<Instant>>>>);

impl Limiter {
    pub(crate) fn new() -> Self {
        Self(Cache::new(COUNTED))
    }

    /// Counts an event, or returns the time after which one would pass.
    pub(crate) fn pass(
        &self,
        who: Uuid,
        per: Per,
        rate: Option<NonZeroU32>,
    ) -> Result<(), Duration> {
        let Some(rate) = rate else { return Ok(()) };
        let made = self
            .0
            .get_or_insert_with(&(who, per), || Ok::<_, std::convert::Infallible>(Arc::default()));
        let Ok(slot) = made;
        let mut free_at = lock(&slot);
        let now = Instant::now();
        let (next, wait) = after(free_at.unwrap_or(now).max(now) - now, rate);
        if let Some(wait) = wait {
            return Err(wait);
        }
        *free_at = Some(now + next);
        Ok(())
    }
}

/// Applies the generic cell rate algorithm. `ahead` is the time to come that earlier events have
/// used up. Returns its new value, or the time to wait. Pure.
fn after(ahead: Duration, rate: NonZeroU32) -> (Duration, Option<Duration>) {
    let each = Duration::from_secs(1) / rate.get();
    let most = Duration::from_secs(2);
    let next = ahead + each;
    (next, (next > most).then(|| next - most))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn exceeded_limit_is_named() {
        let limits =
            Limits { capsules: NonZeroU32::new(2), vcpus: NonZeroU32::new(4), ..Limits::NONE };
        let held = |capsules, vcpus| Held { capsules, vcpus, memory_mib: 1 << 40 };
        let more = Held { capsules: 1, vcpus: 2, memory_mib: 1 };
        assert_eq!(beyond(&limits, held(1, 2), more), None);
        assert_eq!(beyond(&limits, held(2, 0), more).unwrap(), "2 of 2 capsules are in use");
        assert_eq!(beyond(&limits, held(0, 3), more).unwrap(), "3 of 4 vCPUs are in use");
        // A resume adds no capsule, so a full limit on capsules does not refuse it.
        assert_eq!(beyond(&limits, held(3, 0), Held { capsules: 0, ..more }), None);
        assert_eq!(beyond(&Limits::NONE, held(1 << 40, 1 << 40), more), None);
        assert!(!Limits::NONE.counts() && Limits::DEFAULT.counts());
    }

    proptest! {
        /// The database compares with the bounds, and the error's text comes from `beyond`.
        #[test]
        fn holdings_fit_below_the_bounds_exactly_when_no_limit_is_exceeded(
            limits in proptest::array::uniform3(0_u32..6),
            held in proptest::array::uniform3(0_i64..6),
            more in proptest::array::uniform3(0_i64..4),
        ) {
            let limits = Limits {
                capsules: NonZeroU32::new(limits[0]),
                vcpus: NonZeroU32::new(limits[1]),
                memory_mib: NonZeroU64::new(limits[2].into()),
                ..Limits::NONE
            };
            let of = |n: [i64; 3]| Held { capsules: n[0], vcpus: n[1], memory_mib: n[2] };
            let (held, more) = (of(held), of(more));
            let most = most_before(&limits, more);
            let fits = held.capsules <= most.capsules
                && held.vcpus <= most.vcpus
                && held.memory_mib <= most.memory_mib;
            prop_assert_eq!(fits, beyond(&limits, held, more).is_none());
        }
    }

    #[test]
    fn exceeded_storage_limit_is_named() {
        let limits = Limits {
            snapshots: NonZeroU32::new(2),
            storage_mib: NonZeroU64::new(10),
            ..Limits::NONE
        };
        let stored = |snapshots, mib: i64| Stored { snapshots, storage_bytes: mib << 20 };
        assert_eq!(beyond_storage(&limits, stored(2, 10)), None);
        let said = beyond_storage(&limits, stored(3, 0)).unwrap();
        assert_eq!(said, "2 of 2 snapshots are in use");
        let over = Stored { storage_bytes: (10 << 20) + 1, ..stored(2, 0) };
        let said = beyond_storage(&limits, over).unwrap();
        assert_eq!(said, "11 of 10 MiB of storage would be in use");
        assert_eq!(beyond_storage(&Limits::NONE, stored(1 << 40, 1 << 30)), None);
    }

    #[test]
    fn two_second_burst_passes_before_rate_limit_applies() {
        let (rate, mut ahead) = (NonZeroU32::new(10).unwrap(), Duration::ZERO);
        for n in 0..20 {
            let (next, wait) = after(ahead, rate);
            assert_eq!(wait, None, "{n}");
            ahead = next;
        }
        assert_eq!(after(ahead, rate).1, Some(Duration::from_millis(100)));
        assert_eq!(after(ahead - Duration::from_millis(100), rate).1, None);
    }

    #[test]
    fn subjects_and_actions_are_limited_separately_and_none_is_unlimited() {
        let limiter = Limiter::new();
        let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
        let rate = NonZeroU32::new(1);
        assert!(limiter.pass(one, Per::Request, rate).is_ok());
        assert!(limiter.pass(one, Per::Request, rate).is_ok());
        assert!(limiter.pass(one, Per::Request, rate).is_err());
        assert!(limiter.pass(one, Per::Create, rate).is_ok());
        assert!(limiter.pass(other, Per::Request, rate).is_ok());
        assert!((0..10_000).all(|_| limiter.pass(one, Per::Request, None).is_ok()));
    }
}
