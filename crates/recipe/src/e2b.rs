//! E2B's form of a recipe: the body that its builder sends, and the texts that its tests look for.
//! The module translates values. It knows neither routes nor errors of HTTP.
//!
//! Source: requests of the unmodified packages `e2b` 2.63 (Python) and 2.51 (JavaScript).

use crate::expand::{self, Escape};
use crate::fault::shorten;
use crate::steps::{Action, Command, Copy, Dialect, Recipe, Run, Source, Stage, Step};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// User that every build of E2B's begins with.
pub const USER: &str = "user";
/// Image that E2B's builder names for its own base.
pub const BASE_IMAGE: &str = "e2bdev/base";

/// A step as E2B's builder sends it. Unknown keys are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WireStep {
    /// `COPY`, `RUN`, `WORKDIR`, `USER` or `ENV`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Arguments, as the kind takes them.
    #[serde(default)]
    pub args: Option<Vec<String>>,
    /// Hash of the files of a COPY.
    #[serde(default)]
    pub files_hash: Option<String>,
    /// Tells that this step and all later ones ignore the cache.
    #[serde(default)]
    pub force: Option<bool>,
}

/// A step that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("step {number} ({kind}): {message}")]
pub struct Error {
    /// Number of the step, from 1.
    pub number: usize,
    /// Kind, as it was sent.
    pub kind: String,
    /// Reason.
    pub message: String,
}

/// Makes a recipe of E2B's steps. `force` makes all of them ignore the cache.
///
/// The caller checks the recipe with `Recipe::check`.
///
/// # Errors
/// Names the step whose kind or arguments are not E2B's.
pub fn recipe(source: Source, steps: Vec<WireStep>, force: bool) -> Result<Recipe, Error> {
    let mut read = Vec::with_capacity(steps.len());
    for (step, number) in steps.into_iter().zip(1..) {
        let (kind, is_first) = (step.kind.clone(), number == 1);
        let force = step.force.unwrap_or(false) || (force && is_first);
        let action =
            action(step).map_err(|message| Error { number, kind: shorten(&kind), message })?;
        read.push(Step { action, force, line: None });
    }
    let source = expanded(source, &read);
    let stage = Stage { name: None, source, steps: read };
    Ok(Recipe { dialect: Dialect::E2b, escape: Escape::default(), stages: vec![stage] })
}

/// Expands an image's name by the ENV steps at the begin. The builder sends `FROM ${BASE}` as it
/// stands, and the ARG before it as ENV.
fn expanded(source: Source, steps: &[Step]) -> Source {
    let Source::Image(name) = source else { return source };
    let mut values: BTreeMap<String, String> = BTreeMap::new();
    for step in steps {
        match &step.action {
            Action::Env(env) => values.extend(env.clone()),
            Action::User(_) | Action::Workdir(_) => {}
            Action::Run(_)
            | Action::Copy(_)
            | Action::Arg(_)
            | Action::Label(_)
            | Action::Expose(_)
            | Action::Volume(_)
            | Action::StopSignal(_)
            | Action::Healthcheck(_)
            | Action::Entrypoint(_)
            | Action::Cmd(_)
            | Action::Onbuild(_) => break,
        }
    }
    let expanded = expand::literal(&name, &|variable| values.get(variable).cloned());
    Source::Image(expanded.ok().filter(|expanded| !expanded.is_empty()).unwrap_or(name))
}

fn action(step: WireStep) -> Result<Action, String> {
    let WireStep { kind, args, files_hash, .. } = step;
    let args = args.unwrap_or_default();
    let mut given = args.into_iter();
    let action = match kind.as_str() {
        "RUN" => {
            let command = Command::Shell(filled(given.next(), "a command")?);
            let user = given.next().filter(|user| !user.is_empty());
            Action::Run(Run { command, user, shell: None, mounts: Vec::new() })
        }
        "COPY" => {
            let sources = vec![filled(given.next(), "a source")?];
            let dest = filled(given.next(), "a destination")?;
            let mut option = || given.next().filter(|option| !option.is_empty());
            let (owner, mode) = (option(), option());
            let files = Some(files_hash.ok_or("has no filesHash")?);
            Action::Copy(Copy { sources, dest, owner, mode, files, ..Copy::default() })
        }
        "WORKDIR" => Action::Workdir(filled(given.next(), "a path")?),
        "USER" => Action::User(filled(given.next(), "a name")?),
        "ENV" => {
            let mut values = BTreeMap::new();
            while let Some(name) = given.next() {
                let value =
                    given.next().ok_or_else(|| format!("`{}` has no value", shorten(&name)))?;
                values.insert(name, value);
            }
            if values.is_empty() {
                return Err("takes names and values".to_owned());
            }
            Action::Env(values)
        }
        _ => return Err("is none of COPY, RUN, WORKDIR, USER and ENV".to_owned()),
    };
    match given.next() {
        Some(extra) => Err(format!("takes no argument `{}`", shorten(&extra))),
        None => Ok(action),
    }
}

