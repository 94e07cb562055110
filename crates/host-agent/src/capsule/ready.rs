//! Ready capsules: machines that are made ahead of any create. A ready machine was restored from a
//! template snapshot, has a provisional identity, has run one command, and stands still. A create
//! takes it and gives it an identity by an ordinary epoch (ADR 47).
//!
//! ```text
//!  create ──▶ take ── one is ready ──▶ claim.rs: folder, metadata, rules, epoch ──▶ running
//!               │ none                      └─ fails: removed, and made like any other
//!               ├──────────────▶ made like any other
//!               ▼ demand.rs (pure)
//!  refill.rs: boot_ahead ─▶ warm ─▶ freeze ─▶ put ─▶ pool
//!                                                     └─▶ end: it died, a capsule needs memory,
//!                                                         its template changed, nobody wants it,
//!                                                         the agent stops
//! ```
//! No list shows a ready machine, and no request reaches it. A ready machine has folder, record and
//! network like a capsule in the phase `Starting`. So the next agent removes it after a crash. A
//! capsule that leaves the pool has one owner, who either claims it or ends it.
//!
//! This file has the pool alone: no I/O happens here.

pub(super) mod claim;
mod demand;
pub(super) mod refill;

use super::background::Lease;
use super::record::CapsuleRecord;
use super::registry::Running;
use crate::context::AgentContext;
use crate::version::Version;
use daemon::lock;
use demand::{Demand, Stock};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use types::CapsuleId;
use types::resources::Resources;

/// Most kinds that the pool knows at once.
const KINDS: usize = 256;
/// Longest wait for creates under way before a machine is made. A machine that is made beside them
/// slows them more than it helps the next ones.
const QUIET: Duration = Duration::from_secs(20);
/// Pause after the first failure to make a machine; it doubles with each further one.
const AGAIN: Duration = Duration::from_secs(1);
/// Most times that the pause doubles.
const DOUBLINGS: u32 = 5;

/// Key of the creates that a ready capsule serves. Teams share none, since machines of different
/// teams share no memory image.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    team: String,
    /// Key of the template snapshot, which covers template, size, kernel and driver.
    snapshot: String,
}

/// Template and size of ready capsules.
#[derive(Debug, Clone)]
struct Kind {
    template: String,
    version: Option<Version>,
    resources: Resources,
}

/// A machine that waits for its capsule.
struct ReadyCapsule {
    /// Record of the machine. Its id is the name of folder, process and control group.
    record: CapsuleRecord,
    running: Running,
    lease: Lease,
    /// Token that is cancelled once the pool has the machine no longer.
    taken: CancellationToken,
}

/// Ready capsules of one kind for one team, the oldest first.
struct Shelf {
    kind: Kind,
    demand: Demand,
    capsules: VecDeque<ReadyCapsule>,
    /// Failures since a machine was last taken. Machines that die before that count too.
    failures: u32,
    /// Earliest time of the next attempt.
    retry: Instant,
}

/// Next step of the refill.
enum Step {
    Make(Key, Box<Kind>),
    End(Box<ReadyCapsule>),
}

/// The ready capsules of a host.
pub(super) struct ReadyPool {
    /// Most memory of all ready capsules together; 0 without a pool.
    most_mib: u64,
    shelves: Mutex<HashMap<Key, Shelf>>,
    /// Creates under way.
    creates: watch::Sender<u32>,
    /// Wakes the refill.
    work: Notify,
}

/// A create under way. The refill waits for the end of all, for a limited time.
pub(super) struct Creating(Arc<ReadyPool>);

impl Drop for Creating {
    fn drop(&mut self) {
        self.0.creates.send_modify(|creates| *creates -= 1);
    }
}

impl ReadyPool {
    /// Returns an empty pool with its share of the host's memory.
    pub(super) fn new(context: &AgentContext) -> Self {
        let percent = context.config.ready_memory_percent;
        let percent = if context.driver.boots_images() { percent } else { 0 };
        Self::with_memory(context.memory_mib * u64::from(percent) / 100)
    }

    fn with_memory(most_mib: u64) -> Self {
        let (creates, work) = (watch::Sender::new(0), Notify::new());
        Self { most_mib, shelves: Mutex::default(), creates, work }
    }

    fn is_on(&self) -> bool {
        self.most_mib > 0
    }

    /// Notes a create until the returned value is dropped.
    pub(super) fn begin_create(self: &Arc<Self>) -> Creating {
        self.creates.send_modify(|creates| *creates += 1);
        Creating(Arc::clone(self))
    }

    /// Waits until no create is under way, for at most [`QUIET`].
    async fn quiet(&self) {
        let mut creates = self.creates.subscribe();
        let none = creates.wait_for(|creates| *creates == 0);
        let _ = tokio::time::timeout(QUIET, none).await;
    }

    /// Waits until there may be work for the refill, for at most `limit`.
    async fn wait_for_work(&self, limit: Duration) {
        let _ = tokio::time::timeout(limit, self.work.notified()).await;
    }

    fn wake(&self) {
        self.work.notify_one();
    }

