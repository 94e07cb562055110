//! Builds of templates: declared, begun, listed, cancelled. A build that is declared waits for its
//! steps, as E2B's clients send them later. The leading replica runs the builds that have begun.
//!
//! ```text
//!   declare               begin               complete (run/end.rs)
//!  ─────────▶ Waiting ───────────▶ Building ──────────▶ Ready
//!                │                    │ fail (run/end.rs)
//!                │ cancel, expire,    ▼
//!                │ supersede, fail  ┌─────┐
//!                └─────────────────▶│Error│
//!                                   └─────┘
//! ```
//! `create` declares and begins in one transaction. `cancel` only marks a build in `Building`, and
//! the replica that runs the build then fails it. Each move is a compare-and-set of its name in
//! `db/builds.rs` or `db/build_runs.rs`.

mod bases;
pub(crate) mod changes;
mod logs;
mod masked;
pub(crate) mod of_capsule;
mod request;
pub(crate) mod run;

pub(crate) use logs::{Follow, follow, line_to_api, lines};
pub(crate) use request::read_request;

use self::bases::{Prepared, prepare};
use crate::app::App;
use crate::audit::Entry;
use crate::auth::Caller;
use crate::capsules::IdempotencyKey;
use crate::db;
use crate::db::builds::{Begun, Build, BuildPhase, BuildState, Filter, Reason};
use crate::db::templates::Template;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::policy::{Action, Confinement, Resource};
use crate::registries;
use recipe::names::Reference;
use recipe::{BuildSpec, Source, Stage};
use serde_json::json;
use sqlx::PgConnection;
use sqlx::types::Json;
use std::collections::HashMap;
use std::num::{NonZeroU32, NonZeroU64};
use time::OffsetDateTime;
use types::resources::Resources;
use types::{BuildId, TeamId};

/// Minutes for which a declared build counts as one under way.
const DECLARED: i32 = 5;
/// Reasons of builds that a request ended.
const SUPERSEDED: &str = "The build was canceled because it was superseded by a newer one.";
const CANCELLED: &str = "The build was canceled.";

/// A build to enter.
pub(crate) struct Declaration {
    /// Name of the template, and perhaps a tag.
    pub name: Reference,
    /// Further tags, checked.
    pub tags: Vec<String>,
    pub size: Resources,
    /// True if every team may use a new template.
    pub public: bool,
}

/// Steps of a build, with the login for this build alone.
pub(crate) struct Steps {
    pub spec: BuildSpec,
    pub login: Option<api::PutRegistryLogin>,
}

/// Declares a build, whose steps come later.
pub(crate) async fn declare(
    app: &App,
    caller: Caller,
    wanted: Declaration,
) -> Result<(Template, Build, Vec<String>)> {
    enter(app, caller, wanted, None, None).await
}

/// Declares a build and begins it. A request with a known idempotency key returns its first build.
pub(crate) async fn create(
    app: &App,
    caller: Caller,
    (wanted, steps): (Declaration, Steps),
    key: Option<IdempotencyKey>,
) -> Result<Build> {
    if let Some(key) = &key
        && let Some(build) = repeated(app, caller, key).await?
    {
        return Ok(build);
    }
    let prepared = prepare(app, caller, &steps.spec).await.map_err(|refusal| refusal.error)?;
    let (_, build, _) = enter(app, caller, wanted, Some((steps, prepared)), key).await?;
    Ok(build)
}

/// Returns the build that a key made before.
async fn repeated(app: &App, caller: Caller, key: &IdempotencyKey) -> Result<Option<Build>> {
    let found = db::builds::find_by_key(&app.db, caller.team, &key.key).await?;
    let Some((request, build)) = found else { return Ok(None) };
    if request != key.request {
        return Err(Error::KeyReused);
    }
    get(app, caller, build).await.map(Some)
}

