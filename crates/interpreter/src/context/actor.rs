//! The task of a context, which alone uses the kernel. This file has the task's loop. The task's
//! work is in `starts` (kernels), `queue` (executions), `interrupts` and `messages`.
//!
//! ```text
//!            start           ok                   died, restart
//!   Down ──────────▶ Starting ───▶ Up ─────────────────────────────▶ Starting
//!    ▲                  │          │ died at once, and nobody waits
//!    └──────────────────┴──────────┘
//! ```

use super::death;
use super::phase::{News, Phase};
use super::running::Running;
use super::{Command, Facts, Job};
use crate::error::Result;
use crate::execution::Signal;
use crate::kernel::{Failure, SEED};
use crate::services::Services;
use crate::state::Record;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

/// Channels of the task: commands, signals of executions, and the origin of these signals.
pub(super) type Channels =
    (mpsc::Receiver<Command>, mpsc::UnboundedReceiver<Signal>, mpsc::UnboundedSender<Signal>);

/// The task of a context.
pub(super) struct Actor {
    pub(super) services: Arc<Services>,
    pub(super) record: Record,
    pub(super) facts: Arc<Mutex<Facts>>,
    pub(super) phase: Phase,
    pub(super) queue: VecDeque<Job>,
    pub(super) running: Option<Running>,
    /// Runs of this kernel so far.
    pub(super) runs: u64,
    /// Generation of the capsule's variables that the kernel has.
    pub(super) generation: u64,
    /// Randomness for the next run.
    pub(super) seed: Option<[u8; SEED]>,
    /// Set while the kernel stands still.
    pub(super) held: bool,
    /// Loss of state that the next execution is told.
    pub(super) notice: Option<Failure>,
    pub(super) up_since: Option<Instant>,
    pub(super) restarts: Vec<oneshot::Sender<Result<()>>>,
    pub(super) settled: watch::Sender<Option<Result<()>>>,
    commands: mpsc::Receiver<Command>,
    signals: mpsc::UnboundedReceiver<Signal>,
}

/// Something that happened.
enum Step {
    Command(Option<Command>),
    Signal(Signal),
    News(News),
    Due,
}

impl Actor {
    pub(super) fn new(
        services: Arc<Services>,
        record: Record,
        facts: Arc<Mutex<Facts>>,
        (commands, signals, origin): Channels,
        settled: watch::Sender<Option<Result<()>>>,
    ) -> Self {
        let mut actor = Self {
            services,
            record,
            facts,
            phase: Phase::Down,
            queue: VecDeque::new(),
            running: None,
            runs: 0,
            generation: 0,
            seed: None,
            held: false,
            notice: None,
            up_since: None,
            restarts: Vec::new(),
            settled,
            commands,
            signals,
        };
        match actor.record.kernel.clone() {
            Some(saved) => actor.adopt(saved, origin),
            None => actor.start(),
        }
        actor
    }

    /// Runs until the context is removed or released.
    pub(super) async fn run(mut self) {
        loop {
            match self.step().await {
                Step::Command(Some(Command::Release(done))) => {
                    self.release();
                    let _ = done.send(());
                    return;
                }
                Step::Command(None | Some(Command::Remove)) => return self.end(),
                Step::Command(Some(command)) => {
                    self.catch_up().await;
                    self.obey(command).await;
                }
                Step::Signal(signal) => self.hear(&signal).await,
                Step::News(News::Started(started)) => self.settle(started).await,
                Step::News(News::Message(message)) => self.take(message).await,
                Step::Due => {
                    self.catch_up().await;
                    self.act(Instant::now());
                }
            }
        }
    }

    /// Takes the messages that the kernel has sent until now. So no command and no limit of time
    /// acts on a run that has ended already. Messages that come meanwhile wait.
    async fn catch_up(&mut self) {
        for _ in 0..self.phase.waiting() {
            let News::Message(message) = self.phase.news().await else { return };
            self.take(message).await;
        }
    }

    async fn step(&mut self) -> Step {
        let is_awaited = !self.queue.is_empty();
        let due = self.running.as_ref().and_then(|running| running.due(is_awaited));
        let sleep = async {
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            command = self.commands.recv() => Step::Command(command),
            Some(signal) = self.signals.recv() => Step::Signal(signal),
            news = self.phase.news() => Step::News(news),
            () = sleep => Step::Due,
        }
    }

    async fn obey(&mut self, command: Command) {
        match command {
            // The signal of a client that left may come before its job.
            Command::Execute(job) if job.execution.is_gone() => self.abort(&job),
            Command::Execute(job) => {
                self.queue.push_back(job);
                if matches!(self.phase, Phase::Down) {
                    self.start();
                }
                self.proceed().await;
            }
            Command::Interrupt(id, answer) => _ = answer.send(self.interrupt(id.as_deref())),
            Command::Restart { forget, done } => self.restart(forget, done),
            Command::Ask(question, answer) => {
                if let Some(kernel) = self.phase.kernel() {
                    kernel.ask(question, answer);
                }
            }
            Command::Memory(answer) => {
                _ = answer.send(self.phase.kernel().and_then(|kernel| kernel.memory()));
            }
            Command::Seed(seed) => self.seed = self.record.pristine.then_some(seed),
            Command::Remove | Command::Release(_) => {}
        }
    }

    async fn hear(&mut self, signal: &Signal) {
        match signal {
            Signal::Gone(id) if self.is_running(id) => self.stop(),
            Signal::Gone(id) => self.drop_queued(id),
            Signal::Alone(_) => self.proceed().await,
            Signal::Hold(id, held) if self.is_running(id) => self.hold(*held),
            Signal::Hold(..) => {}
        }
    }

    pub(super) fn is_running(&self, id: &str) -> bool {
        self.running.as_ref().is_some_and(|running| running.job.execution.id == id)
    }

    pub(super) fn save(&self) {
        self.services.state.update(&self.record.id, |record| record.clone_from(&self.record));
    }

    fn end(mut self) {
        let failure = death::removed();
        self.fail_running(&failure);
        self.fail_queue(&failure);
        // Requests that came after the removal would wait for ever.
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Execute(job) = command {
                job.execution.fail(&failure);
                job.execution.end();
            }
        }
        self.services.state.remove(&self.record.id);
    }

    fn release(mut self) {
        self.hold(false);
        if let Phase::Up { kernel, .. } = std::mem::replace(&mut self.phase, Phase::Down) {
            kernel.release();
        }
    }
}
