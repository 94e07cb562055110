//! Dockerfiles as text, and the recipe that a target of one makes. Parsing needs no base image;
//! variables of instructions are expanded later, where the base's environment is known. FROM is
//! expanded here, since only arguments may stand there.
//!
//! Every refusal names line and instruction. The parser is our own. The crate `parse-dockerfile`
//! 0.1 finds here-documents only where they begin a RUN. It also leaves quotes, pairs and
//! continuations inside of commands to its caller.

mod instruction;
mod lines;
mod mounts;
mod words;

pub use instruction::trigger;

use crate::expand::{self, Escape};
use crate::fault::{Fault, shorten};
use crate::prepare;
use crate::steps::{Action, Arg, Dialect, Recipe, STAGES_MAX, STEPS_MAX, Source, Stage, Step};
use instruction::{From, Scope};
use lines::Instruction;
use std::collections::{BTreeMap, BTreeSet};

/// Largest Dockerfile, in bytes.
pub const BYTES_MAX: usize = 512 * 1024;

/// A Dockerfile that was read. It has at least one stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dockerfile {
    escape: Escape,
    /// Arguments before the first FROM, with their lines.
    globals: Vec<(u32, Arg)>,
    stages: Vec<Read>,
}

/// A stage that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Read {
    line: u32,
    from: From,
    steps: Vec<Step>,
}

/// Choices of the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Name or number of the stage to build; the last one if absent.
    pub target: Option<String>,
    /// Values for ARG.
    pub args: BTreeMap<String, String>,
    /// Platform of the host, such as `linux/amd64`.
    pub platform: String,
}

impl Default for Options {
    fn default() -> Self {
        Self { target: None, args: BTreeMap::new(), platform: "linux/amd64".to_owned() }
    }
}

