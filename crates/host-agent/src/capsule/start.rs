//! Start and ready commands of a version. The start command runs in the background with the tag
//! `start`, and the ready command is tried until it succeeds. Both run before the machine is saved
//! as a template snapshot or, with `start_each`, before a create answers.
//!
//! ```text
//!  start ──▶ its output as lines ──────── exit status ≠ 0 ──▶ Error::Start
//!  ready ──▶ try, pause, try, … ── success ──▶ done; the start command goes on unwatched
//!                 └── out of time ──▶ Error::Start
//! ```

use super::Error;
use crate::builders::{Level, StartLog};
use crate::guest::Guest;
use crate::guest::program::{Event, Events, Lines, Program};
use crate::version::Version;
use connectrpc::ConnectError;
use futures::StreamExt;
use recipe::{Command, Dialect, start as rules};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::time::Duration;

/// Tag by which callers of envd find the start command.
const TAG: &str = "start";
/// `PATH` of programs whose version sets none, as envd has it.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Last lines of a failed command that its error repeats.
const LAST_LINES: usize = 20;
/// Most bytes of those lines.
const LAST_BYTES: usize = 4096;
/// Delay between the limit of a try in the guest and the agent's own.
const GRACE: Duration = Duration::from_secs(5);

/// Commands of one machine, with what they need.
pub(super) struct Commands<'a> {
    pub guest: &'a Guest,
    /// Token that envd expects.
    pub token: &'a str,
    pub version: &'a Version,
    /// Variables of the create, which go before those of the version.
    pub envs: &'a BTreeMap<String, String>,
    /// Folder with stand-ins of programs that ready commands use; `None` without one.
    pub helpers: Option<String>,
    pub log: &'a dyn StartLog,
}

impl Commands<'_> {
    /// Starts the version's program, and waits until its ready command succeeds.
    ///
    /// # Errors
    /// [`Error::Start`] when a command fails or the version's time is over.
    pub(super) async fn run(&self) -> Result<(), Error> {
        let started = async {
            match &self.version.start {
                Some(command) => self.begin(command).await.map(Some),
                None => Ok(None),
            }
        };
        let mut events = started.await?;
        let watch = async {
            match events.as_mut() {
                Some(events) => self.watch(events).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            ready = self.wait_ready() => ready,
            failed = watch => Err(failed),
        }
    }

    async fn begin(&self, command: &Command) -> Result<Events, Error> {
        self.log.line(Level::Info, format!("Running start command: {}", in_line(command)));
        let program = Program { tag: Some(TAG.to_owned()), limit: None, ..self.program(command) };
        let begun = self.guest.start(self.token, program).await;
        begun.map_err(|error| start_failed(&refusal(&error), ""))
    }

    /// Passes the start command's output on. Returns once the command has failed; its success is no
    /// reason to end.
    async fn watch(&self, events: &mut Events) -> Error {
        let mut output = Output::new(self.log, TAG, Level::Info);
        loop {
            match events.next().await {
                Some(Ok(Event::Exit(0))) => {
                    output.end();
                    std::future::pending::<()>().await;
                }
                Some(Ok(Event::Exit(status))) => {
                    output.end();
                    let why = format!("error running start command: exit status {status}");
                    return start_failed(&why, &output.last());
                }
                Some(Ok(event)) => output.add(event),
                Some(Err(error)) => return start_failed(&refusal(&error), &output.last()),
                None => return start_failed("its output broke off", &output.last()),
            }
        }
    }

    /// Tries the ready command until it succeeds. The last failure is a part of the error.
    async fn wait_ready(&self) -> Result<(), Error> {
        let Some(command) = &self.version.ready else { return Ok(()) };
        let shown = in_line(command);
        self.log.line(Level::Info, format!("Waiting for template to be ready: {shown}"));
        let mut last = "it did not end".to_owned();
        let tries = async {
            for attempt in 0.. {
                tokio::time::sleep(rules::pause_before(attempt)).await;
                match self.attempt(command).await {
                    Ok(()) => break,
                    Err(why) => last = why,
                }
            }
        };
        let within = self.version.ready_within();
        match tokio::time::timeout(within, tries).await {
            Ok(()) => {
                self.log.line(Level::Info, "Template is ready".to_owned());
                Ok(())
            }
            Err(_) => {
                let seconds = within.as_secs();
                Err(Error::Start(format!(
                    "ready command failed: `{shown}` did not succeed within {seconds} s; its last \
                     try: {last}"
                )))
            }
        }
    }

    /// Runs the ready command once. The error says why it did not succeed.
    async fn attempt(&self, command: &Command) -> Result<(), String> {
        let program = Program { limit: Some(rules::TRY_MAX), ..self.program(command) };
        let attempt = async {
            let mut events =
                self.guest.start(self.token, program).await.map_err(|error| refusal(&error))?;
            let mut output = Output::new(self.log, "ready", Level::Debug);
            let why = loop {
                match events.next().await {
                    Some(Ok(Event::Exit(0))) => return Ok(()),
                    Some(Ok(Event::Exit(status))) => break format!("exit status {status}"),
                    Some(Ok(event)) => output.add(event),
                    Some(Err(error)) => break refusal(&error),
                    None => break "its output broke off".to_owned(),
                }
            };
            output.end();
            Err(with_output(&why, &output.last()))
        };
        let limit = rules::TRY_MAX + GRACE;
        let ended = tokio::time::timeout(limit, attempt).await;
        ended.unwrap_or_else(|_| Err("envd did not end it in time".to_owned()))
    }

    /// Returns a command as a program of the version. Its variables are those of the build, for
    /// which a create's own go before.
    fn program(&self, command: &Command) -> Program {
        let own = |name: &String| !self.envs.contains_key(name);
        let Version { config, commands_config, .. } = self.version;
        // The guest's defaults are those of `config`, so another configuration's are given too.
        let other = commands_config.as_ref();
        let context = other.unwrap_or(config);
        let build = other.map(|other| other.env.clone()).unwrap_or_default().into_iter();
        let build = build.chain(context.build_env.clone());
        let mut envs: BTreeMap<String, String> = build.filter(|(name, _)| own(name)).collect();
        if let Some(helpers) = &self.helpers {
            let path = self.envs.get("PATH").or_else(|| envs.get("PATH"));
            let path = path.or_else(|| context.env.get("PATH"));
            let path = path.map_or(SEARCH_PATH, String::as_str);
            envs.insert("PATH".to_owned(), format!("{path}:{helpers}"));
        }
        let argv = argv(command, self.version.dialect, self.helpers.as_deref());
        let root = || "root".to_owned();
        let user = other.filter(|other| other.user != config.user);
        let user = user.map(|other| other.user.clone().unwrap_or_else(root));
        let cwd = other.filter(|other| other.workdir != config.workdir);
        let cwd = cwd.and_then(|other| other.workdir.clone());
        Program { argv, envs, user, cwd, ..Program::default() }
    }
}

