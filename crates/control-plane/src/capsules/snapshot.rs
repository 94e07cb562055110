//! Takes named snapshots of capsules for their owners. `snapshots` has the rest.

use super::detached::detached;
use super::named;
use super::settle::settled;
use crate::app::App;
use crate::auth::Caller;
use crate::db::snapshots::Snapshot;
use crate::error::{Error, Result};
use crate::{db, snapshots};
use types::{CapsuleState, SnapshotId, names};

/// Takes a snapshot of a capsule, which stays in its state.
pub(crate) async fn snapshot(
    app: &App,
    caller: Caller,
    wanted: api::CreateSnapshot,
) -> Result<Snapshot> {
    let wrong = || Error::invalid("capsule_id", "is not the id or name of a capsule");
    let id = named::find_id(app, caller, &wanted.capsule_id).await?.ok_or_else(wrong)?;
    // A capsule that a confined key may not see does not exist for that key.
    let capsule = settled(app, caller, id).await?;
    snapshots::check_may(caller)?;
    if let Some(name) = &wanted.name {
        names::check_name("name", name)?;
        if name.parse::<SnapshotId>().is_ok() {
            return Err(Error::invalid("name", "must not have the form of an id"));
        }
        if db::templates::find(&app.db, caller.team, name).await?.is_some() {
            return Err(Error::Conflict("a template with this name exists".to_owned()));
        }
    }
    if !matches!(capsule.state, CapsuleState::Running | CapsuleState::Paused) {
        return Err(Error::NotRunning(capsule.state));
    }
    let (at, name, overwrite) = (app.clone(), wanted.name.unwrap_or_default(), wanted.overwrite);
    let memory = wanted.memory.unwrap_or(true);
    detached(app, async move {
        snapshots::take(&at, caller, &capsule, Some(name), memory, overwrite).await
    })
    .await
}
