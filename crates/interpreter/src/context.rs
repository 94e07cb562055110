//! Contexts: a language, a folder and a kernel that keeps the state of earlier executions. Each has
//! a task (`actor`) that alone uses its kernel. This file is the handle that others have.

mod actor;
mod death;
mod interrupts;
mod late;
mod messages;
mod phase;
mod queue;
mod running;
mod starts;

#[cfg(test)]
pub(crate) mod script;

use crate::error::{Error, Result};
use crate::execution::{Execution, Options, Signal, Subscription};
use crate::kernel::{Question, SEED};
use crate::line;
use crate::lock::lock;
use crate::services::Services;
use crate::state::Record;
use actor::Actor;
use late::Late;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use uuid::Uuid;

/// Most executions that wait for a context.
const QUEUE_MAX: usize = 64;
/// Commands that wait for the task. More only come from a flood of requests.
const COMMANDS: usize = 256;
/// Time limit for the task's answer to a command that needs no kernel.
const ANSWER: Duration = Duration::from_secs(2);
/// Time limit for a kernel's answer to a question.
const QUESTION: Duration = Duration::from_secs(10);

/// A client's code, with its choices.
pub(crate) struct Request {
    pub code: String,
    pub envs: BTreeMap<String, String>,
    /// Longest time of the run itself, without the wait for it.
    pub timeout: Option<Duration>,
    pub options: Options,
    /// Set if the client named this context, and so relies on its state.
    pub by_id: bool,
    /// Share of the memory for code. It is given back when the request is dropped.
    pub _permit: Option<OwnedSemaphorePermit>,
}

/// An execution that waits or runs.
struct Job {
    execution: Arc<Execution>,
    request: Request,
    /// Set once a kernel that was about to quit got the job.
    retried: bool,
}

/// State of a context, as clients see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Activity {
    Starting,
    Idle,
    Busy,
    /// The kernel could not be started. The next execution tries again.
    Dead,
}

/// Facts that the task keeps up to date for others.
#[derive(Debug)]
struct Facts {
    activity: Activity,
    /// Executions since the kernel's start.
    executions: u64,
    last_used: Option<String>,
    late: Late,
    /// Executions that wait.
    queued: usize,
}

/// A request to the task.
enum Command {
    Execute(Job),
    /// Interrupts one execution, or the one under way. The answer tells if there was one.
    Interrupt(Option<String>, oneshot::Sender<bool>),
    /// Starts a fresh kernel. With `forget`, the context is then as new.
    Restart {
        forget: bool,
        done: oneshot::Sender<Result<()>>,
    },
    Ask(Question, oneshot::Sender<Value>),
    Memory(oneshot::Sender<Option<u64>>),
    /// Gives a pristine kernel other randomness before its next run.
    Seed([u8; SEED]),
    Remove,
    /// Leaves the kernel alive and ends the task.
    Release(oneshot::Sender<()>),
}

/// Handle of a context.
pub(crate) struct Context {
    pub id: String,
    pub language: String,
    /// Folder as the caller gave it.
    pub cwd: String,
    services: Arc<Services>,
    facts: Arc<Mutex<Facts>>,
    commands: mpsc::Sender<Command>,
    signals: mpsc::UnboundedSender<Signal>,
    /// Result of the first start.
    started: watch::Receiver<Option<Result<()>>>,
}

/// A context as clients see it.
#[derive(Debug, serde::Serialize)]
pub(crate) struct View {
    pub id: String,
    pub language: String,
    pub cwd: String,
    pub state: Activity,
    pub executions: u64,
    pub memory_bytes: Option<u64>,
    pub last_used: Option<String>,
    /// Output of threads whose executions have ended.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub late_output: String,
}

impl Context {
    /// Makes a context and starts its kernel, or finds the kernel of its record again.
    pub(crate) fn new(services: &Arc<Services>, record: Record) -> Arc<Self> {
        let (commands, ordered) = mpsc::channel(COMMANDS);
        let (signals, heard) = mpsc::unbounded_channel();
        let (settled, started) = watch::channel(None);
        let facts = Arc::new(Mutex::new(Facts {
            activity: Activity::Starting,
            executions: record.executions,
            last_used: None,
            late: Late::default(),
            queued: 0,
        }));
        let context = Arc::new(Self {
            id: record.id.clone(),
            language: record.language.clone(),
            cwd: record.cwd.clone(),
            services: Arc::clone(services),
            facts: Arc::clone(&facts),
            commands,
            signals: signals.clone(),
            started,
        });
        services.state.insert(record.clone());
        let actor =
            Actor::new(Arc::clone(services), record, facts, (ordered, heard, signals), settled);
        tokio::spawn(actor.run());
        context
    }

    /// Waits for the result of the first start.
    pub(crate) async fn started(&self) -> Result<()> {
        let mut started = self.started.clone();
        let settled = started.wait_for(Option::is_some).await.map(|settled| settled.clone());
        settled.ok().flatten().unwrap_or_else(|| Err(Error::no_context(&self.id)))
    }

