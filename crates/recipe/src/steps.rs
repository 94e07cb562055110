//! The one list of steps that a build runs, as stages. Dockerfiles, the steps of REST and E2B's
//! steps all become a `Recipe`. This module owns the types and their JSON form, and resolves
//! nothing: texts may still hold variables.
//!
//! In JSON a step is an object with one action, and perhaps `force` and `line`:
//! `{"run": {"command": "make"}}`, `{"copy": {"sources": ["a"], "dest": "/x/"}}`,
//! `{"workdir": "/x"}`, `{"user": "app"}`, `{"env": {"A": "b"}}`.

use crate::expand::Escape;
use crate::prepare;
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;

/// Most steps of a recipe, over all stages.
pub const STEPS_MAX: usize = 1000;
/// Most stages of a recipe.
pub const STAGES_MAX: usize = 64;
/// Longest name of a stage, in bytes.
pub const STAGE_NAME_MAX: usize = 128;
/// Largest text of a recipe, in bytes: a command, a path, a value or an inline file.
pub const TEXT_MAX: usize = 128 * 1024;
/// Most texts of one step: sources, variables or arguments.
pub const TEXTS_MAX: usize = 1000;
/// Largest sum of all texts of a recipe, in bytes.
pub const TOTAL_MAX: usize = 4 << 20;

/// Rules by which steps run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// E2B's: RUN by a login bash, files owned by the current user, ENV for the build alone.
    E2b,
    /// The steps of REST: Docker's rules, but only variables are special in texts.
    Steps,
    /// Docker's, with quotes and escapes in texts.
    Dockerfile,
}

impl Dialect {
    /// Returns the arguments before a command in shell form.
    #[must_use]
    pub fn shell(self) -> &'static [&'static str] {
        match self {
            Self::E2b => &["/bin/bash", "-l", "-c"],
            Self::Steps | Self::Dockerfile => &["/bin/sh", "-c"],
        }
    }

    /// Reports whether programs of a capsule get the variables that ENV steps set.
    #[must_use]
    pub fn exports_env(self) -> bool {
        match self {
            Self::E2b => false,
            Self::Steps | Self::Dockerfile => true,
        }
    }
}

/// Stages in the order in which they are built. The last one is the template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Rules of all steps.
    pub dialect: Dialect,
    /// Escape of a Dockerfile's texts.
    #[serde(default, skip_serializing_if = "Escape::is_default")]
    pub escape: Escape,
    /// 1 to 64 stages.
    pub stages: Vec<Stage>,
}

/// A chain of steps over a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Name, in lower case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Origin of the stage's files and configuration.
    pub source: Source,
    /// Steps in order.
    #[serde(default)]
    pub steps: Vec<Step>,
}

/// Origin of files.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Reference of an image, as it was asked for.
    Image(String),
    /// Reference of a template, as it was asked for.
    Template(String),
    /// Id of a capsule, whose files at the time of the build are the base.
    Capsule(String),
    /// Index of an earlier stage of the recipe, from 0.
    Stage(usize),
    /// No files at all.
    Scratch,
}

/// An action, with the wish to run it anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Effect of the step.
    pub action: Action,
    /// Tells that this step and all later ones ignore the cache.
    pub force: bool,
    /// Line of the Dockerfile, from 1.
    pub line: Option<u32>,
}

/// Effect of a step. The first five change what later steps see; the others describe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Runs a command.
    Run(Run),
    /// Copies files.
    Copy(Copy),
    /// Sets the working directory and makes it. A relative path continues the last one.
    Workdir(String),
    /// Sets the user of later steps: `name`, `uid`, `name:group` or `uid:gid`.
    User(String),
    /// Sets variables. All values see the variables from before the step.
    Env(BTreeMap<String, String>),
    /// Declares a variable for this stage's steps alone.
    Arg(Arg),
    /// Sets labels.
    Label(BTreeMap<String, String>),
    /// Names ports, such as `80` or `53/udp`.
    Expose(Vec<String>),
    /// Names folders, which are plain ones here.
    Volume(Vec<String>),
    /// Sets the signal that ends the program.
    StopSignal(String),
    /// Describes the health check, which nobody runs.
    Healthcheck(Healthcheck),
    /// Sets the program to start.
    Entrypoint(Command),
    /// Sets the program's default arguments, or the program without an entrypoint.
    Cmd(Command),
    /// Adds an instruction that Dockerfiles based on this template run first.
    Onbuild(String),
}

