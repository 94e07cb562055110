//! A capsule's network: a namespace with a tap for the machine and a link to the host.
//!
//! Everything inside a namespace is the same for every capsule, so a snapshot fits any namespace.
//! No connection from outside reaches a guest. A guest reaches neither the host, nor another
//! capsule, nor a private range, nor anything that its own rules deny. `plan.rs` decides on
//! addresses and rules, `netns.rs` applies them, and `egress.rs` filters by host names.

mod conntrack;
pub(crate) mod egress;
mod error;
pub(crate) mod namespace;
pub(crate) mod netns;
pub(crate) mod plan;
mod ready;
mod slots;
pub(crate) mod traffic;

pub(crate) use error::Error;

use crate::sys;
use daemon::{blocking, lock};
use egress::Guard;
use error::io_error;
use namespace::Namespace;
use plan::Plan;
use ready::ReadyNetworks;
use slots::Slots;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use types::Egress;

/// The networks of all capsules of this agent.
pub(crate) struct Networks {
    plan: Plan,
    slots: Mutex<Slots>,
    /// Namespaces that this process has open, by their slots.
    open: Mutex<HashMap<u32, Namespace>>,
    /// Networks that were made ahead of any capsule.
    ready: ReadyNetworks,
}

/// Network of a single capsule. Dropping it keeps the network; [`Networks::teardown`] removes it.
pub(crate) struct Network {
    pub slot: u32,
    pub namespace: Namespace,
    /// The machine's tap device; `None` once handed over.
    pub tap: Option<OwnedFd>,
}

impl Networks {
    /// Prepares the host: checks the range and applies the host's own rules. At most `ready`
    /// networks are made ahead, from [`Self::spawn_refill`] on.
    pub(crate) async fn new(plan: Plan, ready: u32) -> Result<Arc<Self>, Error> {
        netns::check_clash(&plan).await?;
        let this = Self::with_ready(plan, ready);
        this.prepare_host().await?;
        Ok(this)
    }

    /// Applies the host's own rules, in one step with the removal of the existing ones. Runs
    /// repeatedly, since a reload of the host's firewall removes these rules.
    pub(crate) async fn prepare_host(self: &Arc<Self>) -> Result<(), Error> {
        let this = Arc::clone(self);
        let prepare = move || netns::prepare_host(&this.plan);
        blocking(prepare).await.map_err(io_error("cannot prepare the host's network"))
    }

    /// Returns networks of which none is made ahead. The host's own rules are not changed.
    pub(crate) fn for_removal(plan: Plan) -> Arc<Self> {
        Self::with_ready(plan, 0)
    }

    fn with_ready(plan: Plan, ready: u32) -> Arc<Self> {
        let slots = Mutex::new(Slots::new(plan.slots()));
        let ready = ReadyNetworks::new(ready, plan.slots());
        Arc::new(Self { plan, slots, open: Mutex::default(), ready })
    }

    /// Returns a network with the given rules for outgoing connections: one that was made ahead, or
    /// else a new one.
    pub(crate) async fn create(self: &Arc<Self>, egress: &Egress) -> Result<Network, Error> {
        if let Some(network) = self.ready.take() {
            match self.furnish(network, egress).await {
                Err(error) => tracing::warn!(?error, "cannot use a network that was made ahead"),
                furnished => return furnished,
            }
        }
        let Some(slot) = self.take_slot() else {
            let last = self.ready.take_under_way().await;
            return self.furnish(last.ok_or(Error::Full(self.plan.slots()))?, egress).await;
        };
        let made = self.make(slot, egress).await?;
        count_taken("made");
        Ok(made)
    }

    /// Applies a capsule's rules in a network that was made ahead. A network in which this fails is
    /// removed.
    async fn furnish(
        self: &Arc<Self>,
        network: Network,
        egress: &Egress,
    ) -> Result<Network, Error> {
        // A network that is made ahead has the rules of a capsule without rules.
        if !egress.is_open() {
            let rules = self.plan.namespace_rules(egress);
            let applied = network.namespace.run_async(move || sys::apply_nft(&rules)).await;
            if let Err(error) = applied {
                self.discard_whole(network).await;
                return Err(io_error("cannot apply the capsule's network rules")(error));
            }
        }
        count_taken("ready");
        Ok(network)
    }

    /// Makes a network whose number was taken. A failure frees the number.
    async fn make(self: &Arc<Self>, slot: u32, egress: &Egress) -> Result<Network, Error> {
        let (this, egress) = (Arc::clone(self), egress.clone());
        let make = move || netns::create(&this.plan, slot, &egress);
        let made = blocking(make).await;
        match made.map_err(io_error("cannot create the capsule's network")) {
            Ok((namespace, tap)) => {
                let namespace = self.opened(slot, namespace);
                Ok(Network { slot, namespace, tap: Some(tap) })
            }
            Err(error) => {
                self.discard(slot).await;
                Err(error)
            }
        }
    }

    /// Returns the guard of a namespace in which the rules are applied. The guard enforces rules
    /// for host names, and applies all rules when they change.
    pub(crate) async fn guard(
        self: &Arc<Self>,
        namespace: &Namespace,
        egress: &Egress,
    ) -> Result<Arc<Guard>, Error> {
        let guard = Guard::new(self.plan.clone(), namespace, egress).await;
        guard.map(Arc::new).map_err(io_error("cannot apply the capsule's network rules"))
    }

