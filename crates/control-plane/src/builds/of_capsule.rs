//! Builds of a capsule with its memory. Such a build has no steps: its runner takes a snapshot,
//! which becomes the version. `bases` has the builds that begin from a capsule's files alone.

use super::{DECLARED, Declaration, SUPERSEDED, all_tags, check_limits, own_name, row, template};
use crate::app::App;
use crate::audit::Entry;
use crate::auth::Caller;
use crate::capsules::{self, IdempotencyKey};
use crate::db;
use crate::db::builds::{Build, BuildPhase, BuildState};
use crate::error::{Error, Result};
use crate::policy::{Action, Resource};
use serde_json::json;
use time::OffsetDateTime;
use types::resources::Resources;
use types::{BuildId, CapsuleId, CapsuleState};

/// Puts the id of a request's capsule in place of its name.
pub(crate) async fn resolve(
    app: &App,
    caller: Caller,
    wanted: &mut api::CreateBuild,
) -> Result<()> {
    if let Some(api::BuildSource::Capsule { id, .. }) = &mut wanted.from
        && let Some(found) = capsules::find_id(app, caller, id).await?
    {
        *id = found.to_string();
    }
    Ok(())
}

/// Returns the capsule of a request that asks for a version with memory. Other requests have none.
pub(crate) fn source(wanted: &api::CreateBuild) -> Result<Option<CapsuleId>> {
    let Some(api::BuildSource::Capsule { id, memory }) = &wanted.from else { return Ok(None) };
    if !*memory {
        return Ok(None);
    }
    let settled = [
        ("steps", !wanted.steps.is_empty()),
        ("start", wanted.start.is_some()),
        ("ready", wanted.ready.is_some()),
        ("env", !wanted.env.is_empty()),
        ("user", wanted.user.is_some()),
        ("workdir", wanted.workdir.is_some()),
        ("vcpus", wanted.vcpus.is_some()),
        ("memory_mib", wanted.memory_mib.is_some()),
        ("disk_mib", wanted.disk_mib.is_some()),
    ];
    if let Some((field, _)) = settled.iter().find(|(_, given)| *given) {
        let why = "must be absent, since the capsule's memory fixes it";
        return Err(Error::invalid(*field, why));
    }
    let wrong = |_| Error::invalid("from.capsule.id", "is not a capsule id");
    id.parse().map(Some).map_err(wrong)
}

/// Reads the part of a request that a build of a capsule has. The sizes are the capsule's.
pub(crate) fn read(wanted: &api::CreateBuild) -> Result<Declaration> {
    let name = crate::templates::read_name("name", &wanted.name)?;
    let tags = crate::templates::check_tags(wanted.tags.clone())?;
    Ok(Declaration { name, tags, size: Resources::default(), public: wanted.public })
}

/// Enters a build of a capsule, which begins at once.
pub(crate) async fn create(
    app: &App,
    caller: Caller,
    wanted: Declaration,
    capsule: CapsuleId,
    key: Option<IdempotencyKey>,
) -> Result<Build> {
    if let Some(key) = &key
        && let Some(build) = super::repeated(app, caller, key).await?
    {
        return Ok(build);
    }
    // A version belongs to the whole team, so a key that is confined may not make one.
    crate::snapshots::check_may(caller)?;
    let capsule = capsules::settled(app, caller, capsule).await?;
    if !matches!(capsule.state, CapsuleState::Running | CapsuleState::Paused) {
        return Err(Error::NotRunning(capsule.state));
    }
    let size = Resources {
        vcpus: capsule.vcpus,
        memory_mib: capsule.memory_mib,
        disk_mib: capsule.disk_mib,
    };
    let wanted = Declaration { size, ..wanted };
    let name = own_name(app, caller, &wanted.name).await?;
    let tags = all_tags(&wanted)?;
    let limits = app.directory.limits(caller.team).await?;
    let mut tx = app.db.begin().await?;
    if !db::teams::hold(&mut *tx, caller.team).await? {
        return Err(Error::NotFound("team"));
    }
    db::limits::hold(&mut tx, caller.team, &caller.by).await?;
    let template = template(&mut tx, caller, &name, &wanted, &limits).await?;
    caller.may(Action::CapsulesAdmin, Resource::Template(template.id))?;
    db::builds::supersede(&mut *tx, template.id, &tags, SUPERSEDED).await?;
    check_limits(&mut tx, caller.team, &limits, DECLARED).await?;
    let id = BuildId::new();
    let row = Build {
        state: BuildState::Building,
        phase: Some(BuildPhase::Queued),
        capsule_id: Some(capsule.id),
        started_at: Some(OffsetDateTime::now_utc()),
        ..row(caller, id, &template, size, None)
    };
    db::builds::insert(&mut *tx, &row, None).await?;
    db::tags::assign(&mut tx, template.id, id, &tags, &caller.by).await?;
    db::templates::touch(&mut *tx, template.id).await?;
    if let Some(key) = &key
        && !db::builds::insert_key(&mut *tx, caller.team, &key.key, &key.request, id).await?
    {
        let message = "a request with this Idempotency-Key is still under way; try again";
        return Err(Error::Conflict(message.to_owned()));
    }
    let what = json!({ "name": template.name, "build": id, "tags": tags,
        "capsule": capsule.id.to_string() });
    let entry = Entry::new(caller.team, caller.by, "template.build", template.id).with(what);
    db::audit::write(&mut *tx, &entry).await?;
    tx.commit().await?;
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capsule_with_memory_takes_no_other_setting() {
        let id = CapsuleId::new();
        let from = |memory| Some(api::BuildSource::Capsule { id: id.to_string(), memory });
        let wanted = api::CreateBuild { from: from(true), ..Default::default() };
        assert_eq!(source(&wanted).unwrap(), Some(id));
        assert_eq!(source(&api::CreateBuild::default()).unwrap(), None);
        let sized = api::CreateBuild { vcpus: Some(2), ..wanted };
        assert!(source(&sized).unwrap_err().to_string().starts_with("vcpus must be absent"));
        let files = api::CreateBuild { from: from(false), ..Default::default() };
        assert_eq!(source(&files).unwrap(), None);
    }
}