/// Inserts a build, with its template if that is new, and assigns its tags.
async fn enter(
    app: &App,
    caller: Caller,
    wanted: Declaration,
    steps: Option<(Steps, Prepared)>,
    key: Option<IdempotencyKey>,
) -> Result<(Template, Build, Vec<String>)> {
    let name = own_name(app, caller, &wanted.name).await?;
    let tags = all_tags(&wanted)?;
    // The limits come from a cache. A second connection is never awaited inside the transaction.
    let limits = app.directory.limits(caller.team).await?;
    let id = BuildId::new();
    let sealed = match steps.as_ref().and_then(|(steps, _)| steps.login.clone().zip(Some(steps))) {
        Some((login, steps)) => Some(seal(app, id, &steps.spec, login)?),
        None => None,
    };
    let mut tx = app.db.begin().await?;
    if !db::teams::hold(&mut *tx, caller.team).await? {
        return Err(Error::NotFound("team"));
    }
    db::limits::hold(&mut tx, caller.team, &caller.by).await?;
    let template = template(&mut tx, caller, &name, &wanted, &limits).await?;
    db::builds::supersede(&mut *tx, template.id, &tags, SUPERSEDED).await?;
    check_limits(&mut tx, caller.team, &limits, DECLARED).await?;
    let begun = steps.is_some();
    let row = row(caller, id, &template, wanted.size, steps.as_ref());
    db::builds::insert(&mut *tx, &row, sealed.as_deref()).await?;
    db::tags::assign(&mut tx, template.id, id, &tags, &caller.by).await?;
    db::templates::touch(&mut *tx, template.id).await?;
    if let Some((_, prepared)) = &steps {
        note_files(&mut tx, &row, prepared).await?;
    }
    if let Some(key) = &key
        && !db::builds::insert_key(&mut *tx, caller.team, &key.key, &key.request, id).await?
    {
        let message = "a request with this Idempotency-Key is still under way; try again";
        return Err(Error::Conflict(message.to_owned()));
    }
    let action = if begun { "template.build" } else { "template.declare" };
    let what = json!({ "name": template.name, "build": id, "tags": tags });
    let entry = Entry::new(caller.team, caller.by, action, template.id).with(what);
    db::audit::write(&mut *tx, &entry).await?;
    tx.commit().await?;
    Ok((template, row, tags))
}

/// Returns the name of a template of the caller's team. Another namespace is refused.
async fn own_name(app: &App, caller: Caller, reference: &Reference) -> Result<String> {
    if reference.tag().is_none() {
        return Err(Error::invalid("name", "must have a tag, not the id of a build"));
    }
    if let Ok(id) = reference.name.parse() {
        let found = db::templates::find_by_id(&app.db, caller.team, id).await?;
        let found = found.filter(|found| found.team_id == caller.team);
        return found.map(|found| found.name).ok_or(Error::NotFound("template"));
    }
    if let Some(namespace) = &reference.namespace {
        let slug = db::teams::slug(&app.db, caller.team).await?;
        if slug.as_ref() != Some(namespace) {
            return Err(Error::invalid_as_e2b("name: the namespace is not the team's own"));
        }
    }
    Ok(reference.name.clone())
}

/// Returns all tags of a build. Without any, the build gets the tag `default`.
fn all_tags(wanted: &Declaration) -> Result<Vec<String>> {
    let mut tags = match (&wanted.name.selector, wanted.tags.is_empty()) {
        (None, false) => Vec::new(),
        _ => wanted.name.tag().map(str::to_owned).into_iter().collect(),
    };
    tags.extend(wanted.tags.iter().cloned());
    crate::templates::check_tags(tags)
}

