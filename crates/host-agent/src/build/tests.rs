//! Builds with stubs of images and guests.

use super::engine::{BeginRequest, Builds};
use super::events::{Event, Kind};
use super::parts::BaseVersion;
use super::stub::{StubGuests, StubImages};
use crate::context::AgentContext;
use crate::version::Version;
use crate::vmm::null::NullDriver;
use bytes::Bytes;
use recipe::BuildSpec;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use types::{BuildId, CapsuleId, TeamId};
use uuid::Uuid;

struct Bench {
    dir: tempfile::TempDir,
    builds: Builds,
}

fn open(dir: &Path) -> Builds {
    let context = Arc::new(AgentContext::for_tests(dir, Box::new(NullDriver { port: 1 })));
    let store = dir.join("images/store");
    let images = Box::new(StubImages { store: store.clone() });
    let guests = Box::new(StubGuests { context: Arc::clone(&context), store });
    Builds::open(context, images, guests).unwrap()
}

fn team() -> TeamId {
    TeamId(Uuid::from_u128(7))
}

fn request(source: Value, steps: Value) -> BeginRequest {
    let spec = json!({
        "recipe": {"dialect": "e2b", "stages": [{"source": source, "steps": steps}]},
        "resources": {"vcpus": 1, "memory_mib": 512, "disk_mib": 1024},
        "within_sec": 600,
    });
    with_spec(spec)
}

fn with_spec(spec: Value) -> BeginRequest {
    let spec: BuildSpec = serde_json::from_value(spec).unwrap();
    BeginRequest {
        id: BuildId::new(),
        team: team(),
        template: "app".to_owned(),
        spec,
        templates: HashMap::new(),
        logins: Vec::new(),
        most_bytes: None,
    }
}

fn run(text: &str) -> Value {
    json!({"run": {"command": text}})
}

fn image() -> Value {
    json!({"image": "debian"})
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let builds = open(dir.path());
        Self { dir, builds }
    }

    /// Carries a build out, and returns its events.
    async fn build(&self, request: BeginRequest) -> Vec<Event> {
        let id = request.id;
        self.builds.begin(request).unwrap();
        self.until_end(id).await
    }

    async fn until_end(&self, id: BuildId) -> Vec<Event> {
        let mut all: Vec<Event> = Vec::new();
        loop {
            let seen = all.last().map_or(0, |event| event.number);
            let events = self.builds.watch(id, seen).await.unwrap();
            assert!(!events.is_empty(), "{all:?}");
            for event in events {
                assert_eq!(event.number, all.len() as u64 + 1);
                if matches!(event.kind, Kind::Prepared { needs_capsule: true, .. }) {
                    self.builds.run(id, CapsuleId::new()).unwrap();
                }
                all.push(event);
            }
            let is_end = |e: &Event| matches!(e.kind, Kind::Built { .. } | Kind::Failed { .. });
            if all.iter().any(is_end) {
                return all;
            }
        }
    }

    fn version(&self, id: BuildId) -> Option<Version> {
        let dir = self.dir.path().join("images/templates").join(id.to_string());
        Version::load(&dir).unwrap()
    }
}

fn lines(events: &[Event]) -> Vec<String> {
    let text = |event: &Event| {
        if let Kind::Line { text, .. } = &event.kind { Some(text.clone()) } else { None }
    };
    events.iter().filter_map(text).collect()
}

fn has(events: &[Event], text: &str) -> bool {
    lines(events).iter().any(|line| line.contains(text))
}

/// Returns step, message and output of a failure.
fn failure(events: &[Event]) -> (String, String, Vec<String>) {
    let last = &events.last().unwrap().kind;
    let Kind::Failed { step, message, output } = last else { panic!("{last:?}") };
    (step.clone(), message.clone(), output.clone())
}

fn needs_capsule(events: &[Event]) -> bool {
    let mut prepared = events.iter().filter_map(|event| {
        if let Kind::Prepared { needs_capsule, .. } = event.kind {
            Some(needs_capsule)
        } else {
            None
        }
    });
    prepared.next().unwrap()
}

#[tokio::test]
async fn second_build_of_equal_steps_needs_no_capsule() {
    let bench = Bench::new();
    let steps = json!([{"env": {"A": "b"}}, run("make")]);
    let first = request(image(), steps.clone());
    let id = first.id;
    let events = bench.build(first).await;
    assert!(needs_capsule(&events));
    for line in ["FROM debian", "[base] USER user", "[builder 1/2] ENV A b [", "[stdout]: make"] {
        assert!(has(&events, line), "{line}: {:?}", lines(&events));
    }
    assert!(has(&events, "Build finished, took "));
    let version = bench.version(id).unwrap();
    assert_eq!(version.layers.len(), 1);
    assert_eq!(version.config.build_env.get("A").map(String::as_str), Some("b"));
    let second = request(image(), steps);
    let (id, begun) = (second.id, Instant::now());
    let events = bench.build(second).await;
    assert!(!needs_capsule(&events) && begun.elapsed() < Duration::from_secs(1));
    assert!(has(&events, "CACHED [builder 1/2] ENV A b ["), "{:?}", lines(&events));
    let built = Kind::Step { number: 2, cached: true, took_ms: 0 };
    assert!(events.iter().any(|event| event.kind == built));
    assert_eq!(bench.version(id).unwrap().layers, version.layers);
    let versions = bench.builds.versions();
    assert_eq!((versions.len(), versions[0].team.clone()), (2, team().to_string()));
}

