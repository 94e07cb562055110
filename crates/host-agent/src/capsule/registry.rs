//! The capsules of this machine by id: their states, locks and cancel tokens. No I/O happens here.
//! Each capsule has a lock (`CapsuleLock`), which one operation holds at a time.
//!
//! An operation decides by the state once it has the lock, with the table in `registry/table.rs`. A
//! proxied request takes no lock. A removal works in every state. `registry/remains.rs` holds the ids
//! of removed capsules until nothing of them is left. The diagram of the states is in `capsule.rs`.
//!
//! ```text
//!  capsule_lock ──▶ begin_… (table, generation, room; new cancel token) ──▶ I/O ──▶ end_…
//!                     │ denied: state unchanged                              a failure restores
//! ```

mod remains;
mod table;
pub(super) mod transitions;

use super::lifetime::{Due, Lifetime, now_ms};
use super::record::CapsuleRecord;
use super::stored_snapshot::StoredSnapshot;
use super::usage::Usage;
use super::{Error, State};
use crate::guest::{Guest, Permits, Purpose};
use crate::log::LogMode;
use crate::vmm::{Machine, VmmRecord};
use daemon::lock;
use hop::Refused;
use protocol::Refusal;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use table::{Request, Verdict, decide};
use tokio_util::sync::CancellationToken;
use types::CapsuleId;

/// Delay before another attempt at a due action.
const DUE_AGAIN: Duration = Duration::from_secs(30);

/// Lock of a capsule, which the operation under way holds.
pub(super) type CapsuleLock = Arc<tokio::sync::Mutex<()>>;

/// Origin of a running machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StartKind {
    /// A kernel booted.
    Booted,
    /// The memory of another machine was restored.
    Forked,
    /// The memory of the capsule's own snapshot was restored.
    Resumed,
}

/// Answer to a start: a create or a resume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Started {
    /// Origin of the machine; `None` when an earlier agent process started it.
    pub kind: Option<StartKind>,
    /// Milliseconds until the capsule's time is over; `None` is never.
    pub left_ms: Option<u64>,
}

/// Machine of a capsule, and the client for its guest.
#[derive(Clone)]
pub(super) struct Running {
    pub machine: Arc<dyn Machine>,
    pub guest: Guest,
}

/// Right to work on a capsule: its lock, not held yet, and the token that cancels the work.
pub(super) struct Admission {
    pub lock: CapsuleLock,
    pub cancel: CancellationToken,
}

/// Entry of a capsule in the registry.
pub(super) struct Capsule {
    /// Only the moves in `registry/transitions.rs` change the state.
    state: State,
    pub generation: u64,
    pub memory_mib: u64,
    /// Number of the capsule's newest snapshot.
    pub last: u64,
    /// Snapshot that the store has.
    pub stored: Option<StoredSnapshot>,
    /// Revision of the rules for outgoing connections that are in force.
    pub egress: u64,
    /// Output that the log has.
    pub logs: LogMode,
    /// Machine whose output is followed.
    pub followed: Option<VmmRecord>,
    /// Origin of the machine; `None` when an earlier agent process started it.
    pub kind: Option<StartKind>,
    pub running: Option<Running>,
    /// Lock that the operation under way holds.
    pub lock: CapsuleLock,
    /// Token that cancels the operation under way.
    pub cancel: CancellationToken,
    pub life: Lifetime,
    /// Time of the last activity in the capsule, or of its start.
    pub active: Instant,
    /// Time of the last activity in the capsule; `None` before any that this process knows of.
    pub used: Option<Instant>,
    /// Earliest time for the next attempt at a due action.
    pub due_after: Instant,
    /// Due pauses in a row that failed because of the guest's agent.
    pub silent_tries: u32,
    pub usage: Usage,
}

/// Status of a capsule, for the control plane.
pub(crate) struct Listed {
    pub id: CapsuleId,
    pub state: State,
    pub generation: u64,
    /// Newest snapshot of the capsule, when the store has it.
    pub stored: Option<StoredSnapshot>,
    /// Revision of the rules for outgoing connections that are in force.
    pub egress: u64,
    /// True while the guest stands still until there is room on the host's disk.
    pub waits_for_room: bool,
    /// Bytes on disk that only the capsule's snapshots hold.
    pub snapshot_bytes: u64,
    /// Time since the last activity, if this process knows of any.
    pub idle: Option<Duration>,
    /// Output that the log has.
    pub logs: LogMode,
}

/// A running capsule, for its stats.
pub(crate) struct RunningCapsule {
    pub id: CapsuleId,
    /// Record of the machine. Another machine of the capsule has another record.
    pub machine: VmmRecord,
    pub guest: Guest,
}

/// Sums over all capsules.
pub(super) struct Totals {
    pub capsules: u64,
    pub memory_mib: u64,
}

