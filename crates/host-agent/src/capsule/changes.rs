//! The count of changes that no caller asked for, by which the control plane hears of them.

use super::lifetime::now_ms;
use std::time::Duration;
use tokio::sync::watch;

/// Count of unrequested changes of this host's capsules and snapshots.
pub(super) struct Changes(watch::Sender<u64>);

impl Changes {
    /// Returns a count that an earlier agent process has not reached.
    pub(super) fn new() -> Self {
        Self(watch::channel(u64::try_from(now_ms()).unwrap_or(0)).0)
    }

    /// Counts a change, and wakes everyone who waits for one.
    pub(super) fn note(&self) {
        self.0.send_modify(|count| *count += 1);
    }

    /// Waits until the count differs from `seen`, for at most `most`; returns the count. A count
    /// from another agent process differs too, so the call returns at once.
    pub(super) async fn wait(&self, seen: u64, most: Duration) -> u64 {
        let mut changes = self.0.subscribe();
        let changed = changes.wait_for(|count| *count != seen);
        let _ = tokio::time::timeout(most, changed).await;
        *self.0.borrow()
    }
}
