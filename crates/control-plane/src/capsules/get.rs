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
