//! Requests for rounds of the reconciler. A request that doubts a row waits here until `reconcile`
//! has compared the rows of that host with its machines.

use daemon::lock;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use types::HostId;

/// Shortest time between two rounds of a host that requests ask for, and the longest wait for one.
const APART: Duration = Duration::from_secs(1);
const FRESH: Duration = Duration::from_secs(5);
/// Most requests that wait to be taken.
const WAITING: usize = 1024;

type HostLocks<T> = Mutex<HashMap<HostId, Arc<tokio::sync::Mutex<T>>>>;

/// A request to reconcile a host now.
pub(crate) struct Request {
    pub host: HostId,
    /// Told when the round is over.
    pub done: oneshot::Sender<()>,
}

/// The way to the reconciler of this replica.
pub(crate) struct Rounds {
    requests: mpsc::Sender<Request>,
    /// Locks that let one round at a time reconcile a host, since two would repair the same things
    /// twice.
    turns: HostLocks<()>,
    /// Start of the last shared round of each host.
    asked: HostLocks<Option<Instant>>,
}

impl Rounds {
    /// Creates the way to the reconciler, and the reconciler's end of it.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Request>) {
        let (requests, taken) = mpsc::channel(WAITING);
        (Self { requests, turns: Mutex::default(), asked: Mutex::default() }, taken)
    }

    /// Returns the lock that a round of a host holds.
    pub(crate) fn turn(&self, host: HostId) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(lock(&self.turns).entry(host).or_default())
    }

    /// Waits for a round of a host that is begun for this call.
    pub(crate) async fn run(&self, host: HostId) {
        let (done, over) = oneshot::channel();
        if self.requests.send(Request { host, done }).await.is_ok() {
            // An error means that the replica shuts down.
            let _ = over.await;
        }
    }

    /// Waits for a round of a host that begins after this call. Concurrent callers share one round,
    /// and rounds begin [`APART`] from each other. So no number of requests reconciles a host more
    /// often.
    pub(crate) async fn fresh(&self, host: HostId) {
        let now = Instant::now();
        let last = Arc::clone(lock(&self.asked).entry(host).or_default());
        let look = async {
            let mut last = last.lock().await;
            if last.is_some_and(|begun| begun >= now) {
                return;
            }
            if let Some(begun) = *last {
                tokio::time::sleep_until(begun + APART).await;
            }
            *last = Some(Instant::now());
            self.run(host).await;
        };
        let _ = tokio::time::timeout(FRESH, look).await;
    }
}
