//! A hub gives a program's output to its subscribers. Each gets everything from the moment it
//! subscribes, in order, and then the end exactly once.
//!
//! Each subscriber has a bounded buffer of its own. While all buffers are full, the program is held
//! up, as by a full pipe. A subscriber that takes nothing for [`PATIENCE`], while another waits for
//! output, loses its subscription. The end waits for no subscriber.
//!
//! Without a subscriber, output is dropped, except for the last output of a terminal. A subscriber
//! may begin with this replay. The next event is then the first output after it. After the end, the
//! hub keeps the last output of processes that outlive the program, for later subscribers.

use super::exit::Exit;
use super::log::Presence;
use super::replay::Replay;
use crate::clock;
use crate::error::{Error, Result};
use crate::lock::lock;
use bytes::Bytes;
use connectrpc::ErrorCode;
use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Most bytes that a subscriber may be behind.
const BEHIND: usize = 1 << 20;
/// Most bytes that all subscribers of all programs together may be behind. A subscriber with an
/// empty buffer gets its next piece in any case.
const BEHIND_TOTAL: usize = 16 << 20;
/// Bytes that a piece costs beside its contents, so that many small pieces are bounded too.
const PIECE: usize = 128;
/// Most subscribers of a program.
const SUBSCRIBERS: usize = 64;
/// Time in which a subscriber must take a piece while it holds up another.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most bytes of each stream that are kept after the end.
const KEPT: usize = 64 << 10;

/// Stream that a piece came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    Stdout,
    Stderr,
    Pty,
}

/// Event for a subscriber.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Data(Output, Bytes),
    End(Exit),
}

impl Event {
    fn cost(&self) -> usize {
        match self {
            Self::Data(_, data) => PIECE + data.len(),
            Self::End(_) => PIECE,
        }
    }
}

/// The subscribers of a program, and its kept output.
pub(crate) struct Hub {
    state: Mutex<State>,
    /// Wakes publishers that wait for room.
    room: Notify,
    /// Set while processes that outlive the program hold its pipes.
    lingering: watch::Sender<bool>,
    /// Bytes that the subscribers of all programs are behind.
    behind: Arc<AtomicUsize>,
    patience: Duration,
}

#[derive(Default)]
struct State {
    queues: BTreeMap<u64, Queue>,
    subscribed: u64,
    /// Set once the leader has ended. From then on no publisher waits for room.
    released: bool,
    exit: Option<Exit>,
    kept: Vec<(Output, VecDeque<u8>)>,
    /// Last output of a terminal. `None` for a program with pipes.
    replay: Option<Replay>,
}

/// Buffer of a subscriber.
struct Queue {
    events: VecDeque<Event>,
    /// Sum of the events' costs.
    cost: usize,
    /// Time of the last take, or of the first event in an empty buffer.
    active: Instant,
    /// Set once nothing more will be added.
    closed: bool,
    /// Set when the subscriber was too slow.
    lost: bool,
    ready: Arc<Notify>,
}

/// Result of offering a piece.
#[derive(Debug, PartialEq, Eq)]
enum Offer {
    Taken,
    /// A subscriber has no room. The time is when the first slow subscriber loses its subscription.
    /// `None` means that all are behind.
    Full(Option<Instant>),
}

impl Hub {
    /// Makes a hub. Bytes that its subscribers are behind count in `behind`.
    pub(super) fn new(behind: Arc<AtomicUsize>) -> Self {
        Self {
            state: Mutex::default(),
            room: Notify::new(),
            lingering: watch::Sender::new(false),
            behind,
            patience: PATIENCE,
        }
    }

    /// Makes the hub of a terminal, whose last output `replay` keeps.
    pub(super) fn of_terminal(behind: Arc<AtomicUsize>, replay: Replay) -> Self {
        let hub = Self::new(behind);
        hub.lock().replay = Some(replay);
        hub
    }

    /// Begins a subscription. After the end, it delivers the kept output and then the end.
    ///
    /// # Errors
    /// Returns `resource_exhausted` when the program has as many subscribers as it may.
    pub(crate) fn subscribe(self: &Arc<Self>) -> Result<Subscription> {
        self.begin(false).map(|(subscription, _)| subscription)
    }

