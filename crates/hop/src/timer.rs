//! Timers that cost nothing while bytes move. The clock is read, and a timer is armed, only while a
//! task waits.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// Time that an exchange may go on without a byte.
pub const SILENCE: Duration = Duration::from_secs(600);

/// Detects that nothing has moved for too long.
#[derive(Default)]
pub(crate) struct Still {
    /// Time of the first check that saw no movement.
    since: Option<Instant>,
    timer: Timer,
}

/// Wakes the task when a limit may have been reached.
#[derive(Default)]
pub(crate) struct Timer(Option<Armed>);

struct Armed {
    sleep: Pin<Box<Sleep>>,
    /// The waker that the timer wakes.
    known: Waker,
}

impl Still {
    /// Records that bytes have moved.
    pub(crate) fn moved(&mut self) {
        self.since = None;
    }

    /// Completes when nothing has moved for as long as `limit`.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, limit: Duration) -> Poll<()> {
        let since = *self.since.get_or_insert_with(Instant::now);
        self.timer.poll(cx, since + limit)
    }
}

impl Timer {
    /// Completes at the deadline, and wakes the task then.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let Armed { sleep, known } = self.0.get_or_insert_with(|| Armed {
            sleep: Box::pin(tokio::time::sleep_until(deadline)),
            known: Waker::noop().clone(),
        });
        let early = sleep.deadline() <= deadline;
        if early && !sleep.is_elapsed() && known.will_wake(cx.waker()) {
            return Poll::Pending;
        }
        known.clone_from(cx.waker());
        // A timer that was armed too early is armed anew when it fires. This is cheaper than at
        // each byte.
        if !early {
            sleep.as_mut().reset(deadline);
        }
        loop {
            std::task::ready!(sleep.as_mut().poll(cx));
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
    }
}