fn filled(text: Option<String>, name: &str) -> Result<String, String> {
    text.filter(|text| !text.is_empty()).ok_or_else(|| format!("takes {name}"))
}

/// Writes a step as E2B's log has it: the kind with all arguments, separated by blanks.
#[must_use]
pub fn text(action: &Action) -> String {
    match action {
        Action::Env(values) => {
            let values = values.iter().flat_map(|(name, value)| [" ", name, " ", value]);
            format!("ENV{}", values.collect::<String>())
        }
        Action::Run(_)
        | Action::Copy(_)
        | Action::Workdir(_)
        | Action::User(_)
        | Action::Arg(_)
        | Action::Label(_)
        | Action::Expose(_)
        | Action::Volume(_)
        | Action::StopSignal(_)
        | Action::Healthcheck(_)
        | Action::Entrypoint(_)
        | Action::Cmd(_)
        | Action::Onbuild(_) => action.to_string(),
    }
}

/// Returns the home of a user by name alone, where no working directory was set.
#[must_use]
pub fn home(user: &str) -> String {
    let name = user.split(':').next().unwrap_or_default();
    match name {
        "root" | "0" => "/root".to_owned(),
        name if name.bytes().all(|byte| byte.is_ascii_digit()) => "/".to_owned(),
        name => format!("/home/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(steps: Value, force: bool) -> Result<Recipe, Error> {
        let steps = serde_json::from_value(steps).unwrap();
        recipe(Source::Image("debian:${V}".to_owned()), steps, force)
    }

    #[test]
    fn steps_of_the_builder_are_read() {
        let read = of(
            json!([
                {"type": "ENV", "args": ["V", "12", "B", "x y"], "force": false},
                {"type": "USER", "args": ["root"]},
                {"type": "RUN", "args": ["make && make test"], "resolveSymlinks": null},
                {"type": "RUN", "args": ["whoami", "app"], "force": true},
                {"type": "COPY", "args": ["a", "/x/", "", ""], "filesHash": "0".repeat(64)},
                {"type": "COPY", "args": ["a", "b", "app", "0755"], "filesHash": "1".repeat(64)},
                {"type": "WORKDIR", "args": ["/x"]},
            ]),
            false,
        )
        .unwrap();
        read.check().unwrap();
        let stage = &read.stages[0];
        assert_eq!(stage.source, Source::Image("debian:12".to_owned()));
        assert_eq!(text(&stage.steps[0].action), "ENV B x y V 12");
        assert!(stage.steps[3].force && !stage.steps[2].force);
        let Action::Copy(copy) = &stage.steps[4].action else { panic!() };
        assert_eq!((&copy.owner, &copy.mode), (&None, &None));
        let Action::Copy(copy) = &stage.steps[5].action else { panic!() };
        assert_eq!(copy.mode.as_deref(), Some("0755"));
    }

    #[test]
    fn outer_force_makes_the_first_step_anew() {
        let steps = json!([{"type": "USER", "args": ["a"]}, {"type": "USER", "args": ["b"]}]);
        assert!(of(steps.clone(), true).unwrap().stages[0].steps[0].force);
        assert!(!of(steps, false).unwrap().stages[0].steps[0].force);
    }

    #[test]
    fn malformed_step_is_named_by_its_number() {
        for (step, word) in [
            (json!({"type": "ADD", "args": ["a", "b"]}), "none of"),
            (json!({"type": "RUN"}), "command"),
            (json!({"type": "RUN", "args": ["a", "b", "c"]}), "no argument"),
            (json!({"type": "COPY", "args": ["a", "b"]}), "filesHash"),
            (json!({"type": "COPY", "args": ["a"], "filesHash": ""}), "destination"),
            (json!({"type": "ENV", "args": ["A"]}), "value"),
            (json!({"type": "ENV", "args": []}), "names"),
            (json!({"type": "WORKDIR", "args": [""]}), "path"),
        ] {
            let error = of(json!([{"type": "USER", "args": ["a"]}, step]), false).unwrap_err();
            assert!(error.number == 2 && error.message.contains(word), "{error}");
        }
    }

    #[test]
    fn homes_follow_from_names() {
        for (user, wanted) in
            [("user", "/home/user"), ("root", "/root"), ("0:0", "/root"), ("7", "/")]
        {
            assert_eq!(home(user), wanted);
        }
    }
}
