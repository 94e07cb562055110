//! Tags of a team's templates: assigned, deleted, listed. A tag stands for its newest assignment
//! whose build is ready.

use crate::app::App;
use crate::audit::Entry;
use crate::auth::Caller;
use crate::db;
use crate::db::builds::{Build, BuildState};
use crate::db::tags::Tag;
use crate::db::templates::Template;
use crate::error::{Error, Result};
use crate::policy::{Action, Resource};
use crate::templates::{check_tags, own};
use recipe::names::{DEFAULT_TAG, Selector};
use serde_json::json;
use types::BuildId;

/// Gives tags to a ready version of a template. `version` is a tag or the id of a build.
pub(crate) async fn assign(
    app: &App,
    caller: Caller,
    name: &str,
    version: &Selector,
    tags: Vec<String>,
) -> Result<(Template, Build)> {
    let tags = check_tags(tags)?;
    if tags.is_empty() {
        return Err(Error::invalid("tags", "must have at least one tag"));
    }
    let template = own(app, caller, name, Action::CapsulesAdmin).await?;
    let mut tx = app.db.begin().await?;
    // The lock gives the assignments of a template an order.
    if !db::templates::lock_by_id(&mut tx, template.id).await? {
        return Err(Error::NotFound("template"));
    }
    let (found, shown) = match version {
        Selector::Tag(tag) => (db::tags::resolve(&mut *tx, template.id, tag).await?, tag.clone()),
        Selector::Build(id) => (db::builds::find(&mut *tx, *id).await?, id.to_string()),
    };
    let found =
        found.filter(|build| build.template_id == template.id && build.state == BuildState::Ready);
    let missing = || Error::NoVersion { template: template.name.clone(), tag: shown };
    let build = found.ok_or_else(missing)?;
    db::tags::assign(&mut tx, template.id, build.id, &tags, &caller.by).await?;
    db::templates::touch(&mut *tx, template.id).await?;
    let what = json!({ "name": template.name, "build": build.id, "tags": tags });
    let entry = Entry::new(caller.team, caller.by, "template.tag", template.id).with(what);
    db::audit::write(&mut *tx, &entry).await?;
    tx.commit().await?;
    Ok((template, build))
}

/// Deletes tags of a template. Earlier assignments of them never come back. Unknown tags are
/// ignored.
pub(crate) async fn delete(
    app: &App,
    caller: Caller,
    name: &str,
    tags: Vec<String>,
) -> Result<Vec<String>> {
    let tags = check_tags(tags)?;
    if tags.is_empty() {
        return Err(Error::invalid("tags", "must have at least one tag"));
    }
    if tags.iter().any(|tag| tag == DEFAULT_TAG) {
        return Err(Error::invalid("Cannot", "delete the 'default' tag"));
    }
    let template = own(app, caller, name, Action::CapsulesAdmin).await?;
    let mut tx = app.db.begin().await?;
    if !db::templates::lock_by_id(&mut tx, template.id).await? {
        return Err(Error::NotFound("template"));
    }
    let gone = db::tags::delete(&mut tx, template.id, &tags, &caller.by).await?;
    if !gone.is_empty() {
        db::templates::touch(&mut *tx, template.id).await?;
        let what = json!({ "name": template.name, "tags": gone });
        let entry = Entry::new(caller.team, caller.by, "template.untag", template.id).with(what);
        db::audit::write(&mut *tx, &entry).await?;
    }
    tx.commit().await?;
    Ok(gone)
}

/// Lists the newest assignment of each tag of a team's template, by tag.
pub(crate) async fn list(app: &App, caller: Caller, name: &str) -> Result<(Template, Vec<Tag>)> {
    let template = own(app, caller, name, Action::CapsulesRead).await?;
    caller.may(Action::CapsulesRead, Resource::Template(template.id))?;
    let tags = db::tags::list(&app.db, template.id).await?;
    Ok((template, tags))
}

/// Reads a version as clients name it: the id of a build, its UUID, or a tag.
pub(crate) fn read_version(text: &str) -> Result<Selector> {
    if let Ok(id) = text.parse::<BuildId>() {
        return Ok(Selector::Build(id));
    }
    if let (36, Ok(id)) = (text.len(), text.parse::<uuid::Uuid>()) {
        return Ok(Selector::Build(id.into()));
    }
    let tag = recipe::names::native_tag(text);
    tag.map(Selector::Tag).map_err(|e| Error::invalid("version", format!("is invalid: {e}")))
}