impl Dockerfile {
    /// Reads a Dockerfile.
    ///
    /// # Errors
    /// Names line, instruction and broken rule. Refuses over 512 KiB, 64 stages or 1000 steps.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        if text.len() > BYTES_MAX {
            let message = format!("the file has over {BYTES_MAX} bytes");
            return Err(Fault::new(1, "file", message));
        }
        let (escape, instructions) = lines::read(text)?;
        let names = stage_names(&instructions, escape)?;
        let mut file = Self { escape, globals: Vec::new(), stages: Vec::new() };
        let mut scope = Scope { escape, shell: None, names: &names, stage: 0 };
        let mut shells: Vec<Option<Vec<String>>> = Vec::new();
        let mut count = 0;
        for instruction in &instructions {
            if instruction.name == "FROM" {
                let from = instruction::from(instruction, escape)?;
                if !file.stages.is_empty() {
                    shells.push(scope.shell.take());
                }
                scope.shell = earlier(&names, &from.image, file.stages.len())
                    .and_then(|index| shells.get(index).cloned().flatten());
                scope.stage = file.stages.len();
                file.stages.push(Read { line: instruction.line, from, steps: Vec::new() });
                continue;
            }
            let Some(stage) = file.stages.last_mut() else {
                file.globals.extend(globals(instruction, escape)?);
                continue;
            };
            stage.steps.extend(instruction::read(instruction, &mut scope)?);
            count += 1;
            if count > STEPS_MAX || stage.steps.len() > STEPS_MAX {
                return Err(instruction.fault(format!("the file has over {STEPS_MAX} steps")));
            }
        }
        if file.stages.is_empty() {
            return Err(Fault::new(1, "file", "the file has no FROM"));
        }
        Ok(file)
    }

    /// Makes the recipe of a target. Stages that the target does not need are left out.
    ///
    /// # Errors
    /// Names the FROM or ARG that cannot be resolved, and a target that does not exist.
    pub fn recipe(&self, options: &Options) -> Result<Recipe, Fault> {
        let globals = self.global_values(options)?;
        let target = self.target(options)?;
        let sources = self.sources(&globals, options, target)?;
        let needed = self.needed(&sources, target);
        let position = |index: usize| needed.iter().position(|other| *other == index).unwrap_or(0);
        let renumber = |source: &Source| match source {
            Source::Stage(index) => Source::Stage(position(*index)),
            Source::Image(_) | Source::Template(_) | Source::Capsule(_) | Source::Scratch => {
                source.clone()
            }
        };
        let mut stages = Vec::new();
        for (index, stage) in self.stages.iter().enumerate().filter(|(at, _)| needed.contains(at)) {
            let source = sources.get(index).map_or(Source::Scratch, renumber);
            let mut steps = stage.steps.clone();
            for step in &mut steps {
                if let Action::Arg(arg) = &mut step.action {
                    give(arg, &globals, options);
                } else if let Action::Copy(copy) = &mut step.action {
                    copy.from = copy.from.as_ref().map(renumber);
                }
            }
            stages.push(Stage { name: stage.from.name.clone(), source, steps });
        }
        Ok(Recipe { dialect: Dialect::Dockerfile, escape: self.escape, stages })
    }

    /// Returns the names of given arguments that no ARG declares. A command line warns of them.
    #[must_use]
    pub fn undeclared_args(&self, options: &Options) -> Vec<String> {
        let globals = self.globals.iter().map(|(_, arg)| arg.name.as_str());
        let steps = self.stages.iter().flat_map(|stage| &stage.steps);
        let local = steps.filter_map(|step| {
            if let Action::Arg(arg) = &step.action { Some(arg.name.as_str()) } else { None }
        });
        let declared: BTreeSet<&str> = globals.chain(local).collect();
        options.args.keys().filter(|name| !declared.contains(name.as_str())).cloned().collect()
    }

    /// Resolves the arguments before the first FROM, with Docker's arguments of the platform.
    fn global_values(&self, options: &Options) -> Result<BTreeMap<String, String>, Fault> {
        let mut values = platform_args(&options.platform);
        for (line, arg) in &self.globals {
            let value = match (options.args.get(&arg.name), &arg.default) {
                (Some(given), _) => given.clone(),
                (None, Some(default)) => {
                    expand::word(default, self.escape, &|name| values.get(name).cloned())
                        .map_err(|error| Fault::new(*line, "ARG", error.to_string()))?
                }
                (None, None) => continue,
            };
            values.insert(arg.name.clone(), value);
        }
        Ok(values)
    }

    fn target(&self, options: &Options) -> Result<usize, Fault> {
        let last = self.stages.len().saturating_sub(1);
        let Some(target) = &options.target else { return Ok(last) };
        let named = |stage: &Read| {
            stage.from.name.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(target))
        };
        let number = || target.parse().ok().filter(|index| *index <= last);
        self.stages.iter().position(named).or_else(number).ok_or_else(|| {
            let line = self.stages.last().map_or(1, |stage| stage.line);
            Fault::new(line, "FROM", format!("no stage is named `{}`", shorten(target)))
        })
    }

    /// Resolves the FROM of each stage up to the target.
    fn sources(
        &self,
        globals: &BTreeMap<String, String>,
        options: &Options,
        target: usize,
    ) -> Result<Vec<Source>, Fault> {
        let names: Vec<_> = self.stages.iter().map(|stage| stage.from.name.clone()).collect();
        let source = |(index, stage): (usize, &Read)| {
            let fault = |message: String| Fault::new(stage.line, "FROM", message);
            let expand = |text: &str| {
                expand::word(text, self.escape, &|name| globals.get(name).cloned())
                    .map_err(|error| fault(error.to_string()))
            };
            let image = expand(&stage.from.image)?;
            if let Some(platform) = &stage.from.platform {
                let platform = expand(platform)?;
                if normalized(&platform) != normalized(&options.platform) {
                    let (asked, own) = (shorten(&platform), &options.platform);
                    return Err(fault(format!("the platform `{asked}` is not the host's, {own}")));
                }
            }
            if !prepare::is_reference(&image) {
                let text = shorten(&stage.from.image);
                return Err(fault(format!("`{text}` names no image")));
            }
            Ok(match earlier(&names, &image, index) {
                Some(index) => Source::Stage(index),
                None if image == "scratch" => Source::Scratch,
                None => Source::Image(image),
            })
        };
        self.stages.iter().enumerate().take(target + 1).map(source).collect()
    }

    /// Returns the stages that a target needs, itself included, in order.
    fn needed(&self, sources: &[Source], target: usize) -> BTreeSet<usize> {
        let mut needed = BTreeSet::from([target]);
        // Stages need earlier ones alone, so one pass from the last to the first finds all.
        for index in (0..=target).rev() {
            if !needed.contains(&index) {
                continue;
            }
            let steps = self.stages.get(index).into_iter().flat_map(|stage| &stage.steps);
            let copies = steps.filter_map(|step| {
                if let Action::Copy(copy) = &step.action { copy.from.as_ref() } else { None }
            });
            needed.extend(sources.get(index).into_iter().chain(copies).filter_map(|source| {
                match source {
                    Source::Stage(other) => Some(*other),
                    Source::Image(_)
                    | Source::Template(_)
                    | Source::Capsule(_)
                    | Source::Scratch => None,
                }
            }));
        }
        needed
    }
}

