//! What each long-lived role shares: logging, metrics, signals, tracked tasks,
//! periodic work.
//!
//! One [`Tasks`] per process: whatever runs in the background is spawned through it, so that
//! a shutdown can wait for it. Never holds product logic.

mod file;
mod metrics;
mod signal;
mod step;

pub use file::write_private;
pub use metrics::Metrics;
pub use signal::{Signal, Wait};
pub use step::step;

use std::future::Future;
use std::io::IsTerminal;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal as unix_signal};
use tokio_util::task::TaskTracker;
use tracing_subscriber::EnvFilter;

/// How long a shutdown waits for tasks before it goes on without them.
const DEADLINE: Duration = Duration::from_secs(10);

/// Sends logs to standard error: text, or JSON when `json`. `filter` is of tracing's form.
pub fn log_to_stderr(filter: &str, json: bool) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // On a full disk the subscriber would report its own failure on standard error, and would panic
    // when that fails too.
    let builder = builder.with_ansi(std::io::stderr().is_terminal()).log_internal_errors(false);
    // A second call, as in tests, keeps the first one's choice.
    let _ = if json { builder.json().try_init() } else { builder.try_init() };
}

/// Lets the process open as many files as the system allows (`fs.nr_open`): each connection that
/// is passed on takes two, and the usual limit is 1,024. Without the right to, as many as it may.
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

/// The background tasks of a process, and the word to stop.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    stop: Signal,
    tracker: TaskTracker,
    /// Signal that ends tasks wherever they wait; `None` where tasks are only ever told to stop.
    abort: Option<Signal>,
}

impl Tasks {
    /// Runs a task that is waited for at shutdown.
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

    /// Runs work that goes on when whoever waits for it here leaves, and returns what it comes to;
    /// none when the shutdown ended it.
    pub async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.spawn(async move {
            let _ = sender.send(Box::pin(work).await);
        });
        receiver.await.ok()
    }

    /// Runs `work` now and then every `period`, until the shutdown.
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

    /// The word to stop.
    #[must_use]
    pub fn stop_signal(&self) -> &Signal {
        &self.stop
    }

    /// Begins the shutdown.
    pub fn stop(&self) {
        self.stop.give();
    }

    /// Begins the shutdown and waits for every task, at most ten seconds.
    pub async fn finish(&self) {
        self.stop.give();
        self.tracker.close();
        if tokio::time::timeout(DEADLINE, self.tracker.wait()).await.is_err() {
            tracing::warn!(left = self.tracker.len(), "tasks outlasted the shutdown");
        }
    }
}

/// Tasks of one part of a process, which end with it.
#[derive(Debug)]
pub struct OwnTasks(Tasks);

impl Default for OwnTasks {
    fn default() -> Self {
        Self(Tasks { abort: Some(Signal::default()), ..Tasks::default() })
    }
}

impl OwnTasks {
    /// Drops every task wherever it waits, and waits until the tasks and all that they hold are
    /// gone.
    pub async fn end(&self) {
        self.0.stop.give();
        if let Some(abort) = &self.0.abort {
            abort.give();
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
            abort.give();
        }
    }
}

/// The times that the process is told to take its settings anew (SIGHUP).
pub struct Hangups(tokio::signal::unix::Signal);

impl Hangups {
    /// The next one.
    pub async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// Listens for SIGHUP, which ends the process no more.
///
/// # Errors
/// When it cannot be listened to.
pub fn hangups() -> std::io::Result<Hangups> {
    unix_signal(SignalKind::hangup()).map(Hangups)
}

/// Waits for SIGTERM or SIGINT.
///
/// # Errors
/// When the signals cannot be listened to.
pub async fn terminated() -> anyhow::Result<()> {
    let mut term = unix_signal(SignalKind::terminate())?;
    let mut int = unix_signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}
