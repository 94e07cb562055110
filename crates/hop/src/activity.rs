//! Limits of time on a server's connection between its requests: on a head, and on the rest of a
//! connection. The task that serves the connection also polls its [`Watch`].
//!
//! After an answer, hyper does not read a connection again until bytes come. A limit inside the
//! connection's reads would therefore never be checked while the connection rests.

use crate::timer::Timer;
use daemon::lock;
use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Instant;

/// Time that a client's connection may wait for its next request. Clients keep idle connections for
/// a shorter time, so that they close first.
pub(crate) const REST: Duration = Duration::from_secs(620);
/// Time for a request's head, from its first byte to its last.
pub(crate) const HEAD: Duration = Duration::from_secs(20);

/// Time for reading the rest of a request's body that its handler dropped. If a connection is
/// closed with bytes unread, a client may lose an answer that it has not read yet.
pub(crate) const LINGER: Duration = Duration::from_secs(5);
/// Time for the rest of a body after its answer. The time exceeds [`LINGER`] a little, so that the
/// body's reader has gone by then.
const LINGERING: Duration = LINGER.saturating_add(Duration::from_millis(250));

/// A value that lives as long as a body or a connection does, such as a count of requests under
/// way.
pub type Held = Box<dyn Any + Send>;

/// State of a server's connection. Its requests and its reads record it.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// Requests under way.
    requests: AtomicU32,
    /// Number of requests that have begun. It wraps.
    begun: AtomicU32,
    /// Set when several requests share the connection (HTTP/2), so that bytes need not be a head.
    shared: AtomicBool,
    /// Set when bytes have come since the last check.
    read: AtomicBool,
    /// State of the last request's body, on a connection that is not shared. The lowest two bits
    /// are its [`BodyState`]. The rest is the number of the request.
    body: AtomicU64,
    /// Values that live as long as the connection, also after a switch of protocols.
    held: Mutex<Vec<Held>>,
}

impl Activity {
    /// Counts a request as under way until the returned value is dropped.
    pub(crate) fn request(self: &Arc<Self>, shared: bool) -> RequestGuard {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
        if shared {
            self.shared.store(true, Ordering::Relaxed);
        }
        RequestGuard(Arc::clone(self))
    }

    /// Records that bytes have come.
    pub(crate) fn read(&self) {
        // A load of a shared cache line costs less than a store.
        if !self.read.load(Ordering::Relaxed) {
            self.read.store(true, Ordering::Relaxed);
        }
    }

    /// Begins to record the state of the last request's body.
    pub(crate) fn body(self: &Arc<Self>) -> BodyNote {
        let number = u64::from(self.begun.load(Ordering::Relaxed)) << 2;
        self.body.store(number | BodyState::Coming as u64, Ordering::Relaxed);
        BodyNote { activity: Arc::clone(self), number }
    }

    fn is_body(&self, state: BodyState) -> bool {
        self.body.load(Ordering::Relaxed) & 3 == state as u64
    }

    /// Keeps a value for as long as the connection lives.
    pub(crate) fn hold(&self, held: Held) {
        lock(&self.held).push(held);
    }
}

/// State of a request's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyState {
    /// The whole body has come, or there is none.
    Complete = 0,
    /// A part of the body is still to come.
    Coming = 1,
    /// The rest of the body will not be read.
    Abandoned = 2,
}

/// Records the state of a request's body. Does nothing once the next request's body has begun.
pub(crate) struct BodyNote {
    activity: Arc<Activity>,
    number: u64,
}

impl BodyNote {
    pub(crate) fn set(&self, state: BodyState) {
        let coming = self.number | BodyState::Coming as u64;
        let now = self.number | state as u64;
        let (done, at) = (Ordering::Relaxed, &self.activity.body);
        // The exchange fails when another request's body has begun.
        let _ = at.compare_exchange(coming, now, done, done);
    }
}

/// Guard of a request under way.
pub(crate) struct RequestGuard(Arc<Activity>);

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No request is under way, and no head has begun to come.
    Resting,
    /// A head is coming.
    Head,
    /// A request is under way. Its body and answer have limits of their own.
    Exchange,
    /// The answer has ended before the request's body. The rest of the body is read for a while.
    Lingering,
}

/// Reason for ending a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    /// The connection has rested for too long.
    Rest,
    /// A head has taken too long.
    Head,
    /// The body of an answered request has not come to its end.
    Body,
}

/// Watches for a connection that has taken too long.
pub(crate) struct Watch {
    activity: Arc<Activity>,
    phase: Phase,
    since: Instant,
    /// Number of requests that had begun at the last check.
    begun: u32,
    timer: Timer,
}

impl Watch {
    /// Watches a connection that was just accepted. The time for its first head begins at once,
    /// since a client connects in order to ask.
    pub(crate) fn new(activity: Arc<Activity>) -> Self {
        let (phase, since) = (Phase::Head, Instant::now());
        Self { activity, phase, since, begun: 0, timer: Timer::default() }
    }

    /// Completes when the connection has taken too long. The connection's task polls this after the
    /// connection itself.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        loop {
            self.look();
            let shared = self.activity.shared.load(Ordering::Relaxed);
            let limit = match self.phase {
                Phase::Head => HEAD,
                Phase::Resting => REST,
                // The body's reader has gone, which hyper would not notice before bytes come.
                Phase::Lingering if self.activity.is_body(BodyState::Abandoned) => {
                    return Poll::Ready(Over::Body);
                }
                Phase::Lingering => LINGERING,
                // The end of the answer wakes the task that serves this connection.
                Phase::Exchange if !shared => return Poll::Pending,
                // The task may see the end of a shared connection's last answer only after its last
                // frame. So it checks again.
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

    /// Finds the phase, and the time at which it began.
    fn look(&mut self) {
        let begun = self.activity.begun.load(Ordering::Relaxed);
        let read = self.activity.read.load(Ordering::Relaxed);
        if read {
            self.activity.read.store(false, Ordering::Relaxed);
        }
        let answered = begun != self.begun;
        self.begun = begun;
        let ended = self.activity.is_body(BodyState::Complete);
        let phase = if self.activity.requests.load(Ordering::Relaxed) > 0 {
            Phase::Exchange
        } else if !ended {
            Phase::Lingering
        } else if answered || matches!(self.phase, Phase::Exchange | Phase::Lingering) {
            Phase::Resting
        } else if read && !self.activity.shared.load(Ordering::Relaxed) {
            Phase::Head
        } else {
            self.phase
        };
        if phase != self.phase || answered {
            (self.phase, self.since) = (phase, Instant::now());
        }
    }
}
