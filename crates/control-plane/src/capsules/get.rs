//! Finds a capsule for a caller.

use crate::app::App;
use crate::audit::AuditEvent;
use crate::auth::Caller;
use crate::db;
use crate::db::capsules::Capsule;
use crate::error::{Error, Result};
use types::CapsuleId;

/// Returns a capsule of the caller's team that the caller may see. A request for any other existing
/// capsule is noted in the audit log.
pub(crate) async fn get(app: &App, caller: Caller, id: CapsuleId) -> Result<Capsule> {
    let found = db::capsules::find(&app.db, caller.team, id).await?;
    seen(app, caller, id, found).await
}

/// Returns a capsule as [`get`] does, also after its end, as long as its row is kept.
pub(crate) async fn get_ever(app: &App, caller: Caller, id: CapsuleId) -> Result<Capsule> {
    let found = db::capsules::find_ever(&app.db, caller.team, id).await?;
    seen(app, caller, id, found).await
}

/// Returns a row that was found, if the caller may see it.
async fn seen(app: &App, caller: Caller, id: CapsuleId, found: Option<Capsule>) -> Result<Capsule> {
    if let Some(capsule) = found.filter(|capsule| caller.sees(capsule)) {
        return Ok(capsule);
    }
    if db::capsules::exists(&app.db, id).await? {
        app.audit_buffer.note(AuditEvent {
            team: caller.team,
            by: caller.by,
            action: "capsule.refused",
            resource: id.to_string(),
            refused: true,
            code: "not_found",
        });
    }
    Err(Error::NotFound("capsule"))
}
