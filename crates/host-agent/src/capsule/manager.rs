//! The capsules of this machine by id. Each capsule has a lock (`CapsuleLock`), which one operation
//! holds at a time. An operation runs as a task of its own, so it continues when its caller
//! disconnects.
//!
//! An operation decides by the state once it has the lock. A proxied request takes no lock.
//! A removal works in every state.
//!
//! ```text
//!  state       create       pause       resume                 acquire_proxy_conn
//!  (unknown)   boots        NotFound    NotFound               NotRunning
//!  Starting    boots        State       State                  NotRunning
//!  Running     last start   pauses      last start             admits, TooMany or Draining
//!  Pausing     Stopping     State       State                  Draining
//!  Paused      Stopping     succeeds    restores               Paused
//!  Resuming    Stopping     State       State                  Draining
//!  Expired     Stopping     State       State                  NotRunning
//!  Stopping    Stopping     State       State                  NotRunning
//!  Dead        Stopping     State       restores, or State     NotRunning
//!                                       without a snapshot
//! ```
//! A capitalized answer is a variant of `Error`, or of `Refusal` in the last column. A running
//! capsule gets the answer of its last start again. The diagram of the states is in `capsule.rs`.

use super::boot::{self, Booted, Origin};
use super::disk_pressure::Usage;
use super::lifetime::{Due, Lifetime, now_ms};
use super::record::CapsuleRecord;
use super::store::StoredSnapshot;
use super::{Error, io_error, snapshot_error, template_snapshot, until};
use crate::AgentContext;
use crate::guest::{Guest, Permits, Purpose};
use crate::snapshot::{self, Snapshot};
use crate::vmm::Machine;
use daemon::lock;
use hop::Refused;
use protocol::Refusal;
use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use types::{CapsuleId, SnapshotId};

/// State of a capsule on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    Starting,
    Running,
    Pausing,
    /// No machine exists; the last snapshot holds the whole capsule.
    Paused,
    Resuming,
    /// The capsule's time is over, and it is to be removed.
    Expired,
    Stopping,
    /// The machine has ended, for the reason given. The rest of the capsule is still to be removed.
    Dead(String),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Resuming => "resuming",
            Self::Expired => "over its time",
            Self::Stopping => "being removed",
            Self::Dead(_) => "dead",
        })
    }
}

/// Period of the checks for long machine logs and idle connections.
const TRIM: Duration = Duration::from_secs(60);
/// Period of the checks for capsules whose time is over.
const LIFE: Duration = Duration::from_millis(250);
/// Delay before another attempt at a due action.
const DUE_AGAIN: Duration = Duration::from_secs(30);