/// Returns a command's program and arguments. A login shell sets `PATH` anew, so it gets the folder
/// of helpers in the command.
fn argv(command: &Command, dialect: Dialect, helpers: Option<&str>) -> Vec<String> {
    let argv = command.argv(dialect.shell());
    let is_login = dialect.shell().contains(&"-l") && !matches!(command, Command::Exec(_));
    match (helpers, argv.split_last()) {
        (Some(helpers), Some((text, before))) if is_login => {
            let text = format!("export PATH=\"$PATH:{helpers}\"\n{text}");
            before.iter().cloned().chain([text]).collect()
        }
        _ => argv,
    }
}

/// Returns a command in one line, without control characters.
fn in_line(command: &Command) -> String {
    let text = command.to_string();
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Returns envd's reason for not running a program. Errors of programs whose time was over have the
/// shared text.
fn refusal(error: &ConnectError) -> String {
    error.message.clone().unwrap_or_else(|| error.to_string())
}

fn start_failed(why: &str, output: &str) -> Error {
    Error::Start(with_output(&format!("start command failed: {why}"), output))
}

/// Adds the last output of a command, which begins on a line of its own.
fn with_output(why: &str, output: &str) -> String {
    if output.is_empty() { why.to_owned() } else { format!("{why}\n{output}") }
}

/// Output of a command on its way to the log, with its last lines.
struct Output<'a> {
    log: &'a dyn StartLog,
    name: &'static str,
    level: Level,
    streams: [(&'static str, Lines); 2],
    last: VecDeque<String>,
}

impl<'a> Output<'a> {
    fn new(log: &'a dyn StartLog, name: &'static str, level: Level) -> Self {
        let streams = [("stdout", Lines::default()), ("stderr", Lines::default())];
        Self { log, name, level, streams, last: VecDeque::new() }
    }

    fn add(&mut self, event: Event) {
        let (index, data) = match event {
            Event::Stdout(data) => (0, data),
            Event::Stderr(data) => (1, data),
            Event::Exit(_) => return,
        };
        let (stream, lines) = &mut self.streams[index];
        let (stream, lines) = (*stream, lines.add(&data));
        lines.into_iter().for_each(|line| self.tell(stream, line));
    }

    /// Passes on lines that the command has not ended.
    fn end(&mut self) {
        for index in 0..self.streams.len() {
            let (stream, lines) = &mut self.streams[index];
            if let (stream, Some(line)) = (*stream, lines.rest()) {
                self.tell(stream, line);
            }
        }
    }

    fn tell(&mut self, stream: &'static str, line: String) {
        self.log.line(self.level, format!("[{}] [{stream}]: {line}", self.name));
        if self.last.len() == LAST_LINES {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    /// Returns the last lines in one line, without control characters.
    fn last(&self) -> String {
        let mut text = String::new();
        for line in &self.last {
            let line: String = line.chars().filter(|c| !c.is_control()).collect();
            let _ = write!(text, "{}{}", if text.is_empty() { "" } else { "; " }, line.trim());
        }
        text.split_off(text.ceil_char_boundary(text.len().saturating_sub(LAST_BYTES)))
    }
}

#[cfg(test)]
mod tests;