/// A command in one of its forms. JSON has a text, a list, or an object with `script`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Command {
    /// Text for a shell.
    Shell(String),
    /// Arguments, without a shell.
    Exec(Vec<String>),
    /// File with its own interpreter in the first line.
    Script {
        /// Contents of the file.
        script: String,
    },
}

/// A command of the build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Command to run.
    pub command: Command,
    /// User for this command alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Arguments before a text for a shell, in place of the dialect's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<Vec<String>>,
    /// Mounts for this command alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
}

/// A mount for one command. Its contents never become a part of the template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Mount {
    /// An empty file system in memory.
    Tmpfs {
        /// Path in the guest.
        target: String,
        /// Limit in bytes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<u64>,
    },
    /// A folder that later builds of the team may find again, or find empty.
    Cache {
        /// Path in the guest.
        target: String,
        /// Name of the cache; the target if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<String>,
    },
}

/// Files to copy.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Copy {
    /// Origin; the context if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Source>,
    /// Paths in the origin, with wildcards.
    #[serde(default)]
    pub sources: Vec<String>,
    /// Path in the guest. A `/` at the end makes it a folder.
    pub dest: String,
    /// Owner, as in `User`; the dialect's default if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Permission bits in octal digits; those of the source if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Tells that tar archives are unpacked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unpack: bool,
    /// Hash that names the uploaded files of the context: 64 lower-case hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<String>,
    /// Files whose contents stand in the recipe.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inline: Vec<Inline>,
}

/// A file whose contents stand in the recipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inline {
    /// Name of the file.
    pub name: String,
    /// Contents.
    pub text: String,
    /// Tells that variables in the contents are expanded.
    #[serde(default)]
    pub expand: bool,
}

/// A variable of the build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arg {
    /// Name of the variable.
    pub name: String,
    /// Value that the caller gave, without further meaning of its characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Text of the default, which may hold variables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
}

/// A health check. The platform keeps it and never runs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Healthcheck {
    /// Command; none where the base's check is switched off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Command>,
    /// Options such as `interval`, as texts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

/// A recipe that breaks a rule of its form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct Error {
    /// Place in the recipe, such as `stages[0].steps[2]`.
    pub place: String,
    /// Broken rule, with its limit.
    pub message: String,
}

impl From<Action> for Step {
    fn from(action: Action) -> Self {
        Self { action, force: false, line: None }
    }
}

impl Serialize for Step {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let action = serde_json::to_value(&self.action).map_err(S::Error::custom)?;
        let Value::Object(mut object) = action else {
            return Err(S::Error::custom("an action is an object"));
        };
        if self.force {
            object.insert("force".to_owned(), Value::Bool(true));
        }
        if let Some(line) = self.line {
            object.insert("line".to_owned(), line.into());
        }
        object.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Step {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut object = Map::<String, Value>::deserialize(deserializer)?;
        let force = match object.remove("force") {
            Some(force) => serde_json::from_value(force).map_err(D::Error::custom)?,
            None => false,
        };
        let line = match object.remove("line") {
            Some(line) => serde_json::from_value(line).map_err(D::Error::custom)?,
            None => None,
        };
        if object.len() != 1 {
            return Err(D::Error::custom("a step has exactly one action, such as `run`"));
        }
        let action = serde_json::from_value(Value::Object(object)).map_err(D::Error::custom)?;
        Ok(Self { action, force, line })
    }
}

impl Action {
    /// Returns the files to copy, if this is a COPY or ADD.
    #[must_use]
    pub fn as_copy(&self) -> Option<&Copy> {
        if let Self::Copy(copy) = self { Some(copy) } else { None }
    }

