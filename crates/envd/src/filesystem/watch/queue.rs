//! The queue between a watch's thread and its callers. Events wait in it to be fetched, beside the
//! watch's end and requests to the thread. No call here waits for a file system.

use super::events::Events;
use crate::error::Error;
use crate::lock::lock;
use rustix::event::{EventfdFlags, eventfd};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::{Notify, watch};

/// Most events of a watch that may wait.
pub(super) const EVENTS_MAX: usize = 65_536;
/// Most bytes of a watch's waiting events.
const BYTES_MAX: usize = 8 << 20;
/// Most bytes of all watches' waiting events.
const ALL_BYTES_MAX: usize = 16 << 20;
/// Events in a batch, at least, before the next batch is begun.
pub(super) const BATCH: usize = 1024;

/// Bytes that the events of all watches take.
#[derive(Default)]
pub(super) struct Budget {
    used: AtomicUsize,
}

impl Budget {
    fn take(&self, bytes: usize) -> bool {
        let with = |used: usize| Some(used + bytes).filter(|sum| *sum <= ALL_BYTES_MAX);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct State {
    batches: VecDeque<Events>,
    events: usize,
    bytes: usize,
    /// Reason why the watch has ended.
    ended: Option<Error>,
}

/// Answer to a caller who fetches events.
pub(super) enum Next {
    Events(Events),
    /// No event waits.
    Nothing,
    /// No event waits, and no more will come.
    Ended,
}

/// Events of a watch, and requests to its thread.
pub(super) struct Queue {
    state: Mutex<State>,
    budget: Arc<Budget>,
    /// Notifies a caller of events, or of the watch's end.
    pub(super) ready: Notify,
    /// Wakes the thread.
    wake: OwnedFd,
    stopped: AtomicBool,
    /// Number of the newest request to read the kernel's events, and the last request that is done.
    asked: AtomicU64,
    answered: watch::Sender<u64>,
}

impl Queue {
    pub(super) fn new(budget: Arc<Budget>) -> io::Result<Self> {
        Ok(Self {
            state: Mutex::default(),
            budget,
            ready: Notify::new(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stopped: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            answered: watch::channel(0).0,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Adds events.
    ///
    /// # Errors
    /// Returns the bound that the events would exceed. Adds nothing then.
    pub(super) fn publish(&self, events: Events) -> Result<(), &'static str> {
        let (count, bytes) = (events.len(), events.bytes());
        let mut state = self.state();
        if state.events + count > EVENTS_MAX || state.bytes + bytes > BYTES_MAX {
            return Err("too many events of the watch were not fetched");
        }
        if !self.budget.take(bytes) {
            return Err("too many events of all watches were not fetched");
        }
        state.events += count;
        state.bytes += bytes;
        match state.batches.back_mut().filter(|last| last.len() < BATCH) {
            Some(last) => {
                let (count, bytes) = (last.len() + count, last.bytes() + bytes);
                last.append(events);
                // Equal events were joined.
                let (less, surplus) = (count - last.len(), bytes - last.bytes());
                state.events -= less;
                state.bytes -= surplus;
                self.budget.give_back(surplus);
            }
            None => state.batches.push_back(events),
        }
        drop(state);
        self.ready.notify_one();
        Ok(())
    }

    /// Takes a batch of events.
    pub(super) fn next(&self) -> Next {
        let mut state = self.state();
        let Some(events) = state.batches.pop_front() else {
            return if state.ended.is_some() { Next::Ended } else { Next::Nothing };
        };
        state.events -= events.len();
        state.bytes -= events.bytes();
        self.budget.give_back(events.bytes());
        Next::Events(events)
    }

    /// Takes all events.
    pub(super) fn take(&self) -> Vec<Events> {
        let mut state = self.state();
        self.budget.give_back(state.bytes);
        (state.events, state.bytes) = (0, 0);
        std::mem::take(&mut state.batches).into()
    }

    /// Ends the watch. The first reason stays.
    pub(super) fn end(&self, error: Error) {
        let mut state = self.state();
        if state.ended.is_none() {
            state.ended = Some(error);
        }
        drop(state);
        self.answered.send_replace(u64::MAX);
        self.ready.notify_one();
    }

    pub(super) fn ended(&self) -> Option<Error> {
        self.state().ended.clone()
    }

    /// Tells the thread to end.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.wake();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Waits until the thread has read the kernel's events up to now, or until the watch has ended.
    pub(super) async fn flush(&self) {
        let request = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let mut answered = self.answered.subscribe();
        self.wake();
        let _ = answered.wait_for(|done| *done >= request).await;
    }

    fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Returns the descriptor that is readable when the thread has a request.
    pub(super) fn requests(&self) -> &OwnedFd {
        &self.wake
    }

    /// Returns the newest request, for the thread. Later requests wake the thread again.
    pub(super) fn newest_request(&self) -> u64 {
        let mut count = [0_u8; 8];
        let _ = rustix::io::read(&self.wake, &mut count);
        self.asked.load(Ordering::Acquire)
    }

    /// Tells callers that the requests up to this one are done.
    pub(super) fn answer(&self, request: u64) {
        self.answered.send_replace(request);
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem::watch::events::Change;
    use connectrpc::ErrorCode;
    use std::ffi::OsStr;

    fn events(count: usize, name: &str) -> Events {
        let mut events = Events::default();
        for n in 0..count {
            let change = if n % 2 == 0 { Change::Write } else { Change::Chmod };
            events.push("", OsStr::new(name), change, None);
        }
        events
    }

    #[test]
    fn unfetched_events_are_bounded_by_number() {
        let queue = Queue::new(Arc::default()).unwrap();
        for _ in 0..EVENTS_MAX / BATCH {
            queue.publish(events(BATCH, "f")).unwrap();
        }
        assert!(queue.publish(events(1, "f")).is_err());
        let taken: usize = queue.take().iter().map(Events::len).sum();
        assert_eq!(taken, EVENTS_MAX);
        queue.publish(events(1, "f")).unwrap();
    }

    #[test]
    fn events_of_all_watches_are_bounded_by_bytes_and_released() {
        let budget = Arc::<Budget>::default();
        let name = "n".repeat(4000);
        let queues: Vec<_> = (0..4).map(|_| Queue::new(Arc::clone(&budget)).unwrap()).collect();
        let mut published = 0;
        for queue in &queues {
            while queue.publish(events(100, &name)).is_ok() {
                published += 1;
            }
        }
        assert!((20..=ALL_BYTES_MAX / 400_000).contains(&published), "{published}");
        let queue = Queue::new(Arc::clone(&budget)).unwrap();
        assert!(queue.publish(events(100, &name)).is_err());
        drop(queues);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
        queue.publish(events(100, &name)).unwrap();
        assert!(matches!(queue.next(), Next::Events(_)));
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn unfetched_writes_to_one_file_are_one_event() {
        let budget = Arc::<Budget>::default();
        let queue = Queue::new(Arc::clone(&budget)).unwrap();
        for _ in 0..2 * EVENTS_MAX {
            queue.publish(events(1, "f")).unwrap();
        }
        let taken = queue.take();
        assert_eq!((taken.len(), taken[0].len()), (1, 1));
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn end_is_reported_after_earlier_events() {
        let queue = Queue::new(Arc::default()).unwrap();
        queue.publish(events(1, "f")).unwrap();
        queue.end(Error::new(ErrorCode::ResourceExhausted, "first"));
        queue.end(Error::new(ErrorCode::NotFound, "second"));
        assert!(matches!(queue.next(), Next::Events(_)));
        assert!(matches!(queue.next(), Next::Ended));
        assert_eq!(queue.ended().unwrap().message, "first");
    }

    #[tokio::test]
    async fn flush_ends_with_the_watch() {
        let queue = Queue::new(Arc::default()).unwrap();
        tokio::join!(queue.flush(), async {
            tokio::task::yield_now().await;
            assert_eq!(queue.newest_request(), 1);
            queue.end(Error::internal("over"));
        });
    }
}
