//! Builds whose steps are in the cache, all of them or all but one.

use super::{body, dockerfile, run, timed, write_dockerfile};
use crate::bare::{Bare, Namespace};
use crate::buildah::{Buildah, Storage};
use crate::stats::{Row, percentile, shown};
use serde_json::{Value, json};
use std::time::Duration;
use tempfile::TempDir;
use tests::{Platform, Workshop};

/// Builds with all steps in the cache.
const CACHED: usize = 20;
/// Builds with one new step.
const NEW: usize = 7;
/// Phases of a capsule's start, with their sums and counts, in the agent's metrics.
const SUM: &str = "wrenn_boot_stage_seconds_sum{";
const COUNT: &str = "wrenn_boot_stage_seconds_count{stage=\"prepared\"} ";
const FAILED: &str = "wrenn_boots_failed_total ";

/// Measures both kinds of builds. Guests are those that the host's agent reports.
pub(super) async fn measure(workshop: &Workshop, buildah: Option<&Buildah>) -> Vec<Row> {
    let before = Guests::of(&workshop.platform).await;
    timed(&workshop.client, &six(workshop, "true")).await;
    let after = Guests::of(&workshop.platform).await;
    assert!(after.begun > before.begun, "the agent does not count a builder's guest");
    let mut rows = cached(workshop, buildah).await;
    rows.extend(one_new(workshop, buildah).await);
    rows
}

/// Guests that the agent has begun so far.
#[derive(Clone, Copy)]
struct Guests {
    begun: u64,
    /// Seconds that their starts took.
    seconds: f64,
}

impl Guests {
    async fn of(platform: &Platform) -> Self {
        let figures = platform.agent_client().get("/metrics").await.body;
        let text = figures.as_str().unwrap();
        let count = |name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.map_or(0, |count| count.trim().parse().unwrap())
        };
        let sums = text.lines().filter(|line| line.starts_with(SUM));
        let sums = sums.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap());
        Self { begun: count(COUNT) + count(FAILED), seconds: sums.sum() }
    }
}

/// Returns a build of six steps. The last one is the caller's.
fn six(workshop: &Workshop, last: &str) -> Value {
    let steps: Vec<Value> = commands(last).iter().map(|command| run(command)).collect();
    body(workshop, "six", &json!(steps))
}

fn commands(last: &str) -> Vec<String> {
    (1..6).map(|n| format!("echo {n} > /{n}")).chain([last.to_owned()]).collect()
}

/// A storage of buildah's that has built the six steps.
struct Rival {
    storage: Storage,
    dir: TempDir,
}

impl Rival {
    fn new(buildah: &Buildah) -> Self {
        let dir = dockerfile(&commands("true"));
        let storage = buildah.storage(dir.path(), "storage");
        storage.build(dir.path(), true);
        Self { storage, dir }
    }

    /// Builds with a last step, which may be new.
    fn build(&self, last: &str) -> Duration {
        write_dockerfile(self.dir.path(), &commands(last));
        self.storage.build(self.dir.path(), true)
    }
}

/// Measures builds whose steps are all in the cache, and counts the guests meanwhile.
async fn cached(workshop: &Workshop, buildah: Option<&Buildah>) -> Vec<Row> {
    let rival = buildah.map(Rival::new);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let before = Guests::of(&workshop.platform).await;
    for _ in 0..CACHED {
        let (took, built) = timed(&workshop.client, &six(workshop, "true")).await;
        assert_eq!(built.cached().len(), 6, "{:?}", built.lines);
        ours.push(took);
        theirs.extend(rival.as_ref().map(|rival| rival.build("true")));
    }
    let guests = Guests::of(&workshop.platform).await.begun - before.begun;
    let high = shown(percentile(&ours, 95));
    let guests = guests.to_string();
    let mut rows = vec![
        Row::alone("build with six cached steps", &ours, "≤ 1000 ms"),
        Row::value("the same, 95th of a hundred", &high, "≤ 1000 ms"),
        Row::value("guests that began in these builds", &guests, "0"),
    ];
    if rival.is_some() {
        rows.push(Row::ratio("build with six cached steps ÷ buildah's", &ours, &theirs, ""));
    }
    rows
}

/// Measures builds with one new step of six, up to their ends, less a boot. A boot is that of the
/// build's own guest, by the agent's metrics, or that of a bare machine with the same size.
async fn one_new(workshop: &Workshop, buildah: Option<&Buildah>) -> Vec<Row> {
    let (bare, at) = (builder(workshop).await, Namespace::new("build"));
    let (mut ours, mut own_boots, mut bare_boots) = (Vec::new(), Vec::new(), Vec::new());
    let (rival, mut theirs) = (buildah.map(Rival::new), Vec::new());
    for round in 0..NEW {
        let last = format!("echo {round}");
        let before = Guests::of(&workshop.platform).await;
        let (took, built) = timed(&workshop.client, &six(workshop, &last)).await;
        let after = Guests::of(&workshop.platform).await;
        assert_eq!(built.cached().len(), 5, "{:?}", built.lines);
        assert_eq!(after.begun, before.begun + 1, "another guest began meanwhile");
        ours.push(took);
        own_boots.push(Duration::from_secs_f64(after.seconds - before.seconds));
        bare_boots.push(bare.boot(&at));
        theirs.extend(rival.as_ref().map(|rival| rival.build(&last)));
    }
    let mut rows = vec![
        Row::less("one new step of six − its guest's boot", &ours, &own_boots, "≤ 500 ms"),
        Row::less("one new step of six − a bare VMM's boot", &ours, &bare_boots, "≤ 500 ms"),
    ];
    if rival.is_some() {
        rows.push(Row::ratio("one new step of six ÷ buildah's, in no guest", &ours, &theirs, ""));
    }
    rows
}

/// Returns a bare machine of the builder's size.
async fn builder(workshop: &Workshop) -> Bare {
    let client = &workshop.client;
    // No other capsule has this disk size, so this one is booted.
    let odd = 4000 + std::process::id() % 900;
    let size = json!({ "memory_mib": 1024, "vcpus": 2, "disk_mib": odd });
    let made = client.post("/v1/capsules", &size).await.expect(201);
    assert_eq!(made["booted"], true, "run it again: {made}");
    let id = made["id"].as_str().unwrap();
    let bare = Bare::like(&workshop.platform, id);
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    bare
}
