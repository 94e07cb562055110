//! Pauses and resumes capsules, and wakes paused capsules for requests. A client that disconnects
//! stops nothing. If a host does not answer, the reconciler completes the operation.

use super::quota::Quota;
use super::waiters::Waiter;
use super::{RACES, get, lifetime, network, transition};
use crate::app::App;
use crate::audit::{Actor, Entry};
use crate::auth::Caller;
use crate::db;
use crate::db::capsules::Capsule;
use crate::error::{Error, Result};
use crate::scheduler::PlacementRequest;
use protocol::host::{PauseCapsuleRequest, ResumeCapsuleRequest};
use std::future::Future;
use std::time::Duration;
use time::OffsetDateTime;
use types::{CapsuleId, CapsuleState, HostId, Isolation};

/// Longest wait for a capsule to settle.
const SETTLE: Duration = Duration::from_secs(150);
/// Longest wait for the reason that a guest does not answer.
const WHY: Duration = Duration::from_millis(750);

/// Runs work that goes on when its caller leaves.
pub(crate) async fn detached<T: Send + 'static>(
    app: &App,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    app.tasks.detached(work).await.unwrap_or(Err(Error::HostUnavailable))
}

/// Returns a capsule when no start, pause or resume of it is under way.
pub(crate) async fn settled(app: &App, caller: Caller, id: CapsuleId) -> Result<Capsule> {
    let settled = |capsule: &Capsule| {
        let state = capsule.state;
        !matches!(state, CapsuleState::Starting | CapsuleState::Pausing | CapsuleState::Resuming)
    };
    let mut capsule = get(app, caller, id).await?;
    if settled(&capsule) {
        return Ok(capsule);
    }
    let mut waiter = Waiter::new(app, id, SETTLE);
    loop {
        waiter.note();
        capsule = get(app, caller, id).await?;
        if settled(&capsule) {
            return Ok(capsule);
        }
        if !waiter.again().await {
            return Err(Error::HostUnavailable);
        }
    }
}

/// Reports whether a host may have paused or ended a capsule whose row still says `running`. Hosts
/// do so by themselves at the end of a capsule's time, or after idleness.
pub(crate) fn may_lag(row: &Capsule) -> bool {
    let over = row.ends_at.is_some_and(|end| end <= OffsetDateTime::now_utc());
    row.state == CapsuleState::Running && (over || row.idle_sec.is_some())
}

/// Has the row of a capsule that may lag follow its host, and reads it again. The host answers only
/// after a pause that is under way.
pub(crate) async fn caught_up(app: &App, caller: Caller, capsule: Capsule) -> Result<Capsule> {
    if !may_lag(&capsule) {
        return Ok(capsule);
    }
    let id = capsule.id;
    // The error of a capsule that has ended does not matter, since its row shows the end next.
    let _ = lifetime::ping(app, caller, id).await;
    if let Some(host) = capsule.host_id {
        crate::reconcile::run(app, host).await;
    }
    settled(app, caller, id).await
}

pub(super) fn busy() -> Error {
    Error::Conflict("the capsule is changing; try again".to_owned())
}

/// Reports whether the requested operation is under way already, so that the caller joins it.
///
/// # Errors
/// A conflict, when another operation is under way, or this one with other parameters.
fn joins(capsule: &Capsule, to: CapsuleState, operation: &str) -> Result<bool> {
    let under_way = capsule.state;
    match under_way {
        CapsuleState::Pausing | CapsuleState::Resuming => {
            let same = capsule.operation.is_empty() || capsule.operation == operation;
            if under_way == to && same { Ok(true) } else { Err(busy()) }
        }
        CapsuleState::Starting
        | CapsuleState::Running
        | CapsuleState::Paused
        | CapsuleState::Missing
        | CapsuleState::Error
        | CapsuleState::Stopping
        | CapsuleState::Stopped => Ok(false),
    }
}

