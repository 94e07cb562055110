//! Each instruction as a step. The module checks the form of arguments and expands nothing. It
//! refuses what the engine cannot do, and never drops anything that changes the result.

use super::lines::{self, Document, Instruction};
use super::{mounts, words};
use crate::expand::Escape;
use crate::fault::{Fault, shorten};
use crate::prepare;
use crate::steps::{
    Action, Arg, Command, Copy, Healthcheck, Inline, Run, STAGE_NAME_MAX, Source, Step, TEXT_MAX,
    TEXTS_MAX,
};
use std::collections::BTreeMap;

/// A FROM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct From {
    /// Image or stage, not expanded.
    pub image: String,
    /// Platform, not expanded.
    pub platform: Option<String>,
    /// Name of the stage, in lower case.
    pub name: Option<String>,
}

/// The part of a stage's state that decides on the form of instructions.
pub(super) struct Scope<'a> {
    pub escape: Escape,
    /// Arguments of SHELL.
    pub shell: Option<Vec<String>>,
    /// Names of all stages of the file, in order.
    pub names: &'a [Option<String>],
    /// Index of this stage.
    pub stage: usize,
}

/// Reads a FROM.
pub(super) fn from(instruction: &Instruction, escape: Escape) -> Result<From, Fault> {
    let fault = |message: String| instruction.fault(message);
    let (flags, rest) = words::flags(&instruction.rest, escape);
    let mut platform = None;
    for (name, value) in flags {
        match (name, value) {
            ("platform", Some(value)) => platform = Some(value.to_owned()),
            (name, _) => return Err(fault(unknown_flag(name))),
        }
    }
    let words = words::raw(rest, escape);
    let (image, name) = match words[..] {
        [image] => (image, None),
        [image, keyword, name] if keyword.eq_ignore_ascii_case("as") => (image, Some(name)),
        _ => return Err(fault("takes an image, and perhaps AS with a name".to_owned())),
    };
    let name = name.map(str::to_ascii_lowercase);
    if let Some(name) = &name {
        let head = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
        let rest = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if !head
            || name.len() > STAGE_NAME_MAX
            || !name.bytes().all(rest)
            || matches!(name.as_str(), "scratch" | "context")
        {
            return Err(fault(format!("`{}` is no name of a stage", shorten(name))));
        }
    }
    Ok(From { image: image.to_owned(), platform, name })
}

/// Reads an ONBUILD instruction, as a base image holds it.
///
/// # Errors
/// Refuses FROM, ONBUILD, MAINTAINER and every instruction that a Dockerfile may not have.
pub fn trigger(text: &str) -> Result<Vec<Step>, Fault> {
    if text.contains('\n') {
        return Err(Fault::new(1, "ONBUILD", "an instruction of ONBUILD has one line"));
    }
    let (escape, instructions) = lines::read(text)?;
    let [instruction] = &instructions[..] else {
        return Err(Fault::new(1, "ONBUILD", "takes one instruction"));
    };
    if matches!(instruction.name.as_str(), "FROM" | "ONBUILD" | "MAINTAINER") {
        return Err(instruction.fault("is not allowed in ONBUILD"));
    }
    let mut scope = Scope { escape, shell: None, names: &[], stage: 0 };
    let mut steps = read(instruction, &mut scope)?;
    steps.iter_mut().for_each(|step| step.line = None);
    Ok(steps)
}

/// Reads any other instruction. SHELL changes the scope and makes no step.
pub(super) fn read(instruction: &Instruction, scope: &mut Scope<'_>) -> Result<Vec<Step>, Fault> {
    let actions = actions(instruction, scope).map_err(|message| instruction.fault(message))?;
    let line = Some(instruction.line);
    let steps = actions.into_iter().map(|action| Step { action, force: false, line });
    steps.map(|step| bounded(step, instruction)).collect()
}

fn bounded(step: Step, instruction: &Instruction) -> Result<Step, Fault> {
    let (mut count, mut most) = (0, 0);
    step.action.texts(&mut |text| {
        count += 1;
        most = most.max(text.len());
    });
    if most > TEXT_MAX {
        return Err(instruction.fault(format!("an argument has over {TEXT_MAX} bytes")));
    }
    if count > TEXTS_MAX {
        return Err(instruction.fault(format!("takes at most {TEXTS_MAX} arguments")));
    }
    Ok(step)
}

