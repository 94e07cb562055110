//! The one list of steps that a build runs, as stages. Dockerfiles, the steps of REST and E2B's
//! steps all become a `Recipe`. This module owns the types and their JSON form, and resolves
//! nothing: texts may still hold variables.
//!
//! In JSON a step is an object with one action, and perhaps `force` and `line`:
//! `{"run": {"command": "make"}}`, `{"copy": {"sources": ["a"], "dest": "/x/"}}`,
//! `{"workdir": "/x"}`, `{"user": "app"}`, `{"env": {"A": "b"}}`.

mod check;
mod text;

use crate::expand::Escape;
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

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

/// Beginning of the reference of an image in an uploaded archive. The hash of the upload follows.
pub const ARCHIVE: &str = "oci-archive:";

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

impl Stage {
    /// Lists the origins that the stage names: its own, and those of its COPY steps.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        let copies = self.steps.iter().filter_map(|step| step.action.as_copy()?.from.as_ref());
        std::iter::once(&self.source).chain(copies)
    }
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
}

impl Recipe {
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

/// Reports whether a text has the form of a files' hash: 64 lower-case hexadecimal digits.
#[must_use]
pub fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests;