/// Reports whether an operation that was seen under way has failed. The capsule is back in the
/// state before that operation. A success and a later operation lead there too, by more changes.
fn has_failed(seen: &Capsule, now: &Capsule) -> bool {
    now.generation == seen.generation + 1
}

/// Names a pause by its parameters.
fn pause_name(memory: bool) -> &'static str {
    if memory { "pause" } else { "pause disk" }
}

/// Pauses a capsule. Succeeds for a paused capsule. Joins a pause with the same parameters that is
/// under way, on whichever control plane.
pub(crate) async fn pause(
    app: &App,
    caller: Caller,
    id: CapsuleId,
    memory: bool,
) -> Result<Capsule> {
    for _ in 0..RACES {
        let seen = get(app, caller, id).await?;
        let joined = joins(&seen, CapsuleState::Pausing, pause_name(memory))?;
        let capsule = settled(app, caller, id).await?;
        let state = capsule.state;
        if state == CapsuleState::Paused {
            return Ok(capsule);
        }
        if state != CapsuleState::Running {
            return Err(Error::NotRunning(state));
        }
        if joined {
            let failed = || Error::PauseFailed("the pause that was under way failed".to_owned());
            return if has_failed(&seen, &capsule) { Err(failed()) } else { Ok(capsule) };
        }
        let at = app.clone();
        let paused =
            detached(
                app,
                async move { Box::pin(pause_running(&at, caller, capsule, memory)).await },
            );
        if let Some(paused) = paused.await? {
            return Ok(paused);
        }
    }
    Err(busy())
}

/// Pauses a capsule that was seen running. Returns `None` when another change was faster.
async fn pause_running(
    app: &App,
    caller: Caller,
    capsule: Capsule,
    memory: bool,
) -> Result<Option<Capsule>> {
    let (id, seen) = (capsule.id, capsule.generation);
    let mut tx = app.db.begin().await?;
    let begun = db::capsules::begin_pause(&mut *tx, id, seen, pause_name(memory)).await?;
    if begun.is_some() {
        let entry = Entry::new(capsule.team_id, caller.by, "capsule.pause", id);
        db::audit::write(&mut *tx, &entry).await?;
    }
    tx.commit().await?;
    app.routes.forget(id);
    let Some(generation) = begun else { return Ok(None) };
    let request = PauseCapsuleRequest {
        capsule_id: id.to_string(),
        generation,
        disk_only: !memory,
        ..Default::default()
    };
    daemon::failpoint("control.pausing").map_err(|e| Error::Internal(e.into()))?;
    match app.agent_of(&capsule)?.pause(request).await {
        Ok(()) => {
            transition(app, id, generation, CapsuleState::Paused, None, caller.by).await?;
            get(app, caller, id).await.map(Some)
        }
        // The capsule may be paused all the same. The reconciler asks the host.
        Err(Error::HostUnavailable) => Err(Error::HostUnavailable),
        Err(error) => {
            transition(app, id, generation, CapsuleState::Running, None, caller.by).await?;
            Err(error)
        }
    }
}

/// Options of a resume.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ResumeRequest {
    /// Lifetime in seconds; `None` for no limit.
    pub timeout: Option<u32>,
    /// Ignores the snapshot's memory, and boots from its disk.
    pub cold: bool,
    /// Number of a snapshot; `None` for the last one.
    pub snapshot: Option<u64>,
    /// Waits for another operation under way, and accepts its result.
    pub patient: bool,
}

impl ResumeRequest {
    /// Names the resume by its parameters.
    fn name(self) -> String {
        let Self { timeout, cold, snapshot, patient: _ } = self;
        // Replicas of earlier versions compare the name, too.
        let (timeout, snapshot) = (timeout.unwrap_or(0), snapshot.unwrap_or(0));
        format!("resume timeout={timeout} cold={cold} snapshot={snapshot}")
    }

    fn joins(self, capsule: &Capsule) -> Result<bool> {
        if self.patient {
            return Ok(false);
        }
        joins(capsule, CapsuleState::Resuming, &self.name())
    }
}

