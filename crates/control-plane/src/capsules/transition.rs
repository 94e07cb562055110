//! Moves of capsules between states, each with its entry in the audit log.

use crate::app::App;
use crate::audit::Actor;
use crate::db;
use crate::db::capsules::{Capsule, MoveEntry};
use crate::error::Result;
use serde_json::json;
use types::{CapsuleId, CapsuleState};

/// Returns the audit log's name for a move to a state. Moves that only complete an operation have
/// no entry. Pure.
fn action(to: CapsuleState) -> Option<&'static str> {
    match to {
        CapsuleState::Pausing => Some("capsule.pause"),
        CapsuleState::Resuming => Some("capsule.resume"),
        CapsuleState::Stopping => Some("capsule.delete"),
        CapsuleState::Error => Some("capsule.error"),
        CapsuleState::Missing => Some("capsule.missing"),
        CapsuleState::Starting
        | CapsuleState::Running
        | CapsuleState::Paused
        | CapsuleState::Stopped => None,
    }
}

/// Moves a capsule to a state, as `db::capsules::transition` does. Drops the capsule from the
/// proxy's cache before the caller learns of the result.
pub(crate) async fn transition(
    app: &App,
    id: CapsuleId,
    seen: u64,
    to: CapsuleState,
    error: Option<&str>,
    by: Actor,
) -> Result<Option<u64>> {
    let metadata = error.map_or_else(|| json!({}), |error| json!({ "error": error }));
    let entry = MoveEntry { by, action: action(to), metadata };
    let moved = db::capsules::transition(&app.db, id, seen, to, error, &entry).await;
    app.routes.forget(id);
    Ok(moved?)
}

/// Moves a capsule that its host has started or resumed to `running`, with `left` seconds to its
/// end. Returns the new row, or `None` if another writer was faster. Drops the capsule from the
/// proxy's cache as [`transition`] does.
pub(super) async fn set_running(
    app: &App,
    id: CapsuleId,
    seen: u64,
    left: Option<f64>,
    by: Actor,
) -> Result<Option<Capsule>> {
    let moved = db::capsules::set_running(&app.db, id, seen, left, &by).await;
    app.routes.forget(id);
    Ok(moved?)
}