/// Finds the template of a name and locks it, or inserts it.
async fn template(
    tx: &mut PgConnection,
    caller: Caller,
    name: &str,
    wanted: &Declaration,
    limits: &Limits,
) -> Result<Template> {
    if let Some(found) = db::templates::lock(tx, caller.team, name).await? {
        caller.may(Action::CapsulesAdmin, Resource::Template(found.id))?;
        crate::templates::check_common(caller, &found)?;
        return Ok(found);
    }
    if caller.confinement != Confinement::default() {
        return Err(Error::Confined);
    }
    if db::templates::find(&mut *tx, caller.team, name).await?.is_some() {
        return Err(Error::NameReserved(name.to_owned()));
    }
    if db::snapshots::is_named(&mut *tx, caller.team, name).await? {
        return Err(Error::Conflict(format!("Alias '{name}' is already used by a snapshot")));
    }
    let most = limits.templates.map(NonZeroU32::get);
    let count = db::templates::count(&mut *tx, caller.team).await?;
    if let Some(most) = most.filter(|most| count >= i64::from(*most)) {
        return Err(Error::LimitReached("the team", format!("{count} of {most} templates exist")));
    }
    db::templates::insert(&mut *tx, caller.team, name, wanted.size, wanted.public).await?;
    let made = db::templates::lock(tx, caller.team, name).await?;
    made.ok_or(Error::NotFound("template"))
}

/// Checks that the team may have one more build under way, and more bytes of templates. Waiting
/// builds count only if they are of the last `minutes`.
async fn check_limits(
    tx: &mut PgConnection,
    team: TeamId,
    limits: &Limits,
    minutes: i32,
) -> Result<()> {
    if let Some(most) = limits.builds.map(NonZeroU32::get) {
        let under_way = db::builds::under_way(&mut *tx, team, minutes).await?;
        if under_way >= i64::from(most) {
            return Err(Error::TooManyBuilds(most.into()));
        }
    }
    if let Some(most) = limits.template_mib.map(NonZeroU64::get) {
        let held = db::templates::bytes(&mut *tx, team).await?.div_ceil(1 << 20);
        if held >= most {
            let what = format!("{held} of {most} MiB of templates are in use");
            return Err(Error::LimitReached("the team", what));
        }
    }
    Ok(())
}

/// Makes the row of a build that waits or has begun.
fn row(
    caller: Caller,
    id: BuildId,
    template: &Template,
    size: Resources,
    steps: Option<&(Steps, Prepared)>,
) -> Build {
    let now = OffsetDateTime::now_utc();
    let prepared = steps.map(|(_, prepared)| prepared);
    Build {
        id,
        team_id: caller.team,
        template_id: template.id,
        state: if steps.is_some() { BuildState::Building } else { BuildState::Waiting },
        generation: 1,
        phase: steps.map(|_| BuildPhase::Queued),
        step: 0,
        steps: prepared.map_or(0, |prepared| prepared.steps),
        spec: steps.map(|(steps, _)| Json(steps.spec.clone())),
        provenance: None,
        snapshot_id: None,
        bases: Json(prepared.map(|prepared| prepared.bases.clone()).unwrap_or_default()),
        vcpus: size.vcpus,
        memory_mib: size.memory_mib,
        disk_mib: size.disk_mib,
        host_id: None,
        capsule_id: None,
        events_seen: 0,
        bytes: 0,
        reason: None,
        requested_by: caller.by.principal.id(),
        created_by_key: caller.key(),
        cancelled: false,
        created_at: now,
        started_at: steps.map(|_| now),
        ended_at: None,
    }
}

/// Records that a build uses uploaded files, and the host that has them. Files that made room for
/// others since they were found are missing.
async fn note_files(tx: &mut PgConnection, row: &Build, prepared: &Prepared) -> Result<()> {
    let Some(host) = prepared.host else { return Ok(()) };
    let (team, files) = (row.team_id, &prepared.files);
    let there = db::build_files::touch(&mut *tx, team, host, files).await?;
    if let Some(missing) = files.iter().find(|hash| !there.contains(hash)) {
        return Err(Error::FilesMissing(missing.clone()));
    }
    Ok(db::templates::set_build_host(&mut *tx, row.template_id, host).await?)
}