    /// Returns the instruction's name, in upper case.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Run(_) => "RUN",
            Self::Copy(copy) if copy.unpack => "ADD",
            Self::Copy(_) => "COPY",
            Self::Workdir(_) => "WORKDIR",
            Self::User(_) => "USER",
            Self::Env(_) => "ENV",
            Self::Arg(_) => "ARG",
            Self::Label(_) => "LABEL",
            Self::Expose(_) => "EXPOSE",
            Self::Volume(_) => "VOLUME",
            Self::StopSignal(_) => "STOPSIGNAL",
            Self::Healthcheck(_) => "HEALTHCHECK",
            Self::Entrypoint(_) => "ENTRYPOINT",
            Self::Cmd(_) => "CMD",
            Self::Onbuild(_) => "ONBUILD",
        }
    }

    /// Calls `visit` for each text of the action.
    pub(crate) fn texts<'a>(&'a self, visit: &mut dyn FnMut(&'a str)) {
        let pairs = |pairs: &'a BTreeMap<String, String>, visit: &mut dyn FnMut(&'a str)| {
            pairs.iter().flat_map(|(a, b)| [a, b]).for_each(|text| visit(text));
        };
        match self {
            Self::Run(run) => {
                run.command.texts(visit);
                run.user.iter().chain(run.shell.iter().flatten()).for_each(|text| visit(text));
                for mount in &run.mounts {
                    let (target, id) = match mount {
                        Mount::Tmpfs { target, .. } => (target, None),
                        Mount::Cache { target, id } => (target, id.as_ref()),
                    };
                    [target].into_iter().chain(id).for_each(|text| visit(text));
                }
            }
            Self::Copy(copy) => {
                let options = [&copy.owner, &copy.mode, &copy.files];
                let more = options.into_iter().flatten();
                copy.sources.iter().chain([&copy.dest]).chain(more).for_each(|text| visit(text));
                if let Some(Source::Image(name) | Source::Template(name) | Source::Capsule(name)) =
                    &copy.from
                {
                    visit(name);
                }
                copy.inline.iter().flat_map(|file| [&file.name, &file.text]).for_each(|t| visit(t));
            }
            Self::Workdir(text)
            | Self::User(text)
            | Self::StopSignal(text)
            | Self::Onbuild(text) => {
                visit(text);
            }
            Self::Env(values) | Self::Label(values) => pairs(values, visit),
            Self::Arg(arg) => {
                let values = [&arg.value, &arg.default];
                [&arg.name].into_iter().chain(values.into_iter().flatten()).for_each(|t| visit(t));
            }
            Self::Expose(texts) | Self::Volume(texts) => texts.iter().for_each(|text| visit(text)),
            Self::Healthcheck(check) => {
                check.command.iter().for_each(|command| command.texts(visit));
                pairs(&check.options, visit);
            }
            Self::Entrypoint(command) | Self::Cmd(command) => command.texts(visit),
        }
    }
}

impl Command {
    fn texts<'a>(&'a self, visit: &mut dyn FnMut(&'a str)) {
        match self {
            Self::Shell(text) | Self::Script { script: text } => visit(text),
            Self::Exec(arguments) => arguments.iter().for_each(|text| visit(text)),
        }
    }

    /// Returns all arguments, with those of a shell where the command is a text.
    #[must_use]
    pub fn argv(&self, shell: &[impl AsRef<str>]) -> Vec<String> {
        match self {
            Self::Shell(text) | Self::Script { script: text } => {
                let shell = shell.iter().map(|argument| argument.as_ref().to_owned());
                shell.chain([text.clone()]).collect()
            }
            Self::Exec(arguments) => arguments.clone(),
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shell(text) | Self::Script { script: text } => f.write_str(text),
            Self::Exec(arguments) => write!(f, "{}", serde_json::json!(arguments)),
        }
    }
}

/// Writes the step as one instruction, with all of its text.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::Run(run) => write!(f, " {}", run.command),
            Self::Copy(copy) => {
                let inline = copy.inline.iter().map(|file| &file.name);
                for text in copy.sources.iter().chain(inline).chain([&copy.dest]) {
                    write!(f, " {text}")?;
                }
                Ok(())
            }
            Self::Workdir(text)
            | Self::User(text)
            | Self::StopSignal(text)
            | Self::Onbuild(text) => {
                write!(f, " {text}")
            }
            Self::Env(values) | Self::Label(values) => {
                values.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
            }
            Self::Arg(arg) => write!(f, " {}", arg.name),
            Self::Expose(texts) | Self::Volume(texts) => {
                texts.iter().try_for_each(|text| write!(f, " {text}"))
            }
            Self::Healthcheck(Healthcheck { command: Some(command), .. })
            | Self::Entrypoint(command)
            | Self::Cmd(command) => write!(f, " {command}"),
            Self::Healthcheck(Healthcheck { command: None, .. }) => f.write_str(" NONE"),
        }
    }
}

