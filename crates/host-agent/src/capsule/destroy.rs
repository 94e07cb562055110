//! The removal of a capsule and of everything that the host has of it. A removal cancels the
//! operation that has the capsule's lock, so no guest delays a removal. A removal names the newest
//! generation that it may remove. A capsule of a later generation stays.

use super::Error;
use super::boot;
use super::manager::{Capsule, CapsuleLock, Manager, State};
use super::record::CapsuleRecord;
use std::sync::Arc;
use std::time::Duration;
use types::CapsuleId;

/// Period in which a removal that waits for its lock cancels operations.
const AGAIN: Duration = Duration::from_millis(100);

impl Manager {
    /// Ends a capsule and removes everything that belongs to it; an unknown capsule is success.
    /// With `newest`, a capsule of a later generation stays, and the answer is [`Error::Stale`].
    pub(crate) async fn destroy(&self, id: CapsuleId, newest: Option<u64>) -> Result<(), Error> {
        let this = self.clone();
        self.detached(async move { this.destroy_under_lock(id, newest).await }).await
    }

    async fn destroy_under_lock(&self, id: CapsuleId, newest: Option<u64>) -> Result<(), Error> {
        let lock = self.begin_destroy(id, newest)?;
        let mut next = std::pin::pin!(lock.lock());
        let _guard = loop {
            tokio::select! {
                held = &mut next => break held,
                () = tokio::time::sleep(AGAIN) => self.cancel_for_removal(id, &lock, newest),
            }
        };
        let running = {
            let mut capsules = self.lock();
            match capsules.get_mut(&id) {
                // Another removal of the same capsule went first, while this call waited for the
                // lock.
                None => return Ok(()),
                Some(capsule) if !Arc::ptr_eq(&capsule.lock, &lock) => return Ok(()),
                Some(capsule) if capsule.is_later_than(newest) => return Err(Error::Stale),
                Some(capsule) => {
                    capsule.state = State::Stopping;
                    capsule.running.take()
                }
            }
        };
        if let Some((_, guest)) = running {
            let cut = guest.drain(Duration::ZERO).await;
            metrics::counter!("wrenn_requests_cut_total").increment(cut);
        }
        boot::remove(&self.context, id).await?;
        self.lock().remove(&id);
        Ok(())
    }

    /// Cancels the operation that has the lock. Another one may have taken the lock since the last
    /// call.
    fn cancel_for_removal(&self, id: CapsuleId, lock: &CapsuleLock, newest: Option<u64>) {
        self.change(id, |capsule| {
            if Arc::ptr_eq(&capsule.lock, lock) && !capsule.is_later_than(newest) {
                capsule.cancel.cancel();
            }
        });
    }

    /// Cancels the capsule's operation under way. An unknown capsule is listed meanwhile. So no
    /// other call begins a capsule of this id while its leftovers are removed.
    fn begin_destroy(&self, id: CapsuleId, newest: Option<u64>) -> Result<CapsuleLock, Error> {
        let mut capsules = self.lock();
        let unknown = || Capsule {
            memory_mib: 0,
            ..Capsule::new(&CapsuleRecord::unknown(), State::Stopping)
        };
        let capsule = capsules.entry(id).or_insert_with(unknown);
        if capsule.is_later_than(newest) {
            return Err(Error::Stale);
        }
        capsule.cancel.cancel();
        Ok(Arc::clone(&capsule.lock))
    }
}

impl Capsule {
    fn is_later_than(&self, newest: Option<u64>) -> bool {
        newest.is_some_and(|newest| self.generation > newest)
    }
}
