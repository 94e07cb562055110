//! Runs the steps of a build in its guest, stage by stage, and writes the log as it goes.

use super::Failure;
use super::events::{Kind, Level};
use super::layer::{Done, Part};
use super::log::Log;
use super::output::{Last, Lines};
use super::parts::{Builder, CopySource, Refused, Root, Stream};
use super::prepare::{Drive, Ready};
use super::schedule::{self, Begin, Stretch, needs_folder};
use protocol::lower::{Folders, Lower};
use recipe::resolve::{CopyWork, Prepared, Program, RunWork, Work};
use recipe::{Dialect, Recipe, Source, Stage};
use std::path::{Path, PathBuf};
use std::time::Instant;
use types::BuildId;

/// Longest command in an error, and longest step in its line, in characters.
const COMMAND_MAX: usize = 1000;
/// Digits of a key in the log.
const KEY_DIGITS: usize = 12;

/// Folders of a stage above its base.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Stack {
    /// Folders of the cache.
    pub chain: Vec<Part>,
    /// Folders on the build's own disk.
    pub own: Vec<u32>,
}

impl Stack {
    /// Returns the folders by layers, with the build's own layer last.
    pub(super) fn parts(&self, own: BuildId) -> Vec<Part> {
        let own = Part { layer: own, folders: self.own.clone() };
        let own = (!own.folders.is_empty()).then_some(own);
        self.chain.iter().cloned().chain(own).collect()
    }
}

/// Returns the name of a stage in the log. `builder` is the template's own stage there, so another
/// stage of this name has its number, as a stage without a name.
fn stage_name(stages: &[Stage], at: usize) -> String {
    let name = stages.get(at).and_then(|stage| stage.name.clone());
    name.filter(|name| name != "builder").unwrap_or_else(|| format!("stage-{at}"))
}

/// State of a build whose steps run.
pub(super) struct Walk<'a> {
    pub ready: &'a Ready,
    /// Stages of the recipe, which have the names of the plan's.
    stages: &'a [Stage],
    pub dialect: Dialect,
    pub log: &'a Log,
    /// Guest of the steps; `None` if no step needs one.
    pub builder: Option<&'a dyn Builder>,
    /// Folder of the links to uploaded archives.
    pub files: PathBuf,
    /// Id of the layer that the build's disk becomes.
    pub layer: BuildId,
    /// Finished steps.
    pub done: Vec<Done>,
    /// Number of the last folder on the build's disk.
    pub folder: u32,
    /// Folder of the step that runs or has failed.
    pub unfinished: Option<u32>,
    /// Name of the step that runs, as failures have it.
    pub at: String,
    ends: Vec<Option<Stack>>,
}

/// A step with its place.
#[derive(Clone, Copy)]
struct Place<'a> {
    stage: usize,
    step: &'a Prepared,
    is_last: bool,
}

