//! Kernels that are driven over named pipes: Node's host and bash. A task of its own drives each.
//!
//! ```text
//! Driven ── orders ──▶ Driver ──▶ commands, input
//!                        │ ◀───── stdout, stderr (with markers), events, the process's end
//!                        └──────▶ messages to the context
//! ```
//! A kernel that writes faster than it is read waits in its own write. A later interpreter opens
//! the pipes again by name, with all that was not read.

mod drain;
mod driver;
mod lines;
mod pipes;
mod utf8;
mod variables;
mod writer;

pub(super) use pipes::Name;
pub(super) use variables::{Capsule, Changes};
pub(super) use writer::Inputs;

use super::driven::{self, Driven};
use super::{Failure, Kind, Question, Run, Saved, StartError, StartSpec, Started, Stream, launch};
use crate::process::{Process, Program, User};
use crate::settings::Settings;
use driver::Driver;
use pipes::Pipes;
use serde_json::Value;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Time that a kernel may take to start. Emulated machines are slow.
const START_TIME: Duration = Duration::from_secs(60);
/// Value of `oom_score_adj` of all programs of users.
const OOM_SCORE: i32 = 100;

/// The part of a kernel's driver that knows the program's own protocol.
pub(super) trait Language: Send + 'static {
    /// Pipes of the program, by descriptor.
    const FILES: [Option<Name>; 5];

    /// Begins the talk with a program that has just started. A report about run 0 ends the start.
    fn greet(&mut self, inputs: &Inputs);

    /// Begins the talk with a program of an earlier interpreter. The end of the run is reported
    /// once the program is idle.
    fn greet_again(&mut self, inputs: &Inputs, run: u64);

    /// Sends a run, and returns warnings for the user.
    ///
    /// # Errors
    /// Returns the failure of a run that cannot be sent.
    fn run(&mut self, inputs: &Inputs, run: Run) -> Result<Vec<String>, Failure>;

    /// Returns the signals that a round of an interrupt sends first, to the process's group.
    fn signals(round: u32) -> &'static [i32];

    /// Asks the program to give up a run, after the signals.
    fn interrupt(&mut self, inputs: &Inputs, run: u64);

    /// Sends a question. A program that cannot answer drops the sender.
    fn ask(&mut self, inputs: &Inputs, question: Question, answer: oneshot::Sender<Value>);

    /// Reads a line of the pipe of events.
    fn read(&mut self, line: Vec<u8>) -> Option<Report>;

    /// Removes noise of the program itself from output.
    fn clean(&self, stream: Stream, text: String) -> String;
}

/// A report of a program.
#[derive(Debug)]
pub(super) enum Report {
    Event(u64, Kind),
    /// The code of a run has ended, with a failure that follows all of its output.
    Ended(u64, Option<Failure>),
}

/// Facts of a running kernel. They suffice to find it again.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
struct Facts {
    folder: PathBuf,
    /// Secret of the markers in the output.
    secret: String,
}

impl driven::Facts for Facts {
    fn hold(&self, _process: &Process, _held: bool) {
        // The driver reads no output meanwhile, so the kernel waits in its own write.
    }

    fn remove(&self) {
        pipes::remove(&self.folder);
    }
}

/// Starts a program and waits until it takes runs.
///
/// # Errors
/// Returns an error with the program's own words if it does not start.
pub(super) async fn start<L: Language>(
    settings: &Settings,
    spec: &StartSpec,
    command: Vec<String>,
    language: impl FnOnce(&str) -> L,
) -> Result<Started, StartError> {
    let secret = uuid::Uuid::new_v4().simple().to_string();
    let facts = Facts { folder: pipes::folder(&settings.run, &spec.id), secret };
    let language = language(&facts.secret);
    let started = match spawn::<L>(settings, spec, command, &facts).await {
        Ok((process, pipes)) => wait_ready(process, &pipes, facts.clone(), language).await,
        Err(error) => Err(error),
    };
    started.map_err(|error| {
        pipes::remove(&facts.folder);
        launch::failed(spec, error, "")
    })
}

/// Makes the pipes and starts the program.
async fn spawn<L: Language>(
    settings: &Settings,
    spec: &StartSpec,
    command: Vec<String>,
    facts: &Facts,
) -> io::Result<(Process, Pipes)> {
    let user = User::of(settings.user.as_deref())?;
    let pipes = Pipes::make(&facts.folder, &user)?;
    let mut words = command.into_iter().map(OsString::from);
    let path = words.next().ok_or_else(|| io::Error::other("the command is empty"))?;
    let file = |name: &Option<Name>| name.map(|name| pipes.both(name)).transpose();
    let files = L::FILES.iter().map(file).collect::<io::Result<Vec<_>>>()?;
    let program = Program {
        path,
        args: words.collect(),
        envs: spec.envs.clone(),
        cwd: spec.cwd.clone(),
        files,
        oom_score: OOM_SCORE,
    };
    Ok((Process::start(program, &user, &spec.id).await?, pipes))
}

/// Drives a program that has just started, and waits until it takes runs.
async fn wait_ready<L: Language>(
    process: Process,
    pipes: &Pipes,
    facts: Facts,
    language: L,
) -> io::Result<Started> {
    let (sender, ready) = oneshot::channel();
    let drive = |driver: Driver<L>| driver.start(sender);
    let started = drive_by(process, pipes, facts, language, 0, drive)?;
    match tokio::time::timeout(START_TIME, ready).await {
        Ok(Ok(Ok(()))) => Ok(started),
        Ok(Ok(Err(why))) => Err(io::Error::other(why)),
        Ok(Err(_)) => Err(io::Error::other("its driver has ended")),
        Err(_) => {
            let why = format!("it did not answer within {} s", START_TIME.as_secs());
            Err(io::Error::other(why))
        }
    }
}

/// Finds a kernel of an earlier interpreter again. `Kind::Ended` of the newest run follows once the
/// kernel is idle, also if the run has ended before.
///
/// # Errors
/// Returns an error if the process has ended or its pipes are gone. The process is then killed.
pub(super) fn adopt<L: Language>(
    saved: &Saved,
    language: impl FnOnce(&str) -> L,
) -> io::Result<Started> {
    let facts: Facts = serde_json::from_value(saved.driver.clone())?;
    let process = Process::adopt(saved)?;
    let pipes = Pipes::find(&facts.folder)?;
    let language = language(&facts.secret);
    let run = saved.run;
    drive_by(process, &pipes, facts, language, run, |driver| driver.resume(run))
}

/// Makes the parts of a kernel and spawns its driver, once `prepare` has prepared it. `run` is the
/// number of the newest run.
fn drive_by<L: Language>(
    process: Process,
    pipes: &Pipes,
    facts: Facts,
    language: L,
    run: u64,
    prepare: impl FnOnce(Driver<L>) -> Driver<L>,
) -> io::Result<Started> {
    let process = Arc::new(process);
    let (orders, receiver) = mpsc::unbounded_channel();
    let (sender, messages) = mpsc::unbounded_channel();
    let taps = driver::Taps::open(pipes, &facts.secret)?;
    let inputs = Inputs::open(pipes)?;
    let driver = Driver::new(Arc::clone(&process), language, taps, inputs, receiver, sender);
    tokio::spawn(prepare(driver).drive());
    let kernel = Box::new(Driven::new(process, facts, orders, run));
    Ok(Started { kernel, messages })
}