    /// Begins a subscription that starts with the last output of the terminal. Returns the number
    /// of these bytes too. There are none for a program without a terminal, and none while the
    /// subscribers of all programs are far behind.
    ///
    /// # Errors
    /// Returns `resource_exhausted` when the program has as many subscribers as it may.
    pub(crate) fn subscribe_with_replay(self: &Arc<Self>) -> Result<(Subscription, usize)> {
        self.begin(self.behind.load(Ordering::Relaxed) < BEHIND_TOTAL)
    }

    fn begin(self: &Arc<Self>, replay: bool) -> Result<(Subscription, usize)> {
        let mut state = self.lock();
        if state.queues.len() >= SUBSCRIBERS {
            let message = "too many connections read the program's output";
            return Err(Error::new(ErrorCode::ResourceExhausted, message));
        }
        state.subscribed += 1;
        let id = state.subscribed;
        let ready = Arc::new(Notify::new());
        let mut queue = Queue::new(Arc::clone(&ready));
        let replay = state.replay.as_ref().filter(|_| replay).map(Replay::bytes);
        let replay = replay.unwrap_or_default();
        let replayed = replay.len();
        if replayed > 0 {
            self.add(&mut queue, Event::Data(Output::Pty, replay));
        }
        if let Some(exit) = state.exit.clone() {
            for (output, kept) in &state.kept {
                let data: Bytes = kept.iter().copied().collect();
                self.add(&mut queue, Event::Data(*output, data));
            }
            self.add(&mut queue, Event::End(exit));
            queue.closed = true;
        }
        state.queues.insert(id, queue);
        drop(state);
        // The new subscriber may not be behind. A publisher that waited for all may then drop the
        // slow ones.
        self.room.notify_waiters();
        let subscription = Subscription { hub: Arc::clone(self), id, ready, presence: None };
        Ok((subscription, replayed))
    }

    /// Returns the number of subscribers.
    pub(crate) fn subscribers(&self) -> usize {
        self.lock().queues.values().filter(|queue| !queue.closed).count()
    }

    /// Reports whether the end was announced.
    pub(crate) fn ended(&self) -> bool {
        self.lock().exit.is_some()
    }

    /// Gives a piece of output to every subscriber. Waits while there is no room for it.
    pub(super) async fn publish(&self, output: Output, data: Bytes) {
        let event = Event::Data(output, data);
        let mut room = pin!(self.room.notified());
        loop {
            // This comes before the check, so that no change in between is missed.
            room.as_mut().enable();
            let Offer::Full(until) = self.offer(&event) else { return };
            tokio::select! {
                () = room.as_mut() => {}
                () = clock::until(until) => {}
            }
            room.set(self.room.notified());
        }
    }

    /// Lets publishers wait for no subscriber from now on, since the leader has ended. The rest of
    /// its output is no more than its pipes hold.
    pub(super) fn release(&self) {
        self.lock().released = true;
        self.room.notify_waiters();
    }

    /// Sends the end to every subscriber, after output that the subscriber has not taken yet.
    pub(super) fn end(&self, exit: &Exit) {
        let mut state = self.lock();
        state.exit = Some(exit.clone());
        for queue in state.queues.values_mut().filter(|queue| !queue.closed) {
            self.add(queue, Event::End(exit.clone()));
            queue.closed = true;
        }
    }

    /// Begins to keep output of processes that outlive the program.
    pub(super) fn linger(&self) {
        self.lingering.send_replace(true);
    }

    /// Reports whether output is still kept.
    pub(super) fn lingers(&self) -> bool {
        *self.lingering.borrow()
    }

    /// Keeps the last of the output after the end.
    pub(super) fn keep(&self, output: Output, data: &[u8]) {
        if !self.lingers() {
            return;
        }
        let mut state = self.lock();
        let at = state.kept.iter().position(|(of, _)| *of == output);
        let at = at.unwrap_or_else(|| {
            state.kept.push((output, VecDeque::new()));
            state.kept.len() - 1
        });
        let kept = &mut state.kept[at].1;
        kept.extend(&data[data.len().saturating_sub(KEPT)..]);
        let surplus = kept.len().saturating_sub(KEPT);
        kept.drain(..surplus);
    }

    /// Records that no process holds the program's pipes any more.
    pub(super) fn drained(&self) {
        self.lingering.send_replace(false);
    }

    /// Drops the kept output, and keeps no more.
    pub(super) fn forget(&self) {
        self.lingering.send_replace(false);
        self.lock().kept = Vec::new();
    }

    /// Waits until no process holds the program's pipes, or the kept output was dropped.
    pub(super) async fn settled(&self) {
        // The sender lives as long as the hub.
        let _ = self.lingering.subscribe().wait_for(|lingering| !lingering).await;
    }

