//! The removal of a capsule with all that the host has of it. A removal names the newest
//! generation that it is about: a capsule that a later command began is not what it removes.

use super::Error;
use super::boot;
use super::ledger::Ledger;
use super::manager::{Capsule, Manager, State, Turn};
use std::sync::Arc;
use std::time::Duration;
use types::CapsuleId;

impl Manager {
    /// Ends a capsule and removes all it had; an unknown capsule is success. With `newest`, a
    /// capsule of a later generation is left alone and answered with [`Error::Stale`].
    pub(crate) async fn destroy(&self, id: CapsuleId, newest: Option<u64>) -> Result<(), Error> {
        let this = self.clone();
        self.detached(async move { this.destroy_in_turn(id, newest).await }).await
    }

    async fn destroy_in_turn(&self, id: CapsuleId, newest: Option<u64>) -> Result<(), Error> {
        let turn = self.begin_destroy(id, newest)?;
        let _turn = turn.lock().await;
        let running = {
            let mut capsules = self.lock();
            match capsules.get_mut(&id) {
                // The capsule that this is about was removed while this waited for its turn.
                None => return Ok(()),
                Some(capsule) if !Arc::ptr_eq(&capsule.turn, &turn) => return Ok(()),
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
        boot::unmake(&self.parts, id).await?;
        self.lock().remove(&id);
        Ok(())
    }

    /// Ends a boot under way of the capsule that is to be removed. An unknown capsule is entered
    /// meanwhile, so that none is begun under its id while its leftovers are removed.
    fn begin_destroy(&self, id: CapsuleId, newest: Option<u64>) -> Result<Turn, Error> {
        let mut capsules = self.lock();
        let unknown =
            || Capsule { memory_mib: 0, ..Capsule::new(&Ledger::unknown(), State::Stopping) };
        let capsule = capsules.entry(id).or_insert_with(unknown);
        if capsule.is_later_than(newest) {
            return Err(Error::Stale);
        }
        capsule.cancel.cancel();
        Ok(Arc::clone(&capsule.turn))
    }
}

impl Capsule {
    fn is_later_than(&self, newest: Option<u64>) -> bool {
        newest.is_some_and(|newest| self.generation > newest)
    }
}
