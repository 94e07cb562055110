//! Resumes paused capsules, on their own host or on another one. If a host does not answer, the
//! reconciler completes the resume.

use super::detached::detached;
use super::get::get;
use super::join::{busy, has_failed, joins};
use super::lag::caught_up;
use super::settle::settled;
use super::transition::{set_running, transition};
use super::{network, timeouts};
use crate::agent::Started;
use crate::app::App;
use crate::audit::{Actor, Entry};
use crate::auth::Caller;
use crate::db;
use crate::db::capsules::Capsule;
use crate::error::{Error, Result};
use crate::quota::Quota;
use crate::scheduler::{Holders, PlacementRequest};
use daemon::stage;
use protocol::host::{ResumeCapsuleRequest, StoredCapsule, StoredSnapshot};
use types::{CapsuleId, CapsuleState, HostId, Isolation};

/// Histogram of a resume's stages.
const STAGES: &str = "wrenn_capsule_resume_stage_seconds";

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
    timeouts::check_timeout(wanted.timeout)?;
    let seen = get(app, caller, id).await?;
    let joined = wanted.joins(&seen)?;
    let capsule = settled(app, caller, id).await?;
    let capsule = Box::pin(caught_up(app, caller, capsule)).await?;
    let before = capsule.state;
    if before == CapsuleState::Running {
        return match wanted.snapshot {
            None => Ok(capsule),
            _ if joined => Ok(capsule),
            _ => Err(Error::invalid("snapshot", "needs a paused capsule; pause it first")),
        };
    }
    // A capsule whose machine is lost may have an earlier snapshot.
    if !matches!(before, CapsuleState::Paused | CapsuleState::Error) {
        return Err(Error::NotRunning(before));
    }
    if joined && has_failed(&seen, &capsule) {
        return Err(Error::StartFailed(
            "the earlier resume that this request joined failed".to_owned(),
        ));
    }
    let at = app.clone();
    let work = async move {
        let work = Box::pin(resume_paused(&at, caller, capsule, wanted));
        daemon::operation("wrenn_capsule_resume_seconds", "resume", work).await
    };
    detached(app, work).await
}

/// Resumes a capsule that was seen paused or lost.
async fn resume_paused(
    app: &App,
    caller: Caller,
    capsule: Capsule,
    wanted: ResumeRequest,
) -> Result<Capsule> {
    let (id, before) = (capsule.id, capsule.state);
    let host = stage(STAGES, "placed", Box::pin(place(app, &capsule))).await?;
    let operation = wanted.name();
    let beginning = Box::pin(begin(app, caller, &capsule, host, &operation));
    let Some(generation) = stage(STAGES, "begun", beginning).await? else {
        // Another change was faster, perhaps to the same end.
        wanted.joins(&get(app, caller, id).await?)?;
        let capsule = settled(app, caller, id).await?;
        let runs = capsule.state == CapsuleState::Running;
        return if runs { Ok(capsule) } else { Err(busy()) };
    };
    app.routes.forget(id);
    let request = request(&capsule, host, generation, wanted);
    daemon::failpoint("control.resuming").map_err(|e| Error::Internal(e.into()))?;
    let agent = app.agent(host);
    match stage(STAGES, "host", Box::pin(agent.resume(request))).await {
        Ok(started) => {
            let completing = Box::pin(complete(app, caller, &capsule, generation, started));
            stage(STAGES, "committed", completing).await
        }
        // The capsule may run, or be about to. The reconciler asks the host.
        Err(Error::HostUnavailable) => Err(Error::HostUnavailable),
        Err(error) => {
            // The capsule is still on its former host.
            db::capsules::place_back(&app.db, generation, &capsule).await?;
            let by = Actor::SYSTEM.because("resume_failed");
            transition(app, id, generation, before, capsule.error.as_deref(), by).await?;
            Err(error)
        }
    }
}

