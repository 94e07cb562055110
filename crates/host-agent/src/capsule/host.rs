//! The parts that all operations on this host's capsules share.

use super::Error;
use super::changes::Changes;
use super::registry::Registry;
use super::store::Stored;
use super::template_snapshot::TemplateSnapshots;
use crate::context::AgentContext;
use std::future::Future;
use std::sync::Arc;

/// This host, as its operations see it. A clone is the same host.
#[derive(Clone)]
pub(super) struct Host {
    pub context: Arc<AgentContext>,
    pub registry: Arc<Registry>,
    pub changes: Arc<Changes>,
    pub template_snapshots: Arc<TemplateSnapshots>,
    /// The platform's store; `None` without a store.
    pub stored: Option<Arc<Stored>>,
}

impl Host {
    /// Returns a host without capsules.
    pub(super) fn new(context: Arc<AgentContext>, stored: Option<Arc<Stored>>) -> Self {
        Self {
            context,
            registry: Arc::default(),
            changes: Arc::new(Changes::new()),
            template_snapshots: Arc::default(),
            stored,
        }
    }

    /// Runs work that continues when its caller disconnects.
    pub(super) async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        self.context.tasks.detached(work).await.unwrap_or(Err(Error::Stopping))
    }

    /// Checks that there is room for another machine of `wanted` MiB, beside the `own` MiB of all
    /// capsules.
    pub(super) fn check_room(&self, own: u64, wanted: u64) -> Result<(), Error> {
        let context = &self.context;
        let used = own + (context.images.used() >> 20);
        if used + wanted > context.memory_mib {
            let all = context.memory_mib;
            let why =
                format!("{used} of {all} MiB of memory are in use, and {wanted} MiB are requested");
            return Err(Error::NoCapacity(why));
        }
        // The copy of the machine's disk claims its own bytes later.
        Ok(context.room.claim(0).map(drop)?)
    }

    /// Updates the gauges of capsules.
    pub(super) fn report_totals(&self) {
        let totals = self.registry.totals();
        let gauge = |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        metrics::gauge!("wrenn_host_capsules").set(gauge(totals.capsules));
        metrics::gauge!("wrenn_host_memory_mib").set(gauge(totals.memory_mib));
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