/// Resumes a paused capsule. Succeeds for a running capsule. Joins a resume with the same
/// parameters that is under way, on whichever control plane.
pub(crate) async fn resume(
    app: &App,
    caller: Caller,
    id: CapsuleId,
    wanted: ResumeRequest,
) -> Result<Capsule> {
    lifetime::check_timeout(wanted.timeout)?;
    let seen = get(app, caller, id).await?;
    let joined = wanted.joins(&seen)?;
    let capsule = settled(app, caller, id).await?;
    let capsule = Box::pin(caught_up(app, caller, capsule)).await?;
    let before = capsule.state;
    if before == CapsuleState::Running {
        return match wanted.snapshot {
            None => Ok(capsule),
            _ if joined => Ok(capsule),
            _ => Err(Error::invalid("snapshot", "is for a capsule that is paused; pause it first")),
        };
    }
    // A capsule whose machine is lost may have an earlier snapshot.
    if !matches!(before, CapsuleState::Paused | CapsuleState::Error) {
        return Err(Error::NotRunning(before));
    }
    if joined && has_failed(&seen, &capsule) {
        return Err(Error::StartFailed("the resume that was under way failed".to_owned()));
    }
    let at = app.clone();
    detached(app, async move { Box::pin(resume_paused(&at, caller, capsule, wanted)).await }).await
}

async fn resume_paused(
    app: &App,
    caller: Caller,
    capsule: Capsule,
    wanted: ResumeRequest,
) -> Result<Capsule> {
    let (id, seen, before) = (capsule.id, capsule.generation, capsule.state);
    let host = place(app, &capsule).await?;
    let moves = capsule.host_id != Some(host);
    let quota = Quota::of(app, caller).await?;
    let mut tx = app.db.begin().await?;
    quota.admit_again(&mut tx, &capsule).await?;
    let resumed = db::capsules::resume_on(&mut *tx, id, seen, host, &wanted.name()).await?;
    if resumed.is_some() {
        let entry = Entry::new(capsule.team_id, caller.by, "capsule.resume", id);
        db::audit::write(&mut *tx, &entry).await?;
    }
    tx.commit().await?;
    let Some(generation) = resumed else {
        // Another change was faster, perhaps to the same end.
        wanted.joins(&get(app, caller, id).await?)?;
        let capsule = settled(app, caller, id).await?;
        let runs = capsule.state == CapsuleState::Running;
        return if runs { Ok(capsule) } else { Err(busy()) };
    };
    app.routes.forget(id);
    let request = ResumeCapsuleRequest {
        capsule_id: id.to_string(),
        generation,
        life: lifetime::wire(&capsule, wanted.timeout).into(),
        snapshot: wanted.snapshot.unwrap_or(0),
        cold: wanted.cold,
        stored: stored(&capsule).unwrap_or(0),
        stored_tree: capsule.stored_tree.clone(),
        placed: if moves { generation } else { capsule.placed.unwrap_or(0) },
        team_id: capsule.team_id.to_string(),
        egress: network::wire(&capsule.egress).into(),
        ..Default::default()
    };
    daemon::failpoint("control.resuming").map_err(|e| Error::Internal(e.into()))?;
    let clock = std::time::Instant::now();
    match app.agent(host).resume(request).await {
        Ok(started) => {
            metrics::histogram!("wrenn_capsule_resume_seconds")
                .record(clock.elapsed().as_secs_f64());
            let left = started.left.map(|left| left.as_secs_f64());
            db::capsules::set_end(&app.db, id, generation, left).await?;
            transition(app, id, generation, CapsuleState::Running, None, caller.by).await?;
            let row = get(app, caller, id).await?;
            // The rules changed while the capsule was paused, after this request read them.
            if row.egress != capsule.egress {
                Box::pin(network::apply(app, &row)).await?;
            }
            Ok(Capsule { booted: started.booted, ..row })
        }
        // The capsule may run, or be about to. The reconciler asks the host.
        Err(Error::HostUnavailable) => Err(Error::HostUnavailable),
        Err(error) => {
            // The capsule is still on its former host.
            db::capsules::place_back(&app.db, generation, &capsule).await?;
            transition(app, id, generation, before, capsule.error.as_deref(), Actor::SYSTEM)
                .await?;
            Err(error)
        }
    }
}