fn actions(instruction: &Instruction, scope: &mut Scope<'_>) -> Result<Vec<Action>, String> {
    let (rest, escape) = (instruction.rest.as_str(), scope.escape);
    let map = |pairs: Vec<(String, String)>| pairs.into_iter().collect::<BTreeMap<_, _>>();
    let action = match instruction.name.as_str() {
        "RUN" => Action::Run(run(instruction, scope)?),
        "COPY" | "ADD" => Action::Copy(copy(instruction, scope)?),
        "WORKDIR" => Action::Workdir(single(rest)?),
        "USER" => Action::User(single(rest)?),
        "ENV" => Action::Env(map(words::pairs(rest, escape)?)),
        "LABEL" => Action::Label(map(words::pairs(rest, escape)?)),
        "MAINTAINER" => Action::Label(map(vec![("maintainer".to_owned(), single(rest)?)])),
        "ARG" => return arguments(rest, escape),
        "EXPOSE" => Action::Expose(several(rest, escape)?),
        "VOLUME" => Action::Volume(match words::list(rest)? {
            Some(list) if list.is_empty() => return Err(NO_ARGUMENT.to_owned()),
            Some(list) => list,
            None => several(rest, escape)?,
        }),
        "STOPSIGNAL" => Action::StopSignal(single(rest)?),
        "HEALTHCHECK" => Action::Healthcheck(healthcheck(rest, scope)?),
        "CMD" => Action::Cmd(command(rest, scope)?),
        "ENTRYPOINT" => Action::Entrypoint(command(rest, scope)?),
        "ONBUILD" => {
            trigger(rest).map_err(|fault| format!("{}: {}", fault.instruction, fault.message))?;
            Action::Onbuild(rest.to_owned())
        }
        "SHELL" => {
            let list = words::list(rest)?.filter(|list| !list.is_empty());
            let list = list.ok_or("takes a list in JSON, such as [\"/bin/sh\", \"-c\"]")?;
            scope.shell = Some(list);
            return Ok(Vec::new());
        }
        "FROM" => return Err("is not allowed here".to_owned()),
        _ => return Err("is no instruction of a Dockerfile".to_owned()),
    };
    Ok(vec![action])
}

const NO_ARGUMENT: &str = "takes at least one argument";

fn unknown_flag(name: &str) -> String {
    format!("the flag `--{}` is not supported", shorten(name))
}

fn single(rest: &str) -> Result<String, String> {
    if rest.is_empty() { Err("takes one argument".to_owned()) } else { Ok(rest.to_owned()) }
}

fn several(rest: &str, escape: Escape) -> Result<Vec<String>, String> {
    let words: Vec<_> = words::raw(rest, escape).into_iter().map(str::to_owned).collect();
    if words.is_empty() { Err(NO_ARGUMENT.to_owned()) } else { Ok(words) }
}

/// Reads ARG. The step for each name gets its value when the build's arguments are known.
pub(super) fn arguments(rest: &str, escape: Escape) -> Result<Vec<Action>, String> {
    let arg = |word: &str| {
        let (name, default) = match word.split_once('=') {
            Some((name, default)) => (name, Some(default.to_owned())),
            None => (word, None),
        };
        Ok(Action::Arg(Arg { name: words::name(name, escape)?, value: None, default }))
    };
    let args: Vec<Action> =
        words::raw(rest, escape).into_iter().map(arg).collect::<Result<_, String>>()?;
    if args.is_empty() { Err(NO_ARGUMENT.to_owned()) } else { Ok(args) }
}

/// Reads a command in shell or exec form. A shell of the file's own becomes a part of it.
fn command(rest: &str, scope: &Scope<'_>) -> Result<Command, String> {
    match (words::list(rest)?, &scope.shell) {
        (Some(list), _) => Ok(Command::Exec(list)),
        (None, _) if rest.is_empty() => Err("takes a command".to_owned()),
        (None, Some(shell)) => Ok(Command::Exec(Command::Shell(rest.to_owned()).argv(shell))),
        (None, None) => Ok(Command::Shell(rest.to_owned())),
    }
}

