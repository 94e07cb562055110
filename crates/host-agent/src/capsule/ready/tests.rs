//! Ready capsules on the null driver, in guests whose envd is a stub.

use super::*;
use crate::capsule::adopt;
use crate::capsule::create::{Source, create};
use crate::capsule::host::Host;
use crate::capsule::record::Phase;
use crate::capsule::registry::{StartKind, Started};
use crate::capsule::{Error, State, capture, files, teardown, template_snapshot};
use crate::guest::{Guest, Route, stub};
use crate::snapshot::{Layers, Manifest, Staging};
use crate::vmm::VmmRecord;
use crate::vmm::null::NullDriver;
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};

/// A host with the template `base`, its template snapshot, and a pool.
struct Setup {
    host: Host,
    seen: Arc<stub::Seen>,
    _dir: tempfile::TempDir,
}

impl Setup {
    /// Returns `None` when the disk has no room for any capsule.
    async fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let (at, seen) = stub::start().await;
        let driver = Box::new(NullDriver { port: at.port() });
        let context = Arc::new(AgentContext::for_tests(dir.path(), driver));
        let (config, boot) = (&context.config, dir.path().join("images/boot"));
        let base = config.templates().join("base");
        for folder in [&boot, &base, &config.golden(), &config.capsules()] {
            fs::create_dir_all(folder).unwrap();
        }
        for file in [config.kernel(), config.initramfs(), base.join("rootfs.ext4")] {
            fs::write(file, "file").unwrap();
        }
        context.room.claim(0).ok()?;
        let host = Host::new(context, None);
        let host = Host { ready: Arc::new(ReadyPool::with_memory(1024)), ..host };
        let setup = Self { host, seen, _dir: dir };
        setup.save_template();
        Some(setup)
    }

    /// Makes the template snapshot of the template as it is.
    fn save_template(&self) {
        let (context, record) = (&self.host.context, record("team"));
        let key = template_snapshot::key(context, "base", None, record.resources).unwrap();
        let staging = Staging::begin(&context.config.golden().join(key)).unwrap();
        staging.state_file().unwrap().write_all(b"state").unwrap();
        let manifest = Manifest {
            fingerprint: "null".to_owned(),
            team: None,
            memory: Some(Layers::default()),
            state: Some(staging.seal_state().unwrap()),
            envd_token: Some("saved".to_owned()),
            ..capture::manifest(context, &record)
        };
        staging.commit(manifest).unwrap();
    }

    async fn claim(&self, team: &str) -> bool {
        let mut record = record(team);
        let claimed = claim::claim(&self.host, &mut record, &CancellationToken::new()).await;
        claimed.unwrap().is_some()
    }

    /// Makes one capsule ready for a team, after a create that found none.
    async fn fill(&self) -> CapsuleId {
        assert!(!self.claim("team").await);
        refill::step(&self.host).await;
        assert_eq!((self.ready(), self.folders().len()), (1, 1));
        self.folders()[0].parse().unwrap()
    }

    fn ready(&self) -> usize {
        self.host.ready.lock().values().map(|shelf| shelf.capsules.len()).sum()
    }

    fn folders(&self) -> Vec<String> {
        let entries = fs::read_dir(self.host.context.config.capsules()).unwrap().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    fn saved(&self, id: CapsuleId) -> CapsuleRecord {
        files::record(&self.host.context, id).unwrap()
    }

    /// Waits until neither pool nor disk has a ready capsule.
    async fn wait_until_empty(&self) {
        let empty = async {
            while self.ready() + self.folders().len() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), empty).await.unwrap();
    }
}

fn record(team: &str) -> CapsuleRecord {
    CapsuleRecord {
        generation: 1,
        team: team.to_owned(),
        template: "base".to_owned(),
        resources: Resources { vcpus: 1, memory_mib: 128, disk_mib: 64 },
        envd_token: "own".to_owned(),
        envs: [("C".to_owned(), "create".to_owned())].into(),
        ..CapsuleRecord::new(CapsuleId::new())
    }
}

async fn start(setup: &Setup, record: &CapsuleRecord) -> Started {
    create(&setup.host, record.clone(), Source::default()).await.unwrap()
}

