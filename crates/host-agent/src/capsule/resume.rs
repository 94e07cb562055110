//! Resuming a capsule. A machine is made from the last snapshot and begins a new epoch; only then
//! are requests let in. The snapshot does not change, so a resume that fails loses nothing.

use super::boot::{self, Origin};
use super::lifetime::{Lifetime, now_ms};
use super::manager::{Manager, Started, State, chain};
use super::pause;
use super::record::{CapsuleRecord, Phase};
use super::{Error, io_error, snapshot_error};
use tokio_util::sync::CancellationToken;
use types::{CapsuleId, Egress};

/// Request to resume a capsule.
pub(crate) struct ResumeRequest {
    pub id: CapsuleId,
    pub generation: u64,
    pub life: Lifetime,
    pub egress: Egress,
    /// Number of the snapshot to resume; the last one when `None`.
    pub number: Option<u64>,
    /// True to boot on the saved disk without the saved memory.
    pub cold: bool,
}

impl Manager {
    /// Resumes a paused capsule. A running capsule gets the answer of its last start.
    pub(crate) async fn resume(&self, request: ResumeRequest) -> Result<Started, Error> {
        let this = self.clone();
        self.detached(async move { this.resume_under_lock(request).await }).await
    }

    async fn resume_under_lock(&self, request: ResumeRequest) -> Result<Started, Error> {
        let id = request.id;
        let lock = self.capsule_lock(id)?;
        let _guard = lock.lock().await;
        let (before, cancel) = match self.begin_resume(&request)? {
            Ok(started) => started,
            Err(started) => return Ok(started),
        };
        match self.restore(&request, &cancel).await {
            Ok(booted) => {
                for (stage, took) in &booted.stages {
                    metrics::histogram!("wrenn_resume_stage_seconds", "stage" => *stage)
                        .record(took.as_secs_f64());
                }
                self.run(id, booted);
                self.started(id)
            }
            Err(error) => {
                metrics::counter!("wrenn_resumes_failed_total").increment(1);
                if let Err(undo) = self.undo_resume(id).await {
                    tracing::error!(%id, error = chain(&undo), "undoing a resume");
                }
                self.change(id, |capsule| {
                    capsule.state = before;
                    capsule.memory_mib = 0;
                });
                Err(error)
            }
        }
    }

    /// Marks a paused capsule as being resumed, if there is room for its machine. For a running
    /// capsule, returns the stages of its last start.
    fn begin_resume(
        &self,
        request: &ResumeRequest,
    ) -> Result<Result<(State, CancellationToken), Started>, Error> {
        let dir = boot::folder(&self.context, request.id);
        let none = || Error::NotFound(format!("capsule {}", request.id));
        let record = CapsuleRecord::load(&dir).ok_or_else(none)?;
        let mut capsules = self.lock();
        let capsule = capsules.get(&request.id).ok_or_else(none)?;
        let before = capsule.state.clone();
        if before == State::Running {
            return Ok(Err(capsule.started()));
        }
        // A capsule whose machine is lost may still have an earlier snapshot.
        let has_snapshot = matches!(before, State::Dead(_)) && record.last > 0;
        if before != State::Paused && !has_snapshot {
            return Err(Error::State(before));
        }
        if request.generation < capsule.generation {
            return Err(Error::Stale);
        }
        let memory = u64::from(record.resources.memory_mib);
        // The memory of a dead capsule still counts as used, so only the rest is asked for.
        let held = capsule.memory_mib;
        self.check_room(&capsules, memory - held)?;
        let capsule = capsules.get_mut(&request.id).ok_or_else(none)?;
        capsule.state = State::Resuming;
        capsule.memory_mib = memory;
        capsule.generation = request.generation;
        capsule.running = None;
        Ok(Ok((before, capsule.renew_cancel())))
    }

    async fn restore(
        &self,
        request: &ResumeRequest,
        cancel: &CancellationToken,
    ) -> Result<boot::Booted, Error> {
        let context = &self.context;
        let dir = boot::folder(context, request.id);
        let none = || Error::NotFound(format!("capsule {}", request.id));
        let mut record = CapsuleRecord::load(&dir).ok_or_else(none)?;
        if record.phase != Phase::Paused {
            // The machine died, and its remains are removed first.
            let last = record.last;
            pause::settle(context, &mut record, last).await?;
        }
        let number = request.number.unwrap_or(record.last);
        if request.number.is_some() && !self.numbers(request.id).contains(&number) {
            return Err(Error::Invalid(format!("the capsule has no snapshot {number}")));
        }
        let snapshot = self.own_snapshot(&record, number);
        let snapshot = snapshot.map_err(snapshot_error("opening what was kept of the capsule"))?;
        let origin = match snapshot.manifest.memory.is_some() && !request.cold {
            true => Origin::Resume(snapshot),
            false => Origin::Disk(snapshot),
        };
        (record.phase, record.generation) = (Phase::Resuming, request.generation);
        record.life = request.life.clone();
        record.egress = request.egress.clone();
        self.change(request.id, |capsule| capsule.egress = request.egress.revision);
        boot::boot(context, &mut record, origin, cancel).await
    }