/// Encrypts a build's own login, for the registry of its first image.
fn seal(app: &App, id: BuildId, spec: &BuildSpec, login: api::PutRegistryLogin) -> Result<Vec<u8>> {
    let image =
        spec.recipe.stages.iter().flat_map(Stage::sources).find_map(|source| match source {
            Source::Image(image) => Some(image),
            Source::Template(_) | Source::Capsule(_) | Source::Stage(_) | Source::Scratch => None,
        });
    let image = image.ok_or_else(|| Error::invalid("login", "needs an image"))?;
    registries::seal_for_build(app, id, image, login)
}

/// Begins a declared build. Steps that cannot be built end the build with a reason, as E2B's service
/// does; the request itself succeeds.
pub(crate) async fn begin(app: &App, caller: Caller, id: BuildId, steps: Steps) -> Result<()> {
    let build = get(app, caller, id).await?;
    caller.may(Action::CapsulesAdmin, Resource::Template(build.template_id))?;
    let not_waiting = || Error::invalid("build", "is not in waiting state");
    if build.state != BuildState::Waiting {
        return Err(not_waiting());
    }
    let spec = BuildSpec { resources: build.size(), ..steps.spec };
    let prepared = match prepare(app, caller, &spec).await {
        Ok(prepared) => prepared,
        Err(refusal) => {
            let Some(part) = refusal.part else { return Err(refusal.error) };
            let (step, message) = (Some(part.to_string()), refusal.error.to_string());
            let reason = Reason { message, step, output: Vec::new() };
            return match db::builds::fail_waiting(&app.db, id, &reason, &caller.by).await? {
                true => Ok(()),
                false => Err(not_waiting()),
            };
        }
    };
    let sealed = steps.login.map(|login| seal(app, id, &spec, login)).transpose()?;
    let limits = app.directory.limits(caller.team).await?;
    let mut tx = app.db.begin().await?;
    db::limits::hold(&mut tx, caller.team, &caller.by).await?;
    // A deletion locks the template before its builds, and must see a build that begins.
    if !db::templates::lock_by_id(&mut tx, build.template_id).await? {
        return Err(Error::NotFound("build"));
    }
    // No waiting build counts, since this build is a waiting one. Other builds may have filled the
    // team's room since this one was declared.
    check_limits(&mut tx, caller.team, &limits, 0).await?;
    let begun = Begun {
        spec: &spec,
        bases: &prepared.bases,
        steps: prepared.steps,
        sealed: sealed.as_deref(),
    };
    if !db::builds::begin(&mut *tx, id, &begun).await? {
        return Err(not_waiting());
    }
    note_files(&mut tx, &build, &prepared).await?;
    let what = json!({ "build": id });
    let entry = Entry::new(caller.team, caller.by, "template.build", build.template_id).with(what);
    db::audit::write(&mut *tx, &entry).await?;
    Ok(tx.commit().await?)
}

/// Returns a build of the team. A key that is confined to a template sees only its builds.
pub(crate) async fn get(app: &App, caller: Caller, id: BuildId) -> Result<Build> {
    let found = db::builds::find(&app.db, id).await?.filter(|build| build.team_id == caller.team);
    let found = found.ok_or(Error::NotFound("build"))?;
    let sees = caller.may(Action::CapsulesRead, Resource::Template(found.template_id));
    sees.map_err(|_| Error::NotFound("build"))?;
    Ok(found)
}

/// Returns a page of the team's builds, newest first.
pub(crate) async fn list(
    app: &App,
    caller: Caller,
    template: Option<&str>,
    state: Option<BuildState>,
    before: Option<BuildId>,
    limit: i64,
) -> Result<Vec<Build>> {
    if caller.confinement.capsule.is_some() {
        return Err(Error::Confined);
    }
    let mut filter = Filter { template: caller.confinement.template, state };
    if let Some(name) = template {
        let found = crate::templates::own(app, caller, name, Action::CapsulesRead).await?;
        filter.template = Some(found.id);
    }
    Ok(db::builds::list(&app.db, caller.team, filter, before, limit).await?)
}