    fn offer(&self, event: &Event) -> Offer {
        let mut state = self.lock();
        if !state.released
            && let Some(full) = self.held_up(&mut state)
        {
            return full;
        }
        if let (Event::Data(_, data), Some(replay)) = (event, &mut state.replay) {
            replay.keep(data);
        }
        for queue in state.queues.values_mut().filter(|queue| !queue.closed) {
            self.add(queue, event.clone());
        }
        Offer::Taken
    }

    /// Looks for subscribers without room. Ends the subscriptions of those that have taken nothing
    /// for too long while another waits.
    fn held_up(&self, state: &mut State) -> Option<Offer> {
        let crowded = self.behind.load(Ordering::Relaxed) >= BEHIND_TOTAL;
        let open = || state.queues.values().filter(|queue| !queue.closed);
        if !open().any(|queue| queue.is_full(crowded)) {
            return None;
        }
        if open().all(|queue| !queue.events.is_empty()) {
            return Some(Offer::Full(None));
        }
        let now = Instant::now();
        let mut until: Option<Instant> = None;
        let queues = state.queues.values_mut().filter(|queue| !queue.closed);
        for queue in queues.filter(|queue| queue.is_full(crowded)) {
            let limit = queue.active + self.patience;
            if limit <= now {
                self.behind.fetch_sub(queue.lose(), Ordering::Relaxed);
            } else {
                until = Some(until.map_or(limit, |earlier| earlier.min(limit)));
            }
        }
        until.map(|until| Offer::Full(Some(until)))
    }

    fn add(&self, queue: &mut Queue, event: Event) {
        self.behind.fetch_add(event.cost(), Ordering::Relaxed);
        queue.add(event);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Queue {
    fn new(ready: Arc<Notify>) -> Self {
        let (events, active) = (VecDeque::new(), Instant::now());
        Self { events, cost: 0, active, closed: false, lost: false, ready }
    }

    fn is_full(&self, crowded: bool) -> bool {
        self.cost >= BEHIND || (crowded && self.cost > 0)
    }

    fn add(&mut self, event: Event) {
        if self.events.is_empty() {
            self.active = Instant::now();
        }
        self.cost += event.cost();
        self.events.push_back(event);
        self.ready.notify_one();
    }

    /// Ends the subscription. Returns the cost of the events that the subscriber does not get.
    fn lose(&mut self) -> usize {
        (self.closed, self.lost) = (true, true);
        self.events = VecDeque::new();
        self.ready.notify_one();
        std::mem::take(&mut self.cost)
    }
}

/// A subscriber's end of a hub.
pub(crate) struct Subscription {
    hub: Arc<Hub>,
    id: u64,
    ready: Arc<Notify>,
    /// Set for the subscription of the caller who started the program.
    presence: Option<Presence>,
}

impl Subscription {
    /// Makes this the subscription of the caller who started the program.
    pub(super) fn of_starter(mut self, presence: Presence) -> Self {
        self.presence = Some(presence);
        self
    }

    /// Waits for the next event. Returns `None` after the last.
    ///
    /// # Errors
    /// Returns `resource_exhausted` when the subscriber took nothing for too long.
    pub(crate) async fn next(&mut self) -> Option<Result<Event>> {
        loop {
            if let Some(next) = self.take() {
                return next;
            }
            // A wake-up between the check and the wait is kept for the wait.
            self.ready.notified().await;
        }
    }

    /// Takes the next event, or the end of the events. Returns `None` while neither is there.
    fn take(&self) -> Option<Option<Result<Event>>> {
        let mut state = self.hub.lock();
        let Some(queue) = state.queues.get_mut(&self.id) else { return Some(None) };
        if let Some(event) = queue.events.pop_front() {
            queue.cost -= event.cost();
            queue.active = Instant::now();
            self.hub.behind.fetch_sub(event.cost(), Ordering::Relaxed);
            drop(state);
            self.hub.room.notify_waiters();
            return Some(Some(Ok(event)));
        }
        if std::mem::take(&mut queue.lost) {
            let message = "the connection did not read the program's output in time";
            return Some(Some(Err(Error::new(ErrorCode::ResourceExhausted, message))));
        }
        queue.closed.then_some(None)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(queue) = self.hub.lock().queues.remove(&self.id) {
            self.hub.behind.fetch_sub(queue.cost, Ordering::Relaxed);
        }
        self.hub.room.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
