//! The state that steps of one stage hand on: environment, arguments, user, working directory and
//! descriptions. Each action is applied to it, and gives the work for the guest.

use super::work::{CopyWork, Program, RunWork, Work};
use crate::expand::{self, Escape};
use crate::fault::shorten;
use crate::steps::{Action, Arg, Command, Copy, Dialect, Healthcheck, Inline, Mount, Run};
use crate::{e2b, prepare};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Largest environment, in bytes with names.
const ENV_MAX: usize = 64 * 1024;

/// Configuration of an image or a version, as far as steps and starts see it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Variables of every program.
    pub env: BTreeMap<String, String>,
    /// Variables of the build and of the start command alone, as E2B's ENV sets them.
    pub build_env: BTreeMap<String, String>,
    /// Default user; root if absent.
    pub user: Option<String>,
    /// Default working directory, absolute.
    pub workdir: Option<String>,
    /// Program to start.
    pub entrypoint: Option<Command>,
    /// Arguments of the program, or the program.
    pub cmd: Option<Command>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Ports, such as `80/tcp`.
    pub exposed: BTreeSet<String>,
    /// Folders that Docker would mount. They are plain folders here.
    pub volumes: BTreeSet<String>,
    /// Signal that ends the program.
    pub stop_signal: Option<String>,
    /// Health check, which nobody runs.
    pub healthcheck: Option<Healthcheck>,
    /// Instructions that a Dockerfile on this base runs first.
    pub onbuild: Vec<String>,
}

/// State between two steps of a stage.
pub(super) struct Scope {
    dialect: Dialect,
    escape: Escape,
    config: Config,
    args: BTreeMap<String, String>,
    /// Tells that this stage has set the command. Another entrypoint then keeps it.
    sets_cmd: bool,
}

impl Scope {
    pub(super) fn new(dialect: Dialect, escape: Escape, config: Config) -> Self {
        Self { dialect, escape, config, args: BTreeMap::new(), sets_cmd: false }
    }

    pub(super) fn into_config(self) -> Config {
        self.config
    }

    /// Takes the base's triggers, which no later stage or template runs again.
    pub(super) fn take_onbuild(&mut self) -> Vec<String> {
        std::mem::take(&mut self.config.onbuild)
    }

    /// Returns the value of a variable, or an empty text.
    pub(super) fn value(&self, name: &str) -> &str {
        self.find(name).unwrap_or_default()
    }

    /// Finds a variable. ENV comes before ARG.
    fn find(&self, name: &str) -> Option<&str> {
        let Config { env, build_env, .. } = &self.config;
        let found = build_env.get(name).or_else(|| env.get(name)).or_else(|| self.args.get(name));
        found.map(String::as_str)
    }

    /// Expands a text by the dialect. E2B expands values of ENV only.
    fn text(&self, text: &str) -> Result<String, String> {
        match self.dialect {
            Dialect::E2b => Ok(text.to_owned()),
            Dialect::Steps | Dialect::Dockerfile => self.assigned(text),
        }
    }

    /// Expands the value of an assignment by the dialect.
    fn assigned(&self, text: &str) -> Result<String, String> {
        let lookup = |name: &str| self.find(name).map(str::to_owned);
        let expanded = match self.dialect {
            Dialect::E2b | Dialect::Steps => expand::literal(text, &lookup),
            Dialect::Dockerfile => expand::word(text, self.escape, &lookup),
        };
        let expanded = expanded.map_err(|error| error.to_string())?;
        if expanded.contains('\0') { Err("a text holds a NUL".to_owned()) } else { Ok(expanded) }
    }

    fn texts(&self, texts: &[String]) -> Result<Vec<String>, String> {
        texts.iter().map(|text| self.text(text)).collect()
    }

    fn user(&self) -> String {
        self.config.user.clone().unwrap_or_else(|| "root".to_owned())
    }

    /// Returns the working directory: the last one that was set, else the dialect's default.
    fn workdir(&self) -> String {
        self.config.workdir.clone().unwrap_or_else(|| match self.dialect {
            Dialect::E2b => e2b::home(&self.user()),
            Dialect::Steps | Dialect::Dockerfile => "/".to_owned(),
        })
    }

