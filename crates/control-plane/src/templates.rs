//! Templates that capsules start from: lists, look-ups by name, changes and removal. Operators set
//! the lowest isolation tier of a shared template.

use crate::app::App;
use crate::audit::Entry;
use crate::auth::{Caller, Operator};
use crate::db;
use crate::db::builds::{Build, BuildState};
use crate::db::templates::{Overview, Template, Use};
use crate::db::versions::Version;
use crate::error::{Error, Result};
use crate::policy::{Action, Confinement, Resource};
use crate::versions;
use recipe::names::{self, DEFAULT_TAG, Reference, Selector};
use serde_json::json;
use types::{BuildId, CapsuleId, Isolation, PLATFORM_TEAM, TeamId, TemplateId};

/// Tags that stand for the only version of a template of the operator's.
const OPERATORS_TAGS: [&str; 2] = [DEFAULT_TAG, "latest"];
/// Name by which E2B's SDKs ask for the code interpreter, and the name of our template for it.
const CODE_INTERPRETER: (&str, &str) = ("code-interpreter-v1", "code-interpreter");
/// Most things in use that an error names.
const USES_SHOWN: i64 = 5;

/// A template with the version that a name stands for.
#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    pub template: Template,
    /// Ready build; `None` for a template that the operator put on the hosts.
    pub version: Option<Build>,
}

/// Reads a name as this system's own clients write it: `NAME`, `NAME:TAG`, `NAME@BUILD` or
/// `NAMESPACE/NAME:TAG`.
pub(crate) fn read_name(field: &'static str, text: &str) -> Result<Reference> {
    Reference::native(text).map_err(|error| Error::invalid(field, format!("is invalid: {error}")))
}

/// Returns the name of the snapshot that a reference may stand for. Clients of E2B's add a tag.
pub(crate) fn snapshot_name(reference: &Reference) -> Option<&str> {
    match &reference.selector {
        None => Some(&reference.name),
        Some(Selector::Tag(tag)) if OPERATORS_TAGS.contains(&tag.as_str()) => Some(&reference.name),
        Some(Selector::Tag(_) | Selector::Build(_)) => None,
    }
}

/// Finds the template that a reference names, by its id or its name. Other teams' public templates
/// need their namespace, unless they are common.
pub(crate) async fn find_template(
    app: &App,
    team: TeamId,
    reference: &Reference,
) -> Result<Option<Template>> {
    let found = match (&reference.namespace, reference.name.parse::<TemplateId>()) {
        (Some(namespace), _) => {
            db::templates::find_in(&app.db, team, namespace, &reference.name).await?
        }
        (None, Ok(id)) => db::templates::find_by_id(&app.db, team, id).await?,
        (None, Err(_)) => find_by_name(app, team, &reference.name).await?,
    };
    Ok(found)
}

/// Finds the template that a name alone means: the team's own, or else the platform's, or else a
/// common one. A snapshot of the team has priority over a common template.
async fn find_by_name(app: &App, team: TeamId, name: &str) -> Result<Option<Template>> {
    Ok(db::templates::find_named(&app.db, team, names_of(&[name, CODE_INTERPRETER.1])).await?)
}

