//! Metrics of the running capsules over time: processor, memory, disk, network and kills.
//!
//! ```text
//!  every 5 s   control groups, taps, envd ─▶ Reading ─▶ Sample ─▶ History: ring of 10 minutes
//!                                                                    │ a minute is over
//!  control plane ◀── read: samples                                   ▼
//!                ◀── collect: minutes, oldest first ◀────────────── Spool: files
//! ```
//! The host's own counts come first. The guest's reports fill in where the host cannot count. A
//! sample never wakes a capsule, does not count as activity, and outlives no machine. Ready
//! capsules and builders have no samples.

mod guest;
mod history;
mod sample;
mod spool;

pub(crate) use history::MinuteRow;
pub(crate) use sample::Sample;

use crate::capsule::manager::Manager;
use crate::capsule::registry::RunningCapsule;
use crate::cgroup::GroupUsage;
use crate::context::AgentContext;
use crate::guest::Guest;
use crate::network::traffic::{self, Traffic};
use crate::vmm::VmmRecord;
use daemon::{blocking, lock};
use futures::StreamExt;
use guest::GuestStats;
use history::{History, PERIOD_MS, Watched};
use sample::{Facts, Reading};
use spool::Spool;
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use types::CapsuleId;

/// Time limit of a guest's answer in a round, and in a call that wants a first sample.
const PATIENCE: Duration = Duration::from_millis(200);
const PATIENCE_OF_CALL: Duration = Duration::from_secs(2);
/// Capsules that are read at once.
const AT_ONCE: usize = 32;
/// Unanswered requests after which a guest is asked only every `SILENT_ROUNDS` rounds.
const SILENT: u64 = 3;
const SILENT_ROUNDS: u64 = 12;
/// Milliseconds after a slot's beginning at which its sample is taken. A clock that is slowed down
/// meanwhile then puts the sample into no earlier slot.
const LATE_MS: u64 = 50;
/// Clock ticks of a second, in which `proc_pid_stat(5)` tells times.
const TICKS: u64 = 100;

/// Stats of this host's capsules. A clone is the same stats.
#[derive(Clone)]
pub(crate) struct Stats(Arc<Inner>);

struct Inner {
    manager: Manager,
    context: Arc<AgentContext>,
    histories: Mutex<HashMap<CapsuleId, History>>,
    spool: Spool,
}

/// A machine that is to be read.
struct Subject {
    id: CapsuleId,
    record: VmmRecord,
    guest: Guest,
    facts: Facts,
    /// Time limit of the guest's answer; `None` for a guest that is not asked.
    patience: Option<Duration>,
}

/// A machine that was read.
struct Measured {
    id: CapsuleId,
    record: VmmRecord,
    facts: Facts,
    reading: Reading,
    was_asked: bool,
}

impl Stats {
    /// Opens the spool of an earlier agent, and begins to sample.
    ///
    /// # Errors
    /// Fails when the spool's folder cannot be used.
    pub(crate) fn start(manager: &Manager, context: &Arc<AgentContext>) -> io::Result<Self> {
        let spool = Spool::open(context.config.dir.join("stats"))?;
        let (manager, context) = (manager.clone(), Arc::clone(context));
        let tasks = context.tasks.clone();
        let this = Self(Arc::new(Inner { manager, context, histories: Mutex::default(), spool }));
        let at = this.clone();
        tasks.spawn(async move {
            let mut stop = at.0.context.tasks.stop_signal().wait();
            for number in 0.. {
                tokio::select! {
                    () = &mut stop => return,
                    () = tokio::time::sleep(until_next(now_ms())) => {}
                }
                at.round(number).await;
            }
        });
        Ok(this)
    }

    /// Samples every running capsule, and writes the minutes that are over.
    async fn round(&self, number: u64) {
        let at_ms = now_ms();
        let this = self.clone();
        let found = blocking(move || Ok(this.subjects(number))).await;
        let Ok(subjects) = found else { return };
        let runs: HashSet<CapsuleId> = subjects.iter().map(|subject| subject.id).collect();
        let measuring = subjects.into_iter().map(|subject| self.measure(subject));
        let measured = futures::stream::iter(measuring).buffer_unordered(AT_ONCE);
        let measured: Vec<Measured> = measured.collect().await;
        self.end_others(&runs).await;
        let closed = self.note(at_ms, measured);
        if !closed.is_empty() {
            self.store(closed, at_ms).await;
        }
    }

    /// Lists the machines to read, with what is known about them. Blocks.
    fn subjects(&self, number: u64) -> Vec<Subject> {
        let running = self.0.manager.running();
        running.into_iter().filter_map(|capsule| self.subject(capsule, number)).collect()
    }

