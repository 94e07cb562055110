//! Reads `POST /v1/builds`: turns a Dockerfile, a list of steps or a recipe into the build that a
//! host gets.

use super::{Declaration, Steps, size};
use crate::error::{Error, Result};
use crate::templates::read_name;
use recipe::dockerfile::Options;
use recipe::start::{Commands, READY_WITHIN_MAX};
use recipe::steps::{ARCHIVE, is_hash};
use recipe::{Action, BuildSpec, Command, Dialect, Dockerfile, Pull, Recipe, Source, Stage, Step};
use types::names::check_envs;
use types::resources::in_range;

/// Most bytes of a start or ready command.
const COMMAND_MAX: usize = 128 * 1024;
/// Most bytes of a user or working directory.
const PATH_MAX: usize = 4095;

/// Reads a request. The recipe's own rules are checked later.
pub(crate) fn read_request(wanted: api::CreateBuild) -> Result<(Declaration, Steps)> {
    let name = read_name("name", &wanted.name)?;
    let tags = crate::templates::check_tags(wanted.tags.clone())?;
    let size = size(wanted.vcpus, wanted.memory_mib, wanted.disk_mib);
    size.check()?;
    check_envs("env", &wanted.env)?;
    in_range("ready_within_sec", wanted.ready_within_sec.unwrap_or(1), 1, seconds_max())?;
    short("start", wanted.start.as_deref(), COMMAND_MAX)?;
    short("ready", wanted.ready.as_deref(), COMMAND_MAX)?;
    short("user", wanted.user.as_deref(), PATH_MAX)?;
    short("workdir", wanted.workdir.as_deref(), PATH_MAX)?;
    if wanted.workdir.as_ref().is_some_and(|path| !path.starts_with('/')) {
        return Err(Error::invalid("workdir", "must be an absolute path"));
    }
    let pull = match wanted.pull.as_deref() {
        None | Some("always") => Pull::Always,
        Some("missing") => Pull::Missing,
        Some(_) => return Err(Error::invalid("pull", "must be always or missing")),
    };
    if wanted.start_each && wanted.start.is_none() && !wanted.start_from_image {
        return Err(Error::invalid("start_each", "needs a start command"));
    }
    let login = wanted.login.clone();
    let shell = |text: Option<String>| text.filter(|text| !text.is_empty()).map(Command::Shell);
    let commands =
        Commands { start: shell(wanted.start.clone()), ready: shell(wanted.ready.clone()) };
    let spec = BuildSpec {
        recipe: recipe(&wanted)?,
        commands,
        start_each: wanted.start_each,
        start_from_image: wanted.start_from_image,
        ready_within_sec: wanted.ready_within_sec,
        env: wanted.env,
        user: wanted.user,
        workdir: wanted.workdir,
        env_at_run: true,
        force: wanted.force,
        pull,
        resources: size,
        within_sec: recipe::spec::WITHIN_SEC,
    };
    let declaration = Declaration { name, tags, size, public: wanted.public };
    Ok((declaration, Steps { spec, login }))
}

fn seconds_max() -> u32 {
    u32::try_from(READY_WITHIN_MAX.as_secs()).unwrap_or(3600)
}

fn short(field: &str, text: Option<&str>, most: usize) -> Result<()> {
    match text {
        Some(text) if text.len() > most || text.contains('\0') => {
            Err(Error::invalid(field, format!("must have at most {most} bytes and no NUL")))
        }
        _ => Ok(()),
    }
}

/// Makes the recipe of the one origin that the request has.
fn recipe(wanted: &api::CreateBuild) -> Result<Recipe> {
    let mut recipe = match (&wanted.from, &wanted.dockerfile, &wanted.recipe) {
        (Some(from), None, None) => of_steps(from, &wanted.steps)?,
        (None, Some(text), None) => of_dockerfile(text, wanted)?,
        (None, None, Some(value)) => {
            let read = serde_json::from_value(value.clone());
            read.map_err(|e| Error::invalid("recipe", format!("is invalid: {e}")))?
        }
        _ => {
            let message = "must have exactly one of `from`, `dockerfile` and `recipe`";
            return Err(Error::invalid("body", message));
        }
    };
    if wanted.from.is_none() && !wanted.steps.is_empty() {
        return Err(Error::invalid("steps", "needs `from`"));
    }
    if wanted.dockerfile.is_none() && (wanted.target.is_some() || !wanted.args.is_empty()) {
        return Err(Error::invalid("body", "must have `target` and `args` only with `dockerfile`"));
    }
    if let Some(context) = &wanted.context {
        if !is_hash(context) {
            return Err(Error::invalid("context", "must be a hash of 64 digits"));
        }
        add_context(&mut recipe, context);
    }
    Ok(recipe)
}

