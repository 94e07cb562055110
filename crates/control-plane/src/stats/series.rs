//! Stats of spans of time, and the steps of a series. Pure.
//!
//! Hosts and guests report metrics, so each is brought into its range here before it is stored or
//! shown.

use crate::db::stats::{CoarseRow, FineRow};
use protocol::host;
use types::CapsuleId;

/// Seconds between two samples, and of a coarse row.
pub(crate) const FINE: i64 = 5;
pub(crate) const COARSE: i64 = 300;
/// Days before the present one whose samples are kept.
pub(crate) const FINE_DAYS: i64 = 1;
/// Most samples of a minute.
const SLOTS: u32 = 12;
/// Most kills for want of memory that one minute counts.
const KILLS_MAX: u32 = 10_000;

/// Stats of a capsule in a span of time. Sizes are in bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Stats {
    /// Beginning of the span, in seconds since 1970.
    pub at: i64,
    /// Number of samples in the span.
    pub samples: u32,
    pub cpu_mean: f64,
    pub cpu_max: f64,
    pub memory: u64,
    /// Largest values, as the guest reports.
    pub guest_memory: Option<u64>,
    pub cache: Option<u64>,
    pub disk: Option<u64>,
    /// Bytes on the network in the span.
    pub received: Option<u64>,
    pub sent: Option<u64>,
    pub oom_kills: u32,
    pub guest_oom_kills: u32,
    pub from_host: bool,
    /// True if a machine began in the span.
    pub begins: bool,
}

impl Stats {
    /// Returns the metrics of a sample in a host's memory.
    pub(crate) fn of_sample(sample: &host::StatsSample) -> Option<Self> {
        let at = i64::try_from(sample.at_ms / 1000).ok()?;
        let cpu = percent(sample.cpu_percent);
        Some(Self {
            at,
            samples: 1,
            cpu_mean: cpu,
            cpu_max: cpu,
            memory: sample.memory,
            guest_memory: sample.guest_memory,
            cache: sample.cache,
            disk: sample.disk,
            received: sample.received,
            sent: sample.sent,
            oom_kills: sample.oom_kills.min(KILLS_MAX),
            guest_oom_kills: sample.guest_oom_kills.min(KILLS_MAX),
            from_host: sample.from_host,
            begins: sample.begins,
        })
    }

    /// Returns the metrics of a minute's samples. Sums over the minute are in the last sample.
    pub(crate) fn of_minute(row: &FineRow) -> Vec<Self> {
        let slots = (0..SLOTS).filter(|slot| row.slots & (1_i16 << *slot) != 0);
        let samples = slots.zip(row.cpu.iter().zip(&row.memory_kib));
        let mut all: Vec<Self> = samples
            .enumerate()
            .map(|(n, (slot, (cpu, memory)))| Self {
                at: row.at + i64::from(slot) * FINE,
                samples: 1,
                cpu_mean: percent(f64::from(*cpu)),
                cpu_max: percent(f64::from(*cpu)),
                memory: bytes(*memory),
                guest_memory: row.guest_memory_kib.get(n).copied().flatten().map(bytes),
                cache: row.cache_kib.map(bytes),
                disk: row.disk_kib.map(bytes),
                received: row.received.map(|_| 0),
                sent: row.sent.map(|_| 0),
                oom_kills: 0,
                guest_oom_kills: 0,
                from_host: row.from_host,
                begins: row.begins & (1_i16 << slot) != 0,
            })
            .collect();
        if let Some(last) = all.last_mut() {
            last.received = row.received.map(unsigned);
            last.sent = row.sent.map(unsigned);
            last.oom_kills = u32::try_from(row.oom_kills).unwrap_or(0);
            last.guest_oom_kills = u32::try_from(row.guest_oom_kills).unwrap_or(0);
        }
        all
    }

    /// Returns the metrics of a coarse row.
    pub(crate) fn of_coarse(row: &CoarseRow) -> Self {
        Self {
            at: row.at,
            samples: u32::try_from(row.samples).unwrap_or(0),
            cpu_mean: percent(row.cpu_mean.into()),
            cpu_max: percent(row.cpu_max.into()),
            memory: bytes(row.memory_kib),
            guest_memory: row.guest_memory_kib.map(bytes),
            cache: row.cache_kib.map(bytes),
            disk: row.disk_kib.map(bytes),
            received: row.received.map(unsigned),
            sent: row.sent.map(unsigned),
            oom_kills: u32::try_from(row.oom_kills).unwrap_or(0),
            guest_oom_kills: u32::try_from(row.guest_oom_kills).unwrap_or(0),
            from_host: row.from_host,
            begins: row.begins,
        }
    }