    /// Marks a number as used, since a record names it.
    pub(crate) fn claim(&self, slot: u32) {
        self.lock().claim(slot);
    }

    /// Takes over the network of a running machine.
    pub(crate) fn adopt(&self, slot: u32) -> Result<Network, Error> {
        let namespace = File::open(self.plan.namespace(slot))
            .map_err(io_error("cannot open the network namespace of a running capsule"))?;
        self.claim(slot);
        let namespace = self.opened(slot, namespace);
        Ok(Network { slot, namespace, tap: None })
    }

    fn opened(&self, slot: u32, file: File) -> Namespace {
        let namespace = Namespace::new(file);
        let mut open = lock(&self.open);
        open.insert(slot, namespace.clone());
        namespace
    }

    /// Removes a network, once nothing of this process is open in it. A missing network is success.
    /// The number stays taken until [`Self::release`].
    pub(crate) async fn teardown(self: &Arc<Self>, slot: u32) -> Result<(), Error> {
        let open = lock(&self.open).remove(&slot);
        if let Some(namespace) = open {
            namespace.close().await;
        }
        let this = Arc::clone(self);
        let remove = move || {
            netns::remove(&this.plan, slot)?;
            this.forget(|used| used == slot);
            Ok(())
        };
        blocking(remove).await.map_err(io_error("cannot remove the capsule's network"))
    }

    /// Removes the connections of the slots that `of` picks from the host's connection-tracking
    /// table. Otherwise the entries stay until they time out, and count against the host's limit.
    /// Blocks.
    fn forget(&self, of: impl Fn(u32) -> bool) {
        let of = |address| self.plan.slot_of(address).is_some_and(&of);
        if let Err(error) = conntrack::forget(of) {
            tracing::warn!(
                %error,
                "cannot remove connections of removed capsules from the host's table"
            );
        }
    }

    /// Frees the number of a network that was removed.
    pub(crate) fn release(&self, slot: u32) {
        self.lock().release(slot);
        self.ready.wake();
    }

    /// Counts the networks that capsules can still get, made ahead or not.
    pub(crate) fn free(&self) -> u32 {
        self.lock().free() + self.ready.count()
    }

    /// Removes a network that no record names.
    async fn remove(self: &Arc<Self>, slot: u32) -> Result<(), Error> {
        self.teardown(slot).await?;
        self.release(slot);
        Ok(())
    }

    /// Removes a network that could not be used, and that no record names. The number becomes free
    /// in any case, since a new network of this number first removes the leftovers.
    pub(crate) async fn discard(self: &Arc<Self>, slot: u32) {
        if let Err(error) = self.teardown(slot).await {
            tracing::warn!(slot, ?error, "cannot remove an unusable network");
        }
        self.release(slot);
    }

    /// Removes a network that no record names, with its open tap. The tap would hold the network.
    async fn discard_whole(self: &Arc<Self>, network: Network) {
        let slot = network.slot;
        drop(network);
        self.discard(slot).await;
    }

    /// Removes the host's own rules; no capsule may be left.
    pub(crate) fn restore_host(&self) -> io::Result<()> {
        netns::restore_host(&self.plan)
    }

    /// Marks all namespaces of this agent as used, even orphans: those without a known capsule.
    pub(crate) fn reserve_orphans(&self) {
        for slot in netns::existing(&self.plan) {
            self.claim(slot);
        }
    }

    /// Removes orphans: this agent's namespaces without a known capsule.
    pub(crate) async fn remove_orphans(self: &Arc<Self>) -> Result<(), Error> {
        for slot in netns::existing(&self.plan) {
            let used = self.lock().is_used(slot);
            if !used {
                self.remove(slot).await?;
            }
        }
        // An agent that died may have left entries of capsules that it removed.
        let this = Arc::clone(self);
        let forget = move || {
            this.forget(|slot| !this.lock().is_used(slot));
            Ok(())
        };
        blocking(forget).await.map_err(io_error("cannot read the host's connections"))
    }

    /// Reports whether a number is in use.
    #[cfg(test)]
    pub(crate) fn is_used(&self, slot: u32) -> bool {
        self.lock().is_used(slot)
    }

    /// Takes a number for a network; `None` when all are in use.
    fn take_slot(&self) -> Option<u32> {
        self.lock().take()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Slots> {
        lock(&self.slots)
    }
}

/// Counts a network that a capsule got, by its origin: `ready` or `made`.
fn count_taken(from: &'static str) {
    metrics::counter!("wrenn_host_networks_taken_total", "from" => from).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn network_that_fails_creation_and_removal_frees_its_slot() {
        let dir = tempfile::tempdir().unwrap();
        // A folder stands in the namespace's place, so a removal of the file fails.
        std::fs::create_dir(dir.path().join("0")).unwrap();
        let plan = Plan::new(dir.path().to_str().unwrap(), "198.18.0.0/30", &[]).unwrap();
        let networks = Networks::for_removal(plan);
        let error = networks.create(&Egress::default()).await.err().unwrap();
        assert_eq!(error.to_string(), "cannot create the capsule's network");
        assert!(!networks.is_used(0));
    }
}
