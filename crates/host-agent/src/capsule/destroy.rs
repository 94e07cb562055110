//! The removal of a capsule and of everything that the host has of it. A removal cancels the
//! operation that has the capsule's lock, so no guest delays a removal. A removal names the newest
//! generation that it may remove. A capsule of a later generation stays.
//!
//! A removal answers once the capsule is out of reach. Then its connections are cut, no thread of
//! its machine runs, and no list shows it. A task behind the answer waits until the kernel has freed
//! the machine's memory, and removes limits, network and folder.
//!
//! ```text
//!  begin_destroy ──▶ wait for the lock, cancelling ──▶ Stopping ──▶ cut connections ──▶ kill
//!     │ a later generation: Stale                        │ gone meanwhile: success      │
//!     │ out of reach already: success                                                   ▼
//!     ▼                    unknown ◀── remove_remains, some tries ◀── answer ◀── leave_remains
//!                          Dead    ◀────────┘ all failed
//! ```
//! The record stays until the rest is gone. So after a crash the next agent finds the folder, and
//! lists or removes it. No row of the platform names such a capsule, so the platform asks for its
//! removal again.

use super::host::Host;
use super::logs::{self, LifecycleEvent};
use super::record::CapsuleRecord;
use super::registry::transitions::Stop;
use super::registry::{CapsuleLock, Running};
use super::{Error, chain, files, teardown};
use std::time::Duration;
use tokio::sync::{OwnedMutexGuard, Semaphore};
use types::CapsuleId;

/// Period in which a removal that waits for its lock cancels operations.
const AGAIN: Duration = Duration::from_millis(100);
/// Most attempts to remove a capsule's remains, and the delay after the first one. Each further
/// delay is longer by as much.
const TRIES: u32 = 5;
const DELAY: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 500 });
/// Places for the removal of remains. More removals at once would only slow down creates.
static PLACES: Semaphore = Semaphore::const_new(8);
/// Time limit for a caller that waits until a capsule's remains are gone.
const GONE: Duration = Duration::from_secs(10);

/// Ends a capsule; an unknown capsule is success. The capsule's remains are removed after the
/// answer. With `newest`, a capsule of a later generation stays, and the answer is
/// [`Error::Stale`].
pub(super) async fn destroy(host: &Host, id: CapsuleId, newest: Option<u64>) -> Result<(), Error> {
    let this = host.clone();
    host.detached(async move { destroy_under_lock(&this, id, newest).await }).await
}

/// Waits until nothing of a removed capsule is left on this host. A capsule that was not removed is
/// success.
///
/// # Errors
/// [`Error::Stopping`] when something is left after the time limit.
pub(super) async fn wait_gone(host: &Host, id: CapsuleId) -> Result<(), Error> {
    let Some(gone) = host.registry.remains(id) else { return Ok(()) };
    let waited = tokio::time::timeout(GONE, gone.cancelled()).await;
    waited.map_err(|_| Error::Stopping)
}

async fn destroy_under_lock(host: &Host, id: CapsuleId, newest: Option<u64>) -> Result<(), Error> {
    let Some(lock) = host.registry.begin_destroy(id, newest)? else { return Ok(()) };
    let _guard = take_lock(host, id, &lock, newest).await;
    let running = match host.registry.stop(id, &lock, newest)? {
        Stop::Gone => return Ok(()),
        Stop::Stopping(running) => running,
    };
    if let Some(Running { guest, machine }) = running {
        let cut = guest.drain(Duration::ZERO).await;
        metrics::counter!("wrenn_requests_cut_total").increment(cut);
        // The network is removed only when nobody holds it.
        drop((guest, machine));
    }
    let record = CapsuleRecord::load(&files::folder(&host.context, id));
    teardown::kill(&host.context, id, record.as_ref()).await?;
    let generation = host.registry.leave_remains(id);
    if let Some(record) = &record {
        logs::end(host, record, LifecycleEvent::Ended);
    }
    spawn_removal(host, id, generation, record);
    Ok(())
}

/// Takes a capsule's lock. Cancels every operation that has the lock meanwhile.
async fn take_lock(
    host: &Host,
    id: CapsuleId,
    lock: &CapsuleLock,
    newest: Option<u64>,
) -> OwnedMutexGuard<()> {
    let mut next = std::pin::pin!(CapsuleLock::clone(lock).lock_owned());
    loop {
        tokio::select! {
            held = &mut next => return held,
            () = tokio::time::sleep(AGAIN) => {
                host.registry.cancel_for_removal(id, lock, newest);
            }
        }
    }
}