    /// Limits sizes to those of a capsule.
    pub(crate) fn within(mut self, memory: u64, disk: u64) -> Self {
        self.memory = self.memory.min(memory);
        self.guest_memory = self.guest_memory.map(|bytes| bytes.min(memory));
        self.cache = self.cache.map(|bytes| bytes.min(memory));
        self.disk = self.disk.map(|bytes| bytes.min(disk));
        self
    }

    /// Adds the metrics of a later span.
    fn add(&mut self, other: &Self) {
        let samples = self.samples.saturating_add(other.samples);
        let total =
            self.cpu_mean * f64::from(self.samples) + other.cpu_mean * f64::from(other.samples);
        self.cpu_mean = total / f64::from(samples.max(1));
        self.samples = samples;
        self.cpu_max = self.cpu_max.max(other.cpu_max);
        self.memory = self.memory.max(other.memory);
        self.guest_memory = self.guest_memory.max(other.guest_memory);
        self.cache = self.cache.max(other.cache);
        self.disk = self.disk.max(other.disk);
        self.received = sum(self.received, other.received);
        self.sent = sum(self.sent, other.sent);
        self.oom_kills = self.oom_kills.saturating_add(other.oom_kills);
        self.guest_oom_kills = self.guest_oom_kills.saturating_add(other.guest_oom_kills);
        self.from_host &= other.from_host;
        self.begins |= other.begins;
    }
}

/// Combines metrics in the order of their times into steps of `step` seconds. A step begins at a
/// multiple of its length. A step without metrics is absent.
pub(crate) fn fold(stats: impl IntoIterator<Item = Stats>, step: i64) -> Vec<Stats> {
    let mut steps: Vec<Stats> = Vec::new();
    for one in stats {
        let at = floor(one.at, step);
        match steps.last_mut().filter(|last| last.at == at) {
            Some(last) => last.add(&one),
            None => steps.push(Stats { at, ..one }),
        }
    }
    steps
}

/// Returns the last multiple of `step` that is not after `at`.
pub(crate) fn floor(at: i64, step: i64) -> i64 {
    at - at.rem_euclid(step)
}

/// Returns the step in seconds for at most `points` steps over `seconds`. A long step is a multiple
/// of the coarse rows.
pub(crate) fn step(seconds: i64, points: i64) -> i64 {
    let exact = seconds.max(1).div_euclid(points.max(1)) + 1;
    let unit = if exact > COARSE { COARSE } else { FINE };
    floor(exact + unit - 1, unit).max(unit)
}

/// Returns the row of a minute that a host reported; `None` for a row that cannot be read.
pub(crate) fn row(minute: &host::StatsMinute) -> Option<FineRow> {
    let id: CapsuleId = minute.capsule_id.parse().ok()?;
    let at = i64::try_from(minute.at_sec).ok().filter(|at| at % 60 == 0)?;
    let slots = minute.slots & ((1_u32 << SLOTS) - 1);
    let samples = usize::try_from(slots.count_ones()).ok()?;
    let all = [minute.cpu_percent.len(), minute.memory.len(), minute.guest_memory.len()];
    if samples == 0 || all != [samples; 3] {
        return None;
    }
    let kills = |kills: u32| i32::try_from(kills.min(KILLS_MAX)).unwrap_or(0);
    let count = |bytes: Option<u64>| bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    let guest = |bytes: &i64| u64::try_from(*bytes).ok().map(kib);
    Some(FineRow {
        capsule_id: Some(id.0),
        at,
        slots: i16::try_from(slots).ok()?,
        begins: i16::try_from(minute.begins & slots).ok()?,
        from_host: minute.from_host,
        cpu: minute.cpu_percent.iter().map(|cpu| short(*cpu)).collect(),
        memory_kib: minute.memory.iter().map(|bytes| kib(*bytes)).collect(),
        guest_memory_kib: minute.guest_memory.iter().map(guest).collect(),
        cache_kib: minute.cache.map(kib),
        disk_kib: minute.disk.map(kib),
        // The sum over all capsules and days stays within its type.
        received: count(minute.received.map(|bytes| bytes.min(1 << 50))),
        sent: count(minute.sent.map(|bytes| bytes.min(1 << 50))),
        oom_kills: kills(minute.oom_kills),
        guest_oom_kills: kills(minute.guest_oom_kills),
    })
}

/// Puts a number into the range of percentages, rounded to hundredths. A number that is none is 0.
pub(crate) fn percent(value: f64) -> f64 {
    if value.is_nan() { 0.0 } else { (value.clamp(0.0, 100.0) * 100.0).round() / 100.0 }
}

#[expect(clippy::cast_possible_truncation, reason = "a percentage needs no 52 bits")]
fn short(value: f64) -> f32 {
    percent(value) as f32
}

fn kib(bytes: u64) -> i32 {
    i32::try_from(bytes >> 10).unwrap_or(i32::MAX)
}

fn bytes(kib: i32) -> u64 {
    u64::try_from(kib).unwrap_or(0) << 10
}

