//! Templates that capsules start from. Operators set the lowest isolation tier of a shared
//! template.

use crate::app::App;
use crate::audit::Entry;
use crate::auth::{Caller, Operator};
use crate::db;
use crate::db::templates::Template;
use crate::error::{Error, Result};
use serde_json::json;
use types::{Isolation, PLATFORM_TEAM};

/// Returns the templates of the caller's team and those that all teams share, by name.
pub(crate) async fn list(app: &App, caller: Caller) -> Result<Vec<Template>> {
    Ok(db::templates::list(&app.db, caller.team).await?)
}

/// Finds a template by name. The team's own template has priority over a shared one.
pub(crate) async fn find(app: &App, caller: Caller, name: &str) -> Result<Option<Template>> {
    Ok(db::templates::find(&app.db, caller.team, name).await?)
}

/// Sets the lowest isolation tier on which capsules of a shared template start.
pub(crate) async fn set_isolation(
    app: &App,
    Operator(by): Operator,
    name: &str,
    tier: Isolation,
) -> Result<Template> {
    let mut tx = app.db.begin().await?;
    let changed = db::templates::set_isolation(&mut *tx, name, tier).await?;
    let changed = changed.ok_or(Error::NotFound("template"))?;
    let entry = Entry::new(PLATFORM_TEAM, by, "template.set_isolation", changed.id);
    let entry = entry.with(json!({ "name": name, "isolation": tier }));
    db::audit::write(&mut *tx, &entry).await?;
    tx.commit().await?;
    Ok(changed)
}