    /// Counts a create, and takes the oldest capsule of its key, if there is one.
    fn take(&self, key: &Key, kind: impl FnOnce() -> Kind) -> Option<ReadyCapsule> {
        let now = Instant::now();
        let mut shelves = self.lock();
        if !shelves.contains_key(key) && shelves.len() < KINDS {
            shelves.insert(key.clone(), Shelf::new(kind(), now));
        }
        note_successor(&mut shelves, key);
        let shelf = shelves.get_mut(key)?;
        shelf.demand.note_create(now);
        let taken = shelf.capsules.pop_front();
        if taken.is_some() {
            shelf.failures = 0;
        }
        report(&shelves);
        self.wake();
        taken.map(ReadyCapsule::leave)
    }

    /// Adds a capsule. Returns it if nobody asks for its key any more.
    fn put(&self, key: &Key, capsule: ReadyCapsule) -> Option<ReadyCapsule> {
        let mut shelves = self.lock();
        let Some(shelf) = shelves.get_mut(key) else { return Some(capsule) };
        shelf.capsules.push_back(capsule);
        report(&shelves);
        None
    }

    /// Removes a capsule; `None` when somebody else has it.
    fn remove(&self, key: &Key, id: CapsuleId) -> Option<ReadyCapsule> {
        let mut shelves = self.lock();
        let capsules = &mut shelves.get_mut(key)?.capsules;
        let at = capsules.iter().position(|capsule| capsule.record.id == id)?;
        let removed = capsules.remove(at);
        report(&shelves);
        removed.map(ReadyCapsule::leave)
    }

    /// Returns the next step of the refill. Forgets kinds that nobody asks for.
    fn next_step(&self) -> Option<Step> {
        let now = Instant::now();
        let mut shelves = self.lock();
        shelves.retain(|_, shelf| !shelf.capsules.is_empty() || shelf.demand.wanted(now) > 0);
        let mut all: Vec<(&Key, &mut Shelf)> = shelves.iter_mut().collect();
        let stocks: Vec<Stock> = all.iter().map(|(_, shelf)| shelf.stock(now)).collect();
        match demand::next_step(&stocks, self.most_mib)? {
            demand::Step::Make(at) => {
                let (key, shelf) = &all[at];
                Some(Step::Make((*key).clone(), Box::new(shelf.kind.clone())))
            }
            demand::Step::End(at) => {
                let ended = all[at].1.capsules.pop_front();
                drop(all);
                report(&shelves);
                ended.map(|capsule| Step::End(Box::new(capsule.leave())))
            }
        }
    }

    /// Lists the kinds of all keys.
    fn kinds(&self) -> Vec<(Key, Kind)> {
        self.lock().iter().map(|(key, shelf)| (key.clone(), shelf.kind.clone())).collect()
    }

    /// Forgets a key, and returns its capsules.
    fn forget(&self, key: &Key) -> Vec<ReadyCapsule> {
        let mut shelves = self.lock();
        let gone = shelves.remove(key);
        report(&shelves);
        gone.into_iter().flat_map(|shelf| shelf.capsules).map(ReadyCapsule::leave).collect()
    }

    /// Notes that a machine was made in this time.
    fn note_made(&self, key: &Key, took: Duration) {
        if let Some(shelf) = self.lock().get_mut(key) {
            shelf.demand.note_made(took);
        }
        self.wake();
    }

    /// Notes that no machine could be made, or that one died. Puts the next attempt off.
    fn note_failure(&self, key: &Key) {
        if let Some(shelf) = self.lock().get_mut(key) {
            shelf.retry = Instant::now() + AGAIN * 2_u32.pow(shelf.failures);
            shelf.failures = (shelf.failures + 1).min(DOUBLINGS);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Shelf>> {
        lock(&self.shelves)
    }
}

impl Shelf {
    fn new(kind: Kind, now: Instant) -> Self {
        let (demand, capsules) = (Demand::new(now), VecDeque::new());
        Self { kind, demand, capsules, failures: 0, retry: now }
    }

    fn stock(&self, now: Instant) -> Stock {
        Stock {
            wanted: self.demand.wanted(now),
            ready: count(self.capsules.len()),
            memory_mib: self.kind.resources.memory_mib.into(),
            unused: self.demand.unused(now),
            may_make: self.retry <= now,
        }
    }
}

impl ReadyCapsule {
    fn new(record: CapsuleRecord, running: Running, lease: Lease) -> Self {
        Self { record, running, lease, taken: CancellationToken::new() }
    }

    /// Notes that the pool has the capsule no longer.
    fn leave(self) -> Self {
        self.taken.cancel();
        self
    }
}

/// Tells the other versions of a key's template and size that this one was asked for.
fn note_successor(shelves: &mut HashMap<Key, Shelf>, key: &Key) {
    let Some(kind) = shelves.get(key).map(|shelf| shelf.kind.clone()) else { return };
    let others = shelves.iter_mut().filter(|(other, _)| *other != key && other.team == key.team);
    for (_, shelf) in others {
        let Kind { template, resources, .. } = &shelf.kind;
        if (template, resources) == (&kind.template, &kind.resources) {
            shelf.demand.note_successor();
        }
    }
}

/// Updates the gauge of ready capsules.
fn report(shelves: &HashMap<Key, Shelf>) {
    let ready: usize = shelves.values().map(|shelf| shelf.capsules.len()).sum();
    metrics::gauge!("wrenn_host_ready_capsules").set(f64::from(count(ready)));
}

fn count(items: usize) -> u32 {
    u32::try_from(items).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
