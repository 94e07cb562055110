//! All executions that clients may read: those under way, and ended ones for a while.

use super::{Execution, Subscription};
use crate::error::{Error, Result};
use crate::lock::lock;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Time that an ended execution is kept.
const KEPT: Duration = Duration::from_secs(600);
/// Most ended executions that are kept.
const ENDED_MAX: usize = 64;
/// Most bytes of all ended executions together.
const BYTES_MAX: usize = 16 << 20;
/// Most streams of one execution.
const CLIENTS_MAX: usize = 16;
/// Time in which streams that are cut have ended.
const CUT: Duration = Duration::from_millis(500);

/// The executions of all contexts, in the order of their beginnings.
pub(crate) struct Executions {
    list: Mutex<Vec<Arc<Execution>>>,
    /// Number of cuts so far. Each stream holds a receiver.
    cuts: watch::Sender<u64>,
}

impl Executions {
    pub(crate) fn new() -> Self {
        Self { list: Mutex::default(), cuts: watch::Sender::new(0) }
    }

    pub(crate) fn insert(&self, execution: Arc<Execution>) {
        lock(&self.list).push(execution);
        self.forget(Instant::now());
    }

    pub(crate) fn find(&self, id: &str) -> Option<Arc<Execution>> {
        lock(&self.list).iter().find(|execution| execution.id == id).cloned()
    }

    /// Begins the stream of the client that asked for an execution.
    pub(crate) fn own(&self, execution: &Arc<Execution>) -> Subscription {
        Subscription::new(execution, 0, true, self.cuts.subscribe())
    }

    /// Begins a stream of another client, after the first lines.
    ///
    /// # Errors
    /// When the execution has as many streams as it may.
    pub(crate) fn attach(&self, execution: &Arc<Execution>, after: u64) -> Result<Subscription> {
        if execution.clients() >= CLIENTS_MAX {
            return Err(Error::too_many(format!(
                "the execution has {CLIENTS_MAX} streams already"
            )));
        }
        Ok(Subscription::new(execution, after, false, self.cuts.subscribe()))
    }

    /// Ends all streams so that nobody takes them for complete. The executions go on. Waits for the
    /// streams, for a limited time.
    pub(crate) async fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
        // A connection whose other side is gone may stay open for many minutes.
        lock(&self.list).iter().for_each(|execution| execution.let_go());
        let _ = tokio::time::timeout(CUT, self.cuts.closed()).await;
    }

    /// Drops ended executions that are too old or too many.
    pub(crate) fn forget(&self, now: Instant) {
        let mut list = lock(&self.list);
        let (mut count, mut bytes) = (0, 0);
        let mut kept: Vec<_> = list.drain(..).rev().collect();
        kept.retain(|execution| {
            let Some(ended) = execution.ended() else { return true };
            count += 1;
            bytes += execution.bytes();
            execution.has_client()
                || (now.duration_since(ended) < KEPT && count <= ENDED_MAX && bytes <= BYTES_MAX)
        });
        kept.reverse();
        *list = kept;
    }
}