#[tokio::test]
async fn claimed_capsule_has_its_own_identity_and_the_machine_of_the_ready_one() {
    let Some(setup) = Setup::new().await else { return };
    let made = setup.fill().await;
    assert_eq!(setup.saved(made).phase, Phase::Starting);
    assert_eq!(setup.seen.commands(), ["true"; 6]);
    let record = record("team");
    let started = start(&setup, &record).await;
    assert_eq!(started.kind, Some(StartKind::Forked));
    assert_eq!((setup.ready(), setup.folders()), (0, vec![record.id.to_string()]));
    let saved = setup.saved(record.id);
    assert_eq!((saved.phase, saved.generation), (Phase::Running, 1));
    assert_eq!((saved.id, saved.name()), (record.id, made.to_string()));
    let identities = setup.seen.identities.lock().unwrap();
    let [(first, by_saved), (second, by_first)] = &identities[..] else { panic!("{identities:?}") };
    let provisional = first["accessToken"].as_str().unwrap();
    assert_eq!((by_saved.as_str(), by_first.as_str()), ("saved", provisional));
    assert_eq!((provisional.len(), &first["envVars"]), (64, &serde_json::json!({})));
    assert_eq!(
        (&second["accessToken"], &second["envVars"]["C"]),
        (&"own".into(), &"create".into())
    );
    assert_eq!(second["epoch"]["fresh"], true);
    assert_ne!(first["epoch"]["entropy"], second["epoch"]["entropy"]);
}

#[tokio::test]
async fn machine_of_a_paused_capsule_has_the_capsule_id_as_its_name_again() {
    let Some(setup) = Setup::new().await else { return };
    setup.fill().await;
    let record = record("team");
    start(&setup, &record).await;
    let mut saved = setup.saved(record.id);
    teardown::release(&setup.host.context, &mut saved).await.unwrap();
    assert_eq!(setup.saved(record.id).name(), record.id.to_string());
}

#[tokio::test]
async fn ready_capsule_serves_no_other_team_size_or_template() {
    let Some(setup) = Setup::new().await else { return };
    setup.fill().await;
    assert!(!setup.claim("other").await);
    let mut larger = record("team");
    larger.resources.memory_mib = 256;
    let claimed = claim::claim(&setup.host, &mut larger, &CancellationToken::new()).await;
    assert!(claimed.unwrap().is_none());
    assert_eq!(setup.ready(), 1);
    let image = setup.host.context.config.templates().join("base/rootfs.ext4");
    fs::write(image, "another file").unwrap();
    assert!(!setup.claim("team").await);
    refill::end_outdated(&setup.host).await;
    setup.wait_until_empty().await;
}

#[tokio::test]
async fn failed_claim_leaves_nothing_and_the_create_makes_a_machine() {
    let Some(setup) = Setup::new().await else { return };
    // The folder is gone, and the machine's process is not.
    let made = setup.fill().await;
    fs::remove_dir_all(files::folder(&setup.host.context, made)).unwrap();
    let mut process = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    for shelf in setup.host.ready.lock().values_mut() {
        let pid = i32::try_from(process.id()).unwrap();
        shelf.capsules[0].record.machine = VmmRecord::of(pid, None);
    }
    let first = record("team");
    assert_eq!(start(&setup, &first).await.kind, Some(StartKind::Booted));
    let runs_on = matches!(process.try_wait(), Ok(None));
    if runs_on {
        let _ = process.kill();
        let _ = process.wait();
    }
    assert!(!runs_on, "nobody ended the machine");
    // The guest answers nothing.
    refill::step(&setup.host).await;
    assert_eq!(setup.ready(), 1);
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let silent = Guest::new(Route::Loopback(closed), "", 1, setup.host.context.tasks.clone());
    for shelf in setup.host.ready.lock().values_mut() {
        shelf.capsules[0].running.guest = silent.clone();
    }
    let second = record("team");
    assert_eq!(start(&setup, &second).await.kind, Some(StartKind::Booted));
    let saved = setup.saved(second.id);
    assert_eq!((saved.phase, saved.name), (Phase::Running, None));
    assert_eq!((setup.ready(), setup.folders().len()), (0, 2));
}

