//! Moves of a capsule from one state to another. Each move is one step under the registry's own
//! lock. A move that begins an operation asks the table first.
//!
//! The caller of a move holds the capsule's lock. Exceptions are [`Registry::admit`],
//! [`Registry::begin_destroy`], [`Registry::cancel_for_removal`], [`Registry::note_end`] and the
//! moves of a fetch.

use super::table::{Request, check};
use super::{Admission, Capsule, CapsuleLock, Registry, Running, StartKind, Started, memory_mib};
use crate::capsule::lifetime::Lifetime;
use crate::capsule::record::CapsuleRecord;
use crate::capsule::usage::Usage;
use crate::capsule::{Error, State};
use crate::vmm::{Machine, VmmRecord};
use std::sync::Arc;
use std::time::Instant;
use tokio_util::sync::CancellationToken;
use types::CapsuleId;

/// Beginning of a pause.
pub(in crate::capsule) enum PauseStart {
    /// The capsule is already paused.
    Paused,
    Begun(Pausing),
}

/// A pause that has begun.
pub(in crate::capsule) struct Pausing {
    pub running: Running,
    /// Token by which a removal cancels the pause.
    pub cancel: CancellationToken,
}

/// Beginning of a resume.
pub(in crate::capsule) enum ResumeStart {
    /// The capsule runs already; the answer of its last start.
    Running(Started),
    Begun(Resuming),
}

/// A resume that has begun.
pub(in crate::capsule) struct Resuming {
    /// State to which a failure returns.
    pub before: State,
    /// Token by which a removal cancels the resume.
    pub cancel: CancellationToken,
}

/// A snapshot that has begun.
pub(in crate::capsule) struct SnapshotStart {
    pub source: SnapshotSource,
    /// Token by which a removal cancels the snapshot.
    pub cancel: CancellationToken,
}

/// Source of a snapshot.
pub(in crate::capsule) enum SnapshotSource {
    Running(Running),
    /// The capsule is paused, and its last own snapshot is the source.
    Paused,
}

/// Beginning of a removal.
pub(in crate::capsule) enum Stop {
    /// Another removal of the same capsule went first.
    Gone,
    /// The capsule is being removed, and had this machine.
    Stopping(Option<Running>),
}

/// Result of noting that a machine ended.
pub(in crate::capsule) enum EndOutcome {
    /// The capsule is dead.
    Dead(Arc<dyn Machine>),
    /// An operation works on the machine. The note waits until that operation gives up its lock.
    Busy(CapsuleLock),
    /// The machine belongs to no capsule any more, or its end is known.
    Nothing,
}

/// Moves of a create.
impl Registry {
    /// Registers a capsule as `Starting`, if `has_room` agrees. `has_room` gets the MiB of memory
    /// of all capsules. An entry that exists stays, and its lock orders the creates. An id with
    /// remains of a removed capsule is refused.
    pub(in crate::capsule) fn admit(
        &self,
        record: &CapsuleRecord,
        has_room: impl FnOnce(u64) -> Result<(), Error>,
    ) -> Result<Admission, Error> {
        let mut capsules = self.lock();
        if let Some(capsule) = capsules.get(&record.id) {
            return Ok(capsule.admission());
        }
        check(record.id, None, Request::Create)?;
        if self.remains(record.id).is_some() {
            return Err(Error::Stopping);
        }
        has_room(memory_mib(&capsules))?;
        let capsule = Capsule::new(record, State::Starting);
        let admission = capsule.admission();
        capsules.insert(record.id, capsule);
        Ok(admission)
    }

    /// Decides whether an admitted capsule boots. Returns the answer of its last start if it runs.
    pub(in crate::capsule) fn begin_create(&self, id: CapsuleId) -> Result<Option<Started>, Error> {
        let capsules = self.lock();
        let capsule = capsules.get(&id).ok_or_else(|| Error::unknown(id))?;
        let boots = check(id, Some(&capsule.state), Request::Create)?;
        Ok((!boots).then(|| capsule.started()))
    }

    /// Marks a capsule as running.
    pub(in crate::capsule) fn set_running(
        &self,
        id: CapsuleId,
        running: Running,
        kind: Option<StartKind>,
        life: Lifetime,
    ) {
        self.change(id, |capsule| {
            capsule.state = State::Running;
            capsule.kind = kind;
            capsule.life = life;
            capsule.usage = Usage::of(capsule.usage.snapshot_bytes);
            capsule.running = Some(running);
            (capsule.active, capsule.due_after) = (Instant::now(), Instant::now());
            capsule.silent_tries = 0;
        });
    }
}