    fn subject(&self, capsule: RunningCapsule, number: u64) -> Option<Subject> {
        let RunningCapsule { id, machine: record, guest } = capsule;
        let known = self.watched(id).filter(|watched| watched.record == record);
        let silent = known.as_ref().map_or(0, |watched| watched.silent);
        let facts = match known {
            Some(watched) => watched.facts,
            None => Facts::of(self.0.manager.record(id)?)?,
        };
        let asks = silent < SILENT || number.is_multiple_of(SILENT_ROUNDS);
        Some(Subject { id, record, guest, facts, patience: asks.then_some(PATIENCE) })
    }

    /// Returns the machine of a capsule that was sampled last.
    fn watched(&self, id: CapsuleId) -> Option<Watched> {
        lock(&self.0.histories).get(&id).and_then(|history| history.watched.clone())
    }

    /// Reads all counters of a machine.
    async fn measure(&self, subject: Subject) -> Measured {
        let Subject { id, record, guest, facts, patience } = subject;
        let told = async {
            let answer = guest.metrics(&facts.envd_token, patience?).await.ok()?;
            GuestStats::read(&answer)
        };
        let (context, namespace) = (Arc::clone(&self.0.context), guest.namespace().cloned());
        let group = facts.group.clone();
        let counted = blocking(move || {
            let usage = context.cgroups.as_ref().map(|groups| groups.usage(&group));
            let traffic = namespace.and_then(|namespace| traffic::read(&namespace).ok());
            Ok((usage.unwrap_or_default(), traffic, Instant::now()))
        });
        let (guest, counted) = tokio::join!(told, counted);
        let (group, traffic, at): (GroupUsage, Option<Traffic>, Instant) =
            counted.unwrap_or_else(|_| (GroupUsage::default(), None, Instant::now()));
        let reading = Reading { at, group, traffic, guest };
        Measured { id, record, facts, reading, was_asked: patience.is_some() }
    }

    /// Notes the end of machines that do not run any more. The kernel may have killed one for want
    /// of memory, and its group still tells so.
    async fn end_others(&self, runs: &HashSet<CapsuleId>) {
        let ended: Vec<(CapsuleId, String)> = {
            let histories = lock(&self.0.histories);
            let group = |history: &History| Some(history.watched.as_ref()?.facts.group.clone());
            let others = histories.iter().filter(|(id, _)| !runs.contains(id));
            others.filter_map(|(id, history)| Some((*id, group(history)?))).collect()
        };
        if ended.is_empty() {
            return;
        }
        let context = Arc::clone(&self.0.context);
        let counted = blocking(move || {
            let kills = |group: &str| context.cgroups.as_ref()?.usage(group).oom_kills;
            Ok(ended.into_iter().map(|(id, group)| (id, kills(&group))).collect::<Vec<_>>())
        });
        let counted = counted.await.unwrap_or_default();
        let mut histories = lock(&self.0.histories);
        for (id, kills) in counted {
            if let Some(history) = histories.get_mut(&id) {
                history.end(kills);
            }
        }
    }

    /// Adds samples of a round, and returns the minutes that are over.
    fn note(&self, at_ms: u64, measured: Vec<Measured>) -> Vec<MinuteRow> {
        let mut closed = Vec::new();
        let mut histories = lock(&self.0.histories);
        for measured in measured {
            let history = histories.entry(measured.id).or_default();
            let (id, sample) = (measured.id, watch(history, at_ms, measured));
            closed.extend(sample.and_then(|sample| history.add(id, sample)));
        }
        closed.extend(histories.values_mut().filter_map(|history| history.close(at_ms)));
        histories.retain(|_, history| !history.is_over(at_ms));
        closed
    }

    /// Writes closed minutes to the spool. A disk that is full gets none, since capsules come first.
    async fn store(&self, rows: Vec<MinuteRow>, at_ms: u64) {
        let this = self.clone();
        let stored = blocking(move || match this.0.context.room.is_full() {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => this.0.spool.append(&rows, at_ms),
        });
        if let Err(error) = stored.await {
            metrics::counter!("wrenn_host_stats_dropped_total").increment(1);
            tracing::warn!(%error, "cannot write stats to the disk");
        }
    }

