//! Waits for capsules to change. PostgreSQL announces each change, so a waiter asks the database
//! only when there is something to see. Requests that wake the same capsule share one wake.

use crate::cache::InvalidationHealth;
use crate::db::listen::Change;
use crate::error::{Error, Result};
use daemon::lock;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use types::CapsuleId;

/// Longest sleep of a waiter while change notifications arrive, and while they do not.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_DEAF: Duration = Duration::from_millis(100);

/// Result of waking a capsule; `None` while the wake is under way.
type Outcome = Option<std::result::Result<(), Arc<Error>>>;

/// Waiters for capsules, and wakes that are under way.
pub(crate) struct Waiters {
    health: InvalidationHealth,
    changes: Mutex<HashMap<CapsuleId, watch::Sender<()>>>,
    wakes: Mutex<HashMap<CapsuleId, watch::Receiver<Outcome>>>,
}

impl Waiters {
    pub(crate) fn new(health: InvalidationHealth) -> Self {
        Self { health, changes: Mutex::default(), wakes: Mutex::default() }
    }

    fn changes(&self) -> MutexGuard<'_, HashMap<CapsuleId, watch::Sender<()>>> {
        lock(&self.changes)
    }

    fn wakes(&self) -> MutexGuard<'_, HashMap<CapsuleId, watch::Receiver<Outcome>>> {
        lock(&self.wakes)
    }

    /// Wakes the waiters for a capsule that has changed.
    pub(crate) fn apply(&self, change: &Change) {
        match change {
            Change::Capsule(id) => {
                if let Some(change) = self.changes().get(id) {
                    change.send_replace(());
                }
            }
            Change::All => self.changes().values().for_each(|change| change.send_replace(())),
            Change::Build(_)
            | Change::Key(_)
            | Change::Host(_)
            | Change::User(_)
            | Change::Session(_)
            | Change::Team(_)
            | Change::Events(_)
            | Change::Nothing => {}
        }
    }

    /// Makes a waiter for changes of a capsule. It waits for `limit` at most.
    pub(crate) fn watch(&self, id: CapsuleId, limit: Duration) -> Waiter<'_> {
        let mut changes = self.changes();
        let changed = changes.entry(id).or_insert_with(|| watch::channel(()).0).subscribe();
        Waiter { waiters: self, id, changed, until: Instant::now() + limit }
    }

    /// Joins the wake of a capsule. Returns the task if none is under way; the caller then runs it.
    pub(super) fn join_wake(self: &Arc<Self>, id: CapsuleId) -> (Option<WakeTask>, WakeOutcome) {
        let mut wakes = self.wakes();
        if let Some(heard) = wakes.get(&id) {
            return (None, WakeOutcome(heard.clone()));
        }
        let (tell, heard) = watch::channel(None);
        wakes.insert(id, heard.clone());
        let entry = WakeEntry(Arc::clone(self), id);
        (Some(WakeTask { entry, tell }), WakeOutcome(heard))
    }
}

/// Reason that a waiter stopped waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waited {
    /// The capsule has changed since [`Waiter::note`].
    Changed,
    /// No change was announced, but it is time for another look.
    Due,
    /// The time to wait is over.
    Over,
}

/// A waiter for changes of a capsule.
pub(crate) struct Waiter<'a> {
    waiters: &'a Waiters,
    id: CapsuleId,
    changed: watch::Receiver<()>,
    until: Instant,
}

impl Waiter<'_> {
    /// Takes note of all changes so far. Call it before a look, so that no later change is missed.
    pub(crate) fn note(&mut self) {
        self.changed.mark_unchanged();
    }

    /// Waits for a change since [`Self::note`], or until it is time for another look.
    pub(crate) async fn wait(&mut self) -> Waited {
        let now = Instant::now();
        if now >= self.until {
            return Waited::Over;
        }
        let pause = if self.waiters.health.is_healthy() { LOOK } else { LOOK_DEAF };
        let changed = self.changed.changed();
        match tokio::time::timeout_at(self.until.min(now + pause), changed).await {
            Ok(_) => Waited::Changed,
            Err(_) => Waited::Due,
        }
    }

    /// Waits like [`Self::wait`]. Returns `false` when the time to wait is over.
    pub(crate) async fn again(&mut self) -> bool {
        self.wait().await != Waited::Over
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut changes = self.waiters.changes();
        if changes.get(&self.id).is_some_and(|change| change.receiver_count() == 1) {
            changes.remove(&self.id);
        }
    }
}

/// Entry of a wake that is under way. Dropping it lets a later request begin another wake.
struct WakeEntry(Arc<Waiters>, CapsuleId);

impl Drop for WakeEntry {
    fn drop(&mut self) {
        self.0.wakes().remove(&self.1);
    }
}

/// A wake that its holder runs for everybody who joins it.
pub(super) struct WakeTask {
    entry: WakeEntry,
    tell: watch::Sender<Outcome>,
}

impl WakeTask {
    /// Ends the wake, and passes its result to everybody who joined it.
    pub(super) fn finish(self, woken: Result<()>) {
        let Self { entry, tell } = self;
        drop(entry);
        let _ = tell.send(Some(woken.map_err(Arc::new)));
    }
}

/// Result of a wake that was joined.
pub(super) struct WakeOutcome(watch::Receiver<Outcome>);

impl WakeOutcome {
    /// Waits for the end of the wake.
    pub(super) async fn wait(mut self) -> Result<()> {
        let outcome = self.0.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
        match outcome {
            Ok(Some(Err(error))) => Err(error.repeated()),
            Ok(Some(Ok(()))) => Ok(()),
            // The process shuts down, which ended the wake.
            Ok(None) | Err(_) => Err(Error::HostUnavailable),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiters() -> Arc<Waiters> {
        let health = InvalidationHealth::default();
        health.set(true);
        Arc::new(Waiters::new(health))
    }

    #[tokio::test]
    async fn waiter_returns_at_once_after_a_change_and_is_over_after_its_limit() {
        let (waiters, id) = (waiters(), CapsuleId::new());
        let mut waiter = waiters.watch(id, Duration::from_secs(60));
        waiters.apply(&Change::Capsule(CapsuleId::new()));
        waiters.apply(&Change::Capsule(id));
        assert_eq!(waiter.wait().await, Waited::Changed);
        let mut over = waiters.watch(id, Duration::ZERO);
        assert_eq!(over.wait().await, Waited::Over);
        drop((waiter, over));
        assert!(waiters.changes().is_empty());
    }

    #[tokio::test]
    async fn change_before_note_is_not_reported_and_the_slow_look_comes() {
        let (waiters, id) = (waiters(), CapsuleId::new());
        let mut waiter = waiters.watch(id, Duration::from_millis(20));
        waiters.apply(&Change::All);
        waiter.note();
        assert_eq!(waiter.wait().await, Waited::Due);
    }

    #[tokio::test]
    async fn concurrent_wakes_share_a_task_and_its_result() {
        let (waiters, id) = (waiters(), CapsuleId::new());
        let (task, first) = waiters.join_wake(id);
        let (none, second) = waiters.join_wake(id);
        assert!(none.is_none());
        task.unwrap().finish(Err(Error::GuestUnavailable));
        assert!(first.wait().await.is_err() && second.wait().await.is_err());
        let (task, third) = waiters.join_wake(id);
        drop(task.unwrap());
        assert!(matches!(third.wait().await, Err(Error::HostUnavailable)));
    }
}
