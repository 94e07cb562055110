//! Boots on drivers without machines, in guests whose envd is a stub.

use super::*;
use crate::builders::NoLog;
use crate::guest::stub;
use crate::snapshot::{Manifest, Staging};
use crate::vmm::null::NullDriver;
use crate::vmm::{self, Driver, Found, Saved};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::fs;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{OnceLock, Weak};
use types::{CapsuleId, Isolation};

/// A driver whose restore writes some bytes and records the number of bytes claimed meanwhile.
#[derive(Clone, Default)]
struct Writing {
    context: Arc<OnceLock<Weak<AgentContext>>>,
    claimed: Arc<AtomicU64>,
}

const WRITTEN: u64 = 5;

fn refused() -> BoxFuture<'static, Result<Box<dyn Machine>, vmm::Error>> {
    let error = vmm::Error::new("making a machine", io::ErrorKind::Unsupported.into());
    std::future::ready(Err(error)).boxed()
}

impl Driver for Writing {
    fn name(&self) -> &'static str {
        "writing"
    }

    fn accelerator(&self) -> &'static str {
        "none"
    }

    fn isolation(&self) -> Isolation {
        Isolation::None
    }

    fn boots_images(&self) -> bool {
        false
    }

    fn most_restored(&self, _: u64, _: bool) -> u64 {
        WRITTEN
    }

    fn boot(&self, _: Spec) -> BoxFuture<'_, Result<Box<dyn Machine>, vmm::Error>> {
        refused()
    }

    fn fingerprint(&self) -> String {
        "writing".to_owned()
    }

    fn restore(&self, _: Spec, _: Saved) -> BoxFuture<'_, Result<Box<dyn Machine>, vmm::Error>> {
        let context = self.context.get().and_then(Weak::upgrade).unwrap();
        self.claimed.store(context.room.claimed(), Ordering::Release);
        refused()
    }

    fn adopt(&self, _: Found<'_>) -> Option<Box<dyn Machine>> {
        None
    }
}

#[tokio::test]
async fn disk_space_stays_claimed_while_driver_restores_a_vm() {
    let dir = tempfile::tempdir().unwrap();
    let driver = Writing::default();
    let context = Arc::new(AgentContext::for_tests(dir.path(), Box::new(driver.clone())));
    driver.context.set(Arc::downgrade(&context)).unwrap();
    if context.room.claim(WRITTEN).is_err() {
        return;
    }
    let mut record = CapsuleRecord { id: CapsuleId::new(), ..CapsuleRecord::unknown() };
    let folder = files::folder(&context, record.id);
    fs::create_dir_all(&folder).unwrap();
    let staging = Staging::begin(&files::snapshots_dir(&folder).join("1")).unwrap();
    staging.state_file().unwrap().write_all(b"state").unwrap();
    let manifest = Manifest {
        fingerprint: "writing".to_owned(),
        system: record.system.clone(),
        template: String::new(),
        version: None,
        team: None,
        resources: record.resources,
        placeholders: 0,
        taken_at_ms: 0,
        memory: Some(Layers::default()),
        state: Some(staging.seal_state().unwrap()),
        disk: None,
        envd_token: None,
    };
    let origin = Origin::Resume(staging.commit(manifest).unwrap());
    let cancel = CancellationToken::new();
    let booted = boot(&context, &mut record, origin, &cancel, &NoLog).await;
    assert!(matches!(booted, Err(Error::Vmm(_))));
    assert_eq!(driver.claimed.load(Ordering::Acquire), WRITTEN);
    assert_eq!(context.room.claimed(), 0);
}

/// A capsule on the null driver, in a guest whose envd is a stub.
struct Stubbed {
    context: AgentContext,
    record: CapsuleRecord,
    seen: Arc<stub::Seen>,
    _dir: tempfile::TempDir,
}

impl Stubbed {
    async fn new(version: Version) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (at, seen) = stub::start().await;
        let driver = NullDriver { port: at.port() };
        let context = AgentContext::for_tests(dir.path(), Box::new(driver));
        let record = CapsuleRecord {
            id: CapsuleId::new(),
            envd_token: "own".to_owned(),
            envs: [("C".to_owned(), "create".to_owned())].into(),
            version: Some(version),
            ..CapsuleRecord::unknown()
        };
        fs::create_dir_all(files::folder(&context, record.id)).unwrap();
        Self { context, record, seen, _dir: dir }
    }

    async fn boot(&mut self, origin: Origin) -> Result<Ready, Error> {
        boot(&self.context, &mut self.record, origin, &CancellationToken::new(), &NoLog).await
    }

    /// Returns a saved machine that belongs to a team, or is a template snapshot.
    fn saved(&self, team: Option<&str>) -> Snapshot {
        let at = self.context.config.snapshots().join("saved");
        let staging = Staging::begin(&at).unwrap();
        staging.state_file().unwrap().write_all(b"state").unwrap();
        let manifest = Manifest {
            fingerprint: "null".to_owned(),
            team: team.map(str::to_owned),
            memory: Some(Layers::default()),
            state: Some(staging.seal_state().unwrap()),
            envd_token: Some("saved".to_owned()),
            ..crate::capsule::capture::manifest(&self.context, &self.record)
        };
        staging.commit(manifest).unwrap()
    }

    /// Returns token and caller's token of each identity that the guest got.
    fn identities(&self) -> Vec<(serde_json::Value, String)> {
        let all = self.seen.identities.lock().unwrap();
        all.iter().map(|(body, token)| (body.clone(), token.clone())).collect()
    }
}