/// Asks a build to end. A waiting build ends at once, and a running one within seconds. A build that
/// has ended stays as it is.
pub(crate) async fn cancel(app: &App, caller: Caller, id: BuildId) -> Result<Build> {
    let build = get(app, caller, id).await?;
    caller.may(Action::CapsulesAdmin, Resource::Template(build.template_id))?;
    let mut tx = app.db.begin().await?;
    if db::builds::cancel(&mut *tx, id, CANCELLED, &caller.by).await?.is_none() {
        tx.rollback().await?;
        return get(app, caller, id).await;
    }
    let entry = Entry::new(caller.team, caller.by, "template.cancel", build.template_id);
    db::audit::write(&mut *tx, &entry.with(json!({ "build": id }))).await?;
    tx.commit().await?;
    get(app, caller, id).await
}

/// Ends declared builds whose steps never came.
pub(crate) async fn expire(app: &App) -> sqlx::Result<()> {
    let reason = "The build was canceled because its steps did not arrive within a day.";
    db::builds::expire_waiting(&app.db, 24, reason).await.map(|_| ())
}

/// Converts builds to the API's form. `whole` adds the record of their making.
pub(crate) async fn to_api(app: &App, rows: Vec<Build>, whole: bool) -> Result<Vec<api::Build>> {
    let ids: Vec<BuildId> = rows.iter().map(|row| row.id).collect();
    let templates: Vec<_> = rows.iter().map(|row| row.template_id).collect();
    let names: HashMap<_, _> =
        db::builds::template_names(&app.db, &templates).await?.into_iter().collect();
    let mut tags: HashMap<BuildId, Vec<String>> = HashMap::new();
    for (build, tag) in db::tags::of_builds(&app.db, &ids).await? {
        tags.entry(build).or_default().push(tag);
    }
    let convert = |row: Build| {
        let template = names.get(&row.template_id).cloned().unwrap_or_default();
        let tags = tags.remove(&row.id).unwrap_or_default();
        one_to_api(row, template, tags, whole)
    };
    Ok(rows.into_iter().map(convert).collect())
}

fn one_to_api(row: Build, template: String, tags: Vec<String>, whole: bool) -> api::Build {
    let provenance = row.provenance.as_ref();
    let images = provenance.map(|provenance| &provenance.images[..]).unwrap_or_default();
    let image = |image: &recipe::spec::ImageRecord| api::BuildImage {
        reference: image.reference.clone(),
        digest: image.digest.clone(),
    };
    let reason = |Json(reason): Json<Reason>| api::BuildError {
        message: reason.message,
        step: reason.step,
        output: reason.output,
    };
    api::Build {
        id: row.id.to_string(),
        template,
        tags,
        status: row.state.to_string(),
        phase: row.phase.filter(|_| row.state == BuildState::Building).map(|p| p.to_string()),
        step: row.step,
        steps: row.steps,
        error: row.reason.clone().filter(|_| row.state == BuildState::Error).map(reason),
        images: images.iter().map(image).collect(),
        vcpus: row.vcpus,
        memory_mib: row.memory_mib,
        disk_mib: row.disk_mib,
        bytes: row.bytes,
        provenance: if whole { masked::provenance(&row) } else { None },
        created_at: row.created_at,
        started_at: row.started_at,
        ended_at: row.ended_at,
    }
}

/// Returns the resources of a build's machines. An absent value is the platform's default.
pub(crate) fn size(
    vcpus: Option<u32>,
    memory_mib: Option<u32>,
    disk_mib: Option<u32>,
) -> Resources {
    let default = Resources::default();
    Resources {
        vcpus: vcpus.unwrap_or(default.vcpus),
        memory_mib: memory_mib.unwrap_or(default.memory_mib),
        disk_mib: disk_mib.unwrap_or(default.disk_mib),
    }
}
