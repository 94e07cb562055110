//! The files of capsules on this host: their folders, their snapshots, and the bytes of both.

use super::Error;
use super::record::CapsuleRecord;
use crate::context::AgentContext;
use crate::snapshot::Snapshot;
use crate::storage;
use crate::vmm::Machine;
use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use types::{CapsuleId, SnapshotId};

/// Most bytes that a pause or snapshot writes beside the memory: the devices' state, the manifest,
/// and the guest's last writes.
pub(super) const BESIDE: u64 = 64 << 20;

/// Makes the folders of all capsules and snapshots.
pub(super) fn make_folders(context: &AgentContext) -> Result<(), Error> {
    let config = &context.config;
    for dir in [config.capsules(), config.snapshots(), config.golden()] {
        // Only this user may enter the folder, since it holds disks and consoles of guests.
        let made = fs::create_dir_all(&dir)
            .and_then(|()| fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)));
        made.map_err(super::io_error("cannot create the folder of capsules"))?;
    }
    Ok(())
}

/// Returns the folder of a capsule.
pub(super) fn folder(context: &AgentContext, id: CapsuleId) -> PathBuf {
    context.config.capsules().join(id.to_string())
}

/// Returns the folder of a capsule's own snapshots, which are named by their numbers.
pub(super) fn snapshots_dir(dir: &Path) -> PathBuf {
    dir.join("kept")
}

/// Returns the folder of a snapshot that belongs to no capsule.
pub(super) fn snapshot_dir(context: &AgentContext, id: SnapshotId) -> PathBuf {
    context.config.snapshots().join(id.to_string())
}

/// Lists the capsules that have a folder or a control group on this machine.
pub(crate) fn existing(context: &AgentContext) -> Vec<CapsuleId> {
    let groups = context.cgroups.iter().flat_map(|groups| groups.existing());
    existing_with(&context.config.capsules(), groups)
}

/// Lists the capsules that have a folder in `dir`, and the control groups without one. A group that
/// a record names belongs to that record's capsule.
fn existing_with(dir: &Path, groups: impl Iterator<Item = String>) -> Vec<CapsuleId> {
    let folders = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: BTreeSet<String> =
        folders.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let known = |name: &String| CapsuleRecord::load(&dir.join(name)).map(|record| record.name());
    let named: HashSet<String> = names.iter().filter_map(known).collect();
    // An unreadable record may name any group, and its capsule is not touched.
    let is_unknown = |name: &String| {
        let folder = dir.join(name);
        CapsuleRecord::exists(&folder) && CapsuleRecord::load(&folder).is_none()
    };
    if !names.iter().any(is_unknown) {
        names.extend(groups.filter(|group| !named.contains(group)));
    }
    names.iter().filter_map(|name| name.parse().ok()).collect()
}

/// Reads the record of a capsule.
///
/// # Errors
/// [`Error::NotFound`] when the record is missing or unreadable.
pub(super) fn record(context: &AgentContext, id: CapsuleId) -> Result<CapsuleRecord, Error> {
    CapsuleRecord::load(&folder(context, id)).ok_or_else(|| Error::unknown(id))
}

/// Reads the record of a capsule whose record must exist.
///
/// # Errors
/// [`Error::Io`] when the record is missing or unreadable.
pub(super) fn known_record(context: &AgentContext, id: CapsuleId) -> Result<CapsuleRecord, Error> {
    let lost =
        || super::io_error("cannot read the capsule's record")(io::ErrorKind::NotFound.into());
    CapsuleRecord::load(&folder(context, id)).ok_or_else(lost)
}

/// Writes a record into its capsule's folder, durably.
pub(super) fn save(record: &CapsuleRecord, dir: &Path) -> Result<(), Error> {
    record.save(dir).map_err(super::io_error("cannot write the capsule's record"))
}

/// Writes a record into its capsule's folder on a thread, durably.
pub(super) async fn store(record: &CapsuleRecord, dir: &Path) -> Result<(), Error> {
    let (record, dir) = (record.clone(), dir.to_owned());
    let stored = daemon::blocking(move || record.save(&dir)).await;
    stored.map_err(super::io_error("cannot write the capsule's record"))
}

/// Writes a record into its capsule's folder on a thread, as [`CapsuleRecord::note`] does. The
/// caller waits for the end before it writes the record again.
pub(super) async fn note(record: &CapsuleRecord, dir: &Path) -> Result<(), Error> {
    let (record, dir) = (record.clone(), dir.to_owned());
    let noted = daemon::blocking(move || record.note(&dir)).await;
    noted.map_err(super::io_error("cannot write the capsule's record"))
}

/// Lists the snapshots on this host that belong to no capsule.
pub(super) fn snapshots(context: &AgentContext) -> Vec<SnapshotId> {
    let entries = fs::read_dir(context.config.snapshots()).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Lists the numbers of a capsule's own snapshots, complete or not, in ascending order.
pub(super) fn numbers(context: &AgentContext, id: CapsuleId) -> Vec<u64> {
    let dir = snapshots_dir(&folder(context, id));
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut numbers: Vec<u64> = names.filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

/// Opens one of a capsule's own snapshots.
pub(super) fn own_snapshot(
    context: &AgentContext,
    id: CapsuleId,
    number: u64,
) -> io::Result<Snapshot> {
    Snapshot::open(&snapshots_dir(&folder(context, id)).join(number.to_string()))
}

/// Returns the highest number among some names, or 0.
pub(super) fn newest(names: &[String]) -> u64 {
    names.iter().filter_map(|name| name.parse().ok()).max().unwrap_or(0)
}

/// Returns the bytes that the disk in a capsule's folder takes on the host's disk.
pub(super) fn disk_bytes(dir: &Path) -> u64 {
    dir.join(storage::DISK).metadata().map_or(0, |found| found.blocks() * 512)
}

/// Returns the most bytes that saving a machine with `memory` bytes may write.
pub(super) fn most_saved(machine: &dyn Machine, memory: u64) -> u64 {
    match machine.most_memory(memory) {
        0 => 0,
        bytes => bytes + BESIDE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_that_a_record_names_is_no_capsule_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let [claimed, ready, orphan] = [(); 3].map(|()| CapsuleId::new());
        let folder = dir.path().join(claimed.to_string());
        fs::create_dir(&folder).unwrap();
        let record = CapsuleRecord { name: Some(ready), ..CapsuleRecord::new(claimed) };
        record.save(&folder).unwrap();
        let found = || {
            let groups = [ready, orphan].into_iter().map(|id| id.to_string());
            existing_with(dir.path(), groups).into_iter().collect::<HashSet<_>>()
        };
        assert_eq!(found(), HashSet::from([claimed, orphan]));
        // A claim that was cut short left the record of the ready machine.
        CapsuleRecord::new(ready).save(&folder).unwrap();
        assert_eq!(found(), HashSet::from([claimed, orphan]));
        // A record of a later version may name any group.
        fs::write(folder.join("capsule.json"), "{}").unwrap();
        assert_eq!(found(), HashSet::from([claimed]));
    }
}
