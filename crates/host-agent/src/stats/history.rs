//! The samples of one capsule in memory, and the minutes that they fill. Pure.

use super::sample::{Facts, Reading, Sample};
use crate::vmm::VmmRecord;
use std::collections::VecDeque;
use types::CapsuleId;

/// Milliseconds between two samples.
pub(super) const PERIOD_MS: u64 = 5000;
/// Milliseconds of a minute.
const MINUTE_MS: u64 = 60_000;
/// Samples in memory of each capsule: ten minutes.
const RING: usize = 120;
/// Age in milliseconds after which samples of an ended machine are forgotten.
const FORGOTTEN_MS: u64 = 600_000;

/// The samples of one minute of a capsule. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct MinuteRow {
    pub capsule: CapsuleId,
    /// Beginning of the minute, in seconds since 1970.
    pub at: u64,
    /// Bit `n` is set if there is a sample of second `5 n`. The lists have these samples in order.
    pub slots: u16,
    /// Bit `n` is set if that sample is the first of a machine.
    pub begins: u16,
    /// True if the host counted processor and memory of all samples.
    pub from_host: bool,
    pub cpu: Vec<f64>,
    pub memory: Vec<u64>,
    pub guest_memory: Vec<Option<u64>>,
    /// Largest values of the minute.
    pub cache: Option<u64>,
    pub disk: Option<u64>,
    /// Sums over the minute.
    pub received: Option<u64>,
    pub sent: Option<u64>,
    pub oom_kills: u32,
    pub guest_oom_kills: u32,
}

impl MinuteRow {
    fn new(capsule: CapsuleId, at: u64) -> Self {
        Self {
            capsule,
            at,
            slots: 0,
            begins: 0,
            from_host: true,
            cpu: Vec::new(),
            memory: Vec::new(),
            guest_memory: Vec::new(),
            cache: None,
            disk: None,
            received: None,
            sent: None,
            oom_kills: 0,
            guest_oom_kills: 0,
        }
    }

    /// Adds a sample of this minute. A sample that is not later than all others is left out, since
    /// the clock went back.
    fn add(&mut self, sample: &Sample) {
        let slot = 1_u16 << (sample.at_ms % MINUTE_MS / PERIOD_MS);
        if self.slots >= slot {
            return;
        }
        self.slots |= slot;
        if sample.begins {
            self.begins |= slot;
        }
        self.from_host &= sample.from_host;
        self.cpu.push(sample.cpu_percent);
        self.memory.push(sample.memory);
        self.guest_memory.push(sample.guest_memory);
        self.cache = self.cache.max(sample.cache);
        self.disk = self.disk.max(sample.disk);
        self.received = sum(self.received, sample.received);
        self.sent = sum(self.sent, sample.sent);
        self.oom_kills = self.oom_kills.saturating_add(sample.oom_kills);
        self.guest_oom_kills = self.guest_oom_kills.saturating_add(sample.guest_oom_kills);
    }
}

fn sum(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.saturating_add(b)),
        (one, other) => one.or(other),
    }
}

/// A machine that is sampled.
#[derive(Clone)]
pub(super) struct Watched {
    pub record: VmmRecord,
    pub facts: Facts,
    /// Last reading of the machine.
    pub last: Reading,
    /// Requests in a row that the guest did not answer.
    pub silent: u64,
}

/// The samples of one capsule.
#[derive(Default)]
pub(super) struct History {
    /// The capsule's machine; `None` once it has ended.
    pub watched: Option<Watched>,
    ring: VecDeque<Sample>,
    open: Option<MinuteRow>,
}

impl History {
    /// Adds a sample. Returns the minute before if the sample is of another.
    pub(super) fn add(&mut self, capsule: CapsuleId, sample: Sample) -> Option<MinuteRow> {
        let minute = minute_of(sample.at_ms);
        let closed = self.close(sample.at_ms);
        self.open.get_or_insert_with(|| MinuteRow::new(capsule, minute)).add(&sample);
        if self.ring.len() == RING {
            self.ring.pop_front();
        }
        self.ring.push_back(sample);
        closed
    }

    /// Notes the end of the machine, whose group counted `oom_kills` kills at last.
    pub(super) fn end(&mut self, oom_kills: Option<u64>) {
        let Some(watched) = self.watched.take() else { return };
        let before = watched.last.group.oom_kills;
        let more = before.zip(oom_kills).map_or(0, |(before, now)| now.saturating_sub(before));
        let more = u32::try_from(more.min(1000)).unwrap_or(0);
        if let Some(sample) = self.ring.back_mut() {
            sample.oom_kills = sample.oom_kills.saturating_add(more);
        }
        if let Some(row) = &mut self.open {
            row.oom_kills = row.oom_kills.saturating_add(more);
        }
    }

