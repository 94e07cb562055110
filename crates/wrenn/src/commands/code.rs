//! `wrenn code`: runs code in a capsule's code interpreter, once or in a REPL.

mod editor;
mod entry;
mod line;
mod pictures;
mod repl;
mod stream;
mod view;

use self::stream::Execution;
use self::view::View;
use super::capsule::{failed, is_name, path};
use crate::cli;
use crate::client::Client;
use crate::output::{self, Form, Progress};
use anyhow::Context;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Read};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Largest code, in bytes. The interpreter takes bodies of 16 MiB.
const CODE_MAX: u64 = 16 << 20;
/// Lifetime of a capsule that this command makes and removes, in seconds. The end comes by itself
/// if the command could not remove the capsule.
const LIFETIME: u32 = 24 * 3600;
/// Time for an interruption to reach the interpreter.
const INTERRUPT: Duration = Duration::from_secs(30);
/// Exit codes of a command that a signal ended: SIGINT, and SIGPIPE.
const INTERRUPTED: u8 = 130;
const READER_LEFT: u8 = 141;

/// Runs `wrenn code`.
pub(crate) async fn code(code: cli::Code, client: &Client, form: Form) -> anyhow::Result<ExitCode> {
    Ok(begin(code, client, form).await.unwrap_or_else(|error| failed(&error, form)))
}

/// Work of the command.
#[derive(Debug, PartialEq, Eq)]
enum Task {
    Run(String),
    Attach(String),
    Repl,
}

/// Settings of all executions.
struct Session<'a> {
    client: &'a Client,
    /// API's path of the capsule's code.
    path: &'a str,
    /// Language, if no context is named.
    language: Option<String>,
    context: Option<String>,
    envs: BTreeMap<String, String>,
    timeout_ms: Option<u32>,
    form: Form,
}

async fn begin(code: cli::Code, client: &Client, form: Form) -> anyhow::Result<ExitCode> {
    let (capsule, file) = words(&code.words)?;
    let task = task(&code, file, form)?;
    let language = code.language.clone().or_else(|| file.and_then(language_of).map(str::to_owned));
    let timeout_ms = code.timeout.map(|time| milliseconds(*time)).transpose()?;
    let made = match capsule {
        Some(_) => None,
        None if matches!(task, Task::Attach(_)) => {
            return Err(output::usage("--attach needs the id of a capsule"));
        }
        None => Some(create(&code, client).await?),
    };
    let capsule = capsule.or(made.as_deref()).unwrap_or_default();
    let path = path(capsule, "/code")?;
    let session = Session {
        client,
        path: &path,
        language,
        context: code.context,
        envs: code.envs.into_iter().collect(),
        timeout_ms,
        form,
    };
    let done = match Interrupts::new() {
        Ok(mut interrupts) => session.run(task, &mut interrupts).await,
        Err(error) => Err(error.into()),
    };
    if let Some(made) = &made {
        match code.keep {
            true => output::note(made),
            false => remove(made, client).await,
        }
    }
    done
}

/// Finds the capsule and the file among the words of the command line. A single word may be the
/// name of a capsule if no file has it.
fn words(words: &[String]) -> anyhow::Result<(Option<&str>, Option<&str>)> {
    let is_id = |word: &str| word.parse::<types::CapsuleId>().is_ok();
    match words {
        [] => Ok((None, None)),
        [word] if is_id(word) || (is_name(word) && !Path::new(word).exists()) => {
            Ok((Some(word), None))
        }
        [word] => Ok((None, Some(word))),
        [capsule, file] if is_id(capsule) || is_name(capsule) => Ok((Some(capsule), Some(file))),
        [capsule, ..] => {
            Err(output::usage(format!("`{capsule}` is not the id or name of a capsule")))
        }
    }
}