impl Recipe {
    /// Checks a recipe of unknown origin: counts, sizes, indices of stages, and forms of hashes.
    ///
    /// # Errors
    /// Names the place and the limit.
    pub fn check(&self) -> Result<(), Error> {
        let fail = |place: String, message: &str| Err(Error { place, message: message.to_owned() });
        if self.stages.is_empty() || self.stages.len() > STAGES_MAX {
            return fail("stages".to_owned(), &format!("a recipe has 1 to {STAGES_MAX} stages"));
        }
        if self.stages.iter().map(|stage| stage.steps.len()).sum::<usize>() > STEPS_MAX {
            return fail("stages".to_owned(), &format!("a recipe has at most {STEPS_MAX} steps"));
        }
        let mut total = 0;
        for (index, stage) in self.stages.iter().enumerate() {
            let place = format!("stages[{index}]");
            if stage.name.as_ref().is_some_and(|name| name.len() > STAGE_NAME_MAX) {
                let rule = format!("a stage's name has at most {STAGE_NAME_MAX} bytes");
                return fail(format!("{place}.name"), &rule);
            }
            check_source(&stage.source, index)
                .map_err(|message| Error { place: format!("{place}.source"), message })?;
            for (number, step) in stage.steps.iter().enumerate() {
                let check = check_step(step, index, &mut total);
                let place = format!("{place}.steps[{number}]");
                check.map_err(|message| Error { place, message })?;
            }
        }
        Ok(())
    }

    /// Names the uploaded files of a COPY of the context. Takes the stage's index and the step's
    /// number from 1, as `Plan::missing_files` lists them. Returns false for any other step.
    pub fn set_files(&mut self, stage: usize, number: usize, hash: String) -> bool {
        let steps = self.stages.get_mut(stage).map(|stage| &mut stage.steps);
        let step = steps.and_then(|steps| steps.get_mut(number.checked_sub(1)?));
        if let Some(Step { action: Action::Copy(copy), .. }) = step
            && copy.from.is_none()
        {
            copy.files = Some(hash);
            return true;
        }
        false
    }
}

fn check_source(source: &Source, stage: usize) -> Result<(), String> {
    match source {
        Source::Stage(index) if *index >= stage => Err("a stage comes before its use".to_owned()),
        Source::Image(name) | Source::Template(name) if !prepare::is_reference(name) => {
            Err("a reference has 1 to 512 bytes, no blanks and no control characters".to_owned())
        }
        Source::Capsule(id) if id.parse::<types::CapsuleId>().is_err() => {
            Err("a capsule is named by its id, such as `cl-` and 25 characters".to_owned())
        }
        Source::Stage(_)
        | Source::Image(_)
        | Source::Template(_)
        | Source::Capsule(_)
        | Source::Scratch => Ok(()),
    }
}

fn check_step(step: &Step, stage: usize, total: &mut usize) -> Result<(), String> {
    let (mut count, mut problem) = (0, None);
    step.action.texts(&mut |text| {
        count += 1;
        *total += text.len();
        if text.contains('\0') {
            problem = Some("a text holds a NUL".to_owned());
        } else if text.len() > TEXT_MAX {
            problem = Some(format!("a text has over {TEXT_MAX} bytes"));
        }
    });
    if count > TEXTS_MAX {
        return Err(format!("a step has at most {TEXTS_MAX} texts"));
    }
    if *total > TOTAL_MAX {
        return Err(format!("all texts together have over {TOTAL_MAX} bytes"));
    }
    if let Some(problem) = problem {
        return Err(problem);
    }
    let Action::Copy(copy) = &step.action else { return Ok(()) };
    if let Some(from) = &copy.from {
        check_source(from, stage)?;
    }
    match &copy.files {
        Some(hash) if !is_hash(hash) => {
            Err("`files` has 64 lower-case hexadecimal digits".to_owned())
        }
        Some(_) if copy.from.is_some() => Err("`files` and `from` exclude each other".to_owned()),
        _ if copy.sources.is_empty() && copy.inline.is_empty() => {
            Err("a copy has a source".to_owned())
        }
        _ => Ok(()),
    }
}