/// Moves of a pause.
impl Registry {
    /// Marks a running capsule as being paused. `generation` is the command's, or `None` for the
    /// agent's own pauses.
    pub(in crate::capsule) fn begin_pause(
        &self,
        id: CapsuleId,
        generation: Option<u64>,
    ) -> Result<PauseStart, Error> {
        let mut capsules = self.lock();
        let capsule = capsules.get_mut(&id).ok_or_else(|| Error::unknown(id))?;
        if !check(id, Some(&capsule.state), Request::Pause)? {
            return Ok(PauseStart::Paused);
        }
        let running = capsule.running_machine()?;
        if generation.is_some_and(|given| given < capsule.generation) {
            return Err(Error::Stale);
        }
        capsule.generation = generation.unwrap_or(capsule.generation);
        capsule.state = State::Pausing;
        Ok(PauseStart::Begun(Pausing { running, cancel: capsule.renew_cancel() }))
    }

    /// Marks a capsule as paused, with its newest snapshot.
    pub(in crate::capsule) fn end_pause(&self, id: CapsuleId, number: u64) {
        self.change(id, |capsule| {
            capsule.state = State::Paused;
            capsule.memory_mib = 0;
            capsule.last = number;
        });
    }

    /// Marks a capsule as running whose pause failed.
    pub(in crate::capsule) fn abandon_pause(&self, id: CapsuleId) {
        self.change(id, |capsule| capsule.state = State::Running);
    }
}

/// Moves of a resume.
impl Registry {
    /// Marks a capsule as being resumed, if `has_room` agrees. `has_room` gets the MiB of memory of
    /// all capsules, and the MiB that the new machine adds.
    pub(in crate::capsule) fn begin_resume(
        &self,
        record: &CapsuleRecord,
        generation: u64,
        has_room: impl FnOnce(u64, u64) -> Result<(), Error>,
    ) -> Result<ResumeStart, Error> {
        let id = record.id;
        let mut capsules = self.lock();
        let capsule = capsules.get(&id).ok_or_else(|| Error::unknown(id))?;
        let before = capsule.state.clone();
        let request = Request::Resume { has_snapshot: record.last > 0 };
        if !check(id, Some(&before), request)? {
            return Ok(ResumeStart::Running(capsule.started()));
        }
        if generation < capsule.generation {
            return Err(Error::Stale);
        }
        let memory = u64::from(record.resources.memory_mib);
        // The memory of a dead capsule still counts as used, so only the rest is asked for.
        let wanted = memory - capsule.memory_mib;
        has_room(memory_mib(&capsules), wanted)?;
        let capsule = capsules.get_mut(&id).ok_or_else(|| Error::unknown(id))?;
        capsule.state = State::Resuming;
        capsule.memory_mib = memory;
        capsule.generation = generation;
        capsule.running = None;
        Ok(ResumeStart::Begun(Resuming { before, cancel: capsule.renew_cancel() }))
    }

    /// Restores the state before a resume that failed.
    pub(in crate::capsule) fn abandon_resume(&self, id: CapsuleId, before: State) {
        self.change(id, |capsule| {
            capsule.state = before;
            capsule.memory_mib = 0;
        });
    }
}

/// Moves of a fetch. The host lists a capsule that is being fetched as `Resuming`, so that the
/// platform does not take it for lost.
impl Registry {
    /// Lists a capsule while it is being fetched, unless this host has it. Returns the token by
    /// which a removal cancels the fetch. An id with remains of a removed capsule is refused, since
    /// their removal would take the fetched files.
    pub(in crate::capsule) fn begin_fetch(
        &self,
        id: CapsuleId,
        generation: u64,
    ) -> Result<CancellationToken, Error> {
        let mut capsules = self.lock();
        if self.remains(id).is_some() {
            return Err(Error::Stopping);
        }
        let new = || Capsule { generation, ..Capsule::unknown(State::Resuming) };
        Ok(capsules.entry(id).or_insert_with(new).cancel.clone())
    }

    /// Marks a fetched capsule as paused on this host; false when it was removed meanwhile.
    pub(in crate::capsule) fn end_fetch(&self, record: &CapsuleRecord, generation: u64) -> bool {
        let mut capsules = self.lock();
        let Some(capsule) = capsules.get_mut(&record.id) else { return false };
        if capsule.is_fetched_by(generation) {
            // A removal may wait for the old entry's lock, so the new entry takes it over.
            let lock = Arc::clone(&capsule.lock);
            *capsule = Capsule { lock, ..Capsule::new(record, State::Paused) };
        }
        true
    }

    /// Removes the entry of a fetch that did not end, if the entry is still the fetch's.
    pub(in crate::capsule) fn abandon_fetch(&self, id: CapsuleId, generation: u64) {
        let mut capsules = self.lock();
        if capsules.get(&id).is_some_and(|capsule| capsule.is_fetched_by(generation)) {
            capsules.remove(&id);
        }
    }