    /// Reports whether the first start is over.
    pub(crate) fn is_settled(&self) -> bool {
        self.started.borrow().is_some()
    }

    /// Lets code wait for its turn. Returns its stream, which is open from then on.
    pub(crate) fn execute(&self, request: Request) -> Result<Subscription> {
        let mut facts = lock(&self.facts);
        if facts.queued >= QUEUE_MAX {
            return Err(self.full());
        }
        let id = Uuid::new_v4().to_string();
        let execution = Execution::new(id, &self.id, request.options, self.signals.clone());
        let stream = self.services.executions.own(&execution);
        let job = Job { execution: Arc::clone(&execution), request, retried: false };
        match self.commands.try_send(Command::Execute(job)) {
            Ok(()) => {
                facts.queued += 1;
                self.services.executions.insert(execution);
                Ok(stream)
            }
            Err(mpsc::error::TrySendError::Full(_)) => Err(self.full()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Error::no_context(&self.id)),
        }
    }

    fn full(&self) -> Error {
        let text = format!("context {} has {QUEUE_MAX} executions that wait already", self.id);
        Error::too_many(text)
    }

    /// Interrupts one execution, or the one under way. Returns once the signal was sent.
    pub(crate) async fn interrupt(&self, execution: Option<String>) -> Result<bool> {
        self.ask_task(|answer| Command::Interrupt(execution, answer), ANSWER).await
    }

    /// Starts a fresh kernel. Returns once the kernel is up.
    pub(crate) async fn restart(&self, forget: bool) -> Result<()> {
        let limit = phase::START + ANSWER;
        self.ask_task(|done| Command::Restart { forget, done }, limit).await?
    }

    /// Asks the kernel a question.
    pub(crate) async fn ask(&self, question: Question) -> Result<Value> {
        let asked = self.ask_task(|answer| Command::Ask(question, answer), QUESTION).await;
        asked.map_err(|error| match lock(&self.facts).activity {
            _ if error.status == http::StatusCode::NOT_FOUND => error,
            Activity::Idle => Error::new(
                http::StatusCode::NOT_IMPLEMENTED,
                format!("the {} kernel cannot answer this", self.language),
            ),
            Activity::Busy | Activity::Starting | Activity::Dead => Error::new(
                http::StatusCode::CONFLICT,
                format!("context {} is busy or has no kernel", self.id),
            ),
        })
    }

    /// Gives the kernel other randomness, if it ran no client's code.
    pub(crate) async fn seed(&self, seed: [u8; SEED]) {
        let _ = self.commands.send(Command::Seed(self.own_seed(seed))).await;
    }

    /// Derives randomness that no other context gets.
    fn own_seed(&self, mut seed: [u8; SEED]) -> [u8; SEED] {
        let id = Uuid::parse_str(&self.id).unwrap_or_default();
        for (byte, of_id) in seed.iter_mut().zip(id.as_bytes()) {
            *byte ^= of_id;
        }
        seed
    }

    /// Ends the context with its kernel and all of its executions.
    pub(crate) async fn remove(&self) {
        let _ = self.commands.send(Command::Remove).await;
    }

    /// Leaves the kernel alive for a later interpreter.
    pub(crate) async fn release(&self) {
        let _ = self.ask_task(Command::Release, ANSWER).await;
    }

    /// Describes the context.
    pub(crate) async fn view(&self) -> View {
        let memory_bytes = self.ask_task(Command::Memory, ANSWER).await.ok().flatten();
        let facts = lock(&self.facts);
        View {
            id: self.id.clone(),
            language: self.language.clone(),
            cwd: self.cwd.clone(),
            state: facts.activity,
            executions: facts.executions,
            memory_bytes,
            last_used: facts.last_used.clone(),
            late_output: facts.late.text(),
        }
    }

    /// Sends a command with the means to answer it, and waits for the answer.
    async fn ask_task<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
        limit: Duration,
    ) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let asking = async {
            let sent = self.commands.send(command(answer)).await;
            sent.map_err(|_| Error::no_context(&self.id))?;
            answered.await.map_err(|_| match self.commands.is_closed() {
                true => Error::no_context(&self.id),
                false => Error::internal(format!("context {} did not answer", self.id)),
            })
        };
        let late = |_| Error::internal(format!("context {} did not answer in time", self.id));
        tokio::time::timeout(limit, asking).await.map_err(late)?
    }
}

impl Facts {
    fn leave_queue(&mut self) {
        self.queued = self.queued.saturating_sub(1);
    }

    /// Notes the begin of an execution.
    fn begin(&mut self) {
        self.activity = Activity::Busy;
        self.executions += 1;
        self.last_used = Some(line::now());
    }
}

#[cfg(test)]
mod tests;