fn unsigned(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

fn sum(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.saturating_add(b)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(at: i64, cpu: f64, memory: u64) -> Stats {
        Stats {
            at,
            samples: 1,
            cpu_mean: cpu,
            cpu_max: cpu,
            memory,
            guest_memory: None,
            cache: None,
            disk: Some(memory),
            received: Some(1),
            sent: None,
            oom_kills: 0,
            guest_oom_kills: 1,
            from_host: true,
            begins: false,
        }
    }

    fn minute() -> host::StatsMinute {
        host::StatsMinute {
            capsule_id: CapsuleId::new().to_string(),
            at_sec: 1_700_000_040,
            slots: 0b101,
            begins: 0b1,
            from_host: true,
            cpu_percent: vec![10.0, 30.0],
            memory: vec![2048, 4096],
            guest_memory: vec![-1, 1024],
            received: Some(7),
            oom_kills: 1,
            ..Default::default()
        }
    }

    #[test]
    fn steps_hold_means_maxima_and_sums_and_gaps_stay() {
        let all = [at(60, 10.0, 5), at(65, 30.0, 3), at(119, 20.0, 1), at(240, 5.0, 9)];
        let steps = fold(all, 60);
        assert_eq!(steps.iter().map(|step| step.at).collect::<Vec<_>>(), [60, 240]);
        let first = steps[0];
        assert_eq!((first.cpu_mean, first.cpu_max, first.memory), (20.0, 30.0, 5));
        assert_eq!((first.received, first.sent, first.guest_oom_kills), (Some(3), None, 3));
        assert_eq!(first.samples, 3);
    }

    #[test]
    fn step_is_a_multiple_of_samples_or_coarse_rows_and_bounds_the_points() {
        assert_eq!((step(0, 120), step(600, 120), step(3600, 120)), (5, 10, 35));
        assert_eq!((step(36_000, 120), step(86_400, 120)), (600, 900));
        for (seconds, points) in [(1, 1), (3600, 7), (86_400, 1000), (31_622_400, 3)] {
            let step = step(seconds, points);
            assert!(step % FINE == 0 && seconds / step <= points, "{seconds} {points}: {step}");
            assert!(step <= COARSE || step % COARSE == 0, "{step}");
        }
        assert_eq!((floor(-1, 5), floor(9, 5), floor(10, 5)), (-5, 5, 10));
    }

    #[test]
    fn minute_becomes_a_row_and_its_samples_again() {
        let stats = Stats::of_minute(&row(&minute()).unwrap());
        assert_eq!(stats.len(), 2);
        assert_eq!((stats[0].at, stats[1].at), (1_700_000_040, 1_700_000_050));
        assert_eq!((stats[0].cpu_mean, stats[1].memory), (10.0, 4096));
        assert_eq!((stats[0].guest_memory, stats[1].guest_memory), (None, Some(1024)));
        assert_eq!((stats[0].received, stats[1].received), (Some(0), Some(7)));
        assert_eq!((stats[0].oom_kills, stats[1].oom_kills), (0, 1));
        assert!(stats[0].begins && !stats[1].begins);
    }

    #[test]
    fn unreadable_row_of_a_host_is_left_out_and_stats_are_clamped() {
        let rows: [fn(&mut host::StatsMinute); 6] = [
            |row| row.capsule_id = "x".to_owned(),
            |row| row.at_sec = 61,
            |row| row.at_sec = u64::MAX,
            |row| row.slots = 0,
            |row| row.cpu_percent.push(1.0),
            |row| row.guest_memory.clear(),
        ];
        for change in rows {
            let mut wrong = minute();
            change(&mut wrong);
            assert_eq!(row(&wrong), None, "{wrong:?}");
        }
        let mut wild = minute();
        wild.cpu_percent = vec![f64::NAN, 1e9];
        wild.memory = vec![u64::MAX, 0];
        wild.guest_memory = vec![i64::MIN, i64::MAX];
        wild.received = Some(u64::MAX);
        (wild.slots, wild.begins) = (0b101 | (1 << 30), u32::MAX);
        wild.oom_kills = u32::MAX;
        let row = row(&wild).unwrap();
        assert_eq!((row.cpu, row.memory_kib), (vec![0.0, 100.0], vec![i32::MAX, 0]));
        assert_eq!(row.guest_memory_kib, [None, Some(i32::MAX)]);
        assert_eq!((row.slots, row.begins, row.oom_kills), (0b101, 0b101, 10_000));
        assert_eq!(row.received, Some(1 << 50));
    }

    #[test]
    fn sizes_are_limited_to_those_of_the_capsule() {
        let large = Stats { guest_memory: Some(900), ..at(0, 1.0, 700) };
        let within = large.within(500, 600);
        assert_eq!((within.memory, within.guest_memory), (500, Some(500)));
        assert_eq!((within.disk, within.cache), (Some(600), None));
    }
}