fn healthcheck(rest: &str, scope: &Scope<'_>) -> Result<Healthcheck, String> {
    let (flags, rest) = words::flags(rest, scope.escape);
    let mut options = BTreeMap::new();
    for (name, value) in flags {
        match (name, value) {
            (
                "interval" | "timeout" | "start-period" | "start-interval" | "retries",
                Some(value),
            ) => {
                options.insert(name.to_owned(), value.to_owned());
            }
            _ => return Err(unknown_flag(name)),
        }
    }
    let (kind, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    if kind.eq_ignore_ascii_case("none") && rest.is_empty() && options.is_empty() {
        return Ok(Healthcheck { command: None, options });
    }
    if kind.eq_ignore_ascii_case("cmd") {
        return Ok(Healthcheck { command: Some(command(rest.trim(), scope)?), options });
    }
    Err("takes NONE, or CMD with a command".to_owned())
}

fn run(instruction: &Instruction, scope: &Scope<'_>) -> Result<Run, String> {
    let (flags, rest) = words::flags(&instruction.rest, scope.escape);
    let mut mounts = Vec::new();
    for (name, value) in flags {
        match (name, value) {
            ("mount", Some(value)) => mounts.push(mounts::read(value)?),
            ("network", Some("default")) | ("security", Some("sandbox")) => {}
            ("network" | "security", Some(value)) => {
                return Err(format!("`--{name}={}` is not supported", shorten(value)));
            }
            (name, _) => return Err(unknown_flag(name)),
        }
    }
    let command = match (words::list(rest)?, &instruction.documents[..]) {
        (Some(list), _) if list.is_empty() => return Err("takes a command".to_owned()),
        (Some(list), _) => Command::Exec(list),
        (None, []) if rest.is_empty() => return Err("takes a command".to_owned()),
        (None, []) => Command::Shell(rest.to_owned()),
        (None, [document]) if document.word == rest => script(document)?,
        (None, documents) => Command::Shell(with_documents(rest, documents)),
    };
    Ok(Run { command, user: None, shell: scope.shell.clone(), mounts })
}

/// Makes the command of a RUN that consists of a here-document.
fn script(document: &Document) -> Result<Command, String> {
    let contents = document.contents();
    if contents.trim().is_empty() {
        return Err("the here-document is empty".to_owned());
    }
    let is_script = contents.starts_with("#!");
    Ok(if is_script { Command::Script { script: contents } } else { Command::Shell(contents) })
}

/// Appends here-documents to a command. The shell reads them itself.
fn with_documents(rest: &str, documents: &[Document]) -> String {
    let mut text = format!("{rest}\n");
    for document in documents {
        text.push_str(&document.text);
        text.push_str(&document.name);
        text.push('\n');
    }
    text
}

fn copy(instruction: &Instruction, scope: &Scope<'_>) -> Result<Copy, String> {
    let is_add = instruction.name == "ADD";
    let (flags, rest) = words::flags(&instruction.rest, scope.escape);
    let mut copy = Copy { unpack: is_add, ..Copy::default() };
    for (name, value) in flags {
        match (name, value) {
            ("chown", Some(value)) if !value.is_empty() => copy.owner = Some(value.to_owned()),
            ("chmod", Some(value)) if !value.is_empty() => copy.mode = Some(value.to_owned()),
            ("from", Some(value)) if !is_add => copy.from = Some(origin(value, scope)?),
            // Each step is a layer of its own, so a link changes nothing.
            ("link", None | Some("true" | "false")) => {}
            (name, _) => return Err(unknown_flag(name)),
        }
    }
    if let Some(mode) = copy.mode.as_deref().filter(|mode| !mode.contains('$')) {
        prepare::mode(mode)?;
    }
    let mut words = match words::list(rest)? {
        Some(list) => list,
        None => words::raw(rest, scope.escape).into_iter().map(str::to_owned).collect(),
    };
    copy.dest =
        words.pop().filter(|_| !words.is_empty()).ok_or("takes a source and a destination")?;
    if copy.dest.is_empty() {
        return Err("the destination is empty".to_owned());
    }
    let mut documents = instruction.documents.iter().peekable();
    for word in words {
        if let Some(document) = documents.next_if(|document| document.word == word) {
            let (name, expand) = (document.name.clone(), document.expand);
            copy.inline.push(Inline { name, text: document.contents(), expand });
        } else {
            prepare::local(&word, &instruction.name)?;
            copy.sources.push(word);
        }
    }
    if documents.next().is_some() {
        return Err("a here-document stands where the destination belongs".to_owned());
    }
    if copy.from.is_some() && !copy.inline.is_empty() {
        return Err("`--from` and a here-document exclude each other".to_owned());
    }
    Ok(copy)
}

/// Resolves the value of `--from` to an earlier stage or an image.
fn origin(value: &str, scope: &Scope<'_>) -> Result<Source, String> {
    if !prepare::is_reference(value) || value.contains('$') {
        return Err("`--from` takes a stage or an image, without variables".to_owned());
    }
    let named =
        |name: &Option<String>| name.as_deref().is_some_and(|n| n.eq_ignore_ascii_case(value));
    let index = match value.parse() {
        Ok(index) => Some(index),
        Err(_) => scope.names.iter().position(named),
    };
    match index {
        Some(index) if index < scope.stage => Ok(Source::Stage(index)),
        Some(_) => Err(format!("`--from={}` names no earlier stage", shorten(value))),
        None if value.eq_ignore_ascii_case("scratch") => {
            Err("`--from=scratch` has no files".to_owned())
        }
        None => Ok(Source::Image(value.to_owned())),
    }
}
