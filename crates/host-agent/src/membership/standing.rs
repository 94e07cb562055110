//! Whether the platform counts this host as one of its own, as the last heartbeat told.
//!
//! A host may wake after any time, with its timers due, and learn only later that the platform
//! has forgotten it. Whoever is about to write to what hosts share asks here first.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// How long a heartbeat's answer is good.
const FRESH: Duration = Duration::from_secs(5);
/// How long to wait for a heartbeat; longer than the platform may take to answer one.
const WAIT: Duration = Duration::from_secs(60);

/// One heartbeat.
#[derive(Debug, Clone, Copy, Default)]
struct Beat {
    /// When it was sent, by [`now`]; none before the first.
    sent: Option<Duration>,
    /// Whether the platform took it.
    taken: bool,
}

/// What is known of this host's membership.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    last: watch::Sender<Beat>,
    asked: Notify,
}

impl Standing {
    /// Asks for a heartbeat unless one was answered just now. Returns whether the platform took
    /// it; false also when the platform cannot be reached.
    pub(crate) async fn confirm(&self) -> bool {
        let asked = now();
        let last = *self.last.borrow();
        if last.taken && last.sent.is_some_and(|sent| asked.saturating_sub(sent) < FRESH) {
            return true;
        }
        self.asked.notify_one();
        let mut beats = self.last.subscribe();
        let later = beats.wait_for(|beat| beat.sent.is_some_and(|sent| sent >= asked));
        tokio::time::timeout(WAIT, later).await.is_ok_and(|beat| beat.is_ok_and(|beat| beat.taken))
    }

    /// Returns when somebody asks for a heartbeat.
    pub(super) async fn asked(&self) {
        self.asked.notified().await;
    }

    /// Notes how the platform answered a heartbeat that was sent at `sent`.
    pub(super) fn heard(&self, sent: Duration, taken: bool) {
        self.last.send_replace(Beat { sent: Some(sent), taken });
    }
}

/// Time since this machine booted, with the time that it was suspended.
pub(super) fn now() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::try_from(now).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// Answers one request for a heartbeat.
    async fn answer(standing: &Standing, taken: bool) {
        standing.asked().await;
        standing.heard(now(), taken);
    }

    #[tokio::test]
    async fn membership_is_confirmed_by_a_heartbeat_of_after_the_question() {
        let standing = Arc::new(Standing::default());
        let (taken, ()) = tokio::join!(standing.confirm(), answer(&standing, true));
        assert!(taken);
        // Nobody answers: the last answer is recent enough.
        assert!(standing.confirm().await);
        // The answer is older than that: it says nothing about now.
        standing.heard(now().saturating_sub(FRESH * 2), true);
        let (taken, ()) = tokio::join!(standing.confirm(), answer(&standing, false));
        assert!(!taken);
        // A refusal is never good for the next question.
        let (taken, ()) = tokio::join!(standing.confirm(), answer(&standing, true));
        assert!(taken);
    }
}
