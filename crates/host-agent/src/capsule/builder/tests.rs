//! Disks that leave capsules without a machine, and a capsule whose envd is a stub.

use super::*;
use crate::capsule::boot::Ready;
use crate::capsule::lifetime::Lifetime;
use crate::capsule::record::Phase;
use crate::capsule::registry::Capsule;
use crate::capsule::{State, liveness};
use crate::context::AgentContext;
use crate::guest::{Guest, Route, stub};
use crate::snapshot::Staging;
use crate::version;
use crate::vmm::null::{ImageDriver, NullMachine};
use daemon::Tasks;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use types::BuildId;

/// Writes the superblock of a disk, as a guest leaves it that has written all or not all of its
/// data.
fn write_disk(path: &Path, recovers: bool) {
    let disk = File::create(path).unwrap();
    disk.set_len(64 << 10).unwrap();
    disk.write_all_at(&[0x53, 0xef], 1024 + 0x38).unwrap();
    disk.write_all_at(&[0xc2 | (u8::from(recovers) << 2), 2], 1024 + 0x60).unwrap();
}

/// Returns a host with a capsule in a state, whose folder has a disk with a disk below it.
fn setup(dir: &Path, record: CapsuleRecord, state: State) -> (Host, CapsuleRecord, PathBuf) {
    let host = Host::new(Arc::new(AgentContext::for_tests(dir, Box::new(ImageDriver))), None);
    let record = CapsuleRecord { id: CapsuleId::new(), ..record };
    let folder = files::folder(&host.context, record.id);
    fs::create_dir_all(&folder).unwrap();
    write_disk(&folder.join(storage::DISK), false);
    fs::write(folder.join(storage::OWN_IMAGE), "image").unwrap();
    fs::write(folder.join("layer-1.ext4"), "layer").unwrap();
    record.save(&folder).unwrap();
    host.registry.insert(record.id, Capsule::new(&record, state));
    (host, record, folder)
}

#[tokio::test]
async fn disk_of_a_builder_is_moved_once_and_read_only() {
    let dir = tempfile::tempdir().unwrap();
    let build = BuildId::new();
    let record = CapsuleRecord { builds: Some(build), ..CapsuleRecord::unknown() };
    let (host, record, folder) = setup(dir.path(), record, State::Dead("the VMM ended".to_owned()));
    let own = folder.join(storage::DISK);
    let builds = dir.path().join("builds").join(build.to_string());
    fs::create_dir_all(&builds).unwrap();
    write_disk(&own, true);
    let taken = take_disk(&host, record.id).await;
    assert!(matches!(taken, Err(Error::Unsaved(_))), "{taken:?}");
    assert!(own.exists());
    write_disk(&own, false);
    let wanted = builds.join("disk.ext4");
    for _ in 0..2 {
        assert_eq!(take_disk(&host, record.id).await.unwrap(), wanted);
    }
    assert!(!own.exists());
    assert_eq!(wanted.metadata().unwrap().mode() & 0o777, 0o444);
}

#[tokio::test]
async fn disk_of_a_capsule_that_is_no_builder_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (host, record, folder) = setup(dir.path(), CapsuleRecord::unknown(), State::Paused);
    let taken = take_disk(&host, record.id).await;
    assert!(matches!(taken, Err(Error::Invalid(_))), "{taken:?}");
    assert!(folder.join(storage::DISK).exists());
}

#[tokio::test]
async fn disk_of_a_paused_capsule_is_copied_from_its_last_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let version = version::example(BuildId::new());
    let record = CapsuleRecord {
        version: Some(version.clone()),
        phase: Phase::Paused,
        last: 1,
        ..CapsuleRecord::unknown()
    };
    let (host, record, folder) = setup(dir.path(), record, State::Paused);
    if host.context.room.claim(1 << 20).is_err() {
        return;
    }
    let take = |number: u64| {
        let at = files::snapshots_dir(&folder).join(number.to_string());
        let staging = Staging::begin(&at).unwrap();
        let disk = Some(staging.take_disk(&folder).unwrap());
        let manifest = capture::manifest(&host.context, &record);
        staging.commit(crate::snapshot::Manifest { disk, ..manifest }).unwrap();
    };
    take(1);
    let to = dir.path().join("copy");
    let copied = copy_upper(&host, record.id, to.clone()).await.unwrap();
    assert_eq!(copied.version, Some(version));
    assert_eq!(fs::read(to.join("layer-1.ext4")).unwrap(), b"layer");
    assert_eq!(fs::read(to.join(storage::OWN_IMAGE)).unwrap(), b"image");
    let disk = to.join(storage::DISK).metadata().unwrap();
    assert_eq!((disk.len(), disk.nlink(), disk.mode() & 0o777), (64 << 10, 1, 0o444));
    // The memory of the capsule has writes that its disk lacks.
    fs::remove_file(folder.join(storage::DISK)).unwrap();
    write_disk(&folder.join(storage::DISK), true);
    take(2);
    CapsuleRecord { last: 2, ..record.clone() }.save(&folder).unwrap();
    let copied = copy_upper(&host, record.id, dir.path().join("other")).await;
    assert!(matches!(copied, Err(Error::Unsaved(_))), "{copied:?}");
}

#[tokio::test]
async fn running_capsule_stands_still_only_while_its_disk_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    let record = CapsuleRecord { phase: Phase::Running, ..CapsuleRecord::unknown() };
    let (host, record, _) = setup(dir.path(), record, State::Running);
    if host.context.room.claim(1 << 20).is_err() {
        return;
    }
    let (at, _) = stub::start().await;
    let machine = Arc::new(NullMachine::at(at.port()));
    let running = Running {
        machine: Arc::clone(&machine) as Arc<dyn crate::vmm::Machine>,
        guest: Guest::new(Route::Loopback(at), "", 1, Tasks::default()),
    };
    let ready = Ready { running, stages: Vec::new(), kind: None, life: Lifetime::default() };
    liveness::run(&host, record.id, ready);
    let to = dir.path().join("copy");
    let copied = copy_upper(&host, record.id, to.clone()).await.unwrap();
    assert_eq!(copied.version, None);
    assert!(to.join(storage::DISK).exists());
    assert_eq!(machine.freezes.load(Ordering::Acquire), 1);
    assert!(!machine.frozen.load(Ordering::Acquire));
    assert_eq!(host.registry.state(record.id), Some(State::Running));
}
