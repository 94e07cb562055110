//! The bytes on disk of all snapshots. A file that several snapshots link counts once.

use super::files;
use super::host::Host;
use crate::storage;
use daemon::lock;
use std::collections::{HashMap, HashSet};
use types::CapsuleId;

/// Returns the bytes on disk of each snapshot, by its id, as of the last count.
pub(super) fn snapshot_sizes(host: &Host) -> HashMap<String, u64> {
    let sizes = lock(&host.context.snapshot_sizes);
    sizes.iter().map(|(id, bytes)| (id.to_string(), *bytes)).collect()
}

/// Counts the bytes of one capsule's snapshots; the next full count replaces the figure.
pub(super) fn measure_soon(host: &Host, id: CapsuleId) {
    let this = host.clone();
    tokio::task::spawn_blocking(move || {
        let mut seen = HashSet::new();
        storage::used(&this.context.config.golden(), &mut seen);
        let own = files::snapshots_dir(&files::folder(&this.context, id));
        let used = storage::used(&own, &mut seen);
        this.registry.change(id, |capsule| capsule.usage.snapshot_bytes = used);
    });
}

/// Counts the bytes of all snapshots.
pub(super) fn measure(host: &Host) {
    let config = &host.context.config;
    let mut seen = HashSet::new();
    let mut bytes = storage::used(&config.golden(), &mut seen);
    for id in host.registry.ids() {
        let own = files::snapshots_dir(&files::folder(&host.context, id));
        let used = storage::used(&own, &mut seen);
        host.registry.change(id, |capsule| capsule.usage.snapshot_bytes = used);
        bytes += used;
    }
    let mut sizes = HashMap::new();
    for id in files::snapshots(&host.context) {
        let used = storage::used(&files::snapshot_dir(&host.context, id), &mut seen);
        sizes.insert(id, used);
        bytes += used;
    }
    *lock(&host.context.snapshot_sizes) = sizes;
    bytes += storage::used(&config.capsules(), &mut seen);
    let mib = u32::try_from(bytes >> 20).unwrap_or(u32::MAX);
    metrics::gauge!("wrenn_host_kept_mib").set(f64::from(mib));
}
