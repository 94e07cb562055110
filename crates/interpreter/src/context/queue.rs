//! The order of executions. The next execution begins when the kernel is free. An execution whose
//! client left before its turn is dropped.

use super::actor::Actor;
use super::phase::Phase;
use super::running::Running;
use super::{Activity, Job, death};
use crate::kernel::{Failure, Run, Setup, Stream};
use crate::lock::lock;

impl Actor {
    /// Starts the next execution if the kernel is free. An execution without a client gives way to
    /// one with a client.
    pub(super) async fn proceed(&mut self) {
        if self.running.is_none() && matches!(self.phase, Phase::Up { .. }) {
            self.begin_next().await;
        }
        let is_orphan = |r: &Running| r.stopping.is_none() && !r.job.execution.has_client();
        if self.running.as_ref().is_some_and(is_orphan)
            && self.queue.iter().any(|job| job.execution.has_client())
        {
            self.stop();
        }
    }

    /// Begins the execution that has waited longest, if there is one.
    async fn begin_next(&mut self) {
        let Some(job) = self.queue.pop_front() else {
            lock(&self.facts).activity = Activity::Idle;
            return;
        };
        {
            let mut facts = lock(&self.facts);
            facts.leave_queue();
            facts.begin();
            self.record.executions = facts.executions;
        }
        self.tell_notice(&job).await;
        self.runs += 1;
        let (code, setup) = (job.request.code.clone(), self.setup(&job));
        let run = Run { number: self.runs, code, setup };
        self.record.pristine = false;
        self.record.running = Some(job.execution.id.clone());
        if let Some(saved) = &mut self.record.kernel {
            saved.run = self.runs;
        }
        // A later interpreter must know of the run before the kernel does.
        self.save();
        self.running = Some(Running::new(job, self.runs));
        if let Some(kernel) = self.phase.kernel() {
            kernel.run(run);
        }
    }

    /// Tells an execution that the state is lost: as an error if the client relies on it.
    async fn tell_notice(&mut self, job: &Job) {
        let Some(notice) = self.notice.take() else { return };
        if job.request.by_id {
            job.execution.fail(&notice);
        } else {
            job.execution.text(Stream::Stderr, &format!("{}\n", notice.value)).await;
        }
    }

    /// Returns the changes that the kernel needs before an execution.
    fn setup(&mut self, job: &Job) -> Setup {
        let current = self.services.capsule();
        let changed = self.generation != current.number;
        self.generation = current.number;
        Setup {
            capsule: changed.then_some(current.envs),
            envs: job.request.envs.clone(),
            seed: self.seed.take(),
        }
    }

    /// Ends an execution before its turn, if it waits.
    pub(super) fn drop_queued(&mut self, id: &str) {
        let Some(at) = self.queue.iter().position(|job| job.execution.id == id) else { return };
        if let Some(job) = self.queue.remove(at) {
            self.abort(&job);
        }
    }

    /// Ends an execution that never runs.
    pub(super) fn abort(&self, job: &Job) {
        lock(&self.facts).leave_queue();
        job.execution.fail(&death::aborted());
        job.execution.end();
    }

    /// Ends the execution under way with an error.
    pub(super) fn fail_running(&mut self, failure: &Failure) {
        if let Some(running) = self.running.take() {
            running.job.execution.fail(failure);
            running.job.execution.end();
        }
    }

    /// Ends every execution that waits with an error.
    pub(super) fn fail_queue(&mut self, failure: &Failure) {
        for job in self.queue.drain(..) {
            lock(&self.facts).leave_queue();
            job.execution.fail(failure);
            job.execution.end();
        }
    }
}
