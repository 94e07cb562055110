//! Contexts of bash: one interactive shell each, without a terminal. An interactive shell gives up
//! what it does at SIGINT and keeps its state.
//!
//! Cells arrive on a descriptor of their own, each ended by NUL. A line on standard input makes the
//! shell read and evaluate one. The shell then reports the exit status.

mod noise;
mod script;

use super::piped::{self, Capsule, Changes, Inputs, Language, Name, Report};
use super::{Failure, Question, Run, Saved, StartError, StartSpec, Started, Stream, launch};
use crate::settings::Settings;
use serde_json::Value;
use std::collections::BTreeMap;
use tokio::sync::oneshot;

const OPTIONS: [&str; 4] = ["--noprofile", "--norc", "--noediting", "-i"];

/// Starts a context of bash.
///
/// # Errors
/// Returns an error with the shell's own words if it does not start.
pub(crate) async fn start(settings: &Settings, spec: StartSpec) -> Result<Started, StartError> {
    let mut command = settings.bash.command.clone();
    command.extend(OPTIONS.map(str::to_owned));
    let name = noise::shell_name(command.first());
    let envs = spec.envs.clone();
    piped::start(settings, &spec, command, |secret| Bash::new(secret, name, envs)).await
}

/// Finds a context of an earlier interpreter again.
///
/// # Errors
/// Returns an error if its process has ended.
pub(crate) async fn adopt(
    settings: &Settings,
    spec: StartSpec,
    saved: Saved,
) -> Result<Started, StartError> {
    let name = noise::shell_name(settings.bash.command.first());
    piped::adopt(&saved, |secret| Bash::new(secret, name, spec.envs.clone()))
        .map_err(|error| launch::failed(&spec, error, ""))
}

/// The protocol of the shell.
struct Bash {
    secret: String,
    /// Name of the shell in its own messages.
    name: String,
    capsule: Capsule,
    /// Requests to give up a run, in all.
    interrupts: u64,
    /// The newest run that was asked to stop.
    interrupted: u64,
}

impl Bash {
    fn new(secret: &str, name: String, envs: BTreeMap<String, String>) -> Self {
        let capsule = Capsule::new(envs);
        Self { secret: secret.to_owned(), name, capsule, interrupts: 0, interrupted: 0 }
    }

    /// Has the shell forget cells that it has not read, and report the end of a run.
    fn settle(&mut self, inputs: &Inputs, run: u64, status: u8) {
        self.interrupts += 1;
        let token = format!("{}-{}", self.secret, self.interrupts);
        inputs.commands(format!("{token}\0").into_bytes());
        inputs.input(script::settle(&token, run, status).into_bytes());
    }

    /// Makes the failure of a status. A run that was asked to stop and ended well has none.
    fn failure(&self, run: u64, status: i32) -> Option<Failure> {
        if status == 0 {
            return None;
        }
        let (name, value) = if self.interrupted == run {
            ("Interrupted", "the execution was interrupted".to_owned())
        } else {
            ("ExitStatus", status.to_string())
        };
        Some(failure(name, value))
    }
}

/// Returns the script that sets a run's variables.
#[cfg(feature = "fuzzing")]
pub(super) fn script_of(envs: &BTreeMap<String, String>) -> String {
    script::setup(&BTreeMap::new(), &[], envs, None).script
}

fn failure(name: &str, value: String) -> Failure {
    Failure { name: name.to_owned(), value, traceback: String::new() }
}

impl Language for Bash {
    const FILES: [Option<Name>; 5] = [
        Some(Name::Input),
        Some(Name::Stdout),
        Some(Name::Stderr),
        Some(Name::Commands),
        Some(Name::Events),
    ];

    fn greet(&mut self, inputs: &Inputs) {
        inputs.input(script::prologue(&self.secret).into_bytes());
    }

    fn greet_again(&mut self, inputs: &Inputs, run: u64) {
        // The earlier interpreter may have left half a line or half a cell.
        inputs.input(b"\n".to_vec());
        inputs.commands(b"\0".to_vec());
        self.settle(inputs, run, 0);
    }

    fn run(&mut self, inputs: &Inputs, run: Run) -> Result<Vec<String>, Failure> {
        let Run { number, code, setup } = run;
        let Changes { set, unset } = self.capsule.change(setup.capsule.as_ref());
        if code.contains('\0') {
            let value = "the code has a NUL character, which bash cannot read".to_owned();
            return Err(failure("InvalidCode", value));
        }
        let prepared = script::setup(&set, &unset, &setup.envs, setup.seed);
        // An interrupt may have left cells of an earlier run.
        let token = format!("{}:{number}", self.secret);
        inputs.commands(format!("{token}\0{}\0{code}\0", prepared.script).into_bytes());
        inputs.input(script::run(&token, number).into_bytes());
        Ok(prepared.warnings)
    }

    fn signals(round: u32) -> &'static [i32] {
        // The shell itself ignores SIGTERM; programs that ignore SIGINT may not.
        if round == 0 { &[libc::SIGINT] } else { &[libc::SIGINT, libc::SIGTERM] }
    }

    fn interrupt(&mut self, inputs: &Inputs, run: u64) {
        self.interrupted = run;
        // The shell drops the rest of the line that it executes, the report included.
        self.settle(inputs, run, 130);
    }

    fn ask(&mut self, _inputs: &Inputs, _question: Question, answer: oneshot::Sender<Value>) {
        drop(answer);
    }

    fn read(&mut self, line: Vec<u8>) -> Option<Report> {
        let line = String::from_utf8(line).ok()?;
        let (run, status) = line.split_once(' ')?;
        let (run, status) = (run.parse().ok()?, status.parse().ok()?);
        Some(Report::Ended(run, self.failure(run, status)))
    }

    fn clean(&self, stream: Stream, text: String) -> String {
        match stream {
            Stream::Stdout => text,
            Stream::Stderr => noise::remove(&self.name, text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bash() -> Bash {
        Bash::new("secret", "bash".to_owned(), BTreeMap::new())
    }

    #[test]
    fn status_other_than_zero_is_a_failure() {
        let mut bash = bash();
        let Some(Report::Ended(3, Some(failure))) = bash.read(b"3 127".to_vec()) else {
            panic!("no end")
        };
        assert_eq!((&*failure.name, &*failure.value), ("ExitStatus", "127"));
        assert!(matches!(bash.read(b"3 0".to_vec()), Some(Report::Ended(3, None))));
        for line in ["", "3", "x 0", "3 x", "3  0"] {
            assert!(bash.read(line.as_bytes().to_vec()).is_none(), "{line}");
        }
    }

    #[test]
    fn interrupted_run_says_so() {
        let mut bash = bash();
        bash.interrupted = 4;
        let report = bash.read(b"4 130".to_vec());
        assert!(matches!(report, Some(Report::Ended(4, Some(f))) if f.name == "Interrupted"));
        assert!(matches!(bash.read(b"4 0".to_vec()), Some(Report::Ended(4, None))));
    }
}