    /// Applies an action, and returns its work.
    pub(super) fn apply(&mut self, action: &Action) -> Result<Work, String> {
        match action {
            Action::Run(run) => return self.run(run).map(Work::Run),
            Action::Copy(copy) => return self.copy(copy).map(Work::Copy),
            Action::Workdir(path) => return self.set_workdir(path),
            Action::User(name) => return self.set_user(name),
            Action::Env(values) => self.set_env(values)?,
            Action::Arg(arg) => self.declare(arg)?,
            Action::Label(values) => {
                for (name, value) in values {
                    self.config.labels.insert(name.clone(), self.assigned(value)?);
                }
            }
            Action::Expose(ports) => {
                for text in self.texts(ports)?.iter().flat_map(|text| text.split_whitespace()) {
                    self.config.exposed.insert(port(text)?);
                }
            }
            Action::Volume(paths) => {
                for path in self.texts(paths)? {
                    self.config.volumes.insert(prepare::join(&self.workdir(), &path));
                }
            }
            Action::StopSignal(signal) => self.config.stop_signal = Some(self.text(signal)?),
            Action::Healthcheck(check) => self.config.healthcheck = Some(check.clone()),
            Action::Entrypoint(command) => {
                self.config.entrypoint = Some(command.clone());
                // A base's arguments belong to the base's program.
                self.config.cmd = self.config.cmd.take().filter(|_| self.sets_cmd);
            }
            Action::Cmd(command) => {
                self.config.cmd = Some(command.clone());
                self.sets_cmd = true;
            }
            Action::Onbuild(trigger) => self.config.onbuild.push(trigger.clone()),
        }
        Ok(Work::Nothing)
    }

    fn run(&self, run: &Run) -> Result<RunWork, String> {
        let user = run.user.clone().unwrap_or_else(|| self.user());
        prepare::user(&user)?;
        let program = match (&run.command, &run.shell) {
            (Command::Script { script }, _) => Program::Script(script.clone()),
            (command, Some(shell)) => Program::Argv(command.argv(shell)),
            (command, None) => Program::Argv(command.argv(self.dialect.shell())),
        };
        if matches!(&program, Program::Argv(argv) if argv.first().is_none_or(String::is_empty)) {
            return Err("the command is empty".to_owned());
        }
        let mut env = self.args.clone();
        env.extend(self.config.env.clone());
        env.extend(self.config.build_env.clone());
        let workdir = self.workdir();
        let mounts = run.mounts.iter().map(|mount| self.mount(mount, &workdir)).collect();
        Ok(RunWork {
            program,
            env,
            user,
            mounts: {
                let mounts: Result<_, String> = mounts;
                mounts?
            },
            workdir,
        })
    }

    fn mount(&self, mount: &Mount, workdir: &str) -> Result<Mount, String> {
        let path = |target: &str| Ok::<_, String>(prepare::join(workdir, &self.text(target)?));
        Ok(match mount {
            Mount::Tmpfs { target, size } => Mount::Tmpfs { target: path(target)?, size: *size },
            Mount::Cache { target, id } => {
                let target = path(target)?;
                let id = id.as_deref().map_or_else(|| Ok(target.clone()), |id| self.text(id))?;
                Mount::Cache { target, id: Some(id) }
            }
        })
    }

