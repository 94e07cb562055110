//! Kernels: programs that keep the state of a context and run code in it. A context sees every
//! kernel through `Kernel` and its messages.

pub(crate) mod bash;
mod driven;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod jupyter;
pub(crate) mod launch;
mod message;
pub(crate) mod node;
mod piped;
mod python;
mod specs;
mod tail;
mod zmtp;

use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Bytes of randomness that a kernel's generators are seeded with.
pub(crate) const SEED: usize = 32;

/// A running kernel. Its methods never wait. A drop kills the process and its group.
pub(crate) trait Kernel: Send {
    /// Begins a run. The messages of the run end with `Kind::Ended`. The context begins no other
    /// run before.
    fn run(&mut self, run: Run);

    /// Asks the run to stop and keep the state. `round` counts the attempts of one interrupt, from
    /// 0.
    fn interrupt(&mut self, round: u32);

    /// Stops the kernel from producing output, or lets it go on. Output that is under way may still
    /// arrive.
    fn hold(&mut self, held: bool);

    /// Answers a question about the state. A kernel that cannot answer drops the sender.
    fn ask(&mut self, question: Question, answer: oneshot::Sender<Value>);

    /// Memory in bytes that the kernel's processes use, if it can be told.
    fn memory(&self) -> Option<u64>;

    /// Facts by which a later interpreter finds this kernel again. `None` if it cannot.
    fn saved(&self) -> Option<Saved>;

    /// Leaves the process alive when the interpreter ends. Called before a planned end.
    fn release(self: Box<Self>);
}

/// A kernel and the stream of its messages. The stream's last message is `Message::Died`.
pub(crate) struct Started {
    pub kernel: Box<dyn Kernel>,
    pub messages: mpsc::UnboundedReceiver<Message>,
}

/// Parameters of a kernel's start.
#[derive(Debug, Clone)]
pub(crate) struct StartSpec {
    /// Id of the context, a UUID. It names sockets and the control group.
    pub id: String,
    /// Language in its normal form, or the name of a Jupyter kernelspec.
    pub language: String,
    /// Absolute path of a folder that the user can enter.
    pub cwd: PathBuf,
    /// Environment of the process: the capsule's variables and the user's.
    pub envs: BTreeMap<String, String>,
}

/// A run of code.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// Number of the run within its kernel, from 1.
    pub number: u64,
    pub code: String,
    pub setup: Setup,
}

/// Changes to a kernel before a run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Setup {
    /// The capsule's variables, if they changed since the kernel heard of them last. Variables that
    /// were in the previous set and are not in this one are removed.
    pub capsule: Option<Arc<BTreeMap<String, String>>>,
    /// Variables for this run alone. After the run, the kernel restores the earlier values.
    pub envs: BTreeMap<String, String>,
    /// Randomness for the generators of a kernel that ran no user's code since its machine was
    /// copied.
    pub seed: Option<[u8; SEED]>,
}

/// A message of a kernel.
#[derive(Debug)]
pub(crate) enum Message {
    Event(Event),
    /// The kernel's process has ended. No message follows.
    Died(Exit),
}

/// An event of a run.
#[derive(Debug)]
pub(crate) struct Event {
    /// The run that caused the event; 0 for a cause that is unknown.
    pub run: u64,
    pub kind: Kind,
}

/// Kind of an event.
#[derive(Debug)]
pub(crate) enum Kind {
    /// The kernel took the code. The count is 1 for the first run of users.
    Count(u64),
    Text(Stream, String),
    /// The value of the last expression, or a display.
    Data(Bundle),
    Error(Failure),
    /// The run has ended. Nothing of it follows but late output of its threads.
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// Key of a value's formats that names those that were left out: `{MIME: {"bytes": 9, "limit": 8}}`.
/// Kernels also count `cells`, `values` and the like.
pub(crate) const OMITTED: &str = "omitted";

/// A value in several formats, by MIME type.
#[derive(Debug)]
pub(crate) struct Bundle {
    /// Set for the value of the last expression, and not for displays.
    pub main: bool,
    pub data: Map<String, Value>,
}

/// An error of a run, as clients get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub name: String,
    pub value: String,
    pub traceback: String,
}

/// The end of a kernel's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    pub status: Status,
    /// Set when the kernel of the guest ended a process of the group for lack of memory.
    pub out_of_memory: Option<Memory>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Code(i32),
    Signal(i32),
    /// The status was read by another process, such as an earlier interpreter's.
    Unknown,
}

/// Memory of a group in bytes: the most that it used, and the most that all programs may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    pub peak: u64,
    pub limit: u64,
}

/// A question about a kernel's state.
#[derive(Debug, Clone)]
pub(crate) enum Question {
    /// Completions at a position of the code, counted in characters.
    Complete { code: String, cursor: usize },
    /// Names, types and sizes of the user's variables.
    Variables,
}

/// Facts by which a later interpreter finds a kernel again. The state file keeps them.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct Saved {
    /// Process id, and start time from `/proc/PID/stat` in clock ticks.
    pub pid: i32,
    pub started: u64,
    /// Name of the control group below `/sys/fs/cgroup/user`.
    pub group: Option<String>,
    /// Number of the newest run.
    pub run: u64,
    /// Facts of the driver itself, such as the paths of its sockets.
    pub driver: Value,
}

/// The failure of a kernel's start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("language '{0}' is unknown; known are {1}")]
    UnknownLanguage(String, String),
    #[error("cwd '{0}' {1}")]
    Folder(String, String),
    #[error("the {language} kernel did not start: {why}")]
    Failed { language: String, why: String },
}