/// Returns the names that a name stands for, of itself and our name of the code interpreter. E2B's
/// name of the code interpreter is a second name of ours.
fn names_of<'a>(both: &'a [&'a str; 2]) -> &'a [&'a str] {
    let count = if both[0] == CODE_INTERPRETER.0 { 2 } else { 1 };
    &both[..count]
}

/// A template with the version that a create starts from.
pub(crate) struct Startable {
    pub template: Template,
    /// Ready version; `None` for a template that the operator put on the hosts.
    pub version: Option<Version>,
}

/// Resolves a name as [`resolve`] does, to the facts that a create needs. A name without namespace
/// and build takes one query.
pub(crate) async fn find_startable(
    app: &App,
    team: TeamId,
    reference: &Reference,
) -> Result<Startable> {
    let by_name = reference.namespace.is_none() && reference.name.parse::<TemplateId>().is_err();
    let tag = match &reference.selector {
        Some(Selector::Build(_)) => None,
        Some(Selector::Tag(tag)) => Some(tag.as_str()),
        None => Some(DEFAULT_TAG),
    };
    let Some(tag) = tag.filter(|_| by_name) else {
        let Resolved { template, version } = resolve(app, team, reference).await?;
        let Some(build) = version else { return Ok(Startable { template, version: None }) };
        // The version may have been deleted since it was resolved.
        let version = db::versions::find(&app.db, build.id).await?;
        let version = Some(version.ok_or(Error::NotFound("template"))?);
        return Ok(Startable { template, version });
    };
    let both = [reference.name.as_str(), CODE_INTERPRETER.1];
    let found = db::templates::find_tagged(&app.db, team, names_of(&both), tag).await?;
    let (template, version) = found.ok_or(Error::NotFound("template"))?;
    if version.is_none() && !is_operators(&template, tag) {
        return Err(no_version(&template, tag.to_owned()));
    }
    Ok(Startable { template, version })
}

/// Resolves a name to a template and its version. The caller checks that a confined key may use the
/// template. A snapshot of this name is another look-up, see [`snapshot_name`].
pub(crate) async fn resolve(app: &App, team: TeamId, reference: &Reference) -> Result<Resolved> {
    let template = find_template(app, team, reference).await?;
    let template = template.ok_or(Error::NotFound("template"))?;
    let version = version(app, &template, reference.selector.as_ref()).await?;
    Ok(Resolved { template, version })
}

/// Returns the version of a template that a selector stands for.
async fn version(
    app: &App,
    template: &Template,
    selector: Option<&Selector>,
) -> Result<Option<Build>> {
    let tag = match selector {
        Some(Selector::Build(id)) => {
            let found = db::builds::find(&app.db, *id).await?.filter(|build| {
                build.template_id == template.id && build.state == BuildState::Ready
            });
            return found.map(Some).ok_or_else(|| no_version(template, id.to_string()));
        }
        Some(Selector::Tag(tag)) => tag.as_str(),
        None => DEFAULT_TAG,
    };
    let found = db::tags::resolve(&app.db, template.id, tag).await?;
    match found {
        None if !is_operators(template, tag) => Err(no_version(template, tag.to_owned())),
        found => Ok(found),
    }
}

/// Reports whether a tag stands for the only version of a template of the operator's.
fn is_operators(template: &Template, tag: &str) -> bool {
    template.team_id == PLATFORM_TEAM && OPERATORS_TAGS.contains(&tag)
}

/// Makes the error of a template that has no version of this tag or build.
fn no_version(template: &Template, tag: String) -> Error {
    Error::NoVersion { template: template.name.clone(), tag }
}

/// Returns the templates of the caller's team and those that all teams share, by name. A key that
/// is confined to a template sees no other.
pub(crate) async fn list(app: &App, caller: Caller) -> Result<Vec<Overview>> {
    let mut all = db::templates::list(&app.db, caller.team).await?;
    if let Some(only) = caller.confinement.template {
        all.retain(|row| row.template.id == only);
    }
    Ok(all)
}

/// Finds a template by name or id, without its version.
pub(crate) async fn find(app: &App, caller: Caller, name: &str) -> Result<Option<Template>> {
    match Reference::native(name) {
        Ok(reference) => find_template(app, caller.team, &reference).await,
        Err(_) => Ok(None),
    }
}

/// Returns a template with facts about its builds. A key that is confined to a template sees no
/// other.
pub(crate) async fn get(app: &App, caller: Caller, name: &str) -> Result<Overview> {
    let found = find(app, caller, name).await?.ok_or(Error::NotFound("template"))?;
    caller.may(Action::CapsulesRead, Resource::Template(found.id))?;
    let found = db::templates::overview(&app.db, caller.team, found.id).await?;
    found.ok_or(Error::NotFound("template"))
}

/// Returns a template that the caller's team owns, for an action. The platform's templates and
/// common ones are the operators' to change.
pub(crate) async fn own(app: &App, caller: Caller, name: &str, action: Action) -> Result<Template> {
    let found = find(app, caller, name).await?.filter(|found| found.team_id == caller.team);
    let found = found.ok_or(Error::NotFound("template"))?;
    caller.may(action, Resource::Template(found.id))?;
    if action != Action::CapsulesRead {
        check_common(caller, &found)?;
    }
    Ok(found)
}

/// Refuses a change of a common template to everyone but operators, since all teams run it.
pub(crate) fn check_common(caller: Caller, template: &Template) -> Result<()> {
    match template.common && !caller.operator {
        true => Err(Error::CommonTemplate),
        false => Ok(()),
    }
}

/// Makes a template of the team public or private.
pub(crate) async fn set_public(
    app: &App,
    caller: Caller,
    name: &str,
    public: bool,
) -> Result<Overview> {
    let found = own(app, caller, name, Action::CapsulesAdmin).await?;
    if caller.confinement != Confinement::default() {
        return Err(Error::Confined);
    }
    let mut tx = app.db.begin().await?;
    db::actor::act_as(&mut tx, &caller.by).await?;
    if db::templates::set_public(&mut *tx, found.id, public).await? {
        let entry = Entry::new(caller.team, caller.by, "template.publish", found.id);
        let entry = entry.with(json!({ "name": found.name, "public": public }));
        db::audit::write(&mut *tx, &entry).await?;
    }
    tx.commit().await?;
    get(app, caller, &found.id.to_string()).await
}

/// Makes a template of the team common and public, or no longer common. Only operators may do so,
/// since every team then finds the template by its name.
pub(crate) async fn set_common(
    app: &App,
    caller: Caller,
    name: &str,
    common: bool,
) -> Result<Overview> {
    if !caller.operator {
        return Err(Error::Forbidden("platform"));
    }
    let found = own(app, caller, name, Action::CapsulesAdmin).await?;
    if caller.confinement != Confinement::default() {
        return Err(Error::Confined);
    }
    let taken = |error: sqlx::Error| match error.as_database_error() {
        Some(error) if error.is_unique_violation() => {
            Error::Conflict(format!("another template named `{}` is common", found.name))
        }
        _ => error.into(),
    };
    let mut tx = app.db.begin().await?;
    db::actor::act_as(&mut tx, &caller.by).await?;
    if db::templates::set_common(&mut *tx, found.id, common).await.map_err(taken)? {
        let entry = Entry::new(caller.team, caller.by, "template.set_common", found.id);
        let entry = entry.with(json!({ "name": found.name, "common": common }));
        db::audit::write(&mut *tx, &entry).await?;
    }
    tx.commit().await?;
    get(app, caller, &found.id.to_string()).await
}

/// Sets the lowest isolation tier on which capsules of a shared template start.
pub(crate) async fn set_isolation(
    app: &App,
    Operator(by): Operator,
    name: &str,
    tier: Isolation,
) -> Result<Overview> {
    let mut tx = app.db.begin().await?;
    db::actor::act_as(&mut tx, &by).await?;
    let changed = db::templates::set_isolation(&mut *tx, name, tier).await?;
    let id = changed.ok_or(Error::NotFound("template"))?;
    let entry = Entry::new(PLATFORM_TEAM, by, "template.set_isolation", id);
    let entry = entry.with(json!({ "name": name, "isolation": tier }));
    db::audit::write(&mut *tx, &entry).await?;
    tx.commit().await?;
    let found = db::templates::overview(&app.db, PLATFORM_TEAM, id).await?;
    found.ok_or(Error::NotFound("template"))
}

/// Deletes a template of the team with its builds and tags, unless something needs it. The
/// versions' files go soon afterwards.
pub(crate) async fn delete(app: &App, caller: Caller, name: &str) -> Result<()> {
    let found = own(app, caller, name, Action::CapsulesAdmin).await?;
    if caller.confinement != Confinement::default() {
        return Err(Error::Confined);
    }
    let mut tx = app.db.begin().await?;
    if !db::templates::lock_by_id(&mut tx, found.id).await? {
        return Err(Error::NotFound("template"));
    }
    let uses = db::templates::uses(&mut tx, found.id, USES_SHOWN).await?;
    if !uses.is_empty() {
        return Err(in_use(&found.name, &uses));
    }
    let places = db::versions::places(&mut *tx, found.id).await?;
    db::actor::act_as(&mut tx, &caller.by).await?;
    db::templates::delete(&mut *tx, found.id).await?;
    let entry = Entry::new(caller.team, caller.by, "template.delete", found.id);
    db::audit::write(&mut *tx, &entry.with(json!({ "name": found.name }))).await?;
    tx.commit().await?;
    versions::remove_deleted(app, places);
    Ok(())
}

/// Names the things that keep a template from removal.
fn in_use(name: &str, uses: &[Use]) -> Error {
    let text = |used: &Use| {
        let id = used.name.parse::<uuid::Uuid>();
        match (used.kind.as_str(), id) {
            (_, Err(_)) if used.name.is_empty() => format!("a {} of another team", noun(used)),
            ("build", Ok(id)) => format!("build {}", BuildId(id)),
            (_, Ok(id)) => format!("{} {}", noun(used), CapsuleId(id)),
            (_, Err(_)) => format!("{} {}", noun(used), used.name),
        }
    };
    let shown: Vec<String> = uses.iter().map(text).collect();
    let kinds = uses.iter().map(|used| used.kind.clone()).collect();
    Error::TemplateInUse { name: name.to_owned(), uses: shown.join(", "), kinds }
}

fn noun(used: &Use) -> &str {
    match used.kind.as_str() {
        "running" | "paused" => "capsule",
        other => other,
    }
}

/// Converts a template to the API's form for a caller.
pub(crate) fn to_api(row: Overview, team: TeamId) -> api::Template {
    let own = row.template.team_id == team;
    let template = row.template;
    api::Template {
        id: template.id.to_string(),
        name: template.name,
        vcpus: template.vcpus.cast_signed(),
        memory_mib: template.memory_mib.cast_signed(),
        disk_mib: template.disk_mib.cast_signed(),
        isolation: template.isolation.to_string(),
        shared: template.team_id == PLATFORM_TEAM || template.public,
        common: template.common && template.public,
        own,
        version: row.version.map(|id| id.to_string()),
        tags: row.tags,
        bytes: row.bytes,
        spawn_count: if own { template.spawn_count } else { 0 },
        last_spawned_at: template.last_spawned_at.filter(|_| own),
        created_at: template.created_at,
        updated_at: Some(template.updated_at),
    }
}

/// Checks the tags of a request, and removes repetitions. Order stays.
pub(crate) fn check_tags(tags: Vec<String>) -> Result<Vec<String>> {
    let mut checked = Vec::with_capacity(tags.len());
    for tag in tags {
        let tag = names::native_tag(&tag)
            .map_err(|error| Error::invalid("tags", format!("is invalid: {error}")))?;
        if !checked.contains(&tag) {
            checked.push(tag);
        }
    }
    match checked.len() > TAGS_MAX {
        true => Err(Error::invalid("tags", format!("must have at most {TAGS_MAX} tags"))),
        false => Ok(checked),
    }
}

/// Most tags of one request.
const TAGS_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_names_what_uses_the_template() {
        let id = uuid::Uuid::new_v4();
        let used = |kind: &str, name: String| Use { kind: kind.to_owned(), name };
        let uses = [
            used("paused", id.to_string()),
            used("running", String::new()),
            used("snapshot", "mine".to_owned()),
            used("build", id.to_string()),
            used("template", "web".to_owned()),
        ];
        let wanted = format!(
            "the template 'x' is in use by capsule {}, a capsule of another team, snapshot mine, \
             build {}, template web; remove that first",
            CapsuleId(id),
            BuildId(id)
        );
        assert_eq!(in_use("x", &uses).to_string(), wanted);
    }

    #[test]
    fn repeated_tags_are_given_once_and_ids_are_refused() {
        let tags = |tags: &[&str]| check_tags(tags.iter().map(|tag| (*tag).to_owned()).collect());
        assert_eq!(tags(&["b", "a", "b"]).unwrap(), ["b", "a"]);
        assert!(tags(&["A"]).is_err() && tags(&[&BuildId::new().to_string()]).is_err());
        assert!(tags(&vec!["a"; 100]).is_ok());
    }

    #[test]
    fn only_the_tags_of_a_snapshot_are_left_out() {
        let name = |text: &str| snapshot_name(&Reference::native(text).unwrap()).map(str::to_owned);
        assert_eq!(name("a"), Some("a".to_owned()));
        assert_eq!((name("a:default"), name("a:latest")), (name("a"), name("a")));
        assert_eq!(name("a:v1"), None);
    }
}
