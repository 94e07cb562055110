//! Pauses capsules. If a host does not answer, the reconciler completes the pause.

use super::detached::detached;
use super::get::get;
use super::join::{RACES, busy, has_failed, joins};
use super::settle::settled;
use super::transition::transition;
use crate::app::App;
use crate::audit::Entry;
use crate::auth::Caller;
use crate::db;
use crate::db::capsules::Capsule;
use crate::error::{Error, Result};
use daemon::stage;
use protocol::host::PauseCapsuleRequest;
use types::{CapsuleId, CapsuleState};

/// Histogram of a pause's stages.
const STAGES: &str = "wrenn_capsule_pause_stage_seconds";

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
            let failed = || {
                Error::PauseFailed("the earlier pause that this request joined failed".to_owned())
            };
            return if has_failed(&seen, &capsule) { Err(failed()) } else { Ok(capsule) };
        }
        let at = app.clone();
        let work = async move {
            let work = Box::pin(pause_running(&at, caller, capsule, memory));
            daemon::operation("wrenn_capsule_pause_seconds", "pause", work).await
        };
        if let Some(paused) = detached(app, work).await? {
            return Ok(paused);
        }
    }
    Err(busy())
}

/// Moves the row to `pausing`. Returns the new generation, or `None` when another change was faster.
async fn begin(app: &App, caller: Caller, capsule: &Capsule, memory: bool) -> Result<Option<u64>> {
    let (id, seen) = (capsule.id, capsule.generation);
    let mut tx = app.db.begin().await?;
    let (name, by) = (pause_name(memory), &caller.by);
    let begun = db::capsules::begin_pause(&mut *tx, id, seen, name, by).await?;
    if begun.is_some() {
        let entry = Entry::new(capsule.team_id, caller.by, "capsule.pause", id);
        db::audit::write(&mut *tx, &entry).await?;
    }
    tx.commit().await?;
    Ok(begun)
}

/// Pauses a capsule that was seen running. Returns `None` when another change was faster.
async fn pause_running(
    app: &App,
    caller: Caller,
    capsule: Capsule,
    memory: bool,
) -> Result<Option<Capsule>> {
    let id = capsule.id;
    let begun = stage(STAGES, "begun", Box::pin(begin(app, caller, &capsule, memory))).await?;
    app.routes.forget(id);
    let Some(generation) = begun else { return Ok(None) };
    let request = PauseCapsuleRequest {
        capsule_id: id.to_string(),
        generation,
        disk_only: !memory,
        ..Default::default()
    };
    daemon::failpoint("control.pausing").map_err(|e| Error::Internal(e.into()))?;
    let agent = app.agent_of(&capsule)?;
    match stage(STAGES, "host", Box::pin(agent.pause(request))).await {
        Ok(()) => {
            let completing = async {
                transition(app, id, generation, CapsuleState::Paused, None, caller.by).await?;
                get(app, caller, id).await.map(Some)
            };
            stage(STAGES, "committed", Box::pin(completing)).await
        }
        // The capsule may be paused all the same. The reconciler asks the host.
        Err(Error::HostUnavailable) => Err(Error::HostUnavailable),
        Err(error) => {
            transition(app, id, generation, CapsuleState::Running, None, caller.by).await?;
            Err(error)
        }
    }
}
