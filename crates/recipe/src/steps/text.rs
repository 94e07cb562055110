//! Texts of actions: a visit of each text, for checks, and the one-line form, for people and keys.

use super::{Action, Command, Healthcheck, Mount, Source};
use std::collections::BTreeMap;
use std::fmt;

impl Action {
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
