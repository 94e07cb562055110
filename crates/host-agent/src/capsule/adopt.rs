//! Adoption of the capsules that an earlier agent left, the first work of an agent. For each
//! capsule, the record, the processes and the complete snapshots tell how far the earlier agent
//! got. Adoption then completes the work or undoes it. It removes nothing that ran or was kept in a
//! snapshot.

use super::boot::{self, Booted};
use super::manager::{Capsule, Manager, State, chain};
use super::record::{CapsuleRecord, Phase};
use super::{Error, pause};
use crate::room::Level;
use crate::snapshot;
use crate::vmm::{Found, Machine};
use std::sync::Arc;
use types::CapsuleId;

impl Capsule {
    /// Returns a dead capsule without a record, whose leftovers could not be removed.
    fn lost(reason: String) -> Self {
        let record = CapsuleRecord::unknown();
        Self { memory_mib: 0, ..Self::new(&record, State::Dead(reason)) }
    }
}

impl Manager {
    /// Finds every capsule that an earlier agent left.
    pub(super) async fn adopt_all(&self) -> Result<(), Error> {
        let mut failed = false;
        for id in boot::existing(&self.context) {
            let dir = boot::folder(&self.context, id);
            let found = match CapsuleRecord::load(&dir) {
                Some(record) => self.adopt(id, record).await,
                // A record is always replaced as a whole. If this one cannot be read, another
                // version wrote it, so its capsule is not touched.
                None if CapsuleRecord::exists(&dir) => {
                    Err(Error::Invalid("an unknown record".to_owned()))
                }
                None => boot::remove(&self.context, id).await,
            };
            if let Err(error) = found {
                // The capsule stays listed, so that the control plane asks for its removal again.
                failed = true;
                let reason = chain(&error);
                tracing::error!(%id, error = reason, "finding what an earlier agent left");
                let known = CapsuleRecord::load(&dir)
                    .map(|record| Capsule::new(&record, State::Dead(reason.clone())));
                self.lock().insert(id, known.unwrap_or_else(|| Capsule::lost(reason)));
            }
        }
        match &self.context.networks {
            // Any unknown network may belong to a capsule that was not adopted.
            Some(networks) if failed => networks.reserve_orphans(),
            Some(networks) => networks.remove_orphans().await?,
            None => {}
        }
        Ok(())
    }

    async fn adopt(&self, id: CapsuleId, mut record: CapsuleRecord) -> Result<(), Error> {
        let context = &self.context;
        let dir = boot::folder(context, id);
        let newest = pause::newest(&snapshot::sweep(&boot::snapshots_dir(&dir)));
        let state = match record.phase {
            Phase::Starting => {
                tracing::info!(%id, "removing what an earlier agent left");
                return boot::remove(context, id).await;
            }
            // The pause was complete, but the earlier agent did not update the record.
            Phase::Running if newest > record.last => {
                pause::settle(context, &mut record, newest).await?;
                State::Paused
            }
            Phase::Running => match self.find_running(&record).await {
                Some((booted, waits)) => {
                    tracing::info!(%id, waits, "adopted a running capsule");
                    self.lock().insert(id, Capsule::new(&record, State::Running));
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
                let last = record.last;
                pause::settle(context, &mut record, last).await?;
                State::Paused
            }
            Phase::Expired => {
                boot::release(context, &mut record).await?;
                State::Expired
            }
        };
        tracing::info!(%id, %state, "found a capsule");
        self.lock().insert(id, Capsule::new(&record, state));
        Ok(())
    }

    /// Finds the machine of a capsule. The flag is true when its guest waits for room on the disk.
    async fn find_running(&self, record: &CapsuleRecord) -> Option<(Booted, bool)> {
        let dir = boot::folder(&self.context, record.id);
        let network = match (&self.context.networks, record.slot) {
            (Some(networks), Some(slot)) => Some(networks.adopt(slot).ok()?),
            _ => None,
        };
        let name = record.id.to_string();
        let machine: Arc<dyn Machine> = Arc::from(self.context.driver.adopt(Found {
            record: record.machine.as_ref()?,
            name: &name,
            dir: &dir,
            uid: boot::uid(record),
            namespace: network.as_ref().map(|network| &network.namespace),
            metadata: boot::metadata(record),
        })?);
        let namespace = network.map(|network| network.namespace);
        let guarded = boot::guard(&self.context, namespace.as_ref(), &record.egress).await;
        // Without a guard, the capsule's rules for host names let nothing through.
        let warn = |error: &Error| {
            tracing::error!(id = %record.id, error = chain(error), "a capsule's rules");
        };
        let guard = guarded.inspect_err(warn).ok().flatten();
        let route = boot::route(&*machine, namespace).ok()?;
        let guest = boot::guest(&self.context, record, route).guarded(guard);
        // A stopped guest takes no room, so it stays stopped until the disk has room again.
        let scarce = matches!(self.context.room.look(), Level::Scarce | Level::Low);
        let waits = scarce && machine.is_stopped().await.unwrap_or(false);
        let life = record.life.clone();
        Some((Booted { machine, guest, stages: Vec::new(), life }, waits))
    }
}