/// Returns the number of the stored snapshot that a capsule may be resumed from.
/// Normally only the newest snapshot qualifies. For a capsule whose machine is lost, the last
/// stored one does. A host that the capsule was on since then takes its own.
fn stored(capsule: &Capsule) -> Option<u64> {
    let lost = capsule.state == CapsuleState::Error;
    capsule.stored.filter(|_| capsule.stored_newest || lost)
}

/// Chooses the host for a resume: the capsule's own, or another one that can fetch the capsule from
/// the store. Another host is chosen when the own one is unreachable, or is being drained.
async fn place(app: &App, capsule: &Capsule) -> Result<HostId> {
    let own = capsule.host_id;
    let state = || {
        let known = own.and_then(|host| app.fleet.known(host));
        known.map_or((false, false), |host| (host.online, host.draining))
    };
    // The cached state may be old, so it is read again before the capsule leaves its host.
    if state() != (true, false) {
        app.fleet.read().await?;
    }
    let (online, draining) = state();
    let usable = online && !draining;
    let fetches = stored(capsule).is_some();
    if let (Some(own), true) = (own, usable || !fetches) {
        if online && draining {
            return Err(Error::Conflict("the capsule's host is being drained".to_owned()));
        }
        return Ok(own);
    }
    let team = app.directory.limits(&app.db, capsule.team_id).await?.isolation;
    let template = match capsule.template_id {
        Some(id) => db::templates::isolation(&app.db, id).await?,
        None => Isolation::None,
    };
    let placement = PlacementRequest {
        team: capsule.team_id,
        size: capsule.size(),
        template: "",
        preferred: own,
        fetches,
        tags: &[],
        isolation: team.max(template),
        excluded: own.as_slice(),
    };
    app.fleet.place(&placement).await
}

/// Returns a capsule whose guest can answer. Resumes a paused capsule if its `auto_resume` is set.
pub(crate) async fn awake(app: &App, caller: Caller, id: CapsuleId) -> Result<Capsule> {
    let mut capsule = get(app, caller, id).await?;
    if capsule.auto_resume && capsule.state != CapsuleState::Running {
        capsule = settled(app, caller, id).await?;
        if capsule.state == CapsuleState::Paused {
            let timeout = lifetime::after_waking(&capsule);
            let wanted = ResumeRequest { timeout, patient: true, ..ResumeRequest::default() };
            capsule = Box::pin(resume(app, caller, id, wanted)).await?;
        }
    }
    let state = capsule.state;
    if state == CapsuleState::Running { Ok(capsule) } else { Err(Error::NotRunning(state)) }
}

/// Returns the reason that a guest did not answer: the capsule may have been paused meanwhile.
/// `seen` is the capsule as it was when the guest was asked.
pub(crate) async fn classify_failure(app: &App, seen: &Capsule, error: Error) -> Error {
    if !matches!(error, Error::GuestUnavailable) {
        return error;
    }
    let mut waiter = Waiter::new(app, seen.id, WHY);
    loop {
        waiter.note();
        let Ok(Some(now)) = db::capsules::stands(&app.db, seen.id).await else { return error };
        let (state, generation) = now;
        if state != CapsuleState::Running || generation != seen.generation {
            let kept = matches!(
                state,
                CapsuleState::Pausing
                    | CapsuleState::Paused
                    | CapsuleState::Resuming
                    | CapsuleState::Running
            );
            return if kept { Error::Interrupted } else { error };
        }
        if !waiter.again().await {
            return error;
        }
    }
}
