//! The parts that all operations on this host's capsules share.

use super::Error;
use super::background::{Background, Lease};
use super::changes::Changes;
use super::ready::ReadyPool;
use super::registry::Registry;
use super::store::Stored;
use super::template_snapshot::TemplateSnapshots;
use crate::context::AgentContext;
use crate::storage;
use std::future::Future;
use std::sync::Arc;

/// Free networks below which machines in the background end.
const NETWORKS_FEW: u32 = 16;

/// This host, as its operations see it. A clone is the same host.
#[derive(Clone)]
pub(super) struct Host {
    pub context: Arc<AgentContext>,
    pub registry: Arc<Registry>,
    pub changes: Arc<Changes>,
    pub template_snapshots: Arc<TemplateSnapshots>,
    /// The platform's store; `None` without a store.
    pub stored: Option<Arc<Stored>>,
    pub background: Arc<Background>,
    /// Capsules that are made ahead of their creates.
    pub ready: Arc<ReadyPool>,
}

impl Host {
    /// Returns a host without capsules.
    pub(super) fn new(context: Arc<AgentContext>, stored: Option<Arc<Stored>>) -> Self {
        Self {
            ready: Arc::new(ReadyPool::new(&context)),
            context,
            registry: Arc::default(),
            changes: Arc::new(Changes::new()),
            template_snapshots: Arc::default(),
            stored,
            background: Arc::default(),
        }
    }

    /// Runs work that continues when its caller disconnects.
    pub(super) async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        self.context.tasks.detached(work).await.unwrap_or(Err(Error::Stopping))
    }

    /// Checks that there is room for a capsule's machine of `wanted` MiB, beside `own` MiB of all
    /// capsules. Ends machines in the background that then have no room.
    pub(super) fn check_room(&self, own: u64, wanted: u64) -> Result<(), Error> {
        let mut left = self.memory_left(own, wanted)?;
        self.check_disk().inspect_err(|error| self.make_way(error))?;
        // A capsule takes its network later, and must find a free number then.
        if self.free_networks().is_some_and(|free| free < NETWORKS_FEW) {
            left = 0;
        }
        self.background.give_way(left);
        Ok(())
    }

    /// Begins the lease of a machine of `wanted` MiB in the background, if the machine leaves room
    /// for a capsule as large.
    pub(super) fn begin_spare(&self, wanted: u64) -> Result<Lease, Error> {
        // The lease comes first, so that a capsule which is admitted meanwhile can end it.
        let lease = self.background.begin(wanted);
        let own = self.registry.totals().memory_mib + self.background.memory_mib();
        self.memory_left(own, wanted)?;
        self.check_disk()?;
        match self.free_networks() {
            Some(free) if free < 2 * NETWORKS_FEW => {
                Err(Error::NoCapacity(format!("only {free} networks are free")))
            }
            Some(_) | None => Ok(lease),
        }
    }

    /// Ends all machines in the background after this failure of a capsule, if it came from a lack
    /// of room. Their disks take room too, and a later attempt finds it.
    pub(super) fn make_way(&self, error: &Error) {
        if matches!(error, Error::NoCapacity(_)) {
            self.background.give_way(0);
        }
    }

    /// Checks that the disk has room at all. The copy of a machine's disk later claims its bytes.
    fn check_disk(&self) -> Result<(), Error> {
        Ok(self.context.room.claim(0).map(drop)?)
    }

    /// Returns the MiB of memory that a machine of `wanted` MiB leaves, beside `own` MiB of others.
    fn memory_left(&self, own: u64, wanted: u64) -> Result<u64, Error> {
        let context = &self.context;
        let used = own + (context.images.used() >> 20);
        let all = context.memory_mib;
        all.checked_sub(used + wanted).ok_or_else(|| {
            let in_use = format!("{used} of {all} MiB of memory are in use");
            Error::NoCapacity(format!("{in_use}, and {wanted} MiB are requested"))
        })
    }

    /// Returns the count of networks that may still be made; `None` without networks.
    fn free_networks(&self) -> Option<u32> {
        self.context.networks.as_ref().map(|networks| networks.free())
    }

    /// Waits for work on a machine in the background. The work ends by the lease's token when the
    /// agent stops, so that it is never dropped halfway.
    pub(super) async fn in_background<T>(
        &self,
        lease: &Lease,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let stopped = async {
            self.context.tasks.stopping().await;
            lease.token().cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            done = work => done,
            () = stopped => Err(Error::Stopping),
        }
    }

    /// Updates the gauges of capsules.
    pub(super) fn report_totals(&self) {
        let totals = self.registry.totals();
        let gauge = |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        metrics::gauge!("wrenn_host_capsules").set(gauge(totals.capsules));
        metrics::gauge!("wrenn_host_memory_mib").set(gauge(totals.memory_mib));
        metrics::gauge!("wrenn_host_memory_limit_mib").set(gauge(self.context.memory_mib));
        let (_, free) = storage::capacity(&self.context.config.dir);
        metrics::gauge!("wrenn_host_disk_free_mib").set(gauge(free >> 20));
        for (state, count) in self.registry.by_state() {
            metrics::gauge!("wrenn_host_capsules_in_state", "state" => state).set(gauge(count));
        }
    }

    /// Maps a failure to write data to [`Error::NoCapacity`] when the disk is full.
    pub(super) fn if_full(&self, error: Error) -> Error {
        let other = !matches!(error, Error::Silent | Error::Stopping);
        match other && self.context.room.is_full() {
            true => {
                Error::NoCapacity(format!("the host's disk is full ({})", super::chain(&error)))
            }
            false => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::null::NullDriver;

    #[tokio::test]
    async fn lease_needs_room_for_a_capsule_beside_and_is_seen_by_admissions() {
        let dir = tempfile::tempdir().unwrap();
        let context = AgentContext::for_tests(dir.path(), Box::new(NullDriver { port: 1 }));
        let host = Host::new(Arc::new(context), None);
        if host.context.room.claim(0).is_err() {
            return;
        }
        assert!(matches!(host.begin_spare(513), Err(Error::NoCapacity(_))));
        assert_eq!(host.background.memory_mib(), 0, "a refused machine holds memory");
        let lease = host.begin_spare(512).unwrap();
        assert_eq!(host.background.memory_mib(), 512);
        assert!(matches!(host.begin_spare(257), Err(Error::NoCapacity(_))));
        assert!(!lease.token().is_cancelled());
        host.check_room(0, 513).unwrap();
        assert!(lease.token().is_cancelled());
    }

    #[tokio::test]
    async fn machines_in_the_background_end_when_a_capsule_lacks_room_and_for_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let context = AgentContext::for_tests(dir.path(), Box::new(NullDriver { port: 1 }));
        let host = Host::new(Arc::new(context), None);
        let lease = host.background.begin(128);
        host.make_way(&Error::Stopping);
        assert!(!lease.token().is_cancelled());
        host.make_way(&Error::NoCapacity("the disk is full".to_owned()));
        assert!(lease.token().is_cancelled());
    }
}
