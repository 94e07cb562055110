//! The claim of a ready capsule by a create. The rename of the folder is the claim. Afterwards, the
//! machine's record lies in the new capsule's folder. The record still says `Starting`, and names
//! everything of the machine. So a crash at any instant leaves an incomplete capsule, which the
//! next agent removes.
//!
//! ```text
//!  take ─▶ RENAME ─▶ handle, metadata, rules ─▶ thaw, epoch (boot.rs) ─▶ record: Running
//!            └──────────┴─────────────────────────┴─▶ removed; the create makes a machine
//! ```

use super::{Key, Kind, ReadyCapsule};
use crate::capsule::boot::{self, BOOT_STAGES, Ready, parts};
use crate::capsule::host::Host;
use crate::capsule::record::CapsuleRecord;
use crate::capsule::registry::Running;
use crate::capsule::{Error, chain, files, io_error, teardown, template_snapshot};
use daemon::{blocking, stage};
use std::fs::{self, File};
use tokio_util::sync::CancellationToken;
use types::CapsuleId;

/// Gives a ready machine to the capsule of `record`, which begins from its template and has an empty
/// folder. `None` when no machine is ready, or when the claim failed and left nothing.
///
/// # Errors
/// [`Error::Stopping`] when `cancel` is cancelled. Fails when a failed claim leaves something, too.
pub(in crate::capsule) async fn claim(
    host: &Host,
    record: &mut CapsuleRecord,
    cancel: &CancellationToken,
) -> Result<Option<Ready>, Error> {
    let Some(capsule) = take(host, record) else { return Ok(None) };
    let made = capsule.record.clone();
    let mut claimed = record.clone();
    let error = match Box::pin(give(host, &mut claimed, capsule, cancel)).await {
        Ok(ready) => {
            *record = claimed;
            metrics::counter!("wrenn_host_ready_taken_total").increment(1);
            return Ok(Some(ready));
        }
        Err(error) => error,
    };
    metrics::counter!("wrenn_host_ready_failed_total", "step" => "claim").increment(1);
    tracing::warn!(
        id = %record.id, made = %made.id, error = chain(&error),
        "cannot use a ready capsule"
    );
    undo(host, record.id, &made).await?;
    if cancel.is_cancelled() { Err(Error::Stopping) } else { Ok(None) }
}

/// Takes a capsule out of the pool, and counts the create.
fn take(host: &Host, record: &CapsuleRecord) -> Option<ReadyCapsule> {
    let CapsuleRecord { team, template, version, resources, .. } = record;
    // Commands that each create runs are no part of a template snapshot.
    if !host.ready.is_on() || version.as_ref().is_some_and(|version| version.start_each) {
        return None;
    }
    // A missing file of the template fails the ordinary way, which names the file.
    let snapshot =
        template_snapshot::key(&host.context, template, version.as_ref(), *resources).ok()?;
    let key = Key { team: team.clone(), snapshot };
    let kind =
        || Kind { template: template.clone(), version: version.clone(), resources: *resources };
    let taken = host.ready.take(&key, kind);
    if taken.is_none() {
        metrics::counter!("wrenn_host_ready_missed_total").increment(1);
    }
    taken
}

/// Moves the machine to its capsule, and begins the capsule's epoch.
async fn give(
    host: &Host,
    record: &mut CapsuleRecord,
    capsule: ReadyCapsule,
    cancel: &CancellationToken,
) -> Result<Ready, Error> {
    let context = &*host.context;
    let ReadyCapsule { record: made, running, lease, .. } = capsule;
    // The memory counts as the new capsule's since its admission.
    drop(lease);
    let moving = Box::pin(hand_over(host, record, &made, running));
    let running = stage(BOOT_STAGES, "claimed", moving).await?;
    let parent = context.config.capsules();
    let synced = blocking(move || File::open(parent)?.sync_all());
    let begun = boot::take_over(context, record, running, made.envd_token, cancel);
    let (begun, synced) = tokio::join!(Box::pin(begun), synced);
    synced.map_err(io_error("cannot write the folder of capsules"))?;
    begun
}

/// Gives a capsule the folder and the machine of `made`, with the capsule's own rules.
async fn hand_over(
    host: &Host,
    record: &mut CapsuleRecord,
    made: &CapsuleRecord,
    Running { machine, guest }: Running,
) -> Result<Running, Error> {
    let context = &*host.context;
    daemon::failpoint("ready.claimed").map_err(io_error("a failpoint failed"))?;
    let dir = files::folder(context, record.id);
    let renamed = fs::rename(files::folder(context, made.id), &dir);
    renamed.map_err(io_error("cannot move the folder of a ready capsule"))?;
    daemon::failpoint("ready.moved").map_err(io_error("a failpoint failed"))?;
    record.take_machine(made);
    let moved = machine.moved(&dir, &parts::metadata(record)).await?;
    drop(machine);
    guest.set_token(&record.envd_token);
    // A ready capsule has the rules of a create that sets none.
    if let Some(guard) = guest.guard().filter(|_| !record.egress.is_open()) {
        let set = guard.set(record.egress.clone()).await;
        set.map_err(io_error("cannot apply the capsule's network rules"))?;
    }
    Ok(Running { machine: moved, guest })
}

/// Removes the remains of a claim that failed. The folder of the capsule is empty on return. The
/// machine ends by its record in memory, since the folder may have none that can be read.
async fn undo(host: &Host, id: CapsuleId, made: &CapsuleRecord) -> Result<(), Error> {
    let context = &*host.context;
    let is_moved = !files::folder(context, made.id).exists();
    let at = if is_moved { id } else { made.id };
    teardown::kill(context, at, Some(made)).await?;
    teardown::remove_remains(context, at, Some(made)).await?;
    let emptied = fs::create_dir_all(files::folder(context, id));
    emptied.map_err(io_error("cannot create the capsule's folder"))
}
