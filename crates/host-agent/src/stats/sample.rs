//! Samples of one capsule, from readings of counters. Pure.
//!
//! A counter counts from the start of its machine. So each machine begins with a reading of its own,
//! and no rate spans two machines.

use super::guest::GuestStats;
use crate::capsule::record::CapsuleRecord;
use crate::cgroup::GroupUsage;
use crate::network::traffic::Traffic;
use std::time::{Duration, Instant};

/// Age up to which a machine's first sample is the mean since its start.
const YOUNG: Duration = Duration::from_secs(10);
/// Most kills for want of memory that one sample counts.
const KILLS_MAX: u64 = 1000;

/// Facts about a capsule that its samples need.
#[derive(Clone)]
pub(super) struct Facts {
    /// Name of the machine's control group.
    pub group: String,
    pub envd_token: String,
    pub vcpus: u32,
    /// Memory of the guest, in bytes.
    pub memory: u64,
    /// Size of the guest's disk, in bytes.
    pub disk: u64,
}

impl Facts {
    /// Returns the facts of a capsule; `None` for a capsule that runs the steps of a build.
    pub(super) fn of(record: CapsuleRecord) -> Option<Self> {
        if record.builds.is_some() {
            return None;
        }
        Some(Self {
            group: record.name(),
            vcpus: record.resources.vcpus.max(1),
            memory: u64::from(record.resources.memory_mib) << 20,
            disk: u64::from(record.resources.disk_mib) << 20,
            envd_token: record.envd_token,
        })
    }
}

/// State of all counters at one time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    pub at: Instant,
    /// Counts of the VMM's control group.
    pub group: GroupUsage,
    /// Bytes on the capsule's tap.
    pub traffic: Option<Traffic>,
    /// Metrics of the guest, if it was asked and answered.
    pub guest: Option<GuestStats>,
}

impl Reading {
    /// Returns the reading with counters of an earlier one of the same machine in place of absent
    /// ones.
    pub(super) fn or_counters_of(mut self, before: Option<&Self>) -> Self {
        let Some(before) = before else { return self };
        self.traffic = self.traffic.or(before.traffic);
        self.group.oom_kills = self.group.oom_kills.or(before.group.oom_kills);
        if self.guest.is_none() {
            let oom_kills = before.guest.and_then(|guest| guest.oom_kills);
            self.guest = oom_kills.map(|_| GuestStats { oom_kills, ..GuestStats::default() });
        }
        self
    }
}

/// Metrics of a capsule at one time. Sizes are in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Sample {
    /// Time in milliseconds since 1970.
    pub at_ms: u64,
    /// Use of all of the capsule's processors since the sample before, from 0 to 100.
    pub cpu_percent: f64,
    /// Resident memory of the VMM or, without `from_host`, memory that the guest says it uses.
    pub memory: u64,
    /// Memory in use, as the guest reports.
    pub guest_memory: Option<u64>,
    /// Page cache, as the guest reports.
    pub cache: Option<u64>,
    /// Used part of the disk, as the guest reports.
    pub disk: Option<u64>,
    /// Bytes that the guest received since the sample before.
    pub received: Option<u64>,
    /// Bytes that the guest sent since the sample before.
    pub sent: Option<u64>,
    /// Kills of the VMM for want of memory, since the sample before.
    pub oom_kills: u32,
    /// OOM kills by the guest's kernel, as the guest reports.
    pub guest_oom_kills: u32,
    /// True if the host counted processor and memory, false if the guest reported them.
    pub from_host: bool,
    /// True for the first sample of a machine. Time before it is a gap.
    pub begins: bool,
}

impl Sample {
    /// Makes a sample from a reading and the one before of the same machine, which is `age` old.
    /// Returns `None` when neither host nor guest tell processor and memory.
    pub(super) fn of(
        at_ms: u64,
        last: Option<&Reading>,
        now: &Reading,
        (facts, age): (&Facts, Duration),
    ) -> Option<Self> {
        let guest = now.guest.unwrap_or_default();
        let counted = cpu(last, now, age).map(|(used, over)| share(used, over, facts.vcpus));
        let from_host = counted.is_some() && now.group.memory.is_some();
        let memory = now.group.memory.or(guest.memory)?.min(facts.memory);
        let traffic = last.and_then(|last| last.traffic).zip(now.traffic);
        let kills = |before: Option<u64>, now: Option<u64>| {
            let more = before.zip(now).map_or(0, |(before, now)| now.saturating_sub(before));
            u32::try_from(more.min(KILLS_MAX)).unwrap_or(0)
        };
        Some(Self {
            at_ms,
            cpu_percent: counted.or(guest.cpu_percent)?,
            memory,
            guest_memory: guest.memory.map(|bytes| bytes.min(facts.memory)),
            cache: guest.cache.map(|bytes| bytes.min(facts.memory)),
            disk: guest.disk.map(|bytes| bytes.min(facts.disk)),
            received: traffic.map(|(a, b)| b.received.saturating_sub(a.received)),
            sent: traffic.map(|(a, b)| b.sent.saturating_sub(a.sent)),
            oom_kills: kills(last.and_then(|last| last.group.oom_kills), now.group.oom_kills),
            guest_oom_kills: kills(
                last.and_then(|last| last.guest).and_then(|guest| guest.oom_kills),
                guest.oom_kills,
            ),
            from_host,
            begins: last.is_none(),
        })
    }
}

