//! A signal to many tasks at once. Tasks that are polled often pay next to nothing: a poll reads
//! one flag and takes no lock.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Signal that stays triggered once it is triggered. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Signal(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    triggered: AtomicBool,
    /// Wakes the waiting tasks.
    token: CancellationToken,
}

impl Signal {
    /// Triggers the signal.
    pub fn trigger(&self) {
        self.0.triggered.store(true, Ordering::Release);
        self.0.token.cancel();
    }

    /// Reports whether the signal was triggered.
    #[must_use]
    pub fn is_triggered(&self) -> bool {
        self.0.triggered.load(Ordering::Acquire)
    }

    /// Completes when the signal is triggered. The future may be polled again after that.
    #[must_use]
    pub fn wait(&self) -> Wait {
        let woken = Box::pin(self.0.token.child_token().cancelled_owned());
        Wait { signal: self.clone(), woken, known: None }
    }
}

/// Future that waits for a signal.
#[derive(Debug)]
pub struct Wait {
    signal: Signal,
    woken: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The waker that the token wakes.
    known: Option<Waker>,
}

impl Wait {
    /// Reports whether the signal was triggered.
    #[must_use]
    pub fn is_triggered(&self) -> bool {
        self.signal.is_triggered()
    }
}

impl Future for Wait {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_triggered() {
            return Poll::Ready(());
        }
        if self.known.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        self.known = Some(cx.waker().clone());
        self.woken.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn signal_wakes_current_and_later_waiters() {
        let signal = Signal::default();
        let mut waiting = [signal.wait(), signal.wait()];
        for wait in &mut waiting {
            // The second poll by the same waker only reads the flag.
            assert!(futures::poll!(&mut *wait).is_pending());
            assert!(futures::poll!(&mut *wait).is_pending());
        }
        let later = signal.clone();
        let triggering = async { later.trigger() };
        let [one, two] = &mut waiting;
        tokio::join!(one, two, triggering);
        signal.wait().await;
        assert!(signal.is_triggered());
    }
}