impl Place<'_> {
    /// Returns the number of the step for events: none for steps that the recipe does not hold.
    fn number(&self) -> Option<u32> {
        let number = u32::try_from(self.step.number).ok().filter(|number| *number > 0);
        number.filter(|_| self.is_last)
    }

    fn fail(&self, message: impl Into<String>, output: Vec<String>) -> Failure {
        Failure { output, ..Failure::step(self.step.number, self.is_last, message) }
    }
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        ready: &'a Ready,
        recipe: &'a Recipe,
        log: &'a Log,
        builder: Option<&'a dyn Builder>,
        (files, layer): (PathBuf, BuildId),
    ) -> Self {
        let ends = vec![None; ready.plan.stages.len()];
        let (done, folder, unfinished, at) = (Vec::new(), 0, None, super::BASE.to_owned());
        let (stages, dialect) = (&recipe.stages[..], recipe.dialect);
        Self {
            ready,
            stages,
            dialect,
            log,
            builder,
            files,
            layer,
            done,
            folder,
            unfinished,
            at,
            ends,
        }
    }

    /// Runs all steps. Returns the folders of the template.
    ///
    /// # Errors
    /// Returns the failure of a step. `done` then has the steps before it.
    pub(super) async fn run(&mut self) -> Result<Stack, Failure> {
        let mut last = Stack::default();
        for stretch in &self.ready.schedule.stretches {
            last = self.stretch(stretch).await?;
            if let Some(end) = self.ends.get_mut(stretch.stage) {
                *end = Some(last.clone());
            }
        }
        Ok(last)
    }

    async fn stretch(&mut self, stretch: &Stretch) -> Result<Stack, Failure> {
        let Some(stage) = self.ready.plan.stages.get(stretch.stage) else {
            return Err(Failure::base("the build has a stage without steps"));
        };
        let is_last = stretch.stage + 1 == self.ready.plan.stages.len();
        let place = |step| Place { stage: stretch.stage, step, is_last };
        for step in stage.steps.iter().take(stretch.from) {
            self.note(place(step), true);
            self.ended(place(step), true, 0);
        }
        let mut stack = match (&stretch.begin, &stage.source) {
            (Begin::Cached(chain), _) => Stack { chain: chain.clone(), own: Vec::new() },
            (Begin::Base, Source::Stage(below)) => {
                self.ends.get(*below).cloned().flatten().unwrap_or_default()
            }
            (Begin::Base, _) => Stack::default(),
        };
        for step in schedule::left(&self.ready.plan, stretch) {
            self.note(place(step), false);
            self.at = place(step).fail("", Vec::new()).step;
            let begun = Instant::now();
            if needs_folder(step) {
                self.work(place(step), &mut stack).await?;
            }
            self.done.push(Done { key: step.key, chain: stack.parts(self.layer) });
            let took = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.ended(place(step), false, took);
        }
        Ok(stack)
    }

    /// Writes the line of a step.
    fn note(&self, place: Place<'_>, cached: bool) {
        let step = place.step;
        let key = step.key.to_string();
        let (prefix, cached) = (self.prefix(place), if cached { "CACHED " } else { "" });
        let key = key.get(..KEY_DIGITS).unwrap_or_default();
        let text = format!("{cached}{prefix} {} [{key}]", cut(step.text.clone()));
        // The key at the end belongs to the step's line, although the step may have several.
        self.log.whole_line(Level::Info, place.number(), &text);
    }

    fn ended(&self, place: Place<'_>, cached: bool, took_ms: u64) {
        if let Some(number) = place.number() {
            self.log.event(Kind::Step { number, cached, took_ms });
        }
    }

    /// Returns the mark of a step in the log, such as `[builder 1/4]`.
    fn prefix(&self, place: Place<'_>) -> String {
        let steps = self.ready.plan.stages.get(place.stage).map_or(&[][..], |stage| &stage.steps);
        let count = steps.iter().filter(|step| step.number > 0).count();
        match (place.step.number, place.is_last) {
            (0, _) => "[base]".to_owned(),
            (number, true) => format!("[builder {number}/{count}]"),
            (number, false) => {
                format!("[{} {number}/{count}]", stage_name(self.stages, place.stage))
            }
        }
    }

    /// Does the work of a step in a folder of its own.
    async fn work(&mut self, place: Place<'_>, stack: &mut Stack) -> Result<(), Failure> {
        let Some(builder) = self.builder else {
            return Err(place.fail("the build has no capsule for its steps", Vec::new()));
        };
        self.folder += 1;
        self.unfinished = Some(self.folder);
        let (lower, image) = self.below(place.stage, stack)?;
        let path = match &place.step.work {
            Work::Run(run) => run.env.get("PATH").cloned(),
            Work::Copy(_) | Work::Workdir { .. } | Work::User { .. } | Work::Nothing => None,
        };
        let root = Root { folder: self.folder, lower, image, path };
        builder.begin(&root).await.map_err(|error| place.fail(error.to_string(), Vec::new()))?;
        match &place.step.work {
            Work::Run(run) => self.run_program(builder, place, run).await?,
            Work::Copy(copy) => {
                let source = self.source(copy)?;
                let copied = builder.copy(copy, self.dialect, source).await;
                copied.map_err(|error| place.fail(error.to_string(), Vec::new()))?;
            }
            Work::Workdir { path, owner } => {
                let made = builder.make_folder(path, owner).await;
                made.map_err(|error| place.fail(error.to_string(), Vec::new()))?;
            }
            Work::User { name, .. } => {
                let made = builder.make_user(name, self.dialect).await;
                made.map_err(|error| place.fail(error.to_string(), Vec::new()))?;
            }
            Work::Nothing => {}
        }
        stack.own.push(self.folder);
        self.unfinished = None;
        daemon::failpoint("build.step").map_err(|error| place.fail(error.to_string(), Vec::new()))
    }

    /// Returns the folders and the image below the next step of a stage.
    fn below(&self, stage: usize, stack: &Stack) -> Result<(Lower, u8), Failure> {
        let root = self.ready.root(stage);
        let found = root.and_then(|source| self.lower(source, stack));
        found.ok_or_else(|| Failure::base("a file below the build is missing"))
    }

    fn lower(&self, source: &Source, stack: &Stack) -> Option<(Lower, u8)> {
        let image = self.ready.number(&Drive::Image(source.clone()))?;
        let mut all = Vec::new();
        let layers = self.ready.bases.get(source).map_or(&[][..], |loaded| &loaded.layers);
        for (at, (_, folders)) in layers.iter().enumerate() {
            let drive = self.ready.number(&Drive::BaseLayer(source.clone(), at))?;
            all.push((drive, folders.clone()));
        }
        for part in &stack.chain {
            let drive = self.ready.number(&Drive::Layer(part.layer))?;
            all.push((drive, Folders::Steps(part.folders.clone())));
        }
        if !stack.own.is_empty() {
            all.push((protocol::lower::OWN_DISK, Folders::Steps(stack.own.clone())));
        }
        Some((Lower(all), image))
    }

    /// Returns the origin of the files of a COPY.
    fn source(&self, copy: &CopyWork) -> Result<CopySource, Failure> {
        let missing = || Failure::base("the origin of a COPY is missing");
        let (lower, image) = match (&copy.from, &copy.files) {
            (None, None) => return Ok(CopySource::Inline),
            (None, Some(hash)) => return Ok(CopySource::Archive(self.files.join(hash))),
            (Some(Source::Stage(stage)), _) => {
                let end = self.ends.get(*stage).cloned().flatten().ok_or_else(missing)?;
                self.below(*stage, &end)?
            }
            (Some(source), _) => self.lower(source, &Stack::default()).ok_or_else(missing)?,
        };
        Ok(CopySource::Stack { lower, image })
    }

    async fn run_program(
        &self,
        builder: &dyn Builder,
        place: Place<'_>,
        run: &RunWork,
    ) -> Result<(), Failure> {
        let prefix = self.prefix(place);
        let mut last = Last::default();
        let mut streams = [Lines::default(), Lines::default()];
        let mut write = |stream: Stream, line: &str| {
            last.push(line);
            let text = format!("{prefix} [{stream}]: {line}");
            self.log.line(stream.level(), place.number(), &text);
        };
        let mut output = |stream: Stream, bytes: &[u8]| {
            let lines = match stream {
                Stream::Stdout => &mut streams[0],
                Stream::Stderr => &mut streams[1],
            };
            lines.push(bytes, |line| write(stream, &line));
        };
        let ended = builder.run(run, &mut output).await;
        for (stream, lines) in [Stream::Stdout, Stream::Stderr].into_iter().zip(&mut streams) {
            if let Some(line) = lines.finish() {
                write(stream, &line);
            }
        }
        let command = command(&run.program);
        let why = match ended {
            Ok(0) => return Ok(()),
            Ok(status) => format!("exit status {status}"),
            Err(Refused::User(why)) => format!("command failed: unauthenticated: {why}"),
            Err(error) => format!("command failed: {error}"),
        };
        Err(place.fail(format!("failed to run command '{command}': {why}"), last.take()))
    }
}

/// Returns the text of a command, as its author wrote it.
fn command(program: &Program) -> String {
    let text = match program {
        Program::Script(text) => text.clone(),
        Program::Argv(argv) => match &argv[..] {
            [.., flag, text] if flag == "-c" => text.clone(),
            argv => argv.join(" "),
        },
    };
    cut(text)
}

fn cut(text: String) -> String {
    match text.char_indices().nth(COMMAND_MAX) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text,
    }
}

/// Returns the path of an uploaded archive's link.
pub(super) fn files(build: &Path) -> PathBuf {
    build.join("files")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stage_is_told_by_its_name_unless_that_means_the_template() {
        let named = |name: Option<&str>| Stage {
            name: name.map(str::to_owned),
            source: Source::Scratch,
            steps: Vec::new(),
        };
        let stages = [named(Some("tools")), named(None), named(Some("builder"))];
        let names: Vec<String> = (0..3).map(|at| stage_name(&stages, at)).collect();
        assert_eq!(names, ["tools", "stage-1", "stage-2"]);
    }
}