    /// Checks that the state of a capsule allows its eviction.
    pub(in crate::capsule) fn check_evict(&self, id: CapsuleId) -> Result<(), Error> {
        check(id, self.state(id).as_ref(), Request::Evict).map(drop)
    }
}

/// Moves of a removal, and of other ends.
impl Registry {
    /// Cancels the capsule's operation under way. An unknown capsule is listed meanwhile. So no
    /// other call begins a capsule of this id while its leftovers are removed. Returns `None` for a
    /// capsule that an earlier removal has put out of reach.
    pub(in crate::capsule) fn begin_destroy(
        &self,
        id: CapsuleId,
        newest: Option<u64>,
    ) -> Result<Option<CapsuleLock>, Error> {
        let mut capsules = self.lock();
        if self.remains(id).is_some() && !capsules.contains_key(&id) {
            return Ok(None);
        }
        let state = capsules.get(&id).map(|capsule| &capsule.state);
        check(id, state, Request::Destroy)?;
        let capsule = capsules.entry(id).or_insert_with(|| Capsule::unknown(State::Stopping));
        if capsule.is_later_than(newest) {
            return Err(Error::Stale);
        }
        capsule.cancel.cancel();
        Ok(Some(Arc::clone(&capsule.lock)))
    }

    /// Cancels the operation that has the lock. Another one may have taken the lock since the last
    /// call.
    pub(in crate::capsule) fn cancel_for_removal(
        &self,
        id: CapsuleId,
        lock: &CapsuleLock,
        newest: Option<u64>,
    ) {
        self.change(id, |capsule| {
            if Arc::ptr_eq(&capsule.lock, lock) && !capsule.is_later_than(newest) {
                capsule.cancel.cancel();
            }
        });
    }

    /// Marks a capsule as being removed, and takes its machine. The caller holds `lock`. The end of
    /// that machine is then no loss.
    pub(in crate::capsule) fn stop(
        &self,
        id: CapsuleId,
        lock: &CapsuleLock,
        newest: Option<u64>,
    ) -> Result<Stop, Error> {
        let mut capsules = self.lock();
        match capsules.get_mut(&id) {
            // Another removal of the same capsule went first, while this call waited for the lock.
            None => Ok(Stop::Gone),
            Some(capsule) if !Arc::ptr_eq(&capsule.lock, lock) => Ok(Stop::Gone),
            Some(capsule) if capsule.is_later_than(newest) => Err(Error::Stale),
            Some(capsule) => {
                capsule.state = State::Stopping;
                Ok(Stop::Stopping(capsule.running.take()))
            }
        }
    }

    /// Marks a running capsule as expired, and takes its machine; none in other states.
    pub(in crate::capsule) fn begin_expire(&self, id: CapsuleId) -> Option<Running> {
        let mut capsules = self.lock();
        let capsule = capsules.get_mut(&id)?;
        if !check(id, Some(&capsule.state), Request::Expire).unwrap_or(false) {
            return None;
        }
        capsule.state = State::Expired;
        capsule.running.take()
    }

    /// Notes that a capsule's machine ended by itself. An operation that works on the machine
    /// decides the state itself.
    pub(in crate::capsule) fn note_end(
        &self,
        id: CapsuleId,
        record: &VmmRecord,
        reason: &str,
    ) -> EndOutcome {
        let mut capsules = self.lock();
        let Some(capsule) = capsules.get_mut(&id) else { return EndOutcome::Nothing };
        let Some(Running { machine, guest }) = &capsule.running else { return EndOutcome::Nothing };
        if machine.record() != *record {
            return EndOutcome::Nothing;
        }
        guest.close();
        match capsule.state {
            State::Running => {
                let machine = Arc::clone(machine);
                capsule.state = State::Dead(reason.to_owned());
                EndOutcome::Dead(machine)
            }
            State::Pausing => EndOutcome::Busy(Arc::clone(&capsule.lock)),
            State::Starting
            | State::Paused
            | State::Resuming
            | State::Expired
            | State::Stopping
            | State::Dead(_) => EndOutcome::Nothing,
        }
    }
}

/// Checks of operations that leave the state as it is.
impl Registry {
    /// Begins a snapshot of a running or paused capsule.
    pub(in crate::capsule) fn begin_snapshot(&self, id: CapsuleId) -> Result<SnapshotStart, Error> {
        let mut capsules = self.lock();
        let capsule = capsules.get_mut(&id).ok_or_else(|| Error::unknown(id))?;
        check(id, Some(&capsule.state), Request::Snapshot)?;
        let source = match capsule.state == State::Paused {
            true => SnapshotSource::Paused,
            false => SnapshotSource::Running(capsule.running_machine()?),
        };
        Ok(SnapshotStart { source, cancel: capsule.renew_cancel() })
    }

