//! Guests that wait for room on the host's disk. While half of the reserve is gone, a guest whose
//! disk grows is stopped. So the database and removals can still write. A guest that meets a full
//! disk nevertheless is stopped by its VMM, if the VMM can do so. Both kinds of guest run again by
//! themselves when there is room.
//!
//! ```text
//!            disk low, guest's disk grows; or the VMM stopped it
//!  runs ──────────────────────────────────────────────────────▶ waits for room
//!   ▲ └── an operation froze the guest and failed ──▶ owes a thaw     │
//!   │                                                   │             │ there is room
//!   └───────────────── thaw, repeated ──────────────────┴─────────────┘
//! ```
//! Each later check of the disk retries the thaws that `thaw.rs` has noted as owed.

use super::host::Host;
use super::registry::{Capsule, Running};
use super::thaw::{freeze, thaw};
use super::usage::Action;
use super::{Error, chain, files, io_error, sizes};
use crate::room::Level;
use daemon::blocking;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use types::CapsuleId;

/// Period of the checks of the disk.
const LOOK: Duration = Duration::from_millis(250);
/// Period of the counts of the bytes of snapshots.
const MEASURE: Duration = Duration::from_secs(15);

/// Checks the disk and counts the bytes of snapshots, for as long as the process lives.
pub(super) async fn watch_disk(host: &Host) {
    // The first count comes before any answer, since an uncounted snapshot would be reported as
    // empty.
    let this = host.clone();
    let _ = tokio::task::spawn_blocking(move || sizes::measure(&this)).await;
    let this = host.clone();
    host.context.tasks.every(LOOK, move || {
        let this = this.clone();
        async move { look_at_disk(&this).await }
    });
    let this = host.clone();
    host.context.tasks.every(MEASURE, move || {
        let this = this.clone();
        async move {
            let _ = tokio::task::spawn_blocking(move || sizes::measure(&this)).await;
        }
    });
}

async fn look_at_disk(host: &Host) {
    let level = host.context.room.look();
    let disks = match level {
        Level::Plenty => HashMap::new(),
        Level::Enough | Level::Scarce | Level::Low => running_disks(host).await,
    };
    let now = Instant::now();
    let mut actions = Vec::new();
    for (id, capsule) in host.registry.lock().iter_mut() {
        let running = capsule.running.as_ref().filter(|_| capsule.is_running());
        let Some(running) = running else { continue };
        let stopped = running.machine.waits_for_room();
        match capsule.usage.decide(level, disks.get(id).copied(), stopped, now) {
            Action::Nothing => {}
            Action::NoteWaiting => {
                tracing::warn!(%id, "the guest waits for free space on the host's disk");
                capsule.usage.waits = true;
                host.changes.note();
            }
            action @ (Action::Freeze | Action::Thaw) => actions.push((*id, action)),
        }
    }
    for (id, action) in actions {
        let this = host.clone();
        host.context.tasks.spawn(async move {
            let done = match action {
                Action::Freeze => freeze_for_room(&this, id).await,
                Action::Thaw | Action::NoteWaiting | Action::Nothing => thaw_due(&this, id).await,
            };
            if let Err(error) = done {
                tracing::warn!(
                    %id, ?action, error = chain(&error),
                    "cannot freeze or thaw the guest"
                );
            }
        });
    }
}

/// Returns the bytes that the disk of each running capsule takes on the host's disk. No lock is
/// held meanwhile, since every request to a capsule needs it and a disk may be slow.
async fn running_disks(host: &Host) -> HashMap<CapsuleId, u64> {
    let ids = host.registry.filter(Capsule::is_running);
    let this = host.clone();
    let disk = move |id| (id, files::disk_bytes(&files::folder(&this.context, id)));
    let measure = move || Ok(ids.into_iter().map(disk).collect());
    blocking(measure).await.unwrap_or_default()
}

/// Stops a guest that would fill the disk.
async fn freeze_for_room(host: &Host, id: CapsuleId) -> Result<(), Error> {
    let lock = host.registry.capsule_lock(id)?;
    let _guard = lock.lock().await;
    let Some(Running { machine, .. }) = host.registry.running(id) else { return Ok(()) };
    freeze(host, id, &*machine).await?;
    metrics::counter!("wrenn_host_guests_stopped_for_room_total").increment(1);
    tracing::warn!(%id, "froze the guest: the host's disk is almost full");
    host.registry.change(id, |capsule| capsule.usage.waits = true);
    host.changes.note();
    Ok(())
}

/// Thaws a guest that waited for room or that is owed a thaw, and sets its clock.
pub(super) async fn thaw_due(host: &Host, id: CapsuleId) -> Result<(), Error> {
    let lock = host.registry.capsule_lock(id)?;
    // An operation that holds the lock thaws its guest itself. If that fails, a later check
    // comes here again.
    let Ok(held) = lock.try_lock() else { return Ok(()) };
    let Some(Running { machine, guest }) = host.registry.running(id) else { return Ok(()) };
    let waited = host.registry.change(id, |capsule| capsule.usage.waits) == Some(true);
    thaw(host, id, &*machine).await?;
    if waited {
        host.changes.note();
        tracing::info!(%id, "thawed the guest: the host's disk has free space again");
    }
    let record = files::known_record(&host.context, id)?;
    drop(held);
    let refreshed = guest.refresh(&record.envd_token).await;
    refreshed.map_err(io_error("cannot set the clock of a thawed guest"))
}
