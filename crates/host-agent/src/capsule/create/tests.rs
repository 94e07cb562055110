//! Creations on the null driver, in guests whose envd is a stub.

use super::*;
use crate::builders::{Level, StartLog};
use crate::capsule::State;
use crate::capsule::capture::PauseMode;
use crate::capsule::destroy::destroy;
use crate::capsule::pause::pause;
use crate::capsule::store::{Stored, template_path};
use crate::context::AgentContext;
use crate::guest::stub;
use crate::vmm::null::NullDriver;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use types::CapsuleId;
use types::resources::Resources;

struct Setup {
    host: Host,
    seen: Arc<stub::Seen>,
    dir: tempfile::TempDir,
}

impl Setup {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (at, seen) = stub::start().await;
        let driver = Box::new(NullDriver { port: at.port() });
        let context = AgentContext::for_tests(dir.path(), driver);
        Self { host: Host::new(Arc::new(context), None), seen, dir }
    }

    /// Returns a host with an empty store, and the store.
    async fn with_store() -> (Self, Arc<Stored>) {
        let mut setup = Self::new().await;
        let [kept, sending] = ["kept", "sending"].map(|name| setup.dir.path().join(name));
        let store = store::Store::open(kept.to_str().unwrap(), None, std::iter::empty()).unwrap();
        let stored = Arc::new(Stored::new(store, sending).unwrap());
        setup.host.stored = Some(Arc::clone(&stored));
        (setup, stored)
    }

    /// Returns the record of a capsule whose template this host does not have by name.
    fn record(&self) -> CapsuleRecord {
        CapsuleRecord {
            generation: 1,
            template: "web".to_owned(),
            resources: Resources { vcpus: 1, memory_mib: 128, disk_mib: 64 },
            envd_token: "t".to_owned(),
            ..CapsuleRecord::new(CapsuleId::new())
        }
    }

    /// Makes a version with a start command, and returns the source of a capsule of it.
    fn version(&self, start: &str) -> Source {
        let start = Some(recipe::Command::Shell(start.to_owned()));
        let version = Version { start, ..version::example(BuildId::new()) };
        let at = version::folder(&self.host.context.config, version.id);
        fs::create_dir_all(&at).unwrap();
        fs::write(at.join(version::FILE), serde_json::to_vec(&version).unwrap()).unwrap();
        let version = Some(VersionRef { id: version.id, team: "owners".to_owned() });
        Source { version, ..Source::default() }
    }

    fn saved(&self, id: CapsuleId) -> CapsuleRecord {
        files::record(&self.host.context, id).unwrap()
    }
}

/// A log that retains all lines.
#[derive(Default)]
struct Kept(Mutex<Vec<String>>);

impl StartLog for Kept {
    fn line(&self, _: Level, text: String) {
        self.0.lock().unwrap().push(text);
    }
}

#[tokio::test]
async fn capsule_of_a_version_retains_its_description_and_its_build_gets_the_output() {
    let setup = Setup::new().await;
    if setup.host.context.room.claim(0).is_err() {
        return;
    }
    let (build, log) = (BuildId::new(), Arc::<Kept>::default());
    setup.host.context.builders.set_log(build, Arc::clone(&log) as Arc<dyn StartLog>);
    let from = Source { build: Some(build), ..setup.version("serve") };
    let record = setup.record();
    let id = record.id;
    create(&setup.host, record, from.clone()).await.unwrap();
    let saved = setup.saved(id);
    assert_eq!(saved.version.map(|found| found.id), from.version.map(|wanted| wanted.id));
    assert_eq!(saved.builds, None);
    assert_eq!(setup.seen.commands(), ["serve"]);
    assert_eq!(log.0.lock().unwrap()[0], "Running start command: serve");
}

#[tokio::test]
async fn version_that_is_missing_or_fails_to_start_leaves_nothing() {
    let setup = Setup::new().await;
    if setup.host.context.room.claim(0).is_err() {
        return;
    }
    let missing = Some(VersionRef { id: BuildId::new(), team: "owners".to_owned() });
    let from = Source { version: missing, ..Source::default() };
    let created = create(&setup.host, setup.record(), from).await;
    assert!(matches!(created, Err(Error::NoTemplate(_))), "{created:?}");
    let ready = setup.version("refuse");
    let record = setup.record();
    let id = record.id;
    let created = create(&setup.host, record, ready).await;
    assert!(matches!(created, Err(Error::Start(_))), "{created:?}");
    assert!(!files::folder(&setup.host.context, id).exists());
    assert_eq!(setup.host.registry.state(id), None);
}

#[tokio::test]
async fn builder_needs_disks_of_its_build_and_is_never_paused() {
    let setup = Setup::new().await;
    if setup.host.context.room.claim(0).is_err() {
        return;
    }
    let build = BuildId::new();
    let from = Source { build: Some(build), ..Source::default() };
    let created = create(&setup.host, setup.record(), from.clone()).await;
    assert!(matches!(created, Err(Error::Invalid(_))), "{created:?}");
    let disks = BuilderDisks { image: "/image".into(), read_only: Vec::new() };
    setup.host.context.builders.set_disks(build, disks);
    let record = setup.record();
    let id = record.id;
    create(&setup.host, record, from).await.unwrap();
    assert_eq!(setup.saved(id).builds, Some(build));
    let paused = pause(&setup.host, id, None, PauseMode::Memory).await;
    assert!(matches!(paused, Err(Error::Invalid(_))), "{paused:?}");
    assert_eq!(setup.host.registry.state(id), Some(State::Running));
}

#[tokio::test]
async fn capsule_is_listed_during_each_fetch_and_removal_ends_the_fetch() {
    let (setup, stored) = Setup::with_store().await;
    let host = &setup.host;
    if host.context.room.claim(0).is_err() {
        return;
    }
    let (snapshot, version) = (SnapshotId::new(), BuildId::new());
    let owned = VersionRef { id: version, team: "owners".to_owned() };
    let origins = [
        (format!("snapshots/{snapshot}"), Source { snapshot: Some(snapshot), ..Source::default() }),
        (template_path(&version.to_string()), Source { version: Some(owned), ..Source::default() }),
        (template_path("web"), Source::default()),
    ];
    for (name, from) in origins {
        let lock = stored.fetch_lock(&name);
        let held = lock.lock().await;
        let record = setup.record();
        let id = record.id;
        let removal = async {
            while host.registry.state(id) != Some(State::Starting) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            destroy(host, id, None).await
        };
        let both = async { tokio::join!(create(host, record, from), removal) };
        let ended = tokio::time::timeout(Duration::from_secs(20), both).await;
        let (created, removed) = ended.expect(&name);
        assert!(matches!(created, Err(Error::Stopping)), "{name}: {created:?}");
        removed.unwrap();
        assert_eq!(host.registry.state(id), None);
        drop(held);
    }
}

#[tokio::test]
async fn host_without_memory_refuses_before_it_fetches() {
    let (setup, stored) = Setup::with_store().await;
    let snapshot = SnapshotId::new();
    let lock = stored.fetch_lock(&format!("snapshots/{snapshot}"));
    let _held = lock.lock().await;
    let mut record = setup.record();
    record.resources.memory_mib = 2048;
    let from = Source { snapshot: Some(snapshot), ..Source::default() };
    let creating = create(&setup.host, record, from);
    let created = tokio::time::timeout(Duration::from_secs(20), creating).await.unwrap();
    assert!(matches!(created, Err(Error::NoCapacity(_))), "{created:?}");
}