    /// Takes the present minute's row, if `now_ms` is in another minute.
    pub(super) fn close(&mut self, now_ms: u64) -> Option<MinuteRow> {
        let minute = minute_of(now_ms);
        self.open.take_if(|row| row.at != minute)
    }

    /// Reports whether nothing of the capsule is of use any more.
    pub(super) fn is_over(&self, now_ms: u64) -> bool {
        let old = |last: &Sample| last.at_ms.abs_diff(now_ms) > FORGOTTEN_MS;
        self.watched.is_none() && self.open.is_none() && self.ring.back().is_none_or(old)
    }

    /// Returns the last sample.
    pub(super) fn latest(&self) -> Option<Sample> {
        self.ring.back().copied()
    }

    /// Returns the samples since a time, in order.
    pub(super) fn since(&self, since_ms: u64) -> Vec<Sample> {
        self.ring.iter().filter(|sample| sample.at_ms >= since_ms).copied().collect()
    }
}

/// Returns the beginning of a time's minute, in seconds since 1970.
fn minute_of(at_ms: u64) -> u64 {
    at_ms / MINUTE_MS * 60
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::sample::tests::facts;
    use super::*;
    use crate::cgroup::GroupUsage;
    use std::time::Instant;

    pub(in crate::stats) fn sample(at_ms: u64, memory: u64) -> Sample {
        let (cpu_percent, from_host) = (25.0, true);
        Sample { at_ms, memory, cpu_percent, from_host, ..Sample::default() }
    }

    const MINUTE: u64 = 1_700_000_040_000;

    #[test]
    fn minute_holds_its_samples_by_slot_and_closes_with_the_next() {
        let (mut history, id) = (History::default(), CapsuleId::new());
        assert_eq!(history.add(id, Sample { begins: true, ..sample(MINUTE + 10_003, 5) }), None);
        let told = Sample { disk: Some(8), sent: Some(3), ..sample(MINUTE + 15_000, 6) };
        assert_eq!(history.add(id, told), None);
        assert_eq!(history.add(id, Sample { sent: Some(4), ..sample(MINUTE + 59_999, 7) }), None);
        let row = history.add(id, sample(MINUTE + 60_000, 8)).unwrap();
        assert_eq!((row.capsule, row.at), (id, MINUTE / 1000));
        assert_eq!((row.slots, row.begins), (0b1000_0000_1100, 0b100));
        assert_eq!((row.memory, row.cpu.len()), (vec![5, 6, 7], 3));
        assert_eq!((row.disk, row.sent, row.received), (Some(8), Some(7), None));
        assert_eq!(history.close(MINUTE + 119_000), None);
        assert_eq!(history.close(MINUTE + 120_000).unwrap().memory, [8]);
        assert_eq!(history.close(MINUTE + 120_000), None);
    }

    #[test]
    fn sample_of_a_clock_that_went_back_is_left_out_of_its_minute() {
        let (mut history, id) = (History::default(), CapsuleId::new());
        history.add(id, sample(MINUTE + 20_000, 1));
        history.add(id, sample(MINUTE + 20_100, 2));
        history.add(id, sample(MINUTE + 5000, 3));
        // A jump to another minute begins a row of its own.
        let row = history.add(id, sample(MINUTE - 3_600_000, 4)).unwrap();
        assert_eq!((row.memory, row.slots), (vec![1], 1 << 4));
    }

    #[test]
    fn memory_holds_ten_minutes_of_a_capsule() {
        let (mut history, id) = (History::default(), CapsuleId::new());
        for n in 0..200 {
            history.add(id, sample(MINUTE + n * PERIOD_MS, n));
        }
        let all = history.since(0);
        assert_eq!((all.len(), all[0].memory), (RING, 80));
        assert_eq!(history.since(MINUTE + 199 * PERIOD_MS).len(), 1);
        assert_eq!(history.latest().unwrap().memory, 199);
        history.close(u64::MAX);
        assert!(!history.is_over(MINUTE + 1_100_000));
        assert!(history.is_over(MINUTE + 2_000_000));
    }

    #[test]
    fn kill_that_ended_the_machine_is_counted_in_its_last_sample() {
        let (mut history, id) = (History::default(), CapsuleId::new());
        history.add(id, sample(MINUTE, 1));
        let group = GroupUsage { oom_kills: Some(0), ..GroupUsage::default() };
        let last = Reading { at: Instant::now(), group, traffic: None, guest: None };
        let record = VmmRecord { pid: 1, started: 1, boot: String::new(), port: None };
        history.watched = Some(Watched { record, facts: facts(), last, silent: 0 });
        history.end(Some(1));
        history.end(Some(2));
        assert_eq!(history.latest().unwrap().oom_kills, 1);
        assert_eq!(history.close(u64::MAX).unwrap().oom_kills, 1);
    }
}