/// All capsules of this machine.
#[derive(Default)]
pub(super) struct Registry {
    capsules: Mutex<HashMap<CapsuleId, Capsule>>,
    /// Removed capsules that have remains on this host. Each token tells that the remains are gone.
    /// Whoever needs both locks takes this one second.
    remains: Mutex<HashMap<CapsuleId, CancellationToken>>,
}

impl Registry {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<CapsuleId, Capsule>> {
        lock(&self.capsules)
    }

    /// Adds a capsule, or replaces its entry.
    pub(super) fn insert(&self, id: CapsuleId, capsule: Capsule) {
        self.lock().insert(id, capsule);
    }

    pub(super) fn remove(&self, id: CapsuleId) {
        self.lock().remove(&id);
    }

    pub(super) fn ids(&self) -> Vec<CapsuleId> {
        self.lock().keys().copied().collect()
    }

    /// Changes the entry of a capsule. The caller holds the capsule's lock.
    pub(super) fn change<T>(
        &self,
        id: CapsuleId,
        with: impl FnOnce(&mut Capsule) -> T,
    ) -> Option<T> {
        self.lock().get_mut(&id).map(with)
    }

    /// Returns the lock of a capsule.
    pub(super) fn capsule_lock(&self, id: CapsuleId) -> Result<CapsuleLock, Error> {
        let known = self.lock().get(&id).map(|capsule| Arc::clone(&capsule.lock));
        known.ok_or_else(|| Error::unknown(id))
    }

    /// Returns the state of a capsule.
    pub(super) fn state(&self, id: CapsuleId) -> Option<State> {
        self.lock().get(&id).map(|capsule| capsule.state.clone())
    }

    /// Returns the answer to a capsule's last start.
    pub(super) fn started(&self, id: CapsuleId) -> Result<Started, Error> {
        let started = self.lock().get(&id).map(Capsule::started);
        started.ok_or_else(|| Error::unknown(id))
    }

    /// Returns the machine of a capsule in the state `Running`.
    pub(super) fn running(&self, id: CapsuleId) -> Option<Running> {
        let capsules = self.lock();
        let capsule = capsules.get(&id).filter(|capsule| capsule.state == State::Running)?;
        capsule.running.clone()
    }

    /// Returns the machine of a capsule in any state.
    pub(super) fn machine(&self, id: CapsuleId) -> Result<Option<Running>, Error> {
        let known = self.lock().get(&id).map(|capsule| capsule.running.clone());
        known.ok_or_else(|| Error::unknown(id))
    }

    /// Lists all machines, in any state of their capsules.
    pub(super) fn machines(&self) -> Vec<Running> {
        self.lock().values().filter_map(|capsule| capsule.running.clone()).collect()
    }

    /// Lists the capsules that pass a test.
    pub(super) fn filter(&self, test: impl Fn(&Capsule) -> bool) -> Vec<CapsuleId> {
        let capsules = self.lock();
        capsules.iter().filter(|(_, capsule)| test(capsule)).map(|(id, _)| *id).collect()
    }

    /// Returns the bytes of a capsule's memory.
    pub(super) fn memory_of(&self, id: CapsuleId) -> u64 {
        self.lock().get(&id).map_or(0, |capsule| capsule.memory_mib << 20)
    }

    /// Returns the output that a capsule's log has.
    pub(super) fn log_mode(&self, id: CapsuleId) -> Option<LogMode> {
        self.lock().get(&id).map(|capsule| capsule.logs)
    }

    /// Reports whether a capsule's guest stands still until there is room on the host's disk.
    pub(super) fn waits_for_room(&self, id: CapsuleId) -> bool {
        self.lock().get(&id).is_some_and(Capsule::waits_for_room)
    }

    /// Lists every capsule with its state and generation.
    pub(super) fn list(&self) -> Vec<Listed> {
        let capsules = self.lock();
        let listed = |(id, capsule): (&CapsuleId, &Capsule)| Listed {
            id: *id,
            state: capsule.state.clone(),
            generation: capsule.generation,
            stored: capsule.stored.clone().filter(|_| !capsule.is_unsent()),
            egress: capsule.egress,
            waits_for_room: capsule.waits_for_room(),
            snapshot_bytes: capsule.usage.snapshot_bytes,
            idle: capsule.used.map(|at| at.elapsed()),
            logs: capsule.logs,
        };
        capsules.iter().map(listed).collect()
    }

    /// Lists the running capsules with the records of their machines.
    pub(super) fn list_running(&self) -> Vec<RunningCapsule> {
        let capsules = self.lock();
        let running = |(id, capsule): (&CapsuleId, &Capsule)| {
            let Running { machine, guest } =
                capsule.running.as_ref().filter(|_| capsule.is_running())?;
            let (machine, guest) = (machine.record(), guest.clone());
            Some(RunningCapsule { id: *id, machine, guest })
        };
        capsules.iter().filter_map(running).collect()
    }

