//! Waits for capsules to change. PostgreSQL announces each change, so a waiter asks the database
//! only when there is something to see. A paused capsule is woken once for all concurrent requests.

use super::awake;
use crate::app::App;
use crate::auth::Caller;
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
#[derive(Default)]
pub(crate) struct Waiters {
    changes: Mutex<HashMap<CapsuleId, watch::Sender<()>>>,
    wakes: Mutex<HashMap<CapsuleId, watch::Receiver<Outcome>>>,
}

impl Waiters {
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
            Change::Key(_)
            | Change::Host(_)
            | Change::User(_)
            | Change::Session(_)
            | Change::Team(_)
            | Change::Events(_)
            | Change::Nothing => {}
        }
    }
}

/// A waiter for changes of a capsule.
pub(super) struct Waiter<'a> {
    app: &'a App,
    id: CapsuleId,
    changed: watch::Receiver<()>,
    until: Instant,
}

impl<'a> Waiter<'a> {
    /// Makes a waiter that waits for `limit` at most.
    pub(super) fn new(app: &'a App, id: CapsuleId, limit: Duration) -> Self {
        let mut changes = app.waiters.changes();
        let changed = changes.entry(id).or_insert_with(|| watch::channel(()).0).subscribe();
        Self { app, id, changed, until: Instant::now() + limit }
    }

    /// Takes note of all changes so far. Call it before a look, so that no later change is missed.
    pub(super) fn note(&mut self) {
        self.changed.mark_unchanged();
    }

    /// Waits for a change since [`Self::note`], or until it is time for another look. Returns
    /// `false` when the time to wait is over.
    pub(super) async fn again(&mut self) -> bool {
        let now = Instant::now();
        let pause = if self.app.invalidation_health.is_healthy() { LOOK } else { LOOK_DEAF };
        let _ = tokio::time::timeout_at(self.until.min(now + pause), self.changed.changed()).await;
        now < self.until
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut changes = self.app.waiters.changes();
        if changes.get(&self.id).is_some_and(|change| change.receiver_count() == 1) {
            changes.remove(&self.id);
        }
    }
}

/// Ends a wake when dropped, so that a later request begins another.
struct Ends<'a>(&'a App, CapsuleId);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.waiters.wakes().remove(&self.1);
    }
}

/// Wakes a capsule, or joins a wake that is under way.
pub(crate) async fn wake(app: &App, caller: Caller, id: CapsuleId) -> Result<()> {
    let mut heard = {
        let mut wakes = app.waiters.wakes();
        match wakes.get(&id) {
            Some(heard) => heard.clone(),
            None => {
                let (tell, heard) = watch::channel(None);
                wakes.insert(id, heard.clone());
                let app = app.clone();
                // The wake goes on when its client leaves, since others may wait for it.
                app.tasks.clone().spawn(async move {
                    let ends = Ends(&app, id);
                    let woken = Box::pin(awake(&app, caller, id)).await;
                    drop(ends);
                    let _ = tell.send(Some(woken.map(|_| ()).map_err(Arc::new)));
                });
                heard
            }
        }
    };
    let outcome = heard.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
    match outcome {
        Ok(Some(Err(error))) => Err(error.repeated()),
        Ok(Some(Ok(()))) => Ok(()),
        // The process shuts down, which ended the wake.
        Ok(None) | Err(_) => Err(Error::HostUnavailable),
    }
}
