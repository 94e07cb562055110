//! Runtime support for every long-lived role: logging, metrics, traces, signals, locks, tracked
//! tasks, periodic work and blocking work.
//!
//! A process has one [`Tasks`] and spawns all background work through it. So a shutdown can wait
//! for that work. This crate holds no product logic.

mod blocking;
mod failpoint;
mod file;
mod lock;
mod log;
pub mod metrics;
mod otlp;
mod signal;
pub mod trace;
mod trace_parent;

pub use blocking::blocking;
pub use failpoint::failpoint;
pub use file::write_private;
pub use lock::{lock, read_lock, write_lock};
pub use log::{Logs, log_to_stderr};
pub use metrics::{Metrics, report_expiry};
pub use otlp::SpanExport;
pub use signal::{Signal, Wait};
pub use trace::{operation, stage};

use std::future::Future;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal as unix_signal};
use tokio_util::task::TaskTracker;

/// Time that a shutdown waits for tasks before it goes on without them.
const DEADLINE: Duration = Duration::from_secs(10);

/// Raises the limit of open files to the system's maximum (`fs.nr_open`). Without the right to do
/// so, raises it to the process's hard limit.
///
/// Each proxied connection takes two files, and the usual limit is 1,024.
pub fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open");
    let most = most.ok().and_then(|most| most.trim().parse().ok());
    let known = getrlimit(Resource::Nofile);
    for maximum in [most, known.maximum] {
        let wanted = Rlimit { current: maximum, maximum };
        if maximum.is_some() && setrlimit(Resource::Nofile, wanted).is_ok() {
            return;
        }
    }
}

/// The background tasks of a process, and the signal to stop them.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    stop: Signal,
    tracker: TaskTracker,
    /// Signal that ends tasks wherever they wait. `None` means that tasks end by themselves.
    abort: Option<Signal>,
}

impl Tasks {
    /// Runs a task. A shutdown waits for it.
    #[expect(clippy::disallowed_methods, reason = "this is the tracked spawn")]
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        match self.abort.clone() {
            None => drop(tokio::spawn(self.tracker.track_future(task))),
            Some(abort) => drop(tokio::spawn(self.tracker.track_future(async move {
                tokio::select! {
                    biased;
                    () = abort.wait() => {}
                    () = task => {}
                }
            }))),
        }
    }

    /// Runs work that continues when the caller goes away. The work belongs to the caller's
    /// request. Returns its result, or `None` when a shutdown ended the work.
    pub async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let trace = trace::Trace::current();
        self.spawn(async move {
            let _ = sender.send(trace::scoped(trace, Box::pin(work)).await);
        });
        receiver.await.ok()
    }

    /// Runs `work` at once and then every `period`, until the shutdown.
    pub fn every<F, W>(&self, period: Duration, mut work: W)
    where
        W: FnMut() -> F + Send + 'static,
        F: Future<Output = ()> + Send,
    {
        let stop = self.stop.clone();
        self.spawn(async move {
            let mut ticks = tokio::time::interval(period);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    () = stop.wait() => return,
                    _ = ticks.tick() => work().await,
                }
            }
        });
    }

    /// Completes when the shutdown begins.
    pub async fn stopping(&self) {
        self.stop.wait().await;
    }

    /// Returns the signal that begins the shutdown.
    #[must_use]
    pub fn stop_signal(&self) -> &Signal {
        &self.stop
    }

    /// Begins the shutdown.
    pub fn stop(&self) {
        self.stop.trigger();
    }

    /// Begins the shutdown and waits at most ten seconds for every task.
    pub async fn finish(&self) {
        self.stop.trigger();
        self.tracker.close();
        if tokio::time::timeout(DEADLINE, self.tracker.wait()).await.is_err() {
            tracing::warn!(left = self.tracker.len(), "tasks are still running after the shutdown");
        }
    }
}

/// Tasks of a part of a process. They end when the part is dropped.
#[derive(Debug)]
pub struct OwnTasks(Tasks);

impl Default for OwnTasks {
    fn default() -> Self {
        Self(Tasks { abort: Some(Signal::default()), ..Tasks::default() })
    }
}

impl OwnTasks {
    /// Drops every task wherever it waits. Returns when the tasks and all that they hold are gone.
    pub async fn end(&self) {
        self.0.stop.trigger();
        if let Some(abort) = &self.0.abort {
            abort.trigger();
        }
        self.0.tracker.close();
        self.0.tracker.wait().await;
    }
}

impl std::ops::Deref for OwnTasks {
    type Target = Tasks;

    fn deref(&self) -> &Tasks {
        &self.0
    }
}

impl Drop for OwnTasks {
    fn drop(&mut self) {
        self.0.stop();
        if let Some(abort) = &self.0.abort {
            abort.trigger();
        }
    }
}

/// A stream of SIGHUPs, which tell the process to reload its settings.
pub struct Hangups(tokio::signal::unix::Signal);

impl Hangups {
    /// Waits for the next SIGHUP.
    pub async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// Listens for SIGHUP. From then on, SIGHUP does not end the process.
///
/// # Errors
/// Returns an error when the process cannot listen for the signal.
pub fn hangups() -> std::io::Result<Hangups> {
    unix_signal(SignalKind::hangup()).map(Hangups)
}

/// Waits for SIGTERM or SIGINT.
///
/// # Errors
/// Returns an error when the process cannot listen for the signals.
pub async fn terminated() -> anyhow::Result<()> {
    let mut term = unix_signal(SignalKind::terminate())?;
    let mut int = unix_signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}
