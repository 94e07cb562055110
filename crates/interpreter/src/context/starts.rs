//! Starts of a context's kernels: the first one, and those after an end or a restart. This file
//! also looks for the kernel of an earlier interpreter.

use super::actor::Actor;
use super::phase::Phase;
use super::running::Running;
use super::{Activity, Job, death};
use crate::error::{Error, Result};
use crate::execution::{Execution, Options, Signal};
use crate::kernel::{Saved, StartError, StartSpec, Started};
use crate::lock::lock;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use uuid::Uuid;

/// Life of a kernel after which its end is followed by a start though nobody waits. A kernel that
/// ends sooner would otherwise be started for ever.
const STEADY: Duration = Duration::from_secs(10);

impl Actor {
    /// Drops the kernel and starts another one.
    pub(super) fn start(&mut self) {
        self.reset();
        self.record.pristine = true;
        self.record.executions = 0;
        self.record.kernel_id = Uuid::new_v4().to_string();
        let launch = Arc::clone(&self.services.launch);
        self.generation = self.services.capsule().number;
        let start = launch.start(self.spec());
        self.phase = Phase::starting(&self.record.language, start);
        {
            let mut facts = lock(&self.facts);
            facts.activity = Activity::Starting;
            facts.executions = 0;
        }
        self.save();
    }

    /// Forgets the kernel, which ends.
    pub(super) fn reset(&mut self) {
        self.phase = Phase::Down;
        (self.runs, self.seed, self.held, self.up_since) = (0, None, false, None);
        (self.record.kernel, self.record.running) = (None, None);
    }

    /// Finds the kernel of an earlier interpreter again. An execution that was under way goes on
    /// without a client.
    pub(super) fn adopt(&mut self, saved: Saved, origin: mpsc::UnboundedSender<Signal>) {
        self.runs = saved.run;
        if let Some(id) = self.record.running.clone() {
            let options = Options { keep: true, max_output: None };
            let execution = Execution::new(id, &self.record.id, options, origin);
            self.services.executions.insert(Arc::clone(&execution));
            let mut running = Running::new(Job::orphan(execution), saved.run);
            running.is_counted = true;
            self.running = Some(running);
        }
        let launch = Arc::clone(&self.services.launch);
        let start = launch.adopt(self.spec(), saved);
        self.phase = Phase::starting(&self.record.language, start);
    }

    /// Returns the parameters of the kernel's start.
    fn spec(&self) -> StartSpec {
        StartSpec {
            id: self.record.kernel_id.clone(),
            language: self.record.language.clone(),
            cwd: self.record.folder.clone(),
            envs: self.services.environment(),
        }
    }

    /// Takes the result of a start.
    pub(super) async fn settle(&mut self, started: std::result::Result<Started, StartError>) {
        match started {
            Ok(Started { kernel, messages }) => {
                self.record.kernel = kernel.saved();
                self.phase = Phase::Up { kernel, messages };
                self.up_since = Some(Instant::now());
                if self.running.is_some() {
                    lock(&self.facts).activity = Activity::Busy;
                }
                self.announce(&Ok(()));
                self.save();
                self.proceed().await;
            }
            // Only an adoption has a kernel in its record. Its context gets a new one.
            Err(_) if self.record.kernel.is_some() => {
                self.fail_running(&death::lost());
                self.notice = (!self.record.pristine).then(death::lost);
                self.start();
            }
            Err(error) => {
                self.reset();
                self.save();
                lock(&self.facts).activity = Activity::Dead;
                self.announce(&Err(Error::from(&error)));
                self.fail_queue(&death::not_started(&error.to_string()));
            }
        }
    }

    /// Tells the result of a start to those who wait for it.
    fn announce(&mut self, result: &Result<()>) {
        self.settled.send_replace(Some(result.clone()));
        for done in self.restarts.drain(..) {
            let _ = done.send(result.clone());
        }
    }

    /// Drops the kernel and all executions for a fresh kernel. `done` gets the result of its start.
    pub(super) fn restart(&mut self, forget: bool, done: oneshot::Sender<Result<()>>) {
        let failure = death::restarting();
        self.fail_running(&failure);
        self.fail_queue(&failure);
        self.notice = None;
        self.restarts.push(done);
        self.start();
        if forget {
            lock(&self.facts).last_used = None;
        }
    }

    /// Reports whether the end of the kernel is followed by a start.
    pub(super) fn is_steady(&self) -> bool {
        let has_worked = self.runs > 0 || !self.queue.is_empty();
        has_worked || self.up_since.is_some_and(|since| since.elapsed() >= STEADY)
    }
}