    /// Counts as activity in a running or paused capsule.
    pub(in crate::capsule) fn note_activity(&self, id: CapsuleId) -> Result<(), Error> {
        let mut capsules = self.lock();
        let capsule = capsules.get_mut(&id).ok_or_else(|| Error::unknown(id))?;
        capsule.use_at(Instant::now());
        check(id, Some(&capsule.state), Request::SetLifetime).map(drop)
    }

    /// Checks that a capsule takes another setting; returns its machine, if any.
    pub(in crate::capsule) fn begin_change(&self, id: CapsuleId) -> Result<Option<Running>, Error> {
        let capsules = self.lock();
        let capsule = capsules.get(&id).ok_or_else(|| Error::unknown(id))?;
        check(id, Some(&capsule.state), Request::Change)?;
        Ok(capsule.running.clone())
    }
}

impl Capsule {
    fn admission(&self) -> Admission {
        Admission { lock: Arc::clone(&self.lock), cancel: self.cancel.clone() }
    }

    /// Returns the machine of a capsule whose state says that it has one.
    fn running_machine(&self) -> Result<Running, Error> {
        self.running.clone().ok_or_else(|| Error::State(self.state.clone()))
    }

    /// Reports whether the entry still belongs to a fetch for a command of this generation.
    fn is_fetched_by(&self, generation: u64) -> bool {
        self.state == State::Resuming && self.generation == generation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a registry with one paused capsule, and the capsule's record.
    fn paused(generation: u64) -> (Registry, CapsuleRecord) {
        let id = CapsuleId::new();
        let record = CapsuleRecord { id, generation, last: 1, ..CapsuleRecord::unknown() };
        let registry = Registry::default();
        registry.insert(id, Capsule::new(&record, State::Paused));
        (registry, record)
    }

    #[test]
    fn resume_of_earlier_generation_is_stale_and_changes_nothing() {
        let (registry, record) = paused(5);
        let begun = registry.begin_resume(&record, 4, |_, _| Ok(()));
        assert!(matches!(begun, Err(Error::Stale)));
        assert_eq!(registry.state(record.id), Some(State::Paused));
    }

    #[test]
    fn resume_without_room_leaves_capsule_paused() {
        let (registry, record) = paused(5);
        let full = |_, _| Err(Error::NoCapacity("full".to_owned()));
        assert!(matches!(registry.begin_resume(&record, 6, full), Err(Error::NoCapacity(_))));
        assert_eq!(registry.state(record.id), Some(State::Paused));
        assert_eq!(registry.change(record.id, |capsule| capsule.generation), Some(5));
    }

    #[test]
    fn failed_resume_restores_state_and_frees_memory() {
        let (registry, record) = paused(5);
        let begun = registry.begin_resume(&record, 6, |_, _| Ok(())).unwrap();
        let ResumeStart::Begun(resuming) = begun else { panic!("the capsule does not run") };
        assert_eq!(registry.state(record.id), Some(State::Resuming));
        registry.abandon_resume(record.id, resuming.before);
        assert_eq!(registry.state(record.id), Some(State::Paused));
        assert_eq!(registry.memory_of(record.id), 0);
    }

    #[test]
    fn create_that_waited_for_a_failed_create_is_not_found() {
        let registry = Registry::default();
        let record = CapsuleRecord { id: CapsuleId::new(), ..CapsuleRecord::unknown() };
        registry.admit(&record, |_| Ok(())).unwrap();
        assert!(registry.begin_create(record.id).unwrap().is_none());
        registry.remove(record.id);
        assert!(matches!(registry.begin_create(record.id), Err(Error::NotFound(_))));
    }

    #[test]
    fn removal_cancels_operation_unless_capsule_is_later() {
        let (registry, record) = paused(5);
        let cancel = registry.change(record.id, |capsule| capsule.renew_cancel()).unwrap();
        assert!(matches!(registry.begin_destroy(record.id, Some(4)), Err(Error::Stale)));
        assert!(!cancel.is_cancelled());
        let lock = registry.begin_destroy(record.id, Some(5)).unwrap().unwrap();
        assert!(cancel.is_cancelled());
        assert!(matches!(registry.stop(record.id, &lock, Some(5)), Ok(Stop::Stopping(None))));
        assert_eq!(registry.state(record.id), Some(State::Stopping));
        registry.remove(record.id);
        assert!(matches!(registry.stop(record.id, &lock, Some(5)), Ok(Stop::Gone)));
    }

    #[test]
    fn unknown_capsule_is_listed_while_its_leftovers_are_removed() {
        let (registry, id) = (Registry::default(), CapsuleId::new());
        registry.begin_destroy(id, None).unwrap();
        assert_eq!(registry.state(id), Some(State::Stopping));
        let record = CapsuleRecord { id, ..CapsuleRecord::unknown() };
        registry.admit(&record, |_| Ok(())).unwrap();
        assert!(matches!(registry.begin_create(id), Err(Error::Stopping)));
    }
}