#[tokio::test]
async fn removal_during_a_claim_ends_both() {
    let Some(setup) = Setup::new().await else { return };
    setup.fill().await;
    let (mut record, cancel) = (record("team"), CancellationToken::new());
    cancel.cancel();
    let claimed = claim::claim(&setup.host, &mut record, &cancel).await;
    assert!(matches!(claimed, Err(Error::Stopping)));
    // The create, whose claim failed, removes its own folder.
    assert_eq!((setup.ready(), setup.folders()), (0, vec![record.id.to_string()]));
    assert_eq!(record.name, None);
}

#[tokio::test]
async fn ready_capsules_end_for_memory_and_with_the_agent_but_claimed_ones_stay() {
    let Some(setup) = Setup::new().await else { return };
    setup.fill().await;
    let record = record("team");
    start(&setup, &record).await;
    refill::step(&setup.host).await;
    assert_eq!(setup.ready(), 1);
    setup.host.check_room(128, 512).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(setup.ready(), 1, "there is room for both");
    setup.host.check_room(128, 896).unwrap();
    let ended = async {
        while setup.folders().len() > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended).await.unwrap();
    assert_eq!(setup.host.registry.state(record.id), Some(State::Running));
    // A full host makes none.
    let lease = setup.host.background.begin(900);
    refill::step(&setup.host).await;
    assert_eq!(setup.ready(), 0);
    drop(lease);
}

#[tokio::test]
async fn agent_that_stops_leaves_no_ready_capsule() {
    let Some(setup) = Setup::new().await else { return };
    setup.fill().await;
    setup.host.context.tasks.stop();
    setup.wait_until_empty().await;
    // A machine that is being made ends by its token.
    assert!(!setup.claim("team").await);
    refill::step(&setup.host).await;
    setup.wait_until_empty().await;
}

#[tokio::test]
async fn next_agent_removes_ready_capsules_and_claims_that_were_cut_short() {
    let Some(setup) = Setup::new().await else { return };
    let made = setup.fill().await;
    let next = Host::new(Arc::clone(&setup.host.context), None);
    adopt::adopt_all(&next).await.unwrap();
    assert_eq!((setup.folders().len(), next.registry.list().len()), (0, 0));
    let folder = files::folder(&setup.host.context, CapsuleId::new());
    fs::create_dir(&folder).unwrap();
    CapsuleRecord::new(made).save(&folder).unwrap();
    adopt::adopt_all(&next).await.unwrap();
    assert_eq!((setup.folders().len(), next.registry.list().len()), (0, 0));
}

#[tokio::test]
async fn failures_put_the_next_attempt_off() {
    let Some(setup) = Setup::new().await else { return };
    fs::remove_dir_all(setup.host.context.config.golden()).unwrap();
    assert!(!setup.claim("team").await);
    refill::step(&setup.host).await;
    assert!(setup.host.ready.next_step().is_none(), "it tries again at once");
    assert_eq!((setup.ready(), setup.folders().len()), (0, 0));
    let failures = || setup.host.ready.lock().values().map(|shelf| shelf.failures).sum::<u32>();
    assert_eq!(failures(), 1);
    let (key, _) = setup.host.ready.kinds().remove(0);
    // Machines that are made and die unused are failures.
    setup.host.ready.note_made(&key, Duration::from_secs(1));
    setup.host.ready.note_failure(&key);
    assert_eq!(failures(), 2);
}

#[tokio::test]
async fn taken_capsule_ends_the_count_of_failures() {
    let Some(setup) = Setup::new().await else { return };
    setup.fill().await;
    let (key, _) = setup.host.ready.kinds().remove(0);
    setup.host.ready.note_failure(&key);
    assert!(setup.claim("team").await);
    assert!(setup.host.ready.lock().values().all(|shelf| shelf.failures == 0));
}

#[tokio::test]
async fn guest_that_does_not_answer_its_first_command_is_not_ready() {
    // Connections are taken, and nobody answers.
    let mute = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let of = |at| Guest::new(Route::Loopback(at), "", 1, daemon::Tasks::default());
    let silent = refill::warm(&of(mute.local_addr().unwrap()), "").await;
    assert!(matches!(silent, Err(Error::Silent)), "{silent:?}");
    let (at, seen) = stub::start().await;
    refill::warm(&of(at), "").await.unwrap();
    assert_eq!(seen.commands(), ["true"; 6]);
}