fn of_steps(from: &api::BuildSource, steps: &[serde_json::Value]) -> Result<Recipe> {
    let source = match from {
        api::BuildSource::Image(image) => Source::Image(image.clone()),
        api::BuildSource::Archive(hash) => Source::Image(format!("{ARCHIVE}{hash}")),
        api::BuildSource::Template(name) => Source::Template(name.clone()),
        // A build with the memory has no recipe, and never comes here.
        api::BuildSource::Capsule { id, memory: _ } => Source::Capsule(id.clone()),
    };
    let mut read = Vec::with_capacity(steps.len());
    for (step, index) in steps.iter().zip(0..) {
        let step: Step = serde_json::from_value(step.clone())
            .map_err(|e| Error::invalid(format!("steps[{index}]"), format!("is invalid: {e}")))?;
        read.push(step);
    }
    let stage = Stage { name: None, source, steps: read };
    Ok(Recipe { dialect: Dialect::Steps, escape: Default::default(), stages: vec![stage] })
}

fn of_dockerfile(text: &str, wanted: &api::CreateBuild) -> Result<Recipe> {
    let wrong = |fault: recipe::Fault| Error::invalid("dockerfile", format!("is invalid: {fault}"));
    let file = Dockerfile::parse(text).map_err(wrong)?;
    let (target, args) = (wanted.target.clone(), wanted.args.clone());
    let options = Options { target, args, ..Options::default() };
    file.recipe(&options).map_err(wrong)
}

/// Names the archive of the whole context for COPY steps without files of their own.
fn add_context(recipe: &mut Recipe, context: &str) {
    for step in recipe.stages.iter_mut().flat_map(|stage| &mut stage.steps) {
        if let Action::Copy(copy) = &mut step.action
            && copy.from.is_none()
            && copy.inline.is_empty()
        {
            copy.files.get_or_insert_with(|| context.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read_json(json: serde_json::Value) -> Result<(Declaration, Steps)> {
        read_request(serde_json::from_value(json).unwrap())
    }

    #[test]
    fn steps_dockerfile_and_recipe_become_the_same_kind_of_build() {
        let hash = "a".repeat(64);
        let (declared, steps) = read_json(json!({
            "name": "web:v1", "tags": ["prod"], "from": {"image": "debian:12"},
            "steps": [{"copy": {"sources": ["a"], "dest": "/x/"}}, {"run": {"command": "make"}}],
            "context": hash, "start": "serve", "vcpus": 2,
        }))
        .unwrap();
        assert_eq!(
            (declared.name.tag(), declared.tags.len(), declared.size.vcpus),
            (Some("v1"), 1, 2)
        );
        let Action::Copy(copy) = &steps.spec.recipe.stages[0].steps[0].action else { panic!() };
        assert_eq!(copy.files.as_ref(), Some(&hash));
        let (_, steps) = read_json(json!({
            "name": "web", "dockerfile": "ARG B=1\nFROM debian:12\nRUN echo a\n", "args": {"B": "2"},
        }))
        .unwrap();
        assert_eq!(steps.spec.recipe.dialect, Dialect::Dockerfile);
        let id = types::CapsuleId::new().to_string();
        let (_, steps) =
            read_json(json!({"name": "web", "from": {"capsule": {"id": id}}})).unwrap();
        assert_eq!(steps.spec.recipe.stages[0].source, Source::Capsule(id));
        let recipe = json!({"dialect": "steps", "stages": [{"source": {"template": "base"}}]});
        assert!(read_json(json!({"name": "web", "recipe": recipe})).is_ok());
    }

    #[test]
    fn refusal_names_the_field() {
        let from = json!({"image": "a"});
        for (body, field) in [
            (json!({"name": "", "from": from}), "name"),
            (json!({"name": "a:B", "from": from}), "name"),
            (json!({"name": "a"}), "body"),
            (json!({"name": "a", "from": from, "dockerfile": "FROM a"}), "body"),
            (json!({"name": "a", "from": from, "target": "x"}), "body"),
            (json!({"name": "a", "dockerfile": "FROM a", "steps": [{"user": "a"}]}), "steps"),
            (json!({"name": "a", "from": from, "steps": [{"fly": 1}]}), "steps[0]"),
            (json!({"name": "a", "dockerfile": "RUN x"}), "dockerfile"),
            (json!({"name": "a", "from": from, "vcpus": 0}), "vcpus"),
            (json!({"name": "a", "from": from, "pull": "never"}), "pull"),
            (json!({"name": "a", "from": from, "workdir": "x"}), "workdir"),
            (json!({"name": "a", "from": from, "context": "x"}), "context"),
            (json!({"name": "a", "from": from, "start_each": true}), "start_each"),
            (json!({"name": "a", "from": from, "ready_within_sec": 3601}), "ready_within_sec"),
            (json!({"name": "a", "from": from, "tags": ["A"]}), "tags"),
        ] {
            let error = read_json(body.clone()).err().unwrap();
            assert!(error.to_string().starts_with(field), "{body}: {error}");
        }
    }
}
