//! Names of capsules: the capsule that a text means, and the errors of names.

use crate::app::App;
use crate::auth::Caller;
use crate::db;
use crate::db::capsule_names::{NewName, is_taken};
use crate::error::{Error, Result};
use types::{CapsuleId, names};

/// Returns the living capsule that a text means: by its id, or by its name in the caller's team.
/// Returns `None` for any other text, and for the name of a capsule that the caller may not see. An
/// id is not looked up.
pub(crate) async fn find_id(app: &App, caller: Caller, text: &str) -> Result<Option<CapsuleId>> {
    if let Ok(id) = text.parse() {
        return Ok(Some(id));
    }
    if names::check_capsule_name("name", text).is_err() {
        return Ok(None);
    }
    let (team, confinement) = (caller.team, caller.confinement);
    Ok(db::capsule_names::find_id(&app.db, team, confinement, text).await?)
}

/// Checks the name of a new capsule.
pub(super) fn read(name: Option<String>) -> Result<NewName> {
    let Some(name) = name else { return Ok(NewName::None) };
    names::check_capsule_name("name", &name)?;
    Ok(NewName::Given(name))
}

/// Converts the error of a statement that sets a name.
pub(super) fn refused(error: sqlx::Error, name: &str) -> Error {
    if is_taken(&error) { Error::NameTaken(name.to_owned()) } else { error.into() }
}