/// Duration of each phase of a boot.
pub(crate) type Stages = Vec<(&'static str, Duration)>;
/// Stages of a start, and the milliseconds until the capsule's time is over; `None` is never.
pub(crate) type Started = (Stages, Option<u64>);
/// Lock of a capsule, which the operation under way holds.
pub(super) type CapsuleLock = Arc<tokio::sync::Mutex<()>>;

pub(super) struct Capsule {
    pub state: State,
    pub generation: u64,
    pub memory_mib: u64,
    /// Number of the capsule's newest snapshot.
    pub last: u64,
    /// Snapshot that the store has.
    pub stored: Option<StoredSnapshot>,
    /// Revision of the rules for outgoing connections that are in force.
    pub egress: u64,
    pub stages: Stages,
    pub running: Option<(Arc<dyn Machine>, Guest)>,
    /// Lock that the operation under way holds.
    pub lock: CapsuleLock,
    /// Token that cancels the operation under way.
    pub cancel: CancellationToken,
    pub life: Lifetime,
    /// Time of the last activity in the capsule.
    pub active: Instant,
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
}

/// All capsules of this machine.
#[derive(Clone)]
pub(crate) struct Manager {
    pub(super) context: Arc<AgentContext>,
    capsules: Arc<Mutex<HashMap<CapsuleId, Capsule>>>,
    /// Count of changes that no caller asked for.
    changes: watch::Sender<u64>,
}

impl Manager {
    /// Makes a manager and adopts the capsules that an earlier agent left; see `adopt.rs`.
    pub(crate) async fn new(context: Arc<AgentContext>) -> Result<Self, Error> {
        let (changes, _) = watch::channel(u64::try_from(now_ms()).unwrap_or(0));
        let manager = Self { context, capsules: Arc::default(), changes };
        let config = &manager.context.config;
        for dir in [config.capsules(), config.snapshots(), config.golden()] {
            // Only this user may enter the folder, since it holds disks and consoles of guests.
            let made = fs::create_dir_all(&dir)
                .and_then(|()| fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)));
            made.map_err(io_error("making the capsules' folder"))?;
        }
        snapshot::sweep(&config.snapshots());
        if manager.context.driver.boots_images() {
            template_snapshot::sweep(&manager.context);
        }
        manager.adopt_all().await?;
        manager.spawn_uploads();
        manager.watch_disk().await;
        manager.watch_liveness();
        let this = manager.clone();
        manager.context.tasks.every(TRIM, move || {
            let this = this.clone();
            async move { this.trim() }
        });
        let this = manager.clone();
        manager.context.tasks.every(LIFE, move || {
            let this = this.clone();
            async move { this.end_those_due() }
        });
        Ok(manager)
    }

    /// Trims long logs, closes idle connections, and removes unused template snapshots.
    fn trim(&self) {
        let running: Vec<_> = {
            let capsules = self.lock();
            capsules.values().filter_map(|c| c.running.clone()).collect()
        };
        for (machine, guest) in running {
            machine.trim_logs();
            guest.pool().sweep();
        }
        let this = self.clone();
        tokio::task::spawn_blocking(move || template_snapshot::retire(&this.context));
    }

    /// Pauses or ends the capsules whose time is over. A failed attempt loses nothing and is
    /// repeated.
    fn end_those_due(&self) {
        let (now, at) = (now_ms(), Instant::now());
        let mut due = Vec::new();
        for (id, capsule) in self.lock().iter_mut() {
            let (State::Running, Some((_, guest))) = (&capsule.state, &capsule.running) else {
                continue;
            };
            if guest.is_busy() {
                capsule.active = at;
            }
            let what = capsule.life.due(now, at - capsule.active);
            if what != Due::Nothing && at >= capsule.due_after {
                capsule.due_after = at + DUE_AGAIN;
                due.push((*id, what));
            }
        }
        for (id, what) in due {
            let this = self.clone();
            self.context.tasks.spawn(async move {
                let done = match what {
                    Due::Kill => this.expire(id).await,
                    Due::PauseDisk | Due::Pause | Due::Nothing => this.pause_due(id, what).await,
                };
                match done {
                    Ok(()) => tracing::info!(%id, ?what, "its time is over"),
                    Err(error) => {
                        tracing::error!(%id, ?what, error = chain(&error), "its time is over");
                    }
                }
                this.changed();
            });
        }
    }

    /// Makes a capsule. A capsule that runs or is being made gets the answer of its first creation.
    pub(crate) async fn create(
        &self,
        record: CapsuleRecord,
        from: Option<SnapshotId>,
    ) -> Result<Started, Error> {
        record.resources.check().map_err(|e| Error::Invalid(e.to_string()))?;
        match from {
            Some(id) => self.fetch_snapshot(&record.team, id).await?,
            None => self.fetch_template(&record.template).await?,
        }
        let this = self.clone();
        self.detached(async move { Box::pin(this.create_under_lock(record, from)).await }).await
    }

    /// Runs work that continues when its caller disconnects.
    pub(super) async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        self.context.tasks.detached(work).await.unwrap_or(Err(Error::Stopping))
    }

    async fn create_under_lock(
        &self,
        mut record: CapsuleRecord,
        from: Option<SnapshotId>,
    ) -> Result<Started, Error> {
        let id = record.id;
        let (lock, cancel) = self.admit(&record)?;
        let _guard = lock.lock().await;
        match self.lock().get(&id).map(|c| (c.state.clone(), c.started())) {
            Some((State::Running, started)) => return Ok(started),
            Some((State::Starting, _)) => {}
            Some(_) => return Err(Error::Stopping),
            None => return Err(Error::NotFound(format!("capsule {id}"))),
        }
        let dir = boot::folder(&self.context, id);
        let booted = match fs::create_dir_all(&dir) {
            Ok(()) => self.boot(&mut record, from, &cancel).await,
            Err(e) => Err(io_error("making the capsule's folder")(e)),
        };
        match booted {
            Ok(booted) => {
                for (stage, took) in &booted.stages {
                    metrics::histogram!("wrenn_boot_stage_seconds", "stage" => *stage)
                        .record(took.as_secs_f64());
                }
                self.run(id, booted);
                self.started(id)
            }
            Err(error) => {
                metrics::counter!("wrenn_boots_failed_total").increment(1);
                if let Err(undo) = boot::remove(&self.context, id).await {
                    tracing::error!(%id, error = %chain(&undo), "undoing a failed boot");
                }
                self.lock().remove(&id);
                Err(error)
            }
        }
    }

    /// Makes a machine from a snapshot or from the template. The template snapshot is restored if
    /// there is one; otherwise a kernel boots.
    async fn boot(
        &self,
        record: &mut CapsuleRecord,
        from: Option<SnapshotId>,
        cancel: &CancellationToken,
    ) -> Result<Booted, Error> {
        let context = &*self.context;
        if let Some(from) = from {
            let snapshot = self.snapshot_of(from)?;
            let origin = match snapshot.manifest.memory {
                Some(_) => Origin::Fork(snapshot),
                None => Origin::Disk(snapshot),
            };
            return boot::boot(context, record, origin, cancel).await;
        }
        if !context.driver.boots_images() {
            return boot::boot(context, record, Origin::Image(None), cancel).await;
        }
        let found = context.template_snapshots.find(context, &record.template, record.resources);
        let found = until(cancel, found).await?;
        let snapshot = match found.map_err(template_snapshot::error)? {
            Ok(snapshot) => snapshot,
            Err(pending) => {
                return boot::boot(context, record, Origin::Image(Some(pending)), cancel).await;
            }
        };
        let restored = boot::boot(context, record, Origin::Fork(snapshot.clone()), cancel).await;
        match restored {
            Err(error @ (Error::Damaged(_) | Error::Incompatible { .. } | Error::Vmm(_))) => {
                let id = record.id;
                tracing::warn!(%id, error = chain(&error), "no restore; booting instead");
                boot::release(context, record).await?;
                if !matches!(error, Error::Vmm(_)) {
                    let removed = snapshot::remove(&snapshot.dir);
                    removed.map_err(io_error("removing a template snapshot"))?;
                }
                boot::boot(context, record, Origin::Image(None), cancel).await
            }
            restored => restored,
        }
    }

    pub(super) fn snapshot_of(&self, id: SnapshotId) -> Result<Snapshot, Error> {
        let dir = self.context.config.snapshots().join(id.to_string());
        if !dir.exists() {
            return Err(Error::NotFound(format!("snapshot {id}")));
        }
        Snapshot::open(&dir).map_err(snapshot_error("opening the snapshot"))
    }

    /// Registers a capsule, if there is room for it.
    fn admit(&self, record: &CapsuleRecord) -> Result<(CapsuleLock, CancellationToken), Error> {
        let mut capsules = self.lock();
        if let Some(capsule) = capsules.get(&record.id) {
            return Ok((Arc::clone(&capsule.lock), capsule.cancel.clone()));
        }
        if !self.context.templates().contains(&record.template) {
            return Err(Error::NoTemplate(record.template.clone()));
        }
        self.check_room(&capsules, u64::from(record.resources.memory_mib))?;
        let capsule = Capsule::new(record, State::Starting);
        let entered = (Arc::clone(&capsule.lock), capsule.cancel.clone());
        capsules.insert(record.id, capsule);
        Ok(entered)
    }

    /// Checks that there is room for another machine of `wanted` MiB.
    pub(super) fn check_room(
        &self,
        capsules: &HashMap<CapsuleId, Capsule>,
        wanted: u64,
    ) -> Result<(), Error> {
        let own: u64 = capsules.values().map(|c| c.memory_mib).sum();
        let used = own + (self.context.images.used() >> 20);
        if used + wanted > self.context.memory_mib {
            let all = self.context.memory_mib;
            let why =
                format!("{used} of {all} MiB of memory are in use, and {wanted} are asked for");
            return Err(Error::NoCapacity(why));
        }
        // The copy of the machine's disk claims its own bytes later.
        Ok(self.context.room.claim(0).map(drop)?)
    }

    /// Marks a capsule as running and watches for its machine's end.
    pub(super) fn run(&self, id: CapsuleId, booted: Booted) {
        let machine = Arc::clone(&booted.machine);
        if let Some(capsule) = self.lock().get_mut(&id) {
            capsule.state = State::Running;
            capsule.stages = booted.stages;
            capsule.life = booted.life;
            capsule.usage = Usage::of(capsule.usage.snapshot_bytes);
            capsule.running = Some((booted.machine, booted.guest));
            (capsule.active, capsule.due_after) = (Instant::now(), Instant::now());
            capsule.silent_tries = 0;
        }
        self.watch_end(id, machine);
    }

    /// Lists every capsule with its state and generation.
    pub(crate) fn list(&self) -> Vec<Listed> {
        self.count();
        let capsules = self.lock();
        let listed = |(id, capsule): (&CapsuleId, &Capsule)| Listed {
            id: *id,
            state: capsule.state.clone(),
            generation: capsule.generation,
            stored: capsule.stored.clone().filter(|_| !capsule.is_unsent()),
            egress: capsule.egress,
            waits_for_room: capsule.waits_for_room(),
            snapshot_bytes: capsule.usage.snapshot_bytes,
        };
        capsules.iter().map(listed).collect()
    }

    /// Updates the gauges.
    fn count(&self) {
        let (number, memory) = {
            let capsules = self.lock();
            (capsules.len(), capsules.values().map(|c| c.memory_mib).sum::<u64>())
        };
        let gauge = |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        metrics::gauge!("wrenn_host_capsules").set(gauge(number as u64));
        metrics::gauge!("wrenn_host_memory_mib").set(gauge(memory));
    }

    /// Waits until the count of unrequested changes differs from `seen`, for at most `most`;
    /// returns the count. A count from another agent process differs too, so the call returns at
    /// once.
    pub(crate) async fn wait_change(&self, seen: u64, most: Duration) -> u64 {
        let mut changes = self.changes.subscribe();
        let changed = changes.wait_for(|count| *count != seen);
        let _ = tokio::time::timeout(most, changed).await;
        *self.changes.borrow()
    }

    pub(super) fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Returns a running capsule's guest and permits for a request, in a single step. So an
    /// operation that ends the guest knows of every request under way.
    pub(crate) fn acquire_proxy_conn(
        &self,
        id: CapsuleId,
        port: u16,
        purpose: Purpose,
    ) -> Result<(Guest, Permits), Refusal> {
        let mut capsules = self.lock();
        let capsule = capsules.get_mut(&id).ok_or(Refusal::NotRunning)?;
        match capsule.state {
            State::Running => {}
            State::Paused => return Err(Refusal::Paused),
            State::Pausing | State::Resuming => return Err(Refusal::Draining),
            State::Starting | State::Stopping | State::Expired | State::Dead(_) => {
                return Err(Refusal::NotRunning);
            }
        }
        if purpose == Purpose::Use {
            capsule.active = Instant::now();
        }
        let (_, guest) = capsule.running.as_ref().ok_or(Refusal::NotRunning)?;
        match guest.acquire(port, purpose) {
            Ok(permits) => Ok((guest.clone(), permits)),
            Err(Refused::Draining) => Err(Refusal::Draining),
            Err(Refused::Full) => Err(Refusal::TooMany),
        }
    }

    /// Reports whether a capsule's guest stands still until there is room on the host's disk.
    pub(crate) fn waits_for_room(&self, id: CapsuleId) -> bool {
        self.lock().get(&id).is_some_and(Capsule::waits_for_room)
    }

    /// Returns the output of a capsule's guest on its console; empty without a machine.
    pub(crate) async fn console(&self, id: CapsuleId) -> Result<Vec<u8>, Error> {
        let machine = {
            let capsules = self.lock();
            let none = || Error::NotFound(format!("capsule {id}"));
            let capsule = capsules.get(&id).ok_or_else(none)?;
            capsule.running.as_ref().map(|(machine, _)| Arc::clone(machine))
        };
        match machine {
            Some(machine) => Ok(machine.console().await),
            None => Ok(Vec::new()),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<CapsuleId, Capsule>> {
        lock(&self.capsules)
    }

    /// Returns the stages of a capsule's start and the time that it has left.
    pub(super) fn started(&self, id: CapsuleId) -> Result<Started, Error> {
        let started = self.lock().get(&id).map(Capsule::started);
        started.ok_or_else(|| Error::NotFound(format!("capsule {id}")))
    }

    /// Returns the lock of a capsule.
    pub(super) fn capsule_lock(&self, id: CapsuleId) -> Result<CapsuleLock, Error> {
        let known = self.lock().get(&id).map(|capsule| Arc::clone(&capsule.lock));
        known.ok_or_else(|| Error::NotFound(format!("capsule {id}")))
    }

    /// Changes the state that is kept of a capsule. The caller holds the capsule's lock.
    pub(super) fn change<T>(
        &self,
        id: CapsuleId,
        with: impl FnOnce(&mut Capsule) -> T,
    ) -> Option<T> {
        self.lock().get_mut(&id).map(with)
    }
}

impl Capsule {
    fn waits_for_room(&self) -> bool {
        self.usage.waits && self.state == State::Running
    }

    /// Reports whether the store lacks the capsule's newest snapshot.
    pub(super) fn is_unsent(&self) -> bool {
        self.last > 0 && self.stored.as_ref().is_none_or(|stored| stored.number != self.last)
    }

    /// Returns a new token for an operation that begins. An earlier removal may have cancelled the
    /// last token and then had no effect.
    pub(super) fn renew_cancel(&mut self) -> CancellationToken {
        self.cancel = CancellationToken::new();
        self.cancel.clone()
    }

    pub(super) fn started(&self) -> Started {
        (self.stages.clone(), self.life.left_ms(now_ms()))
    }

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
            stages: Vec::new(),
            running: None,
            lock: CapsuleLock::default(),
            cancel: CancellationToken::new(),
            life: record.life.clone(),
            active: now,
            due_after: now,
            silent_tries: 0,
            usage: Usage::default(),
        }
    }
}

/// Formats an error and all of its causes in a single line.
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
