//! The record of preview links in the audit log. A link itself is signed, and is stored nowhere.

use crate::app::App;
use crate::audit::Entry;
use crate::auth::Caller;
use crate::db;
use crate::error::Result;
use serde_json::json;
use types::CapsuleId;

/// Writes to the audit log that the caller made a link to a port, valid for `seconds`.
pub(crate) async fn record_link(
    app: &App,
    caller: Caller,
    id: CapsuleId,
    port: u16,
    seconds: u32,
) -> Result<()> {
    let what = json!({ "port": port, "expires_in": seconds, "expires_sec": seconds });
    let entry = Entry::new(caller.team, caller.by, "capsule.create_link", id).with(what);
    Ok(db::audit::write(&app.db, &entry).await?)
}
