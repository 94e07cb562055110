//! A word to many tasks at once, that costs those that are polled often next to nothing: they
//! share no lock, and look at one flag.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Given once, for good; a clone is the same one.
#[derive(Clone, Debug, Default)]
pub struct Signal(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    given: AtomicBool,
    /// Wakes those who wait.
    token: CancellationToken,
}

impl Signal {
    /// Gives it.
    pub fn give(&self) {
        self.0.given.store(true, Ordering::Release);
        self.0.token.cancel();
    }

    /// Whether it was given.
    #[must_use]
    pub fn is_given(&self) -> bool {
        self.0.given.load(Ordering::Acquire)
    }

    /// Completes when it is given; may be polled on after that.
    #[must_use]
    pub fn wait(&self) -> Wait {
        let woken = Box::pin(self.0.token.child_token().cancelled_owned());
        Wait { signal: self.clone(), woken, known: None }
    }
}

/// Waits for a signal.
#[derive(Debug)]
pub struct Wait {
    signal: Signal,
    woken: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Who will be woken.
    known: Option<Waker>,
}

impl Wait {
    /// Whether the signal was given.
    #[must_use]
    pub fn is_given(&self) -> bool {
        self.signal.is_given()
    }
}

impl Future for Wait {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_given() {
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
    async fn all_who_wait_are_told_and_so_is_whoever_comes_later() {
        let signal = Signal::default();
        let mut waiting = [signal.wait(), signal.wait()];
        for wait in &mut waiting {
            // Twice by the same waker, of which the second looks at the flag alone.
            assert!(futures::poll!(&mut *wait).is_pending());
            assert!(futures::poll!(&mut *wait).is_pending());
        }
        let later = signal.clone();
        let giving = async { later.give() };
        let [one, two] = &mut waiting;
        tokio::join!(one, two, giving);
        signal.wait().await;
        assert!(signal.is_given());
    }
}
