//! Adoption of the capsules that an earlier agent left, the first work of an agent. For each
//! capsule, the ledger, the processes and the complete snapshots tell how far the earlier agent
//! got. Adoption then completes the work or undoes it. It removes nothing that ran or was kept in a
//! snapshot.

use super::boot::{self, Booted};
use super::ledger::{Ledger, Phase};
use super::manager::{Capsule, Manager, State, chain};
use super::{Error, pause};
use crate::room::Level;
use crate::snapshot;
use crate::vmm::{Found, Machine};
use std::sync::Arc;
use types::CapsuleId;

impl Capsule {
    /// Returns a dead capsule without a ledger, whose leftovers could not be removed.
    fn lost(reason: String) -> Self {
        let ledger = Ledger::unknown();
        Self { memory_mib: 0, ..Self::new(&ledger, State::Dead(reason)) }
    }
}

impl Manager {
    /// Finds every capsule that an earlier agent left.
    pub(super) async fn adopt_all(&self) -> Result<(), Error> {
        let mut failed = false;
        for id in boot::existing(&self.parts) {
            let dir = boot::folder(&self.parts, id);
            let found = match Ledger::load(&dir) {
                Some(ledger) => self.adopt(id, ledger).await,
                // A ledger is always replaced as a whole. If this one cannot be read, another
                // version wrote it, so its capsule is not touched.
                None if Ledger::exists(&dir) => Err(Error::Invalid("an unknown ledger".to_owned())),
                None => boot::unmake(&self.parts, id).await,
            };
            if let Err(error) = found {
                // The capsule stays listed, so that the control plane asks for its removal again.
                failed = true;
                let reason = chain(&error);
                tracing::error!(%id, error = reason, "finding what an earlier agent left");
                let known =
                    Ledger::load(&dir).map(|l| Capsule::new(&l, State::Dead(reason.clone())));
                self.lock().insert(id, known.unwrap_or_else(|| Capsule::lost(reason)));
            }
        }
        match &self.parts.networks {
            // Any unknown network may belong to a capsule that was not adopted.
            Some(networks) if failed => networks.keep_strangers(),
            Some(networks) => networks.remove_strangers().await?,
            None => {}
        }
        Ok(())
    }

    async fn adopt(&self, id: CapsuleId, mut ledger: Ledger) -> Result<(), Error> {
        let parts = &self.parts;
        let dir = boot::folder(parts, id);
        let newest = pause::newest(&snapshot::sweep(&boot::kept(&dir)));
        let state = match ledger.phase {
            Phase::Starting => {
                tracing::info!(%id, "removing what an earlier agent left");
                return boot::unmake(parts, id).await;
            }
            // The pause was complete, but the earlier agent did not update the ledger.
            Phase::Running if newest > ledger.last => {
                pause::settle(parts, &mut ledger, newest).await?;
                State::Paused
            }
            Phase::Running => match self.find_running(&ledger).await {
                Some((booted, waits)) => {
                    tracing::info!(%id, waits, "adopted a running capsule");
                    self.lock().insert(id, Capsule::new(&ledger, State::Running));
                    self.run(id, booted);
                    // An earlier agent may have died before it let the guest go on.
                    self.change(id, |capsule| {
                        (capsule.usage.waits, capsule.usage.thaw_owed) = (waits, true);
                    });
                    return Ok(());
                }
                None => State::Dead("the machine ended while no agent ran".to_owned()),
            },
            // Nobody was let in, so the last snapshot still holds everything.
            Phase::Paused | Phase::Resuming => {
                let last = ledger.last;
                pause::settle(parts, &mut ledger, last).await?;
                State::Paused
            }
            Phase::Expired => {
                boot::release(parts, &mut ledger).await?;
                State::Expired
            }
        };
        tracing::info!(%id, %state, "found a capsule");
        self.lock().insert(id, Capsule::new(&ledger, state));
        Ok(())
    }

    /// Finds the machine of a capsule. The flag is true when its guest waits for room on the disk.
    async fn find_running(&self, ledger: &Ledger) -> Option<(Booted, bool)> {
        let dir = boot::folder(&self.parts, ledger.id);
        let network = match (&self.parts.networks, ledger.slot) {
            (Some(networks), Some(slot)) => Some(networks.adopt(slot).ok()?),
            _ => None,
        };
        let name = ledger.id.to_string();
        let machine: Arc<dyn Machine> = Arc::from(self.parts.driver.adopt(Found {
            record: ledger.machine.as_ref()?,
            name: &name,
            dir: &dir,
            uid: boot::uid(ledger),
            namespace: network.as_ref().map(|network| &network.namespace),
            metadata: boot::metadata(ledger),
        })?);
        let namespace = network.map(|network| network.namespace);
        let guarded = boot::guard(&self.parts, namespace.as_ref(), &ledger.egress).await;
        // Without a guard, the capsule's rules for host names let nothing through.
        let warn = |error: &Error| {
            tracing::error!(id = %ledger.id, error = chain(error), "a capsule's rules");
        };
        let guard = guarded.inspect_err(warn).ok().flatten();
        let route = boot::route(&*machine, namespace).ok()?;
        let guest = boot::guest(&self.parts, ledger, route).guarded(guard);
        // A stopped guest takes no room, so it stays stopped until the disk has room again.
        let scarce = matches!(self.parts.room.look(), Level::Scarce | Level::Low);
        let waits = scarce && machine.stands_still().await.unwrap_or(false);
        let life = ledger.life.clone();
        Some((Booted { machine, guest, stages: Vec::new(), life }, waits))
    }
}