#[tokio::test]
async fn failed_step_is_named_and_earlier_steps_are_kept() {
    let bench = Bench::new();
    let failing = request(image(), json!([run("a"), run("exit 3"), run("b")]));
    let id = failing.id;
    let events = bench.build(failing).await;
    let (step, message, output) = failure(&events);
    assert_eq!((&*step, &*message), ("2", "failed to run command 'exit 3': exit status 3"));
    assert_eq!(output, ["leaving with 3"]);
    assert_eq!(bench.version(id), None);
    let events = bench.build(request(image(), json!([run("a"), run("c")]))).await;
    assert!(has(&events, "CACHED [builder 1/2] RUN a"), "{:?}", lines(&events));
    assert!(matches!(events.last().unwrap().kind, Kind::Built { .. }));
    let steps = json!([{"user": "root123"}, run("whoami")]);
    let (_, message, _) = failure(&bench.build(request(image(), steps)).await);
    let wanted = "failed to run command 'whoami': command failed: unauthenticated: invalid \
                  username: 'root123'";
    assert_eq!(message, wanted);
}

#[tokio::test]
async fn cancelled_build_ends_at_once_and_leaves_its_events_alone() {
    let bench = Bench::new();
    let request = request(image(), json!([run("a"), run("sleep 100")]));
    let id = request.id;
    bench.builds.begin(request).unwrap();
    let cancel = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let begun = Instant::now();
        bench.builds.cancel(id);
        begun
    };
    let (events, begun) = tokio::join!(bench.until_end(id), cancel);
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(failure(&events).1, "the build was canceled");
    let folder = bench.dir.path().join("builds").join(id.to_string());
    let left: Vec<_> = super::folders::entries(&folder);
    assert_eq!(left, [folder.join("events")]);
    bench.builds.forget(id).unwrap();
    bench.builds.forget(id).unwrap();
    assert!(!folder.exists() && bench.builds.list().is_empty());
    assert!(bench.builds.watch(id, 0).await.is_err());
}

#[tokio::test]
async fn build_without_end_fails_after_a_restart() {
    let bench = Bench::new();
    let request = request(image(), json!([run("a")]));
    let id = request.id;
    bench.builds.begin(request).unwrap();
    let prepared =
        |events: &[Event]| events.iter().any(|event| matches!(event.kind, Kind::Prepared { .. }));
    while !prepared(&bench.builds.watch(id, 0).await.unwrap()) {}
    let again = open(bench.dir.path());
    let events = again.watch(id, 0).await.unwrap();
    assert_eq!(failure(&events).1, "the host restarted");
    let folder = bench.dir.path().join("builds").join(id.to_string());
    assert_eq!(super::folders::entries(&folder), [folder.join("events")]);
    assert_eq!(again.list(), [id]);
}

#[tokio::test]
async fn layers_are_known_after_a_restart() {
    let bench = Bench::new();
    bench.build(request(image(), json!([run("a")]))).await;
    let bench = Bench { builds: open(bench.dir.path()), dir: bench.dir };
    let events = bench.build(request(image(), json!([run("a")]))).await;
    assert!(!needs_capsule(&events));
}

#[tokio::test]
async fn missing_base_or_files_fail_with_their_names() {
    let bench = Bench::new();
    let missing = json!({"image": "missing/x"});
    let (step, message, _) = failure(&bench.build(request(missing, json!([]))).await);
    assert!(step == "base" && message.starts_with("image 'missing/x' not found"), "{message}");
    let template = json!({"template": "nothing"});
    let (step, message, _) = failure(&bench.build(request(template, json!([]))).await);
    assert_eq!((&*step, &*message), ("base", "template 'nothing' not found"));
    let hash = "ab".repeat(32);
    let copy = json!([{"copy": {"sources": ["a"], "dest": "/a", "files": hash}}]);
    let (step, message, _) = failure(&bench.build(request(image(), copy.clone())).await);
    assert!(step == "1" && message.contains(&hash) && message.contains("upload"), "{message}");
    let body = futures::stream::iter([Ok::<_, String>(Bytes::from("tar"))]);
    bench.builds.store_files(team(), &hash, body).await.unwrap();
    let events = bench.build(request(image(), copy)).await;
    assert!(matches!(events.last().unwrap().kind, Kind::Built { .. }), "{events:?}");
}

