//! Removes capsules. A removal that is interrupted is completed by the reconciler.

use super::detached::detached;
use super::get::get;
use super::join::{RACES, busy};
use super::transition::transition;
use crate::app::App;
use crate::audit::Actor;
use crate::auth::Caller;
use crate::db;
use crate::db::capsules::Capsule;
use crate::error::Result;
use types::{CapsuleId, CapsuleState};

/// Removes a capsule in any state, with everything that belongs to it. Joins a removal that is
/// under way.
pub(crate) async fn delete(app: &App, caller: Caller, id: CapsuleId) -> Result<()> {
    let mut seen = get(app, caller, id).await?;
    let at = app.clone();
    detached(app, async move {
        for _ in 0..RACES {
            if let Some(generation) = begin_removal(&at, &seen, caller.by).await? {
                return complete_removal(&at, &seen, generation, caller.by).await;
            }
            // Another change was faster. A removal may have been, and may be complete.
            match db::capsules::find(&at.db, caller.team, id).await? {
                Some(capsule) => seen = capsule,
                None => return Ok(()),
            }
        }
        Err(busy())
    })
    .await
}

/// Removes a capsule from the state it was seen in.
pub(crate) async fn remove(app: &App, seen: &Capsule, by: Actor) -> Result<()> {
    let generation = begin_removal(app, seen, by).await?.ok_or_else(busy)?;
    complete_removal(app, seen, generation, by).await
}

/// Marks a capsule as being removed. Returns the generation of the removal, or `None` when another
/// change was faster.
async fn begin_removal(app: &App, seen: &Capsule, by: Actor) -> Result<Option<u64>> {
    match seen.state {
        CapsuleState::Stopping => Ok(Some(seen.generation)),
        CapsuleState::Starting
        | CapsuleState::Running
        | CapsuleState::Pausing
        | CapsuleState::Paused
        | CapsuleState::Resuming
        | CapsuleState::Missing
        | CapsuleState::Error
        | CapsuleState::Stopped => {
            transition(app, seen.id, seen.generation, CapsuleState::Stopping, None, by).await
        }
    }
}

/// Has the host remove a capsule, and then records its end. Several callers may do so at once.
async fn complete_removal(app: &App, seen: &Capsule, generation: u64, by: Actor) -> Result<()> {
    let id = seen.id;
    // A capsule whose host was deleted is only in the store. Any host with the store can remove it
    // there.
    let host = seen.host_id.or_else(|| app.fleet.with_store());
    if let Some(host) = host {
        app.agent(host).destroy(id, generation, Some(seen.team_id)).await?;
    }
    // `None` means that another caller has recorded the end.
    transition(app, id, generation, CapsuleState::Stopped, None, by).await?;
    Ok(())
}

/// Gives up a capsule whose host is about to be forgotten. `why` becomes the capsule's error. A
/// capsule that is completely in the store only loses its host.
pub(crate) async fn abandon(app: &App, seen: &Capsule, why: &str, by: Actor) -> Result<()> {
    let (id, generation) = (seen.id, seen.generation);
    let stopping = seen.state == CapsuleState::Stopping;
    if let (true, Some(other)) = (stopping, app.fleet.with_store()) {
        app.agent(other).destroy(id, generation, Some(seen.team_id)).await?;
    }
    let to = if stopping { CapsuleState::Stopped } else { CapsuleState::Error };
    if seen.state != to && !seen.is_safe() {
        let moved = transition(app, id, generation, to, Some(why), by).await?;
        moved.ok_or_else(busy)?;
    }
    Ok(db::capsules::unplace(&app.db, seen).await?)
}