    /// Restores the state before a resume that failed.
    async fn undo_resume(&self, id: CapsuleId) -> Result<(), Error> {
        let dir = boot::folder(&self.context, id);
        match CapsuleRecord::load(&dir) {
            Some(mut record) => {
                let last = record.last;
                pause::settle(&self.context, &mut record, last).await
            }
            None => Ok(()),
        }
    }

    /// Lists the numbers of a capsule's own snapshots, complete or not.
    pub(crate) fn numbers(&self, id: CapsuleId) -> Vec<u64> {
        let dir = boot::snapshots_dir(&boot::folder(&self.context, id));
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut numbers: Vec<u64> = names.filter_map(|name| name.parse().ok()).collect();
        numbers.sort_unstable();
        numbers
    }

    /// Changes a capsule's rules for outgoing connections. On return, these rules or later ones are
    /// in force.
    pub(crate) async fn set_egress(&self, id: CapsuleId, egress: Egress) -> Result<(), Error> {
        let lock = self.capsule_lock(id)?;
        let _guard = lock.lock().await;
        let dir = boot::folder(&self.context, id);
        let none = || Error::NotFound(format!("capsule {id}"));
        let known = self.change(id, |capsule| (capsule.state.clone(), capsule.running.clone()));
        let (state, running) = known.ok_or_else(none)?;
        if !matches!(state, State::Running | State::Paused) {
            return Err(Error::State(state));
        }
        let mut record = CapsuleRecord::load(&dir).ok_or_else(none)?;
        if egress.revision < record.egress.revision {
            return Ok(());
        }
        // The record comes first, so that an agent that dies now applies the rules after its
        // restart.
        record.egress = egress.clone();
        record.save(&dir).map_err(io_error("writing the capsule's record"))?;
        let revision = egress.revision;
        if let Some(guard) = running.and_then(|(_, guest)| guest.guard()) {
            guard.set(egress).await.map_err(io_error("carrying out the rules"))?;
        }
        self.change(id, |capsule| capsule.egress = revision);
        Ok(())
    }

    /// Counts as activity. Returns the milliseconds until the capsule's lifetime ends; `None` is
    /// never.
    ///
    /// # Errors
    /// Fails for an unknown capsule, and for a capsule that is neither running nor paused.
    pub(crate) async fn touch(&self, id: CapsuleId) -> Result<Option<u64>, Error> {
        let lock = self.capsule_lock(id)?;
        let _guard = lock.lock().await;
        self.note_activity(id)
    }

    /// Does the work of [`Self::touch`]. The caller holds the capsule's lock.
    fn note_activity(&self, id: CapsuleId) -> Result<Option<u64>, Error> {
        let known = self.change(id, |capsule| {
            capsule.active = std::time::Instant::now();
            match matches!(capsule.state, State::Running | State::Paused) {
                true => Ok(capsule.life.left_ms(now_ms())),
                false => Err(Error::State(capsule.state.clone())),
            }
        });
        known.ok_or_else(|| Error::NotFound(format!("capsule {id}")))?
    }

    /// Sets a capsule's lifetime, and counts as activity. Returns the milliseconds until the
    /// lifetime ends; `None` is never.
    ///
    /// # Errors
    /// Fails like [`Self::touch`], after a command of a later generation, and on disk errors.
    pub(crate) async fn set_lifetime(
        &self,
        id: CapsuleId,
        generation: u64,
        mut life: Lifetime,
    ) -> Result<Option<u64>, Error> {
        let lock = self.capsule_lock(id)?;
        let _guard = lock.lock().await;
        self.note_activity(id)?;
        if self.change(id, |capsule| generation < capsule.generation) != Some(false) {
            return Err(Error::Stale);
        }
        let dir = boot::folder(&self.context, id);
        life.begin(now_ms());
        let left = life.left_ms(now_ms());
        let none = || Error::NotFound(format!("capsule {id}"));
        let mut record = CapsuleRecord::load(&dir).ok_or_else(none)?;
        record.life = life.clone();
        record.save(&dir).map_err(io_error("writing the capsule's record"))?;
        self.change(id, |capsule| {
            capsule.life = life;
            capsule.due_after = std::time::Instant::now();
        });
        Ok(left)
    }
}