#[tokio::test]
async fn template_over_a_template_inherits_its_commands() {
    let bench = Bench::new();
    let mut base = request(image(), json!([run("a")]));
    base.spec.commands.start = Some(recipe::Command::Shell("serve".to_owned()));
    let id = base.id;
    let events = bench.build(base).await;
    let Kind::Built { starts, .. } = events.last().unwrap().kind else { panic!("{events:?}") };
    assert!(starts && !has(&events, "Build finished"));
    let mut over = request(json!({"template": "base2"}), json!([run("b")]));
    let version = BaseVersion { version: Some(id), template: "app".into(), team: "t".into() };
    over.templates.insert("base2".to_owned(), version);
    let over_id = over.id;
    bench.build(over).await;
    let version = bench.version(over_id).unwrap();
    assert_eq!(version.start, Some(recipe::Command::Shell("serve".to_owned())));
    assert_eq!(version.layers.len(), 2);
    let base = bench.version(id).unwrap();
    assert_eq!((version.commands_config, base.commands_config), (Some(base.config), None));
}

#[tokio::test]
async fn default_working_directory_is_made_once() {
    let bench = Bench::new();
    let build = || {
        let mut request = request(image(), json!([run("a")]));
        request.spec.workdir = Some("/srv".to_owned());
        request
    };
    let events = bench.build(build()).await;
    assert!(has(&events, "[base] WORKDIR /srv ["), "{:?}", lines(&events));
    let prepared = Kind::Prepared { needs_capsule: true, steps: 1 };
    assert!(events.iter().any(|event| event.kind == prepared));
    let again = build();
    let id = again.id;
    assert!(!needs_capsule(&bench.build(again).await));
    assert_eq!(bench.version(id).unwrap().config.workdir.as_deref(), Some("/srv"));
}

#[tokio::test]
async fn folder_and_version_without_a_log_are_no_build() {
    let bench = Bench::new();
    let folders = [bench.dir.path().join("builds"), bench.dir.path().join("images/templates")];
    let [forgotten, cut] = [BuildId::new(), BuildId::new()];
    std::fs::create_dir_all(folders[0].join(forgotten.to_string())).unwrap();
    for folder in &folders {
        std::fs::create_dir_all(folder.join(cut.to_string())).unwrap();
    }
    std::fs::write(folders[0].join(cut.to_string()).join("events"), "").unwrap();
    let again = open(bench.dir.path());
    assert_eq!(again.list(), [cut]);
    assert!(!folders[0].join(forgotten.to_string()).exists());
    assert!(!folders[1].join(cut.to_string()).exists(), "its build has no end");
}

#[tokio::test]
async fn template_from_a_capsule_lies_on_the_capsules_writes() {
    let bench = Bench::new();
    let capsule = json!({"capsule": CapsuleId::new().to_string()});
    let request = request(capsule, json!([]));
    let id = request.id;
    let events = bench.build(request).await;
    assert!(!needs_capsule(&events));
    assert_eq!(bench.version(id).unwrap().layers, [protocol::lower::Folders::Upper]);
}

#[tokio::test]
async fn team_at_its_limit_of_bytes_is_refused_unless_unused_layers_make_room() {
    let bench = Bench::new();
    let first = request(image(), json!([run("a")]));
    let version = first.id;
    bench.build(first).await;
    let limited = |command| {
        let request = request(image(), json!([run(command)]));
        BeginRequest { most_bytes: Some(1), ..request }
    };
    let (step, message, _) = failure(&bench.build(limited("b")).await);
    assert!(step == "base" && message.contains("MiB are allowed"), "{message}");
    // Nothing uses the layer of a version that is gone.
    let versions = bench.dir.path().join("images/templates");
    std::fs::remove_dir_all(versions.join(version.to_string())).unwrap();
    let more = limited("c");
    let id = more.id;
    bench.build(more).await;
    assert!(bench.version(id).is_some());
}

#[tokio::test]
async fn copy_from_another_stage_runs_that_stage_first() {
    let bench = Bench::new();
    let copy = json!({"copy": {"from": {"stage": 0}, "sources": ["/x"], "dest": "/x"}});
    let spec = json!({
        "recipe": {"dialect": "dockerfile", "stages": [
            {"source": {"image": "golang"}, "steps": [run("compile")]},
            {"source": "scratch", "steps": [copy]},
        ]},
        "resources": {"vcpus": 1, "memory_mib": 512, "disk_mib": 1024},
        "within_sec": 600,
    });
    let request = with_spec(spec.clone());
    let id = request.id;
    let events = bench.build(request).await;
    assert!(has(&events, "[stage-0 1/1] RUN compile"), "{:?}", lines(&events));
    let folders = protocol::lower::Folders::Steps(vec![2]);
    assert_eq!(bench.version(id).unwrap().layers, [folders]);
    let events = bench.build(with_spec(spec)).await;
    assert!(!needs_capsule(&events) && !has(&events, "stage-0"), "{:?}", lines(&events));
}
