//! Periodic upkeep: long machine logs, idle connections, and unused template snapshots.

use super::host::Host;
use super::template_snapshot;
use std::time::Duration;

/// Period of the checks.
const TRIM: Duration = Duration::from_secs(60);

/// Begins the periodic upkeep.
pub(super) fn spawn_trim(host: &Host) {
    let this = host.clone();
    host.context.tasks.every(TRIM, move || {
        let this = this.clone();
        async move { trim(&this) }
    });
}

/// Trims long logs, closes idle connections, and removes unused template snapshots.
fn trim(host: &Host) {
    for running in host.registry.machines() {
        running.machine.trim_logs();
        running.guest.pool().sweep();
    }
    let this = host.clone();
    tokio::task::spawn_blocking(move || template_snapshot::retire(&this.context));
}