    /// Counts the capsules, and sums up their memory.
    pub(super) fn totals(&self) -> Totals {
        let capsules = self.lock();
        Totals { capsules: capsules.len() as u64, memory_mib: memory_mib(&capsules) }
    }

    /// Counts the capsules in each state.
    pub(super) fn by_state(&self) -> [(&'static str, u64); State::NAMES.len()] {
        let mut counts = State::NAMES.map(|name| (name, 0));
        for capsule in self.lock().values() {
            let name = capsule.state.name();
            if let Some((_, count)) = counts.iter_mut().find(|(known, _)| *known == name) {
                *count += 1;
            }
        }
        counts
    }

    /// Lists the running capsules with a due action, and puts their next attempt off.
    pub(super) fn take_due(&self) -> Vec<(CapsuleId, Due)> {
        let (now, at) = (now_ms(), Instant::now());
        let mut found = Vec::new();
        for (id, capsule) in self.lock().iter_mut() {
            let (State::Running, Some(running)) = (&capsule.state, &capsule.running) else {
                continue;
            };
            if running.guest.is_busy() {
                capsule.use_at(at);
            }
            let due = capsule.life.due(now, at - capsule.active);
            if due != Due::Nothing && at >= capsule.due_after {
                capsule.due_after = at + DUE_AGAIN;
                found.push((*id, due));
            }
        }
        found
    }

    /// Returns a running capsule's guest and permits for a request, in a single step. So an
    /// operation that ends the guest knows of every request under way.
    pub(super) fn acquire_proxy_conn(
        &self,
        id: CapsuleId,
        port: u16,
        purpose: Purpose,
    ) -> Result<(Guest, Permits), Refusal> {
        let mut capsules = self.lock();
        let capsule = capsules.get_mut(&id);
        let state = capsule.as_deref().map(|capsule| &capsule.state);
        if let Verdict::Deny(denial) = decide(state, Request::Connect) {
            return Err(denial.refusal());
        }
        let capsule = capsule.ok_or(Refusal::NotRunning)?;
        if purpose == Purpose::Use {
            capsule.use_at(Instant::now());
        }
        let Running { guest, .. } = capsule.running.as_ref().ok_or(Refusal::NotRunning)?;
        match guest.acquire(port, purpose) {
            Ok(permits) => Ok((guest.clone(), permits)),
            Err(Refused::Draining) => Err(Refusal::Draining),
            Err(Refused::Full) => Err(Refusal::TooMany),
        }
    }
}

/// Returns the memory of all capsules, in MiB.
fn memory_mib(capsules: &HashMap<CapsuleId, Capsule>) -> u64 {
    capsules.values().map(|capsule| capsule.memory_mib).sum()
}

impl Capsule {
    /// Returns the entry of a capsule with a record.
    pub(super) fn new(record: &CapsuleRecord, state: State) -> Self {
        let memory_mib = if matches!(state, State::Paused | State::Expired) {
            0
        } else {
            u64::from(record.resources.memory_mib)
        };
        let now = Instant::now();
        Self {
            state,
            generation: record.generation,
            memory_mib,
            last: record.last,
            stored: StoredSnapshot::new(record.stored, &record.tree),
            egress: record.egress.revision,
            logs: record.logs,
            followed: None,
            kind: None,
            running: None,
            lock: CapsuleLock::default(),
            cancel: CancellationToken::new(),
            life: record.life.clone(),
            active: now,
            used: None,
            due_after: now,
            silent_tries: 0,
            usage: Usage::default(),
        }
    }

    /// Returns the entry of a capsule about which only the state is known.
    pub(super) fn unknown(state: State) -> Self {
        Self { memory_mib: 0, ..Self::new(&CapsuleRecord::unknown(), state) }
    }

    /// Counts as activity.
    fn use_at(&mut self, at: Instant) {
        (self.active, self.used) = (at, Some(at));
    }

    pub(super) fn is_running(&self) -> bool {
        self.state == State::Running
    }

    /// Reports whether the capsule is paused, and the store lacks its newest snapshot.
    pub(super) fn is_to_send(&self) -> bool {
        self.state == State::Paused && self.is_unsent()
    }

    fn waits_for_room(&self) -> bool {
        self.usage.waits && self.is_running()
    }

    /// Reports whether the store lacks the capsule's newest snapshot.
    fn is_unsent(&self) -> bool {
        self.last > 0 && self.stored.as_ref().is_none_or(|stored| stored.number != self.last)
    }

    /// Returns a new token for an operation that begins. An earlier removal may have cancelled the
    /// last token and then had no effect.
    fn renew_cancel(&mut self) -> CancellationToken {
        self.cancel = CancellationToken::new();
        self.cancel.clone()
    }

    fn started(&self) -> Started {
        Started { kind: self.kind, left_ms: self.life.left_ms(now_ms()) }
    }

    fn is_later_than(&self, newest: Option<u64>) -> bool {
        newest.is_some_and(|newest| self.generation > newest)
    }
}