/// Removes a capsule's remains behind the answer. If all attempts fail, the capsule is listed as
/// dead, so that the platform asks again.
fn spawn_removal(host: &Host, id: CapsuleId, generation: u64, record: Option<CapsuleRecord>) {
    let this = host.clone();
    host.context.tasks.spawn(async move {
        match remove_remains(&this, id, record.as_ref()).await {
            Ok(()) => this.registry.end_remains(id),
            Err(error) => {
                let reason = chain(&error);
                tracing::error!(%id, error = reason, "cannot remove what is left of a capsule");
                metrics::counter!("wrenn_removals_failed_total").increment(1);
                this.registry.list_dead(id, generation, reason);
                this.changes.note();
            }
        }
    });
}

/// Removes a capsule's remains, in a few attempts. The end of the agent leaves the remains to the
/// next agent.
async fn remove_remains(
    host: &Host,
    id: CapsuleId,
    record: Option<&CapsuleRecord>,
) -> Result<(), Error> {
    // The semaphore is never closed.
    let _place = PLACES.acquire().await.ok();
    let mut tries = 1;
    loop {
        let error = match teardown::remove_remains(&host.context, id, record).await {
            Err(error) if tries < TRIES => error,
            done => return done,
        };
        tracing::warn!(%id, error = chain(&error), "cannot remove the rest of a capsule yet");
        tokio::select! {
            () = tokio::time::sleep(DELAY * tries) => tries += 1,
            () = host.context.tasks.stopping() => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capsule::State;
    use crate::capsule::registry::Capsule;
    use crate::context::AgentContext;
    use crate::vmm::null::NullDriver;
    use std::fs;
    use std::sync::Arc;

    /// Returns a host with one dead capsule, and the capsule's record.
    fn dead(dir: &std::path::Path) -> (Host, CapsuleRecord) {
        let context = AgentContext::for_tests(dir, Box::new(NullDriver { port: 1 }));
        let record = CapsuleRecord { generation: 3, ..CapsuleRecord::new(CapsuleId::new()) };
        let folder = files::folder(&context, record.id);
        fs::create_dir_all(&folder).unwrap();
        record.save(&folder).unwrap();
        let host = Host::new(Arc::new(context), None);
        let dead = Capsule::new(&record, State::Dead("it ended".to_owned()));
        host.registry.insert(record.id, dead);
        (host, record)
    }

    #[tokio::test]
    async fn removal_answers_before_the_folder_is_gone_and_then_removes_it() {
        let dir = tempfile::tempdir().unwrap();
        let (host, record) = dead(dir.path());
        let folder = files::folder(&host.context, record.id);
        // No remains are removed while all places are taken.
        let places = PLACES.acquire_many(8).await.unwrap();
        destroy(&host, record.id, Some(3)).await.unwrap();
        assert_eq!(host.registry.state(record.id), None);
        assert!(CapsuleRecord::exists(&folder), "the next agent would not find the rest");
        // A repeated removal is success, and begins no second one.
        destroy(&host, record.id, Some(3)).await.unwrap();
        drop(places);
        wait_gone(&host, record.id).await.unwrap();
        assert!(!folder.exists());
        wait_gone(&host, record.id).await.unwrap();
    }

    #[tokio::test]
    async fn capsule_that_cannot_be_removed_is_listed_as_dead_until_a_later_removal() {
        let dir = tempfile::tempdir().unwrap();
        let (host, record) = dead(dir.path());
        let folder = files::folder(&host.context, record.id);
        // A file in the folder's place is no folder that could be removed.
        fs::remove_dir_all(&folder).unwrap();
        fs::write(&folder, "no folder").unwrap();
        destroy(&host, record.id, Some(3)).await.unwrap();
        wait_gone(&host, record.id).await.unwrap();
        let listed = host.registry.list();
        assert_eq!((listed[0].id, listed[0].generation), (record.id, 3));
        assert!(matches!(&listed[0].state, State::Dead(why) if why.contains("folder")));
        fs::remove_file(&folder).unwrap();
        destroy(&host, record.id, Some(3)).await.unwrap();
        wait_gone(&host, record.id).await.unwrap();
        assert_eq!(host.registry.list().len(), 0);
    }
}
