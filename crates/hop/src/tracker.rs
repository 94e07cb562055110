//! A gate that counts its visitors. `acquire` lets visitors in until `drain` shuts the gate and
//! waits until all have left. `reset` opens the gate again.
//!
//! A single word holds the flag, the count and the number of openings. So checking and counting are
//! a single step, and no visitor slips past a drain. The primitives come from `sync`, so that the
//! model in `tests/loom.rs` runs the same code.

use super::sync::{Arc, AtomicU64, AtomicWaker};
use std::future::Future;
use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::task::{Context, Poll};

/// Lowest bit, set while the gate is shut.
const SHUT: u64 = 1;
/// A single visitor. The count has bits 1 to 32.
const ONE: u64 = 2;
const COUNT: u64 = (u32::MAX as u64) << 1;
/// A single opening. The number of openings has the remaining bits, and may wrap.
const OPENING: u64 = 1 << 33;

/// Gate that counts the requests under way and lets them drain. Clones share it.
#[derive(Debug, Clone)]
pub struct ConnTracker(Arc<Gate>);

#[derive(Debug)]
struct Gate {
    state: AtomicU64,
    /// Waker of the task that drains.
    waiting: AtomicWaker,
}

/// Reasons why the gate refuses a visitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The gate is shut.
    Draining,
    /// As many visitors are inside as may be.
    Full,
}

/// Results of a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// No visitor is inside, and none gets in.
    Empty,
    /// The grace period ended with this many visitors still inside.
    Left(u64),
    /// The gate was opened again meanwhile.
    Reset,
}

/// A visitor's permit, returned when it is dropped.
#[derive(Debug)]
pub struct Permit(Arc<Gate>);

/// A drain that has begun.
#[derive(Debug, Clone, Copy)]
pub struct Drain(u64);

impl Default for ConnTracker {
    /// Makes an open gate.
    fn default() -> Self {
        let (state, waiting) = (AtomicU64::new(0), AtomicWaker::new());
        Self(Arc::new(Gate { state, waiting }))
    }
}

impl ConnTracker {
    /// Lets a visitor in, if fewer than `most` are inside.
    ///
    /// # Errors
    /// Returns `Draining` when the gate is shut, and `Full` when `most` visitors are inside.
    pub fn acquire(&self, most: u32) -> Result<Permit, Refused> {
        let mut seen = self.0.state.load(Acquire);
        loop {
            if seen & SHUT != 0 {
                return Err(Refused::Draining);
            }
            if (seen & COUNT) / ONE >= u64::from(most) {
                return Err(Refused::Full);
            }
            match self.0.state.compare_exchange_weak(seen, seen + ONE, AcqRel, Acquire) {
                Ok(_) => return Ok(Permit(Arc::clone(&self.0))),
                Err(newer) => seen = newer,
            }
        }
    }

    /// Counts the visitors inside.
    pub fn count(&self) -> u64 {
        (self.0.state.load(Acquire) & COUNT) / ONE
    }

    /// Shuts the gate.
    pub fn shut(&self) -> Drain {
        Drain(self.0.state.fetch_or(SHUT, AcqRel) & !(SHUT | COUNT))
    }

    /// Opens the gate. Ends a waiting drain.
    pub fn reset(&self) {
        let mut seen = self.0.state.load(Acquire);
        while let Err(newer) = self.0.state.compare_exchange_weak(
            seen,
            (seen & !SHUT).wrapping_add(OPENING),
            AcqRel,
            Acquire,
        ) {
            seen = newer;
        }
        self.0.waiting.wake();
    }

    /// Polls for the end of a drain. Only a single task waits at a time.
    pub fn poll_drained(&self, drain: Drain, cx: &mut Context<'_>) -> Poll<Drained> {
        self.0.waiting.register(cx.waker());
        let state = self.0.state.load(Acquire);
        if state & !(SHUT | COUNT) != drain.0 || state & SHUT == 0 {
            return Poll::Ready(Drained::Reset);
        }
        if state & COUNT == 0 { Poll::Ready(Drained::Empty) } else { Poll::Pending }
    }

    /// Shuts the gate and waits until no visitor is inside, or `grace` ends.
    pub async fn drain(&self, grace: impl Future<Output = ()>) -> Drained {
        let drain = self.shut();
        let mut grace = std::pin::pin!(grace);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(drained) = self.poll_drained(drain, cx) {
                return Poll::Ready(drained);
            }
            grace.as_mut().poll(cx).map(|()| Drained::Left(self.count()))
        })
        .await
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let before = self.0.state.fetch_sub(ONE, AcqRel);
        if before & (SHUT | COUNT) == SHUT | ONE {
            self.0.waiting.wake();
        }
    }
}
