//! The platform's last answer on this host's membership.
//!
//! A host may wake after any time, with its timers due. The platform may have forgotten it
//! meanwhile. So code that is about to write to storage that hosts share asks here first.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Time for which a heartbeat's answer is valid.
const FRESH: Duration = Duration::from_secs(5);
/// Time to wait for a heartbeat; longer than the platform may take to answer one.
const WAIT: Duration = Duration::from_secs(60);

/// A heartbeat, with its answer.
#[derive(Debug, Clone, Copy, Default)]
struct Beat {
    /// Time of sending, by [`now`]; `None` before the first heartbeat.
    sent: Option<Duration>,
    /// True when the platform took the heartbeat.
    taken: bool,
}

/// The last heartbeat's answer, and requests for another heartbeat.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    last: watch::Sender<Beat>,
    asked: Notify,
}

impl Standing {
    /// Asks for a heartbeat unless one was answered just now. Returns true if the platform took the
    /// heartbeat, and false also when the platform cannot be reached.
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

    /// Waits until another task asks for a heartbeat.
    pub(crate) async fn asked(&self) {
        self.asked.notified().await;
    }

    /// Records the platform's answer to a heartbeat that was sent at `sent`.
    pub(crate) fn heard(&self, sent: Duration, taken: bool) {
        self.last.send_replace(Beat { sent: Some(sent), taken });
    }
}

/// Returns the time since this machine booted, including time that it was suspended.
pub(crate) fn now() -> Duration {
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
    async fn membership_is_confirmed_by_recent_or_later_heartbeat() {
        let standing = Arc::new(Standing::default());
        let (taken, ()) = tokio::join!(standing.confirm(), answer(&standing, true));
        assert!(taken);
        // No heartbeat is answered here, but the last answer is recent enough.
        assert!(standing.confirm().await);
        // An answer that is too old says nothing about the present.
        standing.heard(now().saturating_sub(FRESH * 2), true);
        let (taken, ()) = tokio::join!(standing.confirm(), answer(&standing, false));
        assert!(!taken);
        // A refusal is never valid for the next question.
        let (taken, ()) = tokio::join!(standing.confirm(), answer(&standing, true));
        assert!(taken);
    }
}
