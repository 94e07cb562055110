//! The capsules of this machine by id. Each has a lock that one operation holds at a time;
//! operations run as tasks of their own, so that a caller who leaves does not stop them.

use super::boot::{self, Booted};
use super::ledger::Ledger;
use super::{Error, io_error};
use crate::Parts;
use crate::guest::Guest;
use crate::storage;
use crate::vmm::Machine;
use hop::{Place, Refused};
use protocol::Refusal;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use types::CapsuleId;

/// How a capsule stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    Starting,
    Running,
    Stopping,
    /// Its machine has ended, for a reason; the rest is still to be removed.
    Dead(String),
}

/// Bytes of disk that must be free for another capsule to be made.
const DISK_RESERVE: u64 = 1 << 30;

/// Between two looks at the logs of machines and at connections that rest.
const TRIM: Duration = Duration::from_secs(60);

/// How long each phase of a boot took.
pub(crate) type Stages = Vec<(&'static str, Duration)>;

struct Capsule {
    state: State,
    generation: u64,
    memory_mib: u64,
    stages: Stages,
    running: Option<(Arc<dyn Machine>, Guest)>,
    /// Held by the operation under way.
    turn: Turn,
    /// Ends a boot under way.
    cancel: CancellationToken,
}

type Turn = Arc<tokio::sync::Mutex<()>>;

/// All capsules of this machine.
#[derive(Clone)]
pub(crate) struct Manager {
    parts: Arc<Parts>,
    capsules: Arc<Mutex<HashMap<CapsuleId, Capsule>>>,
}

impl Manager {
    /// Finds what an earlier agent left: machines that run are adopted, the rest is removed.
    pub(crate) async fn new(parts: Arc<Parts>) -> Result<Self, Error> {
        let manager = Self { parts, capsules: Arc::default() };
        let dir = manager.parts.config.capsules();
        // Ours alone: in it are disks and consoles, which no other user may read.
        let made = fs::create_dir_all(&dir)
            .and_then(|()| fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)));
        made.map_err(io_error("making the capsules' folder"))?;
        for id in boot::existing(&manager.parts) {
            match manager.adopt(id) {
                Some(()) => tracing::info!(%id, "adopted a running capsule"),
                None => {
                    tracing::info!(%id, "removing what an earlier agent left");
                    if let Err(error) = boot::unmake(&manager.parts, id).await {
                        // It stays listed, so that its removal is asked for again.
                        let reason = chain(&error);
                        tracing::error!(%id, error = reason, "removing what an earlier agent left");
                        manager.lock().insert(id, Capsule::lost(reason));
                    }
                }
            }
        }
        if let Some(networks) = &manager.parts.networks {
            networks.remove_strangers().await?;
        }
        let this = manager.clone();
        manager.parts.tasks.every(TRIM, move || {
            let this = this.clone();
            async move { this.trim() }
        });
        Ok(manager)
    }

    /// Lets go of what is not needed: long logs, connections that rest.
    fn trim(&self) {
        let running: Vec<_> = {
            let capsules = self.lock();
            capsules.values().filter_map(|c| c.running.clone()).collect()
        };
        for (machine, guest) in running {
            machine.trim_logs();
            guest.pool().sweep();
        }
    }

    fn adopt(&self, id: CapsuleId) -> Option<()> {
        let dir = boot::folder(&self.parts, id);
        let ledger = Ledger::load(&dir).filter(|ledger| ledger.ready)?;
        let machine: Arc<dyn Machine> =
            Arc::from(self.parts.driver.adopt(ledger.machine.as_ref()?, dir)?);
        let network = match (&self.parts.networks, ledger.slot) {
            (Some(networks), Some(slot)) => Some(networks.adopt(slot).ok()?),
            _ => None,
        };
        let route = boot::route(&*machine, network.map(|n| n.namespace)).ok()?;
        let guest = boot::guest(&self.parts, route);
        self.lock().insert(id, Capsule::new(&ledger, State::Running));
        self.run(id, Booted { machine, guest, stages: Vec::new() });
        Some(())
    }

    /// Boots a capsule; one that runs, or is being booted, is answered as the first time.
    pub(crate) async fn create(&self, ledger: Ledger) -> Result<Stages, Error> {
        ledger.resources.check().map_err(|e| Error::Invalid(e.to_string()))?;
        let this = self.clone();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.parts.tasks.spawn(async move {
            let _ = sender.send(this.create_in_turn(ledger).await);
        });
        receiver.await.unwrap_or(Err(Error::Stopping))
    }

    async fn create_in_turn(&self, mut ledger: Ledger) -> Result<Stages, Error> {
        let id = ledger.id;
        let (turn, cancel) = self.admit(&ledger)?;
        let _turn = turn.lock().await;
        match self.lock().get(&id).map(|c| (c.state.clone(), c.stages.clone())) {
            Some((State::Running, stages)) => return Ok(stages),
            Some((State::Starting, _)) => {}
            Some(_) => return Err(Error::Stopping),
            None => return Err(Error::NotFound(id)),
        }
        let dir = boot::folder(&self.parts, id);
        let booted = match fs::create_dir_all(&dir) {
            Ok(()) => boot::boot(&self.parts, &mut ledger, &cancel).await,
            Err(e) => Err(io_error("making the capsule's folder")(e)),
        };
        match booted {
            Ok(booted) => {
                let stages = booted.stages.clone();
                for (stage, took) in &stages {
                    metrics::histogram!("wrenn_boot_stage_seconds", "stage" => *stage)
                        .record(took.as_secs_f64());
                }
                self.run(id, booted);
                Ok(stages)
            }
            Err(error) => {
                metrics::counter!("wrenn_boots_failed_total").increment(1);
                if let Err(undo) = boot::unmake(&self.parts, id).await {
                    tracing::error!(%id, error = %chain(&undo), "undoing a failed boot");
                }
                self.lock().remove(&id);
                Err(error)
            }
        }
    }

    /// Enters a capsule, if there is room for it.
    fn admit(&self, ledger: &Ledger) -> Result<(Turn, CancellationToken), Error> {
        let mut capsules = self.lock();
        if let Some(capsule) = capsules.get(&ledger.id) {
            return Ok((Arc::clone(&capsule.turn), capsule.cancel.clone()));
        }
        if !self.parts.templates().contains(&ledger.template) {
            return Err(Error::NoTemplate(ledger.template.clone()));
        }
        let used: u64 = capsules.values().map(|c| c.memory_mib).sum();
        let wanted = u64::from(ledger.resources.memory_mib);
        if used + wanted > self.parts.memory_mib {
            let all = self.parts.memory_mib;
            let why =
                format!("{used} of {all} MiB of memory are in use, and {wanted} are asked for");
            return Err(Error::NoCapacity(why));
        }
        let (_, free) = storage::capacity(&self.parts.config.dir);
        if free < DISK_RESERVE {
            let why = format!("{} MiB of disk are free on the host", free >> 20);
            return Err(Error::NoCapacity(why));
        }
        let capsule = Capsule::new(ledger, State::Starting);
        let entered = (Arc::clone(&capsule.turn), capsule.cancel.clone());
        capsules.insert(ledger.id, capsule);
        Ok(entered)
    }

    /// Marks a capsule as running and watches for its machine's end.
    fn run(&self, id: CapsuleId, booted: Booted) {
        let (machine, guest) = (Arc::clone(&booted.machine), booted.guest.clone());
        if let Some(capsule) = self.lock().get_mut(&id) {
            capsule.state = State::Running;
            capsule.stages = booted.stages;
            capsule.running = Some((booted.machine, booted.guest));
        }
        let this = self.clone();
        self.parts.tasks.spawn(async move {
            let reason = tokio::select! {
                reason = machine.ended() => reason,
                () = this.parts.tasks.stopping() => return,
            };
            guest.close();
            this.lost(id, &*machine, reason).await;
        });
    }

    /// Notes that a machine ended by itself; one that is being removed was ended by us.
    async fn lost(&self, id: CapsuleId, machine: &dyn Machine, reason: String) {
        match self.lock().get_mut(&id) {
            Some(capsule) if capsule.state == State::Running => {
                tracing::warn!(%id, reason, said = machine.said(), "a capsule's machine ended");
                metrics::counter!("wrenn_machines_lost_total").increment(1);
                capsule.state = State::Dead(reason);
            }
            _ => return,
        }
        // What the guest said last is kept; then the process need not hold its memory any more.
        let _ = machine.console().await;
        if let Err(error) = machine.kill().await {
            tracing::warn!(%id, error = chain(&error), "ending a machine whose guest ended");
        }
    }

    /// Ends a capsule and removes all it had; an unknown one is success.
    pub(crate) async fn destroy(&self, id: CapsuleId) -> Result<(), Error> {
        let this = self.clone();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.parts.tasks.spawn(async move {
            let _ = sender.send(this.destroy_in_turn(id).await);
        });
        receiver.await.unwrap_or(Err(Error::Stopping))
    }

    async fn destroy_in_turn(&self, id: CapsuleId) -> Result<(), Error> {
        let known = self.lock().get(&id).map(|c| (Arc::clone(&c.turn), c.cancel.clone()));
        let Some((turn, cancel)) = known else {
            return boot::unmake(&self.parts, id).await;
        };
        cancel.cancel();
        let _turn = turn.lock().await;
        let running = self.lock().get_mut(&id).and_then(|capsule| {
            capsule.state = State::Stopping;
            capsule.running.take()
        });
        if let Some((_, guest)) = running {
            let cut = guest.drain(Duration::ZERO).await;
            metrics::counter!("wrenn_requests_cut_total").increment(cut);
        }
        boot::unmake(&self.parts, id).await?;
        self.lock().remove(&id);
        Ok(())
    }

    /// Every capsule with its state and generation.
    pub(crate) fn list(&self) -> Vec<(CapsuleId, State, u64)> {
        self.count();
        self.lock().iter().map(|(id, c)| (*id, c.state.clone(), c.generation)).collect()
    }

    /// Brings the gauges up to date.
    fn count(&self) {
        let (number, memory) = {
            let capsules = self.lock();
            (capsules.len(), capsules.values().map(|c| c.memory_mib).sum::<u64>())
        };
        let gauge = |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        metrics::gauge!("wrenn_host_capsules").set(gauge(number as u64));
        metrics::gauge!("wrenn_host_memory_mib").set(gauge(memory));
    }

    /// A running capsule's guest, and a place among its requests, in one step: what is under way
    /// is known to whoever ends it.
    pub(crate) fn acquire(&self, id: CapsuleId, port: u16) -> Result<(Guest, Place), Refusal> {
        let capsules = self.lock();
        let capsule = capsules.get(&id).ok_or(Refusal::NotRunning)?;
        if capsule.state == State::Stopping {
            return Err(Refusal::Draining);
        }
        let running = capsule.running.as_ref().filter(|_| capsule.state == State::Running);
        let (_, guest) = running.ok_or(Refusal::NotRunning)?;
        match guest.acquire(port) {
            Ok(place) => Ok((guest.clone(), place)),
            Err(Refused::Draining) => Err(Refusal::Draining),
            Err(Refused::Full) => Err(Refusal::TooMany),
        }
    }

    /// What a capsule's guest wrote to its console.
    pub(crate) async fn console(&self, id: CapsuleId) -> Result<Vec<u8>, Error> {
        let machine = {
            let capsules = self.lock();
            let capsule = capsules.get(&id).ok_or(Error::NotFound(id))?;
            capsule.running.as_ref().map(|(machine, _)| Arc::clone(machine))
        };
        match machine {
            Some(machine) => Ok(machine.console().await),
            None => Ok(Vec::new()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<CapsuleId, Capsule>> {
        self.capsules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Capsule {
    fn new(ledger: &Ledger, state: State) -> Self {
        Self {
            state,
            generation: ledger.generation,
            memory_mib: u64::from(ledger.resources.memory_mib),
            stages: Vec::new(),
            running: None,
            turn: Turn::default(),
            cancel: CancellationToken::new(),
        }
    }

    /// One of which an earlier agent left what could not be removed.
    fn lost(reason: String) -> Self {
        Self {
            state: State::Dead(reason),
            generation: 0,
            memory_mib: 0,
            stages: Vec::new(),
            running: None,
            turn: Turn::default(),
            cancel: CancellationToken::new(),
        }
    }
}

/// An error with everything that caused it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        out.push_str(": ");
        out.push_str(&error.to_string());
        cause = error.source();
    }
    out
}