/// Returns the processor time that a machine used, and over which time.
fn cpu(last: Option<&Reading>, now: &Reading, age: Duration) -> Option<(Duration, Duration)> {
    let used = now.group.cpu?;
    match last {
        Some(last) => {
            Some((used.saturating_sub(last.group.cpu?), now.at.saturating_duration_since(last.at)))
        }
        None => (age <= YOUNG).then_some((used, age)),
    }
}

/// Returns the share of all processors in percent.
fn share(used: Duration, over: Duration, vcpus: u32) -> f64 {
    percent(100.0 * used.as_secs_f64() / (over.as_secs_f64() * f64::from(vcpus)))
}

/// Puts a number into the range of percentages, rounded to hundredths. A number that is none is 0.
pub(super) fn percent(value: f64) -> f64 {
    if value.is_nan() { 0.0 } else { (value.clamp(0.0, 100.0) * 100.0).round() / 100.0 }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const OLD: Duration = Duration::from_secs(60);

    pub(in crate::stats) fn facts() -> Facts {
        Facts {
            group: "cl-1".to_owned(),
            envd_token: "t".to_owned(),
            vcpus: 2,
            memory: 1000,
            disk: 500,
        }
    }

    fn group(cpu_ms: u64, memory: u64) -> GroupUsage {
        let cpu = Some(Duration::from_millis(cpu_ms));
        GroupUsage { cpu, memory: Some(memory), oom_kills: Some(0) }
    }

    fn reading(at: Instant, group: GroupUsage) -> Reading {
        Reading { at, group, traffic: None, guest: None }
    }

    fn of(last: Option<&Reading>, now: &Reading, age: Duration) -> Option<Sample> {
        Sample::of(7, last, now, (&facts(), age))
    }

    #[test]
    fn processor_is_the_share_of_all_processors_since_the_last_reading() {
        let begun = Instant::now();
        let last = reading(begun, group(1000, 400));
        let now = reading(begun + 5 * SECOND, group(6000, 600));
        let sample = of(Some(&last), &now, OLD).unwrap();
        assert_eq!((sample.cpu_percent, sample.memory), (50.0, 600));
        assert!(sample.from_host && !sample.begins);
    }

    #[test]
    fn first_sample_of_a_young_machine_is_the_mean_since_its_start() {
        let now = reading(Instant::now(), group(1000, 400));
        let sample = of(None, &now, 2 * SECOND).unwrap();
        assert_eq!((sample.cpu_percent, sample.begins), (25.0, true));
        assert_eq!(of(None, &now, OLD), None, "the past of an old machine is unknown");
    }

    #[test]
    fn figures_above_the_size_of_the_capsule_or_against_time_are_clamped() {
        let begun = Instant::now();
        let last = reading(begun, group(9000, 400));
        // The counter went back, and no time passed.
        let sample = of(Some(&last), &reading(begun, group(1, 9999)), OLD).unwrap();
        assert_eq!((sample.cpu_percent, sample.memory), (0.0, 1000));
        let sample = of(Some(&last), &reading(begun + SECOND, group(90_000, 1)), OLD).unwrap();
        assert_eq!(sample.cpu_percent, 100.0);
        for (value, wanted) in [(f64::NAN, 0.0), (-1.0, 0.0), (f64::INFINITY, 100.0), (1.239, 1.24)]
        {
            assert_eq!(percent(value), wanted, "{value}");
        }
    }

    #[test]
    fn words_of_the_guest_stand_in_where_the_host_counts_nothing() {
        let guest = GuestStats {
            cpu_percent: Some(40.0),
            memory: Some(u64::MAX),
            cache: Some(3),
            disk: Some(u64::MAX),
            oom_kills: Some(5),
        };
        let mut now = reading(Instant::now(), GroupUsage::default());
        assert_eq!(of(None, &now, OLD), None, "nobody tells anything");
        now.guest = Some(guest);
        let sample = of(None, &now, OLD).unwrap();
        assert!(!sample.from_host);
        assert_eq!((sample.cpu_percent, sample.memory), (40.0, 1000));
        assert_eq!((sample.guest_memory, sample.disk), (Some(1000), Some(500)));
        assert_eq!(sample.guest_oom_kills, 0, "earlier kills are no news");
        let later = Reading { guest: Some(GuestStats { oom_kills: Some(7), ..guest }), ..now };
        assert_eq!(of(Some(&now), &later, OLD).unwrap().guest_oom_kills, 2);
        let lying = GuestStats { oom_kills: Some(u64::MAX), ..guest };
        let lying = Reading { guest: Some(lying), ..now };
        assert_eq!(of(Some(&now), &lying, OLD).unwrap().guest_oom_kills, 1000);
    }

    #[test]
    fn counters_survive_a_reading_without_them() {
        let guest = GuestStats { oom_kills: Some(5), memory: Some(1), ..GuestStats::default() };
        let traffic = Some(Traffic { received: 10, sent: 20 });
        let begun = Instant::now();
        let first = Reading { guest: Some(guest), traffic, ..reading(begun, group(0, 1)) };
        let silent = reading(begun + SECOND, group(0, 1)).or_counters_of(Some(&first));
        assert_eq!(silent.guest.unwrap().memory, None);
        let later = Reading {
            guest: Some(GuestStats { oom_kills: Some(6), ..guest }),
            traffic: Some(Traffic { received: 15, sent: 20 }),
            ..reading(begun + 2 * SECOND, group(0, 1))
        };
        let sample = of(Some(&silent), &later, OLD).unwrap();
        assert_eq!((sample.received, sample.sent), (Some(5), Some(0)));
        assert_eq!(sample.guest_oom_kills, 1);
    }
}
