//! Resuming a capsule. A machine is made from the last snapshot and begins a new epoch; only then
//! are requests let in. The snapshot does not change, so a resume that fails loses nothing.

use super::boot::{self, Origin};
use super::ledger::{Ledger, Phase};
use super::life::{Life, now_ms};
use super::manager::{Begun, Manager, State, chain};
use super::pause;
use super::{Error, io_error, kept_error};
use tokio_util::sync::CancellationToken;
use types::{CapsuleId, Egress};

/// Parameters of a resume.
pub(crate) struct Resume {
    pub id: CapsuleId,
    pub generation: u64,
    pub life: Life,
    pub egress: Egress,
    /// Number of the snapshot to resume; the last one when `None`.
    pub number: Option<u64>,
    /// True to boot on the saved disk without the saved memory.
    pub cold: bool,
}

impl Manager {
    /// Resumes a paused capsule. A running capsule gets the answer of its last start.
    pub(crate) async fn resume(&self, wanted: Resume) -> Result<Begun, Error> {
        let this = self.clone();
        self.detached(async move { this.resume_in_turn(wanted).await }).await
    }

    async fn resume_in_turn(&self, wanted: Resume) -> Result<Begun, Error> {
        let id = wanted.id;
        let turn = self.turn(id)?;
        let _turn = turn.lock().await;
        let (before, cancel) = match self.begin_resume(&wanted)? {
            Ok(begun) => begun,
            Err(begun) => return Ok(begun),
        };
        match self.bring_back(&wanted, &cancel).await {
            Ok(booted) => {
                for (stage, took) in &booted.stages {
                    metrics::histogram!("wrenn_resume_stage_seconds", "stage" => *stage)
                        .record(took.as_secs_f64());
                }
                self.run(id, booted);
                self.begun(id)
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
        wanted: &Resume,
    ) -> Result<Result<(State, CancellationToken), Begun>, Error> {
        let dir = boot::folder(&self.parts, wanted.id);
        let none = || Error::NotFound(format!("capsule {}", wanted.id));
        let ledger = Ledger::load(&dir).ok_or_else(none)?;
        let mut capsules = self.lock();
        let capsule = capsules.get(&wanted.id).ok_or_else(none)?;
        let before = capsule.state.clone();
        if before == State::Running {
            return Ok(Err(capsule.begun()));
        }
        // A capsule whose machine is lost may still have an earlier snapshot.
        let kept = matches!(before, State::Dead(_)) && ledger.last > 0;
        if before != State::Paused && !kept {
            return Err(Error::State(before));
        }
        if wanted.generation < capsule.generation {
            return Err(Error::Stale);
        }
        let memory = u64::from(ledger.resources.memory_mib);
        // The memory of a dead capsule still counts as used, so only the rest is asked for.
        let held = capsule.memory_mib;
        self.check_room(&capsules, memory - held)?;
        let capsule = capsules.get_mut(&wanted.id).ok_or_else(none)?;
        capsule.state = State::Resuming;
        capsule.memory_mib = memory;
        capsule.generation = wanted.generation;
        capsule.running = None;
        Ok(Ok((before, capsule.renew_cancel())))
    }

    async fn bring_back(
        &self,
        wanted: &Resume,
        cancel: &CancellationToken,
    ) -> Result<boot::Booted, Error> {
        let parts = &self.parts;
        let dir = boot::folder(parts, wanted.id);
        let none = || Error::NotFound(format!("capsule {}", wanted.id));
        let mut ledger = Ledger::load(&dir).ok_or_else(none)?;
        if ledger.phase != Phase::Paused {
            // The machine died, and its remains are removed first.
            let last = ledger.last;
            pause::settle(parts, &mut ledger, last).await?;
        }
        let number = wanted.number.unwrap_or(ledger.last);
        if wanted.number.is_some() && !self.numbers(wanted.id).contains(&number) {
            return Err(Error::Invalid(format!("the capsule has no snapshot {number}")));
        }
        let snapshot = self.own_snapshot(&ledger, number);
        let snapshot = snapshot.map_err(kept_error("opening what was kept of the capsule"))?;
        let origin = match snapshot.manifest.memory.is_some() && !wanted.cold {
            true => Origin::Same(snapshot),
            false => Origin::Disk(snapshot),
        };
        (ledger.phase, ledger.generation) = (Phase::Resuming, wanted.generation);
        ledger.life = wanted.life.clone();
        ledger.egress = wanted.egress.clone();
        self.change(wanted.id, |capsule| capsule.egress = wanted.egress.revision);
        boot::boot(parts, &mut ledger, origin, cancel).await
    }

    /// Restores the state before a resume that failed.
    async fn undo_resume(&self, id: CapsuleId) -> Result<(), Error> {
        let dir = boot::folder(&self.parts, id);
        match Ledger::load(&dir) {
            Some(mut ledger) => {
                let last = ledger.last;
                pause::settle(&self.parts, &mut ledger, last).await
            }
            None => Ok(()),
        }
    }

    /// Lists the numbers of a capsule's own snapshots, complete or not.
    pub(crate) fn numbers(&self, id: CapsuleId) -> Vec<u64> {
        let kept = boot::kept(&boot::folder(&self.parts, id));
        let entries = std::fs::read_dir(kept).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut numbers: Vec<u64> = names.filter_map(|name| name.parse().ok()).collect();
        numbers.sort_unstable();
        numbers
    }

    /// Changes a capsule's rules for outgoing connections. On return, these rules or later ones are
    /// in force.
    pub(crate) async fn set_egress(&self, id: CapsuleId, egress: Egress) -> Result<(), Error> {
        let turn = self.turn(id)?;
        let _turn = turn.lock().await;
        let dir = boot::folder(&self.parts, id);
        let none = || Error::NotFound(format!("capsule {id}"));
        let known = self.change(id, |capsule| (capsule.state.clone(), capsule.running.clone()));
        let (state, running) = known.ok_or_else(none)?;
        if !matches!(state, State::Running | State::Paused) {
            return Err(Error::State(state));
        }
        let mut ledger = Ledger::load(&dir).ok_or_else(none)?;
        if egress.revision < ledger.egress.revision {
            return Ok(());
        }
        // The ledger comes first, so that an agent that dies now applies the rules after its
        // restart.
        ledger.egress = egress.clone();
        ledger.save(&dir).map_err(io_error("writing the capsule's ledger"))?;
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
        let turn = self.turn(id)?;
        let _turn = turn.lock().await;
        self.note_activity(id)
    }

    /// Does the work of [`Self::touch`]. The caller holds the capsule's turn.
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
    pub(crate) async fn set_life(
        &self,
        id: CapsuleId,
        generation: u64,
        mut life: Life,
    ) -> Result<Option<u64>, Error> {
        let turn = self.turn(id)?;
        let _turn = turn.lock().await;
        self.note_activity(id)?;
        if self.change(id, |capsule| generation < capsule.generation) != Some(false) {
            return Err(Error::Stale);
        }
        let dir = boot::folder(&self.parts, id);
        life.begin(now_ms());
        let left = life.left_ms(now_ms());
        let none = || Error::NotFound(format!("capsule {id}"));
        let mut ledger = Ledger::load(&dir).ok_or_else(none)?;
        ledger.life = life.clone();
        ledger.save(&dir).map_err(io_error("writing the capsule's ledger"))?;
        self.change(id, |capsule| {
            capsule.life = life;
            capsule.due_after = std::time::Instant::now();
        });
        Ok(left)
    }
}
