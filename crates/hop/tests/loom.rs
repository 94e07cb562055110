//! Tests every order in which threads can go through the tracker's steps, by loom. The tracker's
//! own source is compiled here over loom's primitives.

mod sync {
    pub(crate) use loom::sync::Arc;
    pub(crate) use loom::sync::atomic::AtomicU64;
    use std::task::Waker;

    /// loom's waker, with the interface of the production one.
    #[derive(Debug)]
    pub(crate) struct AtomicWaker(loom::future::AtomicWaker);

    impl AtomicWaker {
        pub(crate) fn new() -> Self {
            Self(loom::future::AtomicWaker::new())
        }

        pub(crate) fn register(&self, waker: &Waker) {
            self.0.register_by_ref(waker);
        }

        pub(crate) fn wake(&self) {
            self.0.wake();
        }
    }
}
#[path = "../src/tracker.rs"]
#[allow(dead_code, unreachable_pub, reason = "the model needs a part of it")]
mod tracker;

use loom::future::block_on;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use loom::thread;
use std::future::poll_fn;
use tracker::{ConnTracker, Drained};

/// Runs every order with at most three preemptions. More preemptions multiply the orders and, by
/// loom's documentation, hardly ever find more errors.
fn model(steps: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(steps);
}

#[test]
fn no_permit_is_held_once_drain_has_ended() {
    model(|| {
        let (gate, inside) = (ConnTracker::default(), Arc::new(AtomicUsize::new(0)));
        let visitors: Vec<_> = (0..2)
            .map(|_| {
                let (gate, inside) = (gate.clone(), inside.clone());
                thread::spawn(move || {
                    if let Ok(permit) = gate.acquire(10) {
                        inside.fetch_add(1, SeqCst);
                        inside.fetch_sub(1, SeqCst);
                        drop(permit);
                    }
                })
            })
            .collect();
        let drain = gate.shut();
        assert_eq!(block_on(poll_fn(|cx| gate.poll_drained(drain, cx))), Drained::Empty);
        // Later visitors are refused, so this stays true.
        assert_eq!(inside.load(SeqCst), 0);
        assert!(gate.acquire(10).is_err());
        visitors.into_iter().for_each(|v| v.join().unwrap());
        assert_eq!((gate.count(), inside.load(SeqCst)), (0, 0));
    });
}

#[test]
fn reset_ends_pending_drain_and_reopens_tracker() {
    model(|| {
        let gate = ConnTracker::default();
        let permit = gate.acquire(10).unwrap();
        let drain = gate.shut();
        let opener = {
            let gate = gate.clone();
            thread::spawn(move || gate.reset())
        };
        // The permit is kept, so only the reset can end the drain.
        assert_eq!(block_on(poll_fn(|cx| gate.poll_drained(drain, cx))), Drained::Reset);
        opener.join().unwrap();
        drop(gate.acquire(10).unwrap());
        drop(permit);
        assert_eq!(gate.count(), 0);
    });
}

#[test]
fn drain_is_woken_by_last_release_or_by_reset() {
    model(|| {
        let gate = ConnTracker::default();
        let permit = gate.acquire(10).unwrap();
        let drain = gate.shut();
        let leaver = thread::spawn(move || drop(permit));
        let opener = {
            let gate = gate.clone();
            thread::spawn(move || gate.reset())
        };
        let ended = block_on(poll_fn(|cx| gate.poll_drained(drain, cx)));
        assert!(matches!(ended, Drained::Empty | Drained::Reset));
        leaver.join().unwrap();
        opener.join().unwrap();
    });
}

#[test]
fn concurrent_acquires_never_exceed_limit() {
    model(|| {
        let gate = ConnTracker::default();
        let visitors: Vec<_> = (0..2)
            .map(|_| {
                let gate = gate.clone();
                thread::spawn(move || gate.acquire(1).map(|permit| (gate.count(), permit)).ok())
            })
            .collect();
        let inside: Vec<_> = visitors.into_iter().filter_map(|v| v.join().unwrap()).collect();
        assert_eq!(inside.len(), 1);
        assert_eq!(inside[0].0, 1);
    });
}
