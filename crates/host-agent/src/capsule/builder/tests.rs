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
use std::time::Duration;
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

/// Marks a capsule as running, as its boot does.
fn run(host: &Host, id: CapsuleId, running: Running) {
    let ready = Ready { running, kind: None, life: Lifetime::default() };
    liveness::run(host, id, ready);
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

/// Returns a host with a builder that runs.
async fn setup_builder(dir: &Path) -> (Host, CapsuleId, Arc<dyn crate::vmm::Machine>) {
    let build = BuildId::new();
    let (builds, phase) = (Some(build), Phase::Running);
    let record = CapsuleRecord { builds, phase, ..CapsuleRecord::unknown() };
    let (host, record, _) = setup(dir, record, State::Running);
    fs::create_dir_all(dir.join("builds").join(build.to_string())).unwrap();
    let (at, _) = stub::start().await;
    let machine: Arc<dyn crate::vmm::Machine> = Arc::new(NullMachine::at(at.port()));
    let guest = Guest::new(Route::Loopback(at), "", 1, Tasks::default());
    run(&host, record.id, Running { machine: Arc::clone(&machine), guest });
    (host, record.id, machine)
}

#[tokio::test]
async fn machine_of_a_builder_that_gives_its_disk_away_is_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (host, id, machine) = setup_builder(dir.path()).await;
    let seen = host.changes.wait(0, Duration::ZERO).await;
    take_disk(&host, id).await.unwrap();
    liveness::lost(&host, id, &machine.record(), "the VMM ended".to_owned()).await;
    assert_eq!(host.registry.state(id), Some(State::Stopping));
    assert_eq!(host.changes.wait(seen, Duration::ZERO).await, seen);
}

#[tokio::test]
async fn killed_builder_is_listed_as_being_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (host, id, _) = setup_builder(dir.path()).await;
    for _ in 0..2 {
        end(&host, id).await.unwrap();
        assert_eq!(host.registry.state(id), Some(State::Stopping));
    }
    assert!(host.registry.machine(id).unwrap().is_none());
    assert!(matches!(end(&host, CapsuleId::new()).await, Err(Error::NotFound(_))));
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
    run(&host, record.id, running);
    let to = dir.path().join("copy");
    let copied = copy_upper(&host, record.id, to.clone()).await.unwrap();
    assert_eq!(copied.version, None);
    assert!(to.join(storage::DISK).exists());
    assert_eq!(machine.freezes.load(Ordering::Acquire), 1);
    assert!(!machine.frozen.load(Ordering::Acquire));
    assert_eq!(host.registry.state(record.id), Some(State::Running));
}
