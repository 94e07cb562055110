//! Contexts of JavaScript and TypeScript: one process of `host.mjs` each, driven by JSON lines.
//!
//! The host takes `hello`, `run`, `interrupt` and `ask` on descriptor 4, and writes events to 3.

pub(super) mod event;

use super::piped::{self, Capsule, Changes, Inputs, Language, Name, Report};
use super::{Failure, Question, Run, Saved, StartError, StartSpec, Started, Stream, launch};
use crate::settings::Settings;
use event::Line;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tokio::sync::oneshot;

/// Option of Node for an interrupt that ends a timer's callback in its middle.
const OPTION: &str = "--no-force-async-hooks-checks";
/// Questions that wait for an answer. Earlier ones are given up.
const QUESTIONS: usize = 64;

/// Starts a context of JavaScript or TypeScript.
///
/// # Errors
/// Returns an error with Node's own words if the host does not start.
pub(crate) async fn start(settings: &Settings, spec: StartSpec) -> Result<Started, StartError> {
    let mut command = settings.node.command.clone();
    command.insert(usize::from(!command.is_empty()), OPTION.to_owned());
    command.push(spec.language.clone());
    let envs = spec.envs.clone();
    piped::start(settings, &spec, command, |secret| Node::new(secret, envs)).await
}

/// Finds a context of an earlier interpreter again.
///
/// # Errors
/// Returns an error if its process has ended.
pub(crate) async fn adopt(
    _settings: &Settings,
    spec: StartSpec,
    saved: Saved,
) -> Result<Started, StartError> {
    piped::adopt(&saved, |secret| Node::new(secret, spec.envs.clone()))
        .map_err(|error| launch::failed(&spec, error, ""))
}

/// The host's protocol.
struct Node {
    secret: String,
    capsule: Capsule,
    questions: BTreeMap<u64, oneshot::Sender<Value>>,
    /// Number of the newest question.
    asked: u64,
}

impl Node {
    fn new(secret: &str, envs: BTreeMap<String, String>) -> Self {
        let capsule = Capsule::new(envs);
        Self { secret: secret.to_owned(), capsule, questions: BTreeMap::new(), asked: 0 }
    }

    fn answer(&mut self, id: u64, value: Value) {
        if let Some(question) = self.questions.remove(&id) {
            // A client that has left needs no answer.
            let _ = question.send(value);
        }
    }
}

fn send(inputs: &Inputs, command: &Value) {
    inputs.commands(format!("{command}\n").into_bytes());
}

/// Writes a seed in the form that the host takes.
fn hex(seed: [u8; super::SEED]) -> String {
    seed.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Language for Node {
    const FILES: [Option<Name>; 5] =
        [None, Some(Name::Stdout), Some(Name::Stderr), Some(Name::Events), Some(Name::Commands)];

    fn greet(&mut self, inputs: &Inputs) {
        send(inputs, &json!({"hello": {"marker": self.secret}}));
    }

    fn greet_again(&mut self, inputs: &Inputs, _run: u64) {
        // The earlier interpreter may have left half a line.
        inputs.commands(b"\n".to_vec());
        self.greet(inputs);
    }

    fn run(&mut self, inputs: &Inputs, run: Run) -> Result<Vec<String>, Failure> {
        let Run { number, code, setup } = run;
        let Changes { set, unset } = self.capsule.change(setup.capsule.as_ref());
        let (envs, seed) = (setup.envs, setup.seed.map(hex));
        let run = json!({"number": number, "code": code, "set": set, "unset": unset,
            "envs": envs, "seed": seed});
        send(inputs, &json!({"run": run}));
        Ok(Vec::new())
    }

    fn signals(_round: u32) -> &'static [i32] {
        // The host outlives the signal, and programs that its code waits for do not.
        &[libc::SIGINT]
    }

    fn interrupt(&mut self, inputs: &Inputs, run: u64) {
        send(inputs, &json!({"interrupt": run}));
    }

    fn ask(&mut self, inputs: &Inputs, question: Question, answer: oneshot::Sender<Value>) {
        self.asked += 1;
        let id = self.asked;
        if self.questions.len() >= QUESTIONS {
            self.questions.pop_first();
        }
        self.questions.insert(id, answer);
        let ask = match question {
            Question::Complete { code, cursor } => {
                json!({"id": id, "complete": {"code": code, "cursor": cursor}})
            }
            Question::Variables => json!({"id": id, "variables": true}),
        };
        send(inputs, &json!({"ask": ask}));
    }

    fn read(&mut self, line: Vec<u8>) -> Option<Report> {
        match event::read(&line)? {
            Line::Event(run, kind) => Some(Report::Event(run, kind)),
            Line::Ended(run) => Some(Report::Ended(run, None)),
            Line::Answer(id, value) => {
                self.answer(id, value);
                None
            }
        }
    }

    fn clean(&self, _stream: Stream, text: String) -> String {
        text
    }
}