fn with_commands(start_each: bool) -> Version {
    let command = |text: &str| Some(recipe::Command::Shell(text.to_owned()));
    Version {
        start: command("serve"),
        ready: command("after 0"),
        start_each,
        ..crate::version::example(types::BuildId::new())
    }
}

#[tokio::test]
async fn commands_run_before_the_guest_has_anything_of_its_capsule() {
    let mut stubbed = Stubbed::new(with_commands(false)).await;
    stubbed.boot(Origin::Image(None)).await.unwrap();
    assert_eq!(stubbed.seen.commands(), ["serve", "after 0"]);
    let identities = stubbed.identities();
    assert_eq!(identities.len(), 2);
    let provisional = identities[0].0["accessToken"].as_str().unwrap();
    assert_eq!(provisional.len(), 64);
    assert_eq!(identities[0].0["envVars"], serde_json::json!({ "A": "image" }));
    assert_eq!(
        (identities[1].0["accessToken"].as_str(), &*identities[1].1),
        (Some("own"), provisional)
    );
    assert_eq!(identities[1].0["envVars"]["C"], "create");
    let starts = stubbed.seen.starts.lock().unwrap();
    assert!(starts.iter().all(|(_, token)| token == provisional));
    assert_eq!(stubbed.record.phase, Phase::Running);
}

#[tokio::test]
async fn commands_of_each_create_run_with_its_identity() {
    let mut stubbed = Stubbed::new(with_commands(true)).await;
    stubbed.boot(Origin::Image(None)).await.unwrap();
    assert_eq!((stubbed.identities().len(), stubbed.seen.commands().len()), (1, 2));
    assert!(stubbed.seen.starts.lock().unwrap().iter().all(|(_, token)| token == "own"));
    let mut stubbed = Stubbed::new(with_commands(true)).await;
    let saved = stubbed.saved(None);
    stubbed.boot(Origin::Fork(saved)).await.unwrap();
    assert_eq!(stubbed.seen.commands(), ["serve", "after 0"]);
}

#[tokio::test]
async fn machines_with_their_programs_run_no_commands_again() {
    for (start_each, team) in [(true, Some("team")), (false, None)] {
        let mut stubbed = Stubbed::new(with_commands(start_each)).await;
        let saved = stubbed.saved(team);
        stubbed.boot(Origin::Fork(saved)).await.unwrap();
        assert_eq!(stubbed.seen.commands(), Vec::<String>::new());
        assert_eq!(stubbed.identities()[0].1, "saved");
    }
    let mut stubbed = Stubbed::new(with_commands(true)).await;
    let saved = stubbed.saved(Some("team"));
    stubbed.boot(Origin::Resume(saved)).await.unwrap();
    assert_eq!(stubbed.seen.commands(), Vec::<String>::new());
}

#[tokio::test]
async fn failed_start_command_fails_the_boot_with_its_text() {
    let start = Some(recipe::Command::Shell("exit 2".to_owned()));
    let mut stubbed = Stubbed::new(Version { start, ..with_commands(false) }).await;
    let booted = stubbed.boot(Origin::Image(None)).await;
    let Err(Error::Start(text)) = booted else { panic!("it booted") };
    assert!(text.starts_with("start command failed: error running start command: exit status 2"));
    assert_eq!(stubbed.record.phase, Phase::Starting);
}

#[tokio::test]
async fn step_beside_failed_work_is_finished_and_its_failure_comes_first() {
    let finished = std::cell::Cell::new(false);
    let step = async {
        tokio::task::yield_now().await;
        finished.set(true);
        Ok(())
    };
    let done = beside(step, async { Err(Error::Silent) }).await;
    assert!(matches!(done, Err(Error::Silent)) && finished.get());
    let failed = || async { Err(Error::Stopping) };
    let done = beside(failed(), async { Err(Error::Silent) }).await;
    assert!(matches!(done, Err(Error::Stopping)));
    // Work that hangs is given up.
    let done = beside(failed(), std::future::pending()).await;
    assert!(matches!(done, Err(Error::Stopping)));
    beside(async { Ok(()) }, async { Ok(()) }).await.unwrap();
}

#[tokio::test]
async fn record_of_a_restored_capsule_names_its_machine_and_says_running() {
    let mut stubbed = Stubbed::new(with_commands(false)).await;
    let saved = stubbed.saved(None);
    let ready = stubbed.boot(Origin::Resume(saved)).await.unwrap();
    let dir = files::folder(&stubbed.context, stubbed.record.id);
    let written = CapsuleRecord::load(&dir).unwrap();
    assert_eq!(written, stubbed.record);
    assert_eq!(written.phase, Phase::Running);
    assert_eq!(written.machine, Some(ready.running.machine.record()));
    assert!(!stubbed.identities()[0].0["epoch"]["fresh"].as_bool().unwrap());
}