    fn copy(&self, copy: &Copy) -> Result<CopyWork, String> {
        let sources = self.texts(&copy.sources)?;
        let name = if copy.unpack { "ADD" } else { "COPY" };
        sources.iter().try_for_each(|source| prepare::local(source, name))?;
        let dest = self.text(&copy.dest)?;
        if dest.is_empty() {
            return Err("the destination is empty".to_owned());
        }
        let is_several = sources.len() + copy.inline.len() > 1;
        let owner = match (&copy.owner, self.dialect) {
            (Some(owner), _) => self.text(owner)?,
            (None, Dialect::E2b) => self.user(),
            (None, Dialect::Steps | Dialect::Dockerfile) => "0:0".to_owned(),
        };
        prepare::user(&owner)?;
        let mode = copy.mode.as_ref().map(|mode| prepare::mode(&self.text(mode)?)).transpose()?;
        let lookup = |name: &str| self.find(name).map(str::to_owned);
        let inline = |file: &Inline| {
            let text = match file.expand {
                true => expand::document(&file.text, &lookup).map_err(|error| error.to_string())?,
                false => file.text.clone(),
            };
            if file.name.is_empty() || file.name.contains('/') || file.name.starts_with('.') {
                return Err(format!("`{}` names no inline file", shorten(&file.name)));
            }
            Ok((file.name.clone(), text))
        };
        Ok(CopyWork {
            from: copy.from.clone(),
            files: copy.files.clone(),
            sources,
            inline: copy.inline.iter().map(inline).collect::<Result<_, String>>()?,
            // BuildKit takes several sources without the `/` that Docker's reference demands.
            into: is_several || prepare::is_folder(&dest),
            dest: prepare::join(&self.workdir(), &dest),
            owner,
            mode,
            unpack: copy.unpack,
        })
    }

    fn set_workdir(&mut self, path: &str) -> Result<Work, String> {
        let path = self.text(path)?;
        if path.is_empty() {
            return Err("the path is empty".to_owned());
        }
        let path = prepare::join(&self.workdir(), &path);
        self.config.workdir = Some(path.clone());
        let owner = match self.dialect {
            Dialect::E2b => self.user(),
            Dialect::Steps | Dialect::Dockerfile => "0:0".to_owned(),
        };
        Ok(Work::Workdir { path, owner })
    }

    fn set_user(&mut self, name: &str) -> Result<Work, String> {
        let name = self.text(name)?;
        let is_number = prepare::user(&name)?;
        self.config.user = Some(name.clone());
        let create = self.dialect == Dialect::E2b && !is_number;
        Ok(Work::User { name, create })
    }

    fn set_env(&mut self, values: &BTreeMap<String, String>) -> Result<(), String> {
        let mut expanded = BTreeMap::new();
        for (name, value) in values {
            check_name(name)?;
            expanded.insert(name.clone(), self.assigned(value)?);
        }
        match self.dialect.exports_env() {
            true => self.config.env.extend(expanded),
            false => self.config.build_env.extend(expanded),
        }
        let Config { env, build_env, .. } = &self.config;
        bounded(env.iter().chain(build_env))
    }

    fn declare(&mut self, arg: &Arg) -> Result<(), String> {
        check_name(&arg.name)?;
        let value = match (&arg.value, &arg.default) {
            (Some(value), _) => Some(value.clone()),
            (None, Some(default)) => Some(self.assigned(default)?),
            (None, None) => None,
        };
        // An ARG without a value leaves an earlier one of the same name as it is.
        if let Some(value) = value {
            self.args.insert(arg.name.clone(), value);
        }
        bounded(&self.args)
    }
}

fn bounded<'a>(values: impl IntoIterator<Item = (&'a String, &'a String)>) -> Result<(), String> {
    let total: usize = values.into_iter().map(|(name, value)| name.len() + value.len() + 2).sum();
    if total > ENV_MAX { Err(format!("all variables have over {ENV_MAX} bytes")) } else { Ok(()) }
}

fn check_name(name: &str) -> Result<(), String> {
    let is_bad = |char: char| char.is_whitespace() || char.is_control() || char == '=';
    if name.is_empty() || name.contains(is_bad) {
        return Err(format!("`{}` names no variable", shorten(name)));
    }
    Ok(())
}

/// Checks a port or a range of ports. Adds `/tcp` where the protocol is missing.
fn port(text: &str) -> Result<String, String> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let (low, high) = ports.split_once('-').unwrap_or((ports, ports));
    let number = |text: &str| text.parse::<u16>().ok().filter(|_| !text.starts_with('+'));
    let is_range = matches!((number(low), number(high)), (Some(low), Some(high)) if low <= high);
    if !is_range || !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!("`{}` is no port", shorten(text)));
    }
    Ok(format!("{ports}/{protocol}"))
}
