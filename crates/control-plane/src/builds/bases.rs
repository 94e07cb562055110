//! Templates, capsules and uploaded files that a recipe names. A version is fixed when the build is
//! requested, so a tag that moves later changes nothing. The files of a capsule are those at the
//! time of the build.

use super::sources::{self, ARCHIVE};
use crate::app::App;
use crate::auth::Caller;
use crate::db;
use crate::db::builds::Base;
use crate::error::{Error, Result};
use crate::policy::{Action, Resource};
use crate::{registries, templates};
use recipe::names::Reference;
use recipe::steps::is_hash;
use recipe::{BuildSpec, Dialect, Source};
use std::collections::{BTreeMap, BTreeSet};
use types::{CapsuleId, CapsuleState, HostId};

/// A recipe that can be built.
pub(crate) struct Prepared {
    pub bases: BTreeMap<String, Base>,
    /// Steps of the last stage.
    pub steps: u32,
    /// Hashes of the uploaded files.
    pub files: Vec<String>,
    /// Host that has all of the files.
    pub host: Option<HostId>,
}

/// A recipe that cannot be built.
pub(crate) struct Refusal {
    pub error: Error,
    /// Part of the recipe at fault, in E2B's words; `None` for a request that is refused as a whole.
    pub step: Option<String>,
}

impl<E: Into<Error>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self { error: error.into(), step: None }
    }
}

/// Checks a recipe, resolves the templates that it names, and finds its uploaded files.
pub(crate) async fn prepare(
    app: &App,
    caller: Caller,
    spec: &BuildSpec,
) -> std::result::Result<Prepared, Refusal> {
    let wrong =
        |e: recipe::steps::Error| Error::invalid(e.place, format!("is invalid: {}", e.message));
    spec.recipe.check().map_err(wrong)?;
    let (mut names, mut capsules) = (BTreeSet::new(), BTreeSet::new());
    for source in spec.recipe.stages.iter().flat_map(sources::of_stage) {
        match source {
            Source::Template(name) => names.extend([name]),
            Source::Capsule(id) => capsules.extend([id]),
            Source::Image(image) if !image.starts_with(ARCHIVE) => {
                let refusal = |error| Refusal { error, step: Some("base".to_owned()) };
                registries::check_image(&image).map_err(refusal)?;
            }
            Source::Image(_) | Source::Stage(_) | Source::Scratch => {}
        }
    }
    for id in &capsules {
        capsule(app, caller, id).await?;
    }
    let mut bases = BTreeMap::new();
    for name in names {
        let base = base(app, caller, spec.recipe.dialect, &name).await;
        let base = base.map_err(|error| match error.status().is_client_error() {
            true => Refusal { error, step: Some("base".to_owned()) },
            false => Refusal::from(error),
        })?;
        bases.insert(name, base);
    }
    let (files, host) = files(app, caller, spec).await?;
    let last = spec.recipe.stages.last().map_or(0, |stage| stage.steps.len());
    Ok(Prepared { bases, steps: u32::try_from(last).unwrap_or(u32::MAX), files, host })
}

/// Checks that a recipe may begin from a capsule's files. A version belongs to the whole team, so a
/// key that is confined may not make one of a capsule.
async fn capsule(app: &App, caller: Caller, id: &str) -> Result<()> {
    let wrong = |_| Error::invalid("from.capsule.id", "is not a capsule id");
    let id = id.parse::<CapsuleId>().map_err(wrong)?;
    crate::snapshots::check_may(caller)?;
    let capsule = crate::capsules::settled(app, caller, id).await?;
    if !matches!(capsule.state, CapsuleState::Running | CapsuleState::Paused) {
        return Err(Error::NotRunning(capsule.state));
    }
    let nowhere = || Error::Conflict("the capsule is on no host; resume it first".to_owned());
    capsule.host_id.map(|_| ()).ok_or_else(nowhere)
}

/// Resolves a template that a recipe names.
async fn base(app: &App, caller: Caller, dialect: Dialect, name: &str) -> Result<Base> {
    let read = match dialect {
        Dialect::E2b => Reference::e2b(name).or_else(|_| Reference::native(name)),
        Dialect::Steps | Dialect::Dockerfile => Reference::native(name),
    };
    let reference = read.map_err(|error| Error::invalid("template", error.to_string()))?;
    let missing = || Error::NoTemplate(name.to_owned());
    let found = match templates::resolve(app, caller.team, &reference).await {
        Err(Error::NotFound(_)) => return Err(missing()),
        found => found?,
    };
    caller
        .may(Action::CapsulesAdmin, Resource::Template(found.template.id))
        .map_err(|_| missing())?;
    if found.version.as_ref().is_some_and(|build| build.snapshot_id.is_some()) {
        let why = "has the memory of a capsule, so no build can begin from it";
        return Err(Error::invalid(format!("template `{name}`"), why));
    }
    Ok(Base {
        version: found.version.map(|build| build.id),
        template: found.template.name,
        team: found.template.team_id,
    })
}

/// Finds a host that has all files of the recipe. COPY steps without files are refused.
async fn files(
    app: &App,
    caller: Caller,
    spec: &BuildSpec,
) -> std::result::Result<(Vec<String>, Option<HostId>), Refusal> {
    // The first step of each hash, for the reason of a failed build.
    let mut hashes: BTreeMap<String, usize> = BTreeMap::new();
    for stage in &spec.recipe.stages {
        for (step, number) in stage.steps.iter().zip(1..) {
            let Some(copy) = step.action.as_copy() else { continue };
            match &copy.files {
                Some(hash) if is_hash(hash) => {
                    hashes.entry(hash.clone()).or_insert(number);
                }
                Some(_) => {
                    return Err(Error::invalid("files", "must be a hash of 64 digits").into());
                }
                None if copy.from.is_none() && copy.inline.is_empty() => {
                    let message =
                        format!("of step {number} need `files`, or the build a `context`");
                    return Err(Error::invalid("the sources", message).into());
                }
                None => {}
            }
        }
    }
    for source in spec.recipe.stages.iter().flat_map(sources::of_stage) {
        if let Source::Image(image) = source
            && let Some(hash) = image.strip_prefix(ARCHIVE)
        {
            if !is_hash(hash) {
                return Err(Error::invalid("archive", "must be a hash of 64 digits").into());
            }
            hashes.entry(hash.to_owned()).or_insert(0);
        }
    }
    if hashes.is_empty() {
        return Ok((Vec::new(), None));
    }
    let wanted: Vec<String> = hashes.keys().cloned().collect();
    let rows = db::build_files::of_many(&app.db, caller.team, &wanted).await?;
    let mut by_host: BTreeMap<HostId, BTreeSet<&str>> = BTreeMap::new();
    for (host, hash) in &rows {
        if app.fleet.known(*host).is_some_and(|host| host.online) {
            by_host.entry(*host).or_default().insert(hash);
        }
    }
    let best = by_host.into_iter().max_by_key(|(_, has)| has.len());
    let (host, has) = best.unzip();
    let has = has.unwrap_or_default();
    match hashes.iter().find(|(hash, _)| !has.contains(hash.as_str())) {
        None => Ok((wanted, host)),
        Some((hash, number)) => Err(Refusal {
            error: Error::FilesMissing(hash.clone()),
            step: Some(if *number == 0 { "base".to_owned() } else { number.to_string() }),
        }),
    }
}
