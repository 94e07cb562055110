//! Templates, capsules and uploaded files that a recipe names. A version is fixed when the build is
//! requested, so a tag that moves later changes nothing. The files of a capsule are those at the
//! time of the build.

use crate::app::App;
use crate::auth::Caller;
use crate::db;
use crate::db::builds::Base;
use crate::error::{Error, Result};
use crate::policy::{Action, Resource};
use crate::{registries, templates};
use recipe::names::Reference;
use recipe::steps::{ARCHIVE, is_hash};
use recipe::{BuildSpec, Dialect, Recipe, Source, Stage};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
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
    /// Part of the recipe at fault; `None` for a request that is refused as a whole.
    pub part: Option<Part>,
}

/// Part of a recipe, shown in the words that a host uses for the part where a build failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Everything below the last stage's steps: its source, and all earlier stages.
    Base,
    /// Step of the last stage, by its number from 1.
    Step(usize),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base => f.write_str("base"),
            Self::Step(number) => write!(f, "{number}"),
        }
    }
}

impl<E: Into<Error>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self { error: error.into(), part: None }
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
    for source in spec.recipe.stages.iter().flat_map(Stage::sources) {
        match source {
            Source::Template(name) => names.extend([name.as_str()]),
            Source::Capsule(id) => capsules.extend([id.as_str()]),
            Source::Image(image) if !image.starts_with(ARCHIVE) => {
                let refusal = |error| Refusal { error, part: Some(Part::Base) };
                registries::check_image(image).map_err(refusal)?;
            }
            Source::Image(_) | Source::Stage(_) | Source::Scratch => {}
        }
    }
    for id in &capsules {
        capsule(app, caller, id).await?;
    }
    let mut bases = BTreeMap::new();
    for name in names {
        let base = base(app, caller, spec.recipe.dialect, name).await;
        let base = base.map_err(|error| match error.status().is_client_error() {
            true => Refusal { error, part: Some(Part::Base) },
            false => Refusal::from(error),
        })?;
        bases.insert(name.to_owned(), base);
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

/// Finds a host that has all files of the recipe.
async fn files(
    app: &App,
    caller: Caller,
    spec: &BuildSpec,
) -> std::result::Result<(Vec<String>, Option<HostId>), Refusal> {
    let hashes = hashes(&spec.recipe)?;
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
        Some((hash, part)) => {
            Err(Refusal { error: Error::FilesMissing(hash.clone()), part: Some(*part) })
        }
    }
}

/// Lists the hashes of a recipe's uploaded files, each with the first part that needs it. Refuses
/// COPY steps without files. Pure.
fn hashes(recipe: &Recipe) -> Result<BTreeMap<String, Part>> {
    let mut hashes = BTreeMap::new();
    let last = recipe.stages.len();
    for (stage, at) in recipe.stages.iter().zip(1..) {
        for (step, number) in stage.steps.iter().zip(1..) {
            let Some(copy) = step.action.as_copy() else { continue };
            let part = if at == last { Part::Step(number) } else { Part::Base };
            match &copy.files {
                Some(hash) if is_hash(hash) => {
                    hashes.entry(hash.clone()).or_insert(part);
                }
                Some(_) => return Err(Error::invalid("files", "must be a hash of 64 digits")),
                None if copy.from.is_none() && copy.inline.is_empty() => {
                    let stage = if last == 1 { String::new() } else { format!(" of stage {at}") };
                    let needs = "need `files`, or the build a `context`";
                    let message = format!("of step {number}{stage} {needs}");
                    return Err(Error::invalid("the sources", message));
                }
                None => {}
            }
        }
    }
    for source in recipe.stages.iter().flat_map(Stage::sources) {
        if let Source::Image(image) = source
            && let Some(hash) = image.strip_prefix(ARCHIVE)
        {
            if !is_hash(hash) {
                return Err(Error::invalid("archive", "must be a hash of 64 digits"));
            }
            hashes.entry(hash.to_owned()).or_insert(Part::Base);
        }
    }
    Ok(hashes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(stages: &serde_json::Value) -> Recipe {
        serde_json::from_value(json!({ "dialect": "steps", "stages": stages })).unwrap()
    }

    fn copy(files: Option<&str>) -> serde_json::Value {
        json!({ "copy": { "sources": ["a"], "dest": "/x/", "files": files } })
    }

    #[test]
    fn files_of_earlier_stages_and_archives_belong_to_the_base() {
        let [early, late, archive] = ["a", "b", "c"].map(|digit| digit.repeat(64));
        let recipe = read(&json!([
            { "source": "scratch", "steps": [copy(Some(&early))] },
            { "source": { "image": format!("{ARCHIVE}{archive}") },
              "steps": [{ "user": "root" }, copy(Some(&early)), copy(Some(&late))] },
        ]));
        let parts = hashes(&recipe).unwrap();
        let wanted = [(early, Part::Base), (late, Part::Step(3)), (archive, Part::Base)];
        assert_eq!(parts, BTreeMap::from(wanted));
        assert_eq!([Part::Base, Part::Step(3)].map(|part| part.to_string()), ["base", "3"]);
    }

    #[test]
    fn copy_without_files_names_its_step_and_stage() {
        let bare = json!({ "source": "scratch", "steps": [copy(None)] });
        let one = hashes(&read(&json!([bare]))).unwrap_err().to_string();
        assert!(one.starts_with("the sources of step 1 need `files`"), "{one}");
        let two = hashes(&read(&json!([bare, bare]))).unwrap_err().to_string();
        assert!(two.starts_with("the sources of step 1 of stage 1 need"), "{two}");
    }
}
