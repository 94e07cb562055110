//! Replaces the credentials that admit to a capsule's ports. Exchanges under the old credentials
//! end at once, on every replica.

use super::get::get;
use crate::app::App;
use crate::audit::Entry;
use crate::auth::Caller;
use crate::db;
use crate::db::listen::Change;
use crate::error::{Error, Result};
use crate::secret::random_hex;
use types::CapsuleId;

/// Replaces the traffic token of a capsule and returns the new one.
pub(crate) async fn rotate_token(app: &App, caller: Caller, id: CapsuleId) -> Result<String> {
    get(app, caller, id).await?;
    let token = random_hex(32);
    let mut tx = app.db.begin().await?;
    let set =
        db::capsules::set_traffic_token(&mut *tx, caller.team, id, &token, &caller.by).await?;
    if !set {
        return Err(Error::NotFound("capsule"));
    }
    let entry = Entry::new(caller.team, caller.by, "capsule.rotate_traffic_token", id);
    db::audit::write(&mut *tx, &entry).await?;
    tx.commit().await?;
    app.changed(&Change::Capsule(id));
    Ok(token)
}

/// Ends every preview link of a capsule.
pub(crate) async fn rotate_links(app: &App, caller: Caller, id: CapsuleId) -> Result<()> {
    get(app, caller, id).await?;
    let mut tx = app.db.begin().await?;
    if !db::capsules::rotate_links(&mut *tx, caller.team, id, &caller.by).await? {
        return Err(Error::NotFound("capsule"));
    }
    let entry = Entry::new(caller.team, caller.by, "capsule.rotate_links", id);
    db::audit::write(&mut *tx, &entry).await?;
    tx.commit().await?;
    app.changed(&Change::Capsule(id));
    Ok(())
}
