//! A recipe over known bases, as prepared steps. Here variables get their values, paths become
//! absolute, and each step gets its user, its environment and its key. The engine that runs the
//! steps expands nothing.
//!
//! The command line resolves a recipe without bases, to learn which files a COPY names. The
//! control plane resolves it with the bases' configurations, which can change such names.

mod scope;
mod work;

pub use scope::Config;
pub use work::{CopyWork, Program, RunWork, Work};

use crate::cache::{Fields, Key, Lookup};
use crate::fault::shorten;
use crate::steps::{Action, Dialect, Recipe, Source, Step};
use crate::{dockerfile, e2b};
use scope::Scope;
use serde::{Deserialize, Serialize};

/// Largest sum of the environments in one plan, in bytes. Each RUN has its own copy.
const ENVS_MAX: usize = 16 << 20;

/// A base of a stage, or an image that a COPY names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Base {
    /// Digest of the image, or id of the template's version. Equal identities have equal files.
    pub identity: String,
    /// Configuration that the stage begins with.
    pub config: Config,
}

/// A recipe whose steps are ready to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Stages in the recipe's order. The last one is the template.
    pub stages: Vec<PlannedStage>,
}

/// A stage whose steps are ready to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStage {
    /// Origin of the stage.
    pub source: Source,
    /// Key before the first step.
    pub base: Key,
    /// Steps in order, with those of the base's ONBUILD first.
    pub steps: Vec<Prepared>,
    /// Configuration after the last step.
    pub config: Config,
    /// Key after the last step.
    pub key: Key,
    /// Tells that a step runs anew although its key may be known.
    pub is_forced: bool,
}

/// A step that is ready to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// Number in the stage's recipe, from 1. Steps that the recipe does not hold have 0.
    pub number: usize,
    /// Line of the Dockerfile, from 1.
    pub line: Option<u32>,
    /// Text for people.
    pub text: String,
    /// Effect in the guest.
    pub work: Work,
    /// Key of the files and the configuration after this step.
    pub key: Key,
    /// Tells that the step runs although its key may be known.
    pub force: bool,
}

/// A step that cannot be resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Index of the stage, from 0.
    pub stage: usize,
    /// Number of the step in its stage, from 1; 0 for the stage's base.
    pub number: usize,
    /// Line of the Dockerfile, from 1.
    pub line: Option<u32>,
    /// Name of the instruction.
    pub instruction: &'static str,
    /// Reason.
    pub message: String,
}

impl std::error::Error for Error {}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}")?,
            None => write!(f, "stage {}, step {}", self.stage, self.number)?,
        }
        write!(f, ": {}: {}", self.instruction, self.message)
    }
}

impl PlannedStage {
    /// Returns the facts that `cache::known_prefix` takes, one for each step.
    #[must_use]
    pub fn lookups(&self) -> Vec<Lookup> {
        self.steps.iter().map(|step| Lookup { key: step.key, force: step.force }).collect()
    }
}

impl Plan {
    /// Adds a step to the last stage that makes a folder. No recipe holds this step.
    pub fn make_folder(&mut self, path: &str, owner: &str) {
        let Some(stage) = self.stages.last_mut() else { return };
        let mut fields = Fields::after(&stage.key);
        fields.text("FOLDER").text(path).text(owner);
        stage.key = fields.finish();
        stage.steps.push(Prepared {
            number: 0,
            line: None,
            text: format!("WORKDIR {path}"),
            work: Work::Workdir { path: path.to_owned(), owner: owner.to_owned() },
            key: stage.key,
            force: stage.is_forced,
        });
    }

    /// Lists the copies of the context whose files are not known: stage, number and sources.
    pub fn missing_files(&self) -> impl Iterator<Item = (usize, usize, &[String])> {
        self.stages.iter().enumerate().flat_map(|(stage, planned)| {
            planned.steps.iter().filter_map(move |step| match &step.work {
                Work::Copy(copy) if copy.lacks_files() => {
                    Some((stage, step.number, &copy.sources[..]))
                }
                Work::Copy(_)
                | Work::Run(_)
                | Work::Workdir { .. }
                | Work::User { .. }
                | Work::Nothing => None,
            })
        })
    }
}

/// Look-up of a base by its source. It is asked for images, templates and capsules only.
pub type Bases<'a, 'b> = &'a dyn Fn(&Source) -> Option<&'b Base>;

/// Resolves a recipe that `Recipe::check` has passed.
///
/// # Errors
/// Names the step whose variable, path, user, mode or base cannot be resolved.
pub fn resolve(recipe: &Recipe, architecture: &str, bases: Bases<'_, '_>) -> Result<Plan, Error> {
    let mut resolver = Resolver { recipe, architecture, bases, done: Vec::new(), envs: 0 };
    for index in 0..recipe.stages.len() {
        let stage = resolver.stage(index)?;
        resolver.done.push(stage);
    }
    Ok(Plan { stages: resolver.done })
}

struct Resolver<'a, 'b> {
    recipe: &'a Recipe,
    architecture: &'a str,
    bases: Bases<'a, 'b>,
    done: Vec<PlannedStage>,
    /// Bytes of all environments.
    envs: usize,
}

