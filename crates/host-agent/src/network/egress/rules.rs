//! The rules of one capsule that are in force, and their replacement.

use daemon::{read_lock, write_lock};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use types::Egress;

/// Rules that are in force now.
pub(super) struct Rules {
    now: RwLock<Known>,
    /// Connections and requests that were refused by name.
    refused: AtomicU64,
}

/// Rules with their tokens, as they were at one time.
#[derive(Clone)]
pub(super) struct Known {
    pub egress: Arc<Egress>,
    /// Token that is cancelled when these rules are replaced. Open connections are then checked
    /// again.
    pub replaced: CancellationToken,
    /// Connections that pass bytes by these rules.
    pub under_way: TaskTracker,
}

impl From<Egress> for Known {
    fn from(egress: Egress) -> Self {
        let (replaced, under_way) = (CancellationToken::new(), TaskTracker::new());
        Self { egress: Arc::new(egress), replaced, under_way }
    }
}

impl From<Egress> for Rules {
    fn from(egress: Egress) -> Self {
        Self { now: RwLock::new(egress.into()), refused: AtomicU64::new(0) }
    }
}

impl Rules {
    /// Counts a connection or a request that was refused by name.
    pub(super) fn note_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the count of connections and requests that were refused by name.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Returns the rules that are in force.
    pub(super) fn now(&self) -> Known {
        read_lock(&self.now).clone()
    }

    /// Replaces the rules. Returns once no connection passes a byte by the earlier ones.
    pub(super) async fn replace(&self, egress: Egress) {
        let earlier = {
            let mut now = write_lock(&self.now);
            std::mem::replace(&mut *now, egress.into())
        };
        earlier.replaced.cancel();
        earlier.under_way.close();
        earlier.under_way.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::task::{Context, Waker};

    #[tokio::test]
    async fn rule_replacement_waits_for_connections_under_old_rules() {
        let rules = Rules::from(Egress::default());
        let Known { replaced, under_way, .. } = rules.now();
        let passing = under_way.token();
        let later = Egress { revision: 7, ..Egress::default() };
        let mut replacing = std::pin::pin!(rules.replace(later));
        let mut context = Context::from_waker(Waker::noop());
        assert!(replacing.as_mut().poll(&mut context).is_pending());
        // A reader sees the new rules before the wait ends, and a connection that passes bytes is
        // told.
        assert_eq!(rules.now().egress.revision, 7);
        assert!(replaced.is_cancelled() && !rules.now().replaced.is_cancelled());
        drop(passing);
        replacing.await;
    }
}