    /// Returns the samples of capsules since a time. Without a time, returns the latest sample of
    /// each running capsule. A running capsule without a sample is sampled for this call.
    pub(crate) async fn read(
        &self,
        ids: &[CapsuleId],
        since_ms: Option<u64>,
    ) -> Vec<(CapsuleId, Vec<Sample>)> {
        let (this, wanted) = (self.clone(), ids.to_vec());
        let found = blocking(move || Ok(this.split(&wanted))).await;
        let Split { runs, fresh } = found.unwrap_or_default();
        let measuring = fresh.into_iter().map(|subject| self.measure(subject));
        let measured = futures::stream::iter(measuring).buffer_unordered(AT_ONCE);
        let measured: Vec<Measured> = measured.collect().await;
        let at_ms = now_ms();
        let mut first: HashMap<CapsuleId, Sample> =
            measured.iter().filter_map(|one| Some((one.id, one.sample(at_ms, None)?))).collect();
        let histories = lock(&self.0.histories);
        let samples = |id: &CapsuleId| -> (CapsuleId, Vec<Sample>) {
            let history = histories.get(id);
            let first = first.remove(id);
            let Some(since_ms) = since_ms else {
                let latest = || history.and_then(History::latest).filter(|_| runs.contains(id));
                return (*id, first.or_else(latest).into_iter().collect());
            };
            let known = history.map(|history| history.since(since_ms)).unwrap_or_default();
            (*id, known.into_iter().chain(first).collect())
        };
        ids.iter().map(samples).collect()
    }

    /// Finds the running ones of some capsules, and those whose machines have no sample. Blocks.
    fn split(&self, ids: &[CapsuleId]) -> Split {
        let wanted: HashSet<&CapsuleId> = ids.iter().collect();
        let mut split = Split::default();
        let running = self.0.manager.running().into_iter();
        for capsule in running.filter(|capsule| wanted.contains(&capsule.id)) {
            split.runs.insert(capsule.id);
            let known = self.watched(capsule.id);
            if known.is_none_or(|watched| watched.record != capsule.machine)
                && let Some(subject) = self.subject(capsule, 0)
            {
                split.fresh.push(Subject { patience: Some(PATIENCE_OF_CALL), ..subject });
            }
        }
        split
    }

    /// Removes the batch that the control plane has, and returns the oldest of the others with its
    /// number.
    ///
    /// # Errors
    /// Fails when the spool cannot be read or changed.
    pub(crate) async fn collect(
        &self,
        acknowledged: Option<u64>,
    ) -> io::Result<Option<(u64, Vec<MinuteRow>)>> {
        let this = self.clone();
        blocking(move || {
            if let Some(number) = acknowledged {
                this.0.spool.acknowledge(number)?;
            }
            this.0.spool.oldest()
        })
        .await
    }
}

/// Capsules of a call.
#[derive(Default)]
struct Split {
    runs: HashSet<CapsuleId>,
    /// Machines without a sample.
    fresh: Vec<Subject>,
}

impl Measured {
    fn sample(&self, at_ms: u64, last: Option<&Reading>) -> Option<Sample> {
        let age = age(&self.record);
        Sample::of(at_ms, last, &self.reading, (&self.facts, age))
    }
}

/// Makes a sample of a machine, and the machine the one that its capsule is sampled by.
fn watch(history: &mut History, at_ms: u64, measured: Measured) -> Option<Sample> {
    let before = history.watched.take().filter(|watched| watched.record == measured.record);
    let last = before.as_ref().map(|watched| watched.last);
    let sample = measured.sample(at_ms, last.as_ref());
    let silent = before.map_or(0, |watched| watched.silent);
    let answered = measured.reading.guest.is_some();
    let Measured { record, facts, reading, was_asked, .. } = measured;
    history.watched = Some(Watched {
        record,
        facts,
        last: reading.or_counters_of(last.as_ref()),
        silent: if answered { 0 } else { silent + u64::from(was_asked) },
    });
    sample
}

/// Returns the age of a machine, by the start of its process in clock ticks. A machine without a
/// process counts as old.
fn age(record: &VmmRecord) -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let (seconds, nanos) = (u64::try_from(now.tv_sec), u32::try_from(now.tv_nsec));
    let now = Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0));
    now.saturating_sub(Duration::from_millis(record.started.saturating_mul(1000 / TICKS)))
}

/// Returns the time until the next slot's sample by the wall clock, so that each slot of a minute
/// gets one.
fn until_next(now_ms: u64) -> Duration {
    let since = (now_ms % PERIOD_MS + PERIOD_MS - LATE_MS) % PERIOD_MS;
    Duration::from_millis(PERIOD_MS - since)
}

/// Returns the wall clock's time in milliseconds since 1970.
fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_sample_is_shortly_after_the_beginning_of_the_next_slot() {
        let ms = |now| u64::try_from(until_next(now).as_millis()).unwrap();
        assert_eq!(ms(0), LATE_MS);
        assert_eq!(ms(LATE_MS - 1), 1);
        assert_eq!(ms(LATE_MS), PERIOD_MS);
        assert_eq!(ms(7 * PERIOD_MS - 2), LATE_MS + 2);
    }
}
