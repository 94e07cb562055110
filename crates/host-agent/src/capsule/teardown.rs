//! The removal of a capsule's parts. Removal goes by the record and by names, not by the phases
//! that a boot reached. So it serves a failed boot, a pause, a removal and a dead agent alike. A
//! caller first drops the handles of the machine and the network that it holds.
//!
//! ```text
//!  release:  kill ──▶ limits ∥ network ──▶ record without them ──▶ files of the machine
//!  remove:   kill ──▶ limits ∥ network ──▶ folder with the record, last
//!                     └────────────── remove_remains ──────────────┘
//! ```
//! After [`kill`], the capsule is out of reach. The kernel frees its memory meanwhile, and `detach`
//! waits for that.

use super::record::CapsuleRecord;
use super::{Error, files, io_error};
use crate::context::AgentContext;
use crate::{storage, vmm};
use daemon::blocking;
use std::path::Path;
use std::{fs, io};
use types::CapsuleId;

/// Returns the name of a capsule's process and control group.
fn name(id: CapsuleId, record: Option<&CapsuleRecord>) -> String {
    record.map_or_else(|| id.to_string(), CapsuleRecord::name)
}

/// Ends a capsule's machine, and waits until its guest can do nothing any more. A capsule without a
/// machine is success.
pub(super) async fn kill(
    context: &AgentContext,
    id: CapsuleId,
    record: Option<&CapsuleRecord>,
) -> Result<(), Error> {
    match record.and_then(|record| record.machine.as_ref()) {
        Some(machine) => vmm::halt_record(machine).await?,
        None => kill_named(context, id, record).await?,
    }
    daemon::failpoint("release.killed").map_err(io_error("a failpoint failed"))
}

/// Ends the processes that bear a capsule's name. The search reads about all processes of the host,
/// so it comes after the end of a machine that the record names.
async fn kill_named(
    context: &AgentContext,
    id: CapsuleId,
    record: Option<&CapsuleRecord>,
) -> Result<(), Error> {
    let name = name(id, record);
    // A ready machine began in the folder of its own name.
    let began = context.config.capsules().join(&name);
    Ok(vmm::kill_named(&name, &began, &files::folder(context, id)).await?)
}

/// Waits until a killed machine is gone, and removes its limits and network, and further processes
/// of its name. Parts that do not exist are skipped.
async fn detach(
    context: &AgentContext,
    id: CapsuleId,
    record: Option<&CapsuleRecord>,
) -> Result<(), Error> {
    if let Some(machine) = record.and_then(|record| record.machine.as_ref()) {
        vmm::wait_gone(machine).await?;
    }
    kill_named(context, id, record).await?;
    let name = name(id, record);
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
    kill(context, record.id, Some(record)).await?;
    detach(context, record.id, Some(record)).await?;
    let slot = record.slot.take();
    (record.machine, record.name) = (None, None);
    files::save(record, &dir)?;
    release_slot(context, slot);
    let cleared = blocking(move || clear(&dir)).await;
    cleared.map_err(io_error("cannot remove the machine's leftovers"))
}

/// Removes a machine's files from its capsule's folder.
fn clear(dir: &Path) -> io::Result<()> {
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
    let record = CapsuleRecord::load(&files::folder(context, id));
    kill(context, id, record.as_ref()).await?;
    remove_remains(context, id, record.as_ref()).await
}

/// Removes all parts of a capsule whose machine was killed; succeeds when nothing is left of it. The
/// call may be repeated with the same record after a failure.
pub(super) async fn remove_remains(
    context: &AgentContext,
    id: CapsuleId,
    record: Option<&CapsuleRecord>,
) -> Result<(), Error> {
    detach(context, id, record).await?;
    daemon::failpoint("unmake.released").map_err(io_error("a failpoint failed"))?;
    let dir = files::folder(context, id);
    let removed = blocking(move || remove_folder(&dir)).await;
    removed.map_err(io_error("cannot remove the capsule's folder"))?;
    release_slot(context, record.and_then(|record| record.slot));
    Ok(())
}

/// Removes a capsule's folder; a missing folder is success. The record goes last, since it is
/// needed to find the rest.
fn remove_folder(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if CapsuleRecord::is_named(&entry.file_name()) {
            continue;
        }
        let (path, is_folder) = (entry.path(), entry.file_type().is_ok_and(|kind| kind.is_dir()));
        gone(if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) })?;
    }
    gone(fs::remove_dir_all(dir))
}

/// Maps the removal of something that does not exist to success.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::null::NullDriver;

    #[tokio::test]
    async fn removal_leaves_nothing_and_may_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let context = AgentContext::for_tests(dir.path(), Box::new(NullDriver { port: 1 }));
        let record = CapsuleRecord::new(CapsuleId::new());
        let folder = files::folder(&context, record.id);
        fs::create_dir_all(folder.join("kept/1")).unwrap();
        fs::write(folder.join("kept/1/manifest.json"), "{}").unwrap();
        fs::write(folder.join("disk.ext4"), "disk").unwrap();
        std::os::unix::fs::symlink("/nowhere", folder.join("link")).unwrap();
        record.save(&folder).unwrap();
        remove(&context, record.id).await.unwrap();
        assert!(!folder.exists());
        remove_remains(&context, record.id, Some(&record)).await.unwrap();
    }
}
