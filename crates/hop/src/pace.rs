//! Limits of time on a server's connection between its requests: how long a head may take, and how
//! long a connection may rest. The task that serves the connection also polls its [`Watch`].
//!
//! hyper does not read a connection again after an answer until bytes come, so a limit that sits
//! in the reads of the connection is never looked at while the connection rests.

use crate::body::{Held, LINGER};
use crate::timed::Timer;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Instant;

/// How long a client's connection may wait for its next request. Longer than clients keep theirs,
/// so that it is they who close.
pub(crate) const REST: Duration = Duration::from_secs(620);
/// How long the head of a request may take from its first byte to its last.
pub(crate) const HEAD: Duration = Duration::from_secs(20);

/// How long the rest of a body may come after its answer: a little longer than it is read, so that
/// its reader has left by then.
const LINGERING: Duration = LINGER.saturating_add(Duration::from_millis(250));

/// What happens on a server's connection, noted by whoever serves it and by its reads.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Requests under way.
    busy: AtomicU32,
    /// Requests that have begun; wraps.
    begun: AtomicU32,
    /// Whether several requests share the connection (HTTP/2), so that bytes need not be a head.
    shared: AtomicBool,
    /// Whether bytes have come since the last look.
    read: AtomicBool,
    /// Where the last request's body is, on a connection that is not shared: the number of the
    /// request, and its [`Place`] in the lowest two bits.
    body: AtomicU64,
    /// Lives as long as the connection, also after a switch of protocols.
    held: Mutex<Vec<Held>>,
}

impl Pace {
    /// Notes that a request has come in, until the return value is dropped.
    pub(crate) fn request(self: &Arc<Self>, shared: bool) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
        if shared {
            self.shared.store(true, Ordering::Relaxed);
        }
        Busy(Arc::clone(self))
    }

    /// Notes that bytes have come.
    pub(crate) fn read(&self) {
        // A load costs less than a store to a line that is shared.
        if !self.read.load(Ordering::Relaxed) {
            self.read.store(true, Ordering::Relaxed);
        }
    }

    /// Begins to note where the body of the last request is.
    pub(crate) fn body(self: &Arc<Self>) -> BodyNote {
        let number = u64::from(self.begun.load(Ordering::Relaxed)) << 2;
        self.body.store(number | Place::Coming as u64, Ordering::Relaxed);
        BodyNote { pace: Arc::clone(self), number }
    }

    fn is_body(&self, place: Place) -> bool {
        self.body.load(Ordering::Relaxed) & 3 == place as u64
    }

    /// Keeps something for as long as the connection lives.
    pub(crate) fn hold(&self, held: Held) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).push(held);
    }
}

/// Where a request's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// All of it has come, or there is none.
    Here = 0,
    /// Some of it is still to come.
    Coming = 1,
    /// Nobody reads what is still to come.
    Left = 2,
}

/// Notes where the body of one request is. A note that comes after the next request has begun
/// changes nothing.
pub(crate) struct BodyNote {
    pace: Arc<Pace>,
    number: u64,
}

impl BodyNote {
    pub(crate) fn set(&self, place: Place) {
        let coming = self.number | Place::Coming as u64;
        let now = self.number | place as u64;
        let (done, at) = (Ordering::Relaxed, &self.pace.body);
        // Fails where another request's body has taken the place.
        let _ = at.compare_exchange(coming, now, done, done);
    }
}

/// A request under way.
pub(crate) struct Busy(Arc<Pace>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No request is under way and none has begun to come.
    Resting,
    /// A head is coming.
    Head,
    /// A request is under way. The body and the answer have limits of their own.
    Exchange,
    /// The answer has ended before the request's body, of which the rest is read for a while.
    Lingering,
}

/// Why a connection is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    /// It has rested for too long.
    Rest,
    /// A head has taken too long.
    Head,
    /// A body that was answered has not come to its end.
    Body,
}

/// Looks when a connection has taken too long.
pub(crate) struct Watch {
    pace: Arc<Pace>,
    phase: Phase,
    since: Instant,
    /// Requests that had begun at the last look.
    begun: u32,
    timer: Timer,
}

impl Watch {
    /// Watches a connection that was just accepted. Its first head is awaited as if it had begun:
    /// whoever connects has something to ask.
    pub(crate) fn new(pace: Arc<Pace>) -> Self {
        let (phase, since) = (Phase::Head, Instant::now());
        Self { pace, phase, since, begun: 0, timer: Timer::default() }
    }

    /// Completes when the connection has taken too long. Polled after the connection, by its task.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        loop {
            self.look();
            let shared = self.pace.shared.load(Ordering::Relaxed);
            let limit = match self.phase {
                Phase::Head => HEAD,
                Phase::Resting => REST,
                // Its reader has left: hyper would not see that before bytes come.
                Phase::Lingering if self.pace.is_body(Place::Left) => {
                    return Poll::Ready(Over::Body);
                }
                Phase::Lingering => LINGERING,
                // Its answer's end wakes the task that serves it.
                Phase::Exchange if !shared => return Poll::Pending,
                // The end of a shared connection's last answer may be seen after its last frame
                // was sent, so it is looked for again.
                Phase::Exchange => REST,
            };
            ready!(self.timer.poll(cx, self.since + limit));
            match self.phase {
                Phase::Head => return Poll::Ready(Over::Head),
                Phase::Resting => return Poll::Ready(Over::Rest),
                Phase::Lingering => return Poll::Ready(Over::Body),
                Phase::Exchange => self.since = Instant::now(),
            }
        }
    }

    /// Finds the phase, and since when it lasts.
    fn look(&mut self) {
        let begun = self.pace.begun.load(Ordering::Relaxed);
        let read = self.pace.read.load(Ordering::Relaxed);
        if read {
            self.pace.read.store(false, Ordering::Relaxed);
        }
        let answered = begun != self.begun;
        self.begun = begun;
        let ended = self.pace.is_body(Place::Here);
        let phase = if self.pace.busy.load(Ordering::Relaxed) > 0 {
            Phase::Exchange
        } else if !ended {
            Phase::Lingering
        } else if answered || matches!(self.phase, Phase::Exchange | Phase::Lingering) {
            Phase::Resting
        } else if read && !self.pace.shared.load(Ordering::Relaxed) {
            Phase::Head
        } else {
            self.phase
        };
        if phase != self.phase || answered {
            (self.phase, self.since) = (phase, Instant::now());
        }
    }
}
