//! A client's end of an execution's log.

use super::log::{Missing, Taken};
use super::{Execution, Signal};
use crate::line::Line;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;

/// Silence after which a client gets a keepalive.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Most bytes that go out as one chunk, unless a line is longer.
const CHUNK: usize = 64 * 1024;

/// The next part of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Lines(Bytes),
    /// The stream must end so that nobody takes it for complete.
    Cut,
    Ended,
}

/// A client's end of a log. The drop of a stream that has not ended tells the context that its
/// client has left.
pub(crate) struct Subscription {
    execution: Arc<Execution>,
    key: u64,
    grown: watch::Receiver<()>,
    cuts: watch::Receiver<u64>,
    first: Option<Bytes>,
    /// Set for the client that asked for the execution, until its stream is cut.
    is_owner: bool,
    /// Set once the stream has ended.
    is_over: bool,
}

impl Subscription {
    /// Subscribes to the lines after the first `after`.
    pub(super) fn new(
        execution: &Arc<Execution>,
        after: u64,
        is_owner: bool,
        cuts: watch::Receiver<u64>,
    ) -> Self {
        let (key, missing) = execution.with_log(|log| log.open(after));
        Self {
            execution: Arc::clone(execution),
            key,
            grown: execution.grown.subscribe(),
            cuts,
            first: missing.map(omitted),
            is_owner,
            is_over: false,
        }
    }

    /// Waits for the next part. Nothing is lost if the wait is dropped.
    pub(crate) async fn next(&mut self) -> Next {
        if let Some(first) = self.first.take() {
            return Next::Lines(first);
        }
        loop {
            self.grown.mark_unchanged();
            if self.cuts.has_changed().unwrap_or(true) {
                return self.cut().await;
            }
            match self.execution.with_log(|log| log.take(self.key, CHUNK)) {
                Taken::Lines(lines) => return Next::Lines(lines),
                Taken::Ended => {
                    self.is_over = true;
                    return Next::Ended;
                }
                Taken::Empty => {}
            }
            tokio::select! {
                _ = self.grown.changed() => {}
                _ = self.cuts.changed() => return self.cut().await,
                () = tokio::time::sleep(KEEPALIVE) => {
                    return Next::Lines(Line::Keepalive.encode());
                }
            }
        }
    }

    /// Ends the stream. The turn of other tasks lets the connection send the lines before.
    async fn cut(&mut self) -> Next {
        self.is_owner = false;
        tokio::task::yield_now().await;
        Next::Cut
    }
}

fn omitted(missing: Missing) -> Bytes {
    Line::Omitted { bytes: missing.bytes, lines: Some(missing.lines) }.encode()
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let is_alone = self.execution.with_log(|log| {
            log.close(self.key);
            log.cursors() == 0
        });
        if self.is_over {
            return;
        }
        // A client that reads nothing does not come to know of its cut.
        let is_cut = self.cuts.has_changed().unwrap_or(true);
        let id = self.execution.id.clone();
        if self.is_owner && !is_cut && !self.execution.keep {
            self.execution.gone.store(true, Ordering::Relaxed);
            let _ = self.execution.signals.send(Signal::Gone(id));
        } else if is_alone {
            let _ = self.execution.signals.send(Signal::Alone(id));
        }
    }
}
