//! Messages of a kernel: the events of the run, and the kernel's end.

use super::actor::Actor;
use super::running::Running;
use super::{Activity, Job, Request, death};
use crate::execution::{Execution, Options};
use crate::kernel::{Event, Exit, Failure, Kind, Message, Status, Stream};
use crate::lock::lock;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Language whose kernel writes a line and its end as one text. Clients expect two.
const JAVA: &str = "java";

impl Actor {
    /// Takes a message of the kernel. `None` is the end of a kernel that told no status.
    pub(super) async fn take(&mut self, message: Option<Message>) {
        match message {
            Some(Message::Event(event)) => self.relay(event).await,
            Some(Message::Died(exit)) => self.bury(&exit).await,
            None => {
                self.bury(&Exit { status: Status::Unknown, out_of_memory: None }).await;
            }
        }
    }

    /// Writes an event to the log of its execution. An unknown cause counts as the run under way.
    async fn relay(&mut self, event: Event) {
        let Some(running) = self.running.as_mut().filter(|r| event.run == 0 || r.run == event.run)
        else {
            return self.keep_late(&event.kind);
        };
        let execution = Arc::clone(&running.job.execution);
        match event.kind {
            Kind::Count(count) => {
                running.is_counted = true;
                execution.count(count);
            }
            Kind::Text(stream, text) => {
                if execution.ended().is_some() {
                    return lock(&self.facts).late.push(&text);
                }
                let is_java = self.record.language == JAVA;
                write(&execution, stream, &text, is_java).await;
            }
            Kind::Data(bundle) => execution.data(bundle),
            Kind::Error(failure) => running.fail(&failure),
            Kind::Ended if event.run == 0 => {}
            Kind::Ended => self.finish().await,
        }
    }

    fn keep_late(&self, kind: &Kind) {
        if let Kind::Text(_, text) = kind {
            lock(&self.facts).late.push(text);
        }
    }

    /// Ends the execution under way, and starts the next one.
    async fn finish(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.end_at_deadline(true);
            running.job.execution.end();
        }
        self.hold(false);
        self.record.running = None;
        self.save();
        self.proceed().await;
    }

    /// Takes note of the end of the kernel. The context lives on with a new one.
    async fn bury(&mut self, exit: &Exit) {
        let failure = death::describe(exit);
        match self.running.take() {
            // The code before this one ended the kernel, which had not taken this one yet.
            Some(running) if failure.is_none() && running.may_run_again() => {
                self.requeue(running.job);
            }
            Some(mut running) => {
                running.end_at_deadline(true);
                if let Some(failure) = failure.filter(|_| !running.is_timed_out) {
                    running.job.execution.fail(&failure);
                }
                running.job.execution.end();
            }
            None => self.notice = failure.filter(|_| !self.record.pristine),
        }
        if self.is_steady() {
            return self.start();
        }
        self.reset();
        lock(&self.facts).activity = Activity::Dead;
        self.save();
    }

    fn requeue(&mut self, mut job: Job) {
        job.retried = true;
        self.queue.push_front(job);
        lock(&self.facts).queued += 1;
    }
}

async fn write(execution: &Execution, stream: Stream, text: &str, is_java: bool) {
    match text.strip_suffix('\n') {
        Some(line) if is_java && !line.is_empty() => {
            execution.text(stream, line).await;
            execution.text(stream, "\n").await;
        }
        _ => execution.text(stream, text).await,
    }
}

impl Running {
    fn may_run_again(&self) -> bool {
        !self.is_counted && !self.job.retried && self.stopping.is_none()
    }

    /// Writes an error. The error that a deadline causes is told as the deadline's own.
    fn fail(&mut self, failure: &Failure) {
        if self.is_timed_out {
            self.traceback.clone_from(&failure.traceback);
        } else {
            self.job.execution.fail(failure);
        }
    }

    /// Ends the execution with the deadline's error, if its time was over.
    pub(super) fn end_at_deadline(&mut self, has_ended: bool) {
        if !self.has_open_deadline() {
            return;
        }
        let limit = self.job.request.timeout.unwrap_or_default().as_millis();
        let traceback = std::mem::take(&mut self.traceback);
        self.job.execution.fail(&death::timed_out(limit, traceback, has_ended));
        self.job.execution.end();
    }
}

impl Job {
    /// Makes a job of an execution that a kernel runs already.
    pub(super) fn orphan(execution: Arc<Execution>) -> Self {
        let request = Request {
            code: String::new(),
            envs: BTreeMap::new(),
            timeout: None,
            options: Options { keep: true, max_output: None },
            by_id: false,
            _permit: None,
        };
        Self { execution, request, retried: true }
    }
}