/// Moves the row to `resuming` on a host, if the limits admit the machine. Returns the new
/// generation, or `None` when another change was faster.
async fn begin(
    app: &App,
    caller: Caller,
    capsule: &Capsule,
    host: HostId,
    operation: &str,
) -> Result<Option<u64>> {
    let (id, seen) = (capsule.id, capsule.generation);
    let quota = Quota::of(app, caller).await?;
    let mut tx = app.db.begin().await?;
    quota.admit_again(&mut tx, capsule).await?;
    let by = &caller.by;
    let resumed = db::capsules::resume_on(&mut *tx, id, seen, host, operation, by).await?;
    if resumed.is_some() {
        let entry = Entry::new(capsule.team_id, caller.by, "capsule.resume", id);
        db::audit::write(&mut *tx, &entry).await?;
    }
    tx.commit().await?;
    Ok(resumed)
}

/// Makes the request for the host.
fn request(
    capsule: &Capsule,
    host: HostId,
    generation: u64,
    wanted: ResumeRequest,
) -> ResumeCapsuleRequest {
    let moves = capsule.host_id != Some(host);
    ResumeCapsuleRequest {
        capsule_id: capsule.id.to_string(),
        generation,
        lifetime: timeouts::wire(capsule, wanted.timeout).into(),
        snapshot: wanted.snapshot,
        cold: wanted.cold,
        stored: stored_capsule(capsule, moves.then_some(generation)).into(),
        egress: network::wire(&capsule.egress).into(),
        logs: capsule.logs.to_string(),
        ..Default::default()
    }
}

/// Marks a resumed capsule as running. `before` is the row from before the resume.
async fn complete(
    app: &App,
    caller: Caller,
    before: &Capsule,
    generation: u64,
    started: Started,
) -> Result<Capsule> {
    let id = before.id;
    let left = started.left.map(|left| left.as_secs_f64());
    let row = match set_running(app, id, generation, left, caller.by).await? {
        Some(row) => row,
        // The reconciler was faster, or someone deletes the capsule.
        None => {
            db::capsules::set_end(&app.db, id, generation, left).await?;
            get(app, caller, id).await?
        }
    };
    // The rules changed while the capsule was paused, after this request read them.
    if row.egress != before.egress {
        Box::pin(network::apply(app, &row)).await?;
    }
    Ok(Capsule { booted: started.booted, ..row })
}

/// Returns the number of the stored snapshot that a capsule may be resumed from.
/// Normally only the newest snapshot qualifies. For a capsule whose machine is lost, the last
/// stored one does. A host that the capsule was on since then takes its own.
fn stored(capsule: &Capsule) -> Option<u64> {
    let lost = capsule.state == CapsuleState::Error;
    capsule.stored.filter(|_| capsule.stored_newest || lost)
}

/// Makes the host's message for the copy in the store that a capsule may be resumed from. `moved`
/// is the generation of this command if it moves the capsule to the host.
fn stored_capsule(capsule: &Capsule, moved: Option<u64>) -> Option<StoredCapsule> {
    let number = stored(capsule)?;
    // An older row has no name, and its snapshot is named by the number alone.
    let name = Some(capsule.stored_tree.clone()).filter(|name| !name.is_empty());
    let name = name.unwrap_or_else(|| number.to_string());
    let placed = moved.or(capsule.placed);
    Some(StoredCapsule {
        snapshot: StoredSnapshot { number, name, ..Default::default() }.into(),
        team_id: capsule.team_id.to_string(),
        placed,
        ..Default::default()
    })
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
            return Err(Error::Conflict(
                "the capsule's host is being drained; try again".to_owned(),
            ));
        }
        return Ok(own);
    }
    let team = app.directory.limits(capsule.team_id).await?.isolation;
    let template = match capsule.template_id {
        Some(id) => db::templates::isolation(&app.db, id).await?,
        None => Isolation::None,
    };
    let placement = PlacementRequest {
        team: capsule.team_id,
        size: capsule.size(),
        origin: Holders::Hosts { ids: own.as_slice(), stored: fetches },
        tags: &[],
        isolation: team.max(template),
        excluded: own.as_slice(),
    };
    app.fleet.place(&placement).await
}