/// Decides on the work, and reads the code.
fn task(code: &cli::Code, file: Option<&str>, form: Form) -> anyhow::Result<Task> {
    match (&code.attach, &code.code, file) {
        (Some(id), None, None) => Ok(Task::Attach(id.clone())),
        (Some(_), ..) => Err(output::usage("--attach takes no code")),
        (None, Some(_), Some(_)) => Err(output::usage("use either -c or a file, not both")),
        (None, Some(text), None) => Ok(Task::Run(text.clone())),
        (None, None, Some("-")) => read(std::io::stdin().lock(), "standard input").map(Task::Run),
        (None, None, Some(name)) => {
            let file = std::fs::File::open(name);
            let file = file.with_context(|| format!("cannot open the file {name}"))?;
            read(file, name).map(Task::Run)
        }
        (None, None, None) => match std::io::stdin().is_terminal() && form == Form::Human {
            true => Ok(Task::Repl),
            false => read(std::io::stdin().lock(), "standard input").map(Task::Run),
        },
    }
}

/// Reads code to its end.
fn read(from: impl Read, name: &str) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    from.take(CODE_MAX + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {name}"))?;
    if bytes.len() as u64 > CODE_MAX {
        return Err(output::usage(format!("{name} has more than {CODE_MAX} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| output::usage(format!("{name} is not UTF-8")))
}

/// Returns the language of a file by its name.
fn language_of(file: &str) -> Option<&'static str> {
    let ending = Path::new(file).extension()?.to_str()?;
    match ending.to_ascii_lowercase().as_str() {
        "py" => Some("python"),
        "js" | "mjs" | "cjs" => Some("javascript"),
        "ts" | "mts" | "cts" => Some("typescript"),
        "sh" | "bash" => Some("bash"),
        "r" => Some("r"),
        "java" => Some("java"),
        _ => None,
    }
}

/// Converts a time limit. A limit below a millisecond is one millisecond.
fn milliseconds(time: Duration) -> anyhow::Result<u32> {
    let millis = u32::try_from(time.as_millis().max(1));
    millis.map_err(|_| output::usage("--timeout must be at most one day"))
}

async fn create(code: &cli::Code, client: &Client) -> anyhow::Result<String> {
    let body = api::CreateCapsule {
        template: Some(code.template.clone()),
        lifetime: (!code.keep).then_some(LIFETIME),
        on_timeout: (!code.keep).then(|| "kill".to_owned()),
        ..api::CreateCapsule::default()
    };
    let progress = Progress::start("starting a capsule");
    let made: anyhow::Result<api::Capsule> = client.post("/v1/capsules", &body).await;
    progress.clear();
    match made {
        Err(error) if output::is_refused(&error, "not_found") => {
            let name = &code.template;
            let remedy = format!("build it with `wrenn template build {name}`, or name another");
            Err(output::not_found(format!("the template {name} is missing; {remedy}")))
        }
        made => Ok(made?.id),
    }
}

/// Removes the capsule that this command has made. A failure ends no other work.
async fn remove(capsule: &str, client: &Client) {
    let removed = async { client.delete(&path(capsule, "")?).await };
    if let Err(error) = removed.await {
        output::note(&format!("the capsule {capsule} was not removed: {error:#}"));
    }
}

impl Session<'_> {
    async fn run(&self, task: Task, interrupts: &mut Interrupts) -> anyhow::Result<ExitCode> {
        match task {
            Task::Run(code) => self.execute(code, interrupts).await,
            Task::Attach(id) => {
                let mut execution = Execution::earlier(self.client, self.path, id);
                self.show(&mut execution, interrupts).await
            }
            Task::Repl => repl::repl(self, interrupts).await,
        }
    }

    /// Runs code, and shows the execution to its end.
    async fn execute(&self, code: String, interrupts: &mut Interrupts) -> anyhow::Result<ExitCode> {
        let run = api::RunCode {
            code,
            language: self.language.clone().filter(|_| self.context.is_none()),
            context_id: self.context.clone(),
            envs: self.envs.clone(),
            timeout_ms: self.timeout_ms,
            max_output_bytes: None,
        };
        let started = Execution::start(self.client, self.path, &run);
        let mut execution = tokio::select! {
            started = started => started?,
            () = interrupts.next() => return Ok(ExitCode::from(INTERRUPTED)),
        };
        self.show(&mut execution, interrupts).await
    }

    /// Shows an execution to its end. The first signal interrupts the code, and the second one ends
    /// this command.
    async fn show(
        &self,
        execution: &mut Execution<'_>,
        interrupts: &mut Interrupts,
    ) -> anyhow::Result<ExitCode> {
        let (mut view, mut interrupted) = (View::new(self.form), false);
        loop {
            let next = tokio::select! {
                next = execution.next() => next?,
                () = interrupts.next() => {
                    if interrupted {
                        return Ok(ExitCode::from(INTERRUPTED));
                    }
                    interrupted = true;
                    interrupt(execution).await;
                    continue;
                }
            };
            let Some((bytes, line)) = next else { return Ok(view.exit()) };
            if let Err(error) = view.show(&bytes, line) {
                interrupt(execution).await;
                return match output::reader_left(&error) {
                    true => Ok(ExitCode::from(READER_LEFT)),
                    false => Err(error),
                };
            }
        }
    }
}

/// Interrupts an execution. The stream tells the end; a failure is only noted.
async fn interrupt(execution: &Execution<'_>) {
    let Some(interruption) = execution.interruption() else { return };
    let sent = tokio::time::timeout(INTERRUPT, interruption.send()).await;
    if let Ok(Err(error)) = sent {
        output::note(&format!("the execution was not interrupted: {error:#}"));
    }
}

/// Signals that ask this command to end.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for the next signal.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Waits for the signal that ends a REPL while it reads a line.
    async fn terminated(&mut self) {
        self.terminate.recv().await;
    }

    /// Forgets an interrupt that came after the end of its execution.
    fn forget(&mut self) {
        use futures::FutureExt;
        while self.interrupt.recv().now_or_never().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn code(words: &[&str]) -> cli::Code {
        let cli = cli::Cli::try_parse_from([&["wrenn", "code"][..], words].concat()).unwrap();
        let cli::Command::Code(code) = cli.command else { panic!("not code") };
        code
    }

    #[test]
    fn words_are_told_apart_by_the_form_of_an_id() {
        let text = types::CapsuleId::new().to_string();
        let id = text.as_str();
        let found = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
            let (capsule, file) = words(&texts).ok()?;
            Some((capsule.map(str::to_owned), file.map(str::to_owned)))
        };
        assert_eq!(found(&[]), Some((None, None)));
        assert_eq!(found(&[id]), Some((Some(id.to_owned()), None)));
        assert_eq!(found(&["a.py"]), Some((None, Some("a.py".to_owned()))));
        assert_eq!(found(&[id, "a.py"]), Some((Some(id.to_owned()), Some("a.py".to_owned()))));
        assert_eq!(found(&["a.py", id]), None);
    }

    #[test]
    fn code_comes_from_one_place() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.py").display().to_string();
        std::fs::write(&file, "1 + 1\n").unwrap();
        let task = |words: &[&str], file: Option<&str>| task(&code(words), file, Form::Human);
        assert_eq!(task(&["-c", "2"], None).unwrap(), Task::Run("2".to_owned()));
        assert_eq!(task(&[], Some(&file)).unwrap(), Task::Run("1 + 1\n".to_owned()));
        assert_eq!(task(&["--attach", "x"], None).unwrap(), Task::Attach("x".to_owned()));
        let both = task(&["-c", "2"], Some(&file)).unwrap_err().to_string();
        assert!(both.contains("-c or a file"), "{both}");
        assert!(task(&["--attach", "x"], Some(&file)).is_err());
        std::fs::write(&file, b"\xff").unwrap();
        let wrong = task(&[], Some(&file)).unwrap_err().to_string();
        assert!(wrong.ends_with("is not UTF-8"), "{wrong}");
        let missing = task(&[], Some("/nonexistent/a.py")).unwrap_err().to_string();
        assert!(missing.contains("/nonexistent/a.py"), "{missing}");
    }

    #[test]
    fn language_follows_the_name_of_a_file() {
        assert_eq!(language_of("dir.d/a.PY"), Some("python"));
        assert_eq!(language_of("a.mjs"), Some("javascript"));
        assert_eq!(language_of("a.txt"), None);
        assert_eq!(language_of("py"), None);
    }

    #[test]
    fn time_limit_is_whole_milliseconds() {
        assert_eq!(milliseconds(Duration::from_micros(1)).unwrap(), 1);
        assert_eq!(milliseconds(Duration::from_secs(90)).unwrap(), 90_000);
        assert!(milliseconds(Duration::from_secs(100 * 24 * 3600)).is_err());
    }
}