/// Reports whether a text has the form of a files' hash: 64 lower-case hexadecimal digits.
#[must_use]
pub fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn recipe(steps: Value) -> Result<Recipe, serde_json::Error> {
        let source = json!({"image": "debian"});
        serde_json::from_value(
            json!({"dialect": "steps", "stages": [{"source": source, "steps": steps}]}),
        )
    }

    #[test]
    fn steps_round_trip_through_json() {
        let steps = json!([
            {"run": {"command": "make"}},
            {"run": {"command": ["a", "b"], "user": "root", "mounts": [{"tmpfs": {"target": "/t"}}]}},
            {"run": {"command": {"script": "#!/bin/x\n"}}, "line": 3},
            {"copy": {"sources": ["a"], "dest": "/x/", "mode": "0644", "files": "0".repeat(64)}},
            {"workdir": "/x"},
            {"user": "1000:1000"},
            {"env": {"A": "b", "B": ""}, "force": true},
            {"arg": {"name": "X", "default": "y"}},
            {"healthcheck": {}},
        ]);
        let read = recipe(steps.clone()).unwrap();
        read.check().unwrap();
        let mut written = serde_json::to_value(&read).unwrap();
        assert_eq!(written["stages"][0]["steps"].take(), steps);
        assert!(read.stages[0].steps[6].force);
    }

    #[test]
    fn capsule_as_source_round_trips_and_needs_an_id() {
        let of = |id: &str| -> Recipe {
            serde_json::from_value(
                json!({"dialect": "steps", "stages": [{"source": {"capsule": id}}]}),
            )
            .unwrap()
        };
        let id = types::CapsuleId::new().to_string();
        let recipe = of(&id);
        recipe.check().unwrap();
        assert_eq!(recipe.stages[0].source, Source::Capsule(id.clone()));
        let written = serde_json::to_value(&recipe).unwrap();
        assert_eq!(written["stages"][0]["source"], json!({ "capsule": id }));
        for bad in ["", "cl-1", "../x"] {
            let error = of(bad).check().unwrap_err();
            assert_eq!(error.place, "stages[0].source");
        }
    }

    #[test]
    fn unknown_or_doubled_action_is_refused() {
        for (steps, word) in [
            (json!([{"walk": {}}]), "walk"),
            (json!([{"user": "a", "workdir": "/"}]), "exactly one"),
            (json!([{}]), "exactly one"),
            (json!([{"run": {"command": "x", "shel": []}}]), "shel"),
            (json!([{"run": {}}]), "command"),
            (json!([{"user": "a", "force": 1}]), "bool"),
        ] {
            let error = recipe(steps).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn recipe_beyond_a_limit_is_refused_with_its_place() {
        let user = |text: &str| json!([{"user": text}]);
        let copy = |copy: Value| json!([{"copy": copy}]);
        for (steps, word) in [
            (user("a\0"), "NUL"),
            (user(&"a".repeat(TEXT_MAX + 1)), "bytes"),
            (json!(vec![json!({"user": "a"}); STEPS_MAX + 1]), "1000 steps"),
            (json!(vec![json!({"user": "a".repeat(TEXT_MAX)}); 33]), "together"),
            (copy(json!({"dest": "/", "sources": ["a"], "files": "A".repeat(64)})), "hexadecimal"),
            (copy(json!({"dest": "/", "sources": []})), "source"),
            (copy(json!({"dest": "/", "sources": ["a"], "from": {"stage": 0}})), "before"),
            (json!([{"expose": vec!["1"; TEXTS_MAX + 1]}]), "1000 texts"),
        ] {
            let error = recipe(steps).unwrap().check().unwrap_err();
            assert!(error.message.contains(word), "{error}");
            assert!(error.place.starts_with("stages"), "{error}");
        }
    }
}