/// A stage while its steps are resolved.
struct Chain {
    scope: Scope,
    key: Key,
    is_forced: bool,
    steps: Vec<Prepared>,
}

impl Resolver<'_, '_> {
    fn stage(&mut self, index: usize) -> Result<PlannedStage, Error> {
        let fault = |message: String| Error {
            stage: index,
            number: 0,
            line: None,
            instruction: "FROM",
            message,
        };
        let recipe = self.recipe;
        let stage = recipe.stages.get(index).ok_or_else(|| fault("no such stage".to_owned()))?;
        let (config, base, is_forced) = self.source(&stage.source).map_err(fault)?;
        let scope = Scope::new(recipe.dialect, recipe.escape, config);
        let mut chain = Chain { scope, key: base, is_forced, steps: Vec::new() };
        for step in &self.first_steps(&stage.source, &mut chain.scope).map_err(fault)? {
            self.step(&mut chain, step, (index, 0))?;
        }
        for (step, number) in stage.steps.iter().zip(1..) {
            self.step(&mut chain, step, (index, number))?;
        }
        let Chain { scope, key, is_forced, steps } = chain;
        let (source, config) = (stage.source.clone(), scope.into_config());
        Ok(PlannedStage { source, base, steps, config, key, is_forced })
    }

    /// Returns the configuration and key of a source, and whether its steps run anew.
    fn source(&self, source: &Source) -> Result<(Config, Key, bool), String> {
        match source {
            Source::Stage(index) => {
                let stage = self.done.get(*index).ok_or("the stage comes later")?;
                Ok((stage.config.clone(), stage.key, stage.is_forced))
            }
            Source::Scratch => {
                Ok((Config::default(), Key::base("scratch", self.architecture), false))
            }
            Source::Image(name) | Source::Template(name) | Source::Capsule(name) => {
                let base = (self.bases)(source)
                    .ok_or_else(|| format!("the base `{}` is not known", shorten(name)))?;
                Ok((base.config.clone(), Key::base(&base.identity, self.architecture), false))
            }
        }
    }

    /// Returns the steps before the recipe's own: E2B's user, or the base's ONBUILD.
    fn first_steps(&self, source: &Source, scope: &mut Scope) -> Result<Vec<Step>, String> {
        match self.recipe.dialect {
            Dialect::E2b if matches!(source, Source::Image(_)) => {
                Ok(vec![Action::User(e2b::USER.to_owned()).into()])
            }
            Dialect::E2b => Ok(Vec::new()),
            Dialect::Steps | Dialect::Dockerfile => {
                let mut steps = Vec::new();
                for trigger in scope.take_onbuild() {
                    let trigger = dockerfile::trigger(&trigger)
                        .map_err(|fault| format!("ONBUILD of the base: {fault}"))?;
                    steps.extend(trigger);
                }
                Ok(steps)
            }
        }
    }

    fn step(
        &mut self,
        chain: &mut Chain,
        step: &Step,
        (stage, number): (usize, usize),
    ) -> Result<(), Error> {
        let fault = |message: String| Error {
            stage,
            number,
            line: step.line,
            instruction: step.action.name(),
            message,
        };
        let work = chain.scope.apply(&step.action).map_err(fault)?;
        chain.is_forced |= step.force;
        let mut origin = None;
        if let Work::Copy(copy) = &work
            && let Some(from) = &copy.from
        {
            let (_, key, is_forced) = self.source(from).map_err(fault)?;
            chain.is_forced |= is_forced;
            origin = Some(key.to_string());
        }
        if let Work::Run(run) = &work {
            self.envs +=
                run.env.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
            if self.envs > ENVS_MAX {
                return Err(fault(format!("all environments together have over {ENVS_MAX} bytes")));
            }
        }
        chain.key = key(&chain.key, &chain.scope, step, &work, origin.as_deref()).map_err(fault)?;
        chain.steps.push(Prepared {
            number,
            line: step.line,
            text: match self.recipe.dialect {
                Dialect::E2b => e2b::text(&step.action),
                Dialect::Steps | Dialect::Dockerfile => step.action.to_string(),
            },
            work,
            key: chain.key,
            force: chain.is_forced,
        });
        Ok(())
    }
}

/// Makes the key after a step. Steps that change nothing for later steps keep the key: arguments
/// are a part of the environment of each RUN, and descriptions are a part of no file.
fn key(
    before: &Key,
    scope: &Scope,
    step: &Step,
    work: &Work,
    origin: Option<&str>,
) -> Result<Key, String> {
    let name = step.action.name();
    let mut fields = Fields::after(before);
    match (&step.action, work) {
        (Action::Env(values), _) => {
            let values = values.keys().flat_map(|name| [name.as_str(), scope.value(name)]);
            fields.text(name).list(values);
        }
        (_, Work::Nothing) => return Ok(*before),
        (_, Work::Copy(copy)) => {
            // The place of a stage in the recipe is no part of its files.
            let copy = CopyWork { from: None, ..copy.clone() };
            fields.text(name).text(&json(&copy)?).option(origin);
        }
        (_, work) => {
            fields.text(name).text(&json(work)?);
        }
    }
    Ok(fields.finish())
}

fn json(value: &impl Serialize) -> Result<String, String> {
    serde_json::to_string(value).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
