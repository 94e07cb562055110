//! Counts what goes through a gate, and shuts it: `acquire` until `drain`, which waits until
//! everything that went in has come out; `reset` opens it again.
//!
//! One word holds the flag, the count and how often the gate was opened, so that to look and to
//! count are one step and nothing slips past a drain. Takes its primitives from `sync`, so that
//! the model in `tests/loom.rs` runs the same code.

use super::sync::{Arc, AtomicU64, AtomicWaker};
use std::future::Future;
use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::task::{Context, Poll};

/// Lowest bit: the gate is shut.
const SHUT: u64 = 1;
/// One that is inside; the count has bits 1 to 32.
const ONE: u64 = 2;
const COUNT: u64 = (u32::MAX as u64) << 1;
/// One opening; their number, which may wrap, has the rest.
const OPENING: u64 = 1 << 33;

/// The gate; a clone is the same one.
#[derive(Debug, Clone)]
pub struct Tracker(Arc<Gate>);

#[derive(Debug)]
struct Gate {
    state: AtomicU64,
    /// The one that drains.
    waiting: AtomicWaker,
}

/// Why the gate lets nobody in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It is shut.
    Draining,
    /// As many are inside as may be.
    Full,
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Nobody is inside, and nobody gets in.
    Empty,
    /// The grace ended with so many still inside.
    Left(u64),
    /// The gate was opened again meanwhile.
    Reset,
}

/// A place inside; given back once, when it is dropped.
#[derive(Debug)]
pub struct Place(Arc<Gate>);

/// A drain that has begun.
#[derive(Debug, Clone, Copy)]
pub struct Drain(u64);

impl Default for Tracker {
    /// An open gate.
    fn default() -> Self {
        let (state, waiting) = (AtomicU64::new(0), AtomicWaker::new());
        Self(Arc::new(Gate { state, waiting }))
    }
}

impl Tracker {
    /// Goes in, where fewer than `most` are inside.
    ///
    /// # Errors
    /// When the gate is shut, or as many are inside as may be.
    pub fn acquire(&self, most: u32) -> Result<Place, Refused> {
        let mut seen = self.0.state.load(Acquire);
        loop {
            if seen & SHUT != 0 {
                return Err(Refused::Draining);
            }
            if (seen & COUNT) / ONE >= u64::from(most) {
                return Err(Refused::Full);
            }
            match self.0.state.compare_exchange_weak(seen, seen + ONE, AcqRel, Acquire) {
                Ok(_) => return Ok(Place(Arc::clone(&self.0))),
                Err(newer) => seen = newer,
            }
        }
    }

    /// How many are inside.
    pub fn count(&self) -> u64 {
        (self.0.state.load(Acquire) & COUNT) / ONE
    }

    /// Shuts the gate.
    pub fn shut(&self) -> Drain {
        Drain(self.0.state.fetch_or(SHUT, AcqRel) & !(SHUT | COUNT))
    }

    /// Opens the gate; a drain that waits ends.
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

    /// Whether a drain has ended; one waits at a time.
    pub fn poll_drained(&self, drain: Drain, cx: &mut Context<'_>) -> Poll<Drained> {
        self.0.waiting.register(cx.waker());
        let state = self.0.state.load(Acquire);
        if state & !(SHUT | COUNT) != drain.0 || state & SHUT == 0 {
            return Poll::Ready(Drained::Reset);
        }
        if state & COUNT == 0 { Poll::Ready(Drained::Empty) } else { Poll::Pending }
    }

    /// Shuts the gate and waits until nobody is inside, or `grace` ends.
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

impl Drop for Place {
    fn drop(&mut self) {
        let before = self.0.state.fetch_sub(ONE, AcqRel);
        if before & (SHUT | COUNT) == SHUT | ONE {
            self.0.waiting.wake();
        }
    }
}
