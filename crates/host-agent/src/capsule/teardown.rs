//! The removal of a capsule's parts. Removal goes by the record and by names, not by the phases
//! that a boot reached. So it serves a failed boot, a pause, a removal and a dead agent alike. A
//! caller first drops the handles of the machine and the network that it holds.
//!
//! ```text
//!  release:  machine ──▶ limits ∥ network ──▶ record without them ──▶ files of the machine
//!  remove:   machine ──▶ limits ∥ network ──▶ folder with the record, last
//! ```

use super::record::CapsuleRecord;
use super::{Error, files, io_error};
use crate::context::AgentContext;
use crate::{storage, vmm};
use daemon::blocking;
use std::fs;
use std::path::Path;
use types::CapsuleId;

/// Ends a capsule's machine, and removes its limits and network. Parts that do not exist are
/// skipped.
async fn teardown(
    context: &AgentContext,
    id: CapsuleId,
    record: Option<&CapsuleRecord>,
) -> Result<(), Error> {
    let name = id.to_string();
    if let Some(machine) = record.and_then(|record| record.machine.as_ref()) {
        vmm::kill_record(machine).await?;
    }
    vmm::kill_named(&name, &files::folder(context, id)).await?;
    daemon::failpoint("release.killed").map_err(io_error("a failpoint failed"))?;
    let limits = async {
        let Some(groups) = context.cgroups.clone() else { return Ok(()) };
        blocking(move || groups.remove(&name)).await
    };
    let network = async {
        match (&context.networks, record.and_then(|record| record.slot)) {
            (Some(networks), Some(slot)) => networks.teardown(slot).await,
            _ => Ok(()),
        }
    };
    let (limits, network) = tokio::join!(limits, network);
    limits.map_err(io_error("cannot remove the capsule's limits"))?;
    Ok(network?)
}

/// Frees the number of a network for reuse. No record may still name the number. Otherwise the next
/// capsule that gets it would lose its network to this one.
fn release_slot(context: &AgentContext, slot: Option<u32>) {
    if let (Some(networks), Some(slot)) = (&context.networks, slot) {
        networks.release(slot);
    }
}

/// Ends a capsule's machine, removes its limits and network, and writes a record without them. The
/// capsule's folder stays, without the files of the machine.
pub(super) async fn release(
    context: &AgentContext,
    record: &mut CapsuleRecord,
) -> Result<(), Error> {
    let dir = files::folder(context, record.id);
    teardown(context, record.id, Some(record)).await?;
    let slot = record.slot.take();
    record.machine = None;
    files::save(record, &dir)?;
    release_slot(context, slot);
    let cleared = blocking(move || clear(&dir)).await;
    cleared.map_err(io_error("cannot remove the machine's leftovers"))
}

/// Removes a machine's files from its capsule's folder.
fn clear(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name == vmm::OWN {
            fs::remove_dir_all(entry.path())?;
        } else if name == storage::DISK
            || storage::is_shared(&name)
            || name.as_encoded_bytes().ends_with(b".pages")
        {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Removes all parts of a capsule; succeeds when nothing is left of it.
pub(crate) async fn remove(context: &AgentContext, id: CapsuleId) -> Result<(), Error> {
    let dir = files::folder(context, id);
    let record = CapsuleRecord::load(&dir);
    teardown(context, id, record.as_ref()).await?;
    daemon::failpoint("unmake.released").map_err(io_error("a failpoint failed"))?;
    // The folder goes last, since its record is needed to find the rest.
    match tokio::fs::remove_dir_all(&dir).await {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(io_error("cannot remove the capsule's folder")(e));
        }
        _ => {}
    }
    release_slot(context, record.and_then(|record| record.slot));
    Ok(())
}