/// Gives an ARG of a stage its value: the caller's, else that of the ARG before FROM.
fn give(arg: &mut Arg, globals: &BTreeMap<String, String>, options: &Options) {
    let inherited = || globals.get(&arg.name).filter(|_| arg.default.is_none());
    arg.value = options.args.get(&arg.name).or_else(inherited).cloned();
}

/// Reads the names of all stages, so that a name of a later stage can be told from an image's.
fn stage_names(instructions: &[Instruction], escape: Escape) -> Result<Vec<Option<String>>, Fault> {
    let mut names: Vec<Option<String>> = Vec::new();
    for instruction in instructions.iter().filter(|instruction| instruction.name == "FROM") {
        let name = instruction::from(instruction, escape)?.name;
        if let Some(name) = &name
            && names.iter().flatten().any(|other| other == name)
        {
            return Err(instruction.fault(format!("two stages are named `{}`", shorten(name))));
        }
        names.push(name);
        if names.len() > STAGES_MAX {
            return Err(instruction.fault(format!("the file has over {STAGES_MAX} stages")));
        }
    }
    Ok(names)
}

/// Finds the stage before `stage` with a name.
fn earlier(names: &[Option<String>], name: &str, stage: usize) -> Option<usize> {
    let is =
        |other: &Option<String>| other.as_deref().is_some_and(|n| n.eq_ignore_ascii_case(name));
    names.iter().take(stage).position(is)
}

/// Reads an instruction before the first FROM, which can only be ARG.
fn globals(instruction: &Instruction, escape: Escape) -> Result<Vec<(u32, Arg)>, Fault> {
    if instruction.name != "ARG" {
        return Err(instruction.fault("stands before the first FROM"));
    }
    let actions = instruction::arguments(&instruction.rest, escape)
        .map_err(|message| instruction.fault(message))?;
    let args = actions.into_iter().filter_map(|action| {
        if let Action::Arg(arg) = action { Some((instruction.line, arg)) } else { None }
    });
    Ok(args.collect())
}

/// Returns the arguments that Docker sets for each platform, for this host alone.
fn platform_args(platform: &str) -> BTreeMap<String, String> {
    let mut parts = platform.splitn(3, '/');
    let mut part = || parts.next().unwrap_or_default();
    let (os, arch, variant) = (part(), part(), part());
    let values = [("PLATFORM", platform), ("OS", os), ("ARCH", arch), ("VARIANT", variant)];
    let kinds = ["BUILD", "TARGET"];
    let pair =
        |kind: &str, (name, value): (&str, &str)| (format!("{kind}{name}"), value.to_owned());
    kinds.iter().flat_map(|kind| values.map(|value| pair(kind, value))).collect()
}

/// Brings names of one platform to one form: `amd64`, `x86_64` and `linux/amd64` are the same.
fn normalized(platform: &str) -> String {
    let lower = platform.to_ascii_lowercase();
    let (os, rest) = lower.split_once('/').unwrap_or(("linux", &lower));
    let arch = match rest {
        "x86_64" | "x86-64" | "amd64/v1" => "amd64",
        "aarch64" | "arm64/v8" => "arm64",
        other => other,
    };
    format!("{os}/{arch}")
}

#[cfg(test)]
mod tests;
