//! Steps that do nothing, and the way of a line from a step to a reader of the log.

use super::{body, dockerfile, log, run, seconds, timed};
use crate::buildah::Buildah;
use crate::stats::{Row, percentile, shown};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tests::Workshop;

const ROUNDS: u32 = 3;
const STEPS: u32 = 20;
const LINES: usize = 100;
/// Mark of a timed line in the log.
const MARK: &str = "[stdout]: at ";

/// Measures twenty steps that do nothing, by the times of their lines.
pub(super) async fn measure(workshop: &Workshop, buildah: Option<&Buildah>) -> Vec<Row> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        ours.push(twenty(workshop, round).await);
        theirs.extend(buildah.map(twenty_by));
    }
    let mut rows = vec![Row::alone("a step `RUN true` of twenty, emulated", &ours, "≤ 300 ms")];
    if buildah.is_some() {
        rows.push(Row::ratio("a step `RUN true` ÷ buildah's, in no guest", &ours, &theirs, ""));
    }
    rows
}

/// Returns the time from one step to the next.
async fn twenty(workshop: &Workshop, round: u32) -> Duration {
    // The first step differs in each round, so that no step comes from the cache.
    let mut list = vec![run(&format!("echo {round}"))];
    list.extend((0..STEPS).map(|_| run("true")));
    let (_, built) = timed(&workshop.client, &body(workshop, "twenty", &json!(list))).await;
    let lines = log(&workshop.client, &built).await;
    let is_step = |line: &&Value| line["text"].as_str().unwrap().contains("] RUN true [");
    let begins: Vec<f64> = lines.iter().filter(is_step).map(|line| seconds(&line["at"])).collect();
    assert_eq!(begins.len(), usize::try_from(STEPS).unwrap(), "{:?}", built.lines);
    assert!(built.cached().is_empty(), "{:?}", built.lines);
    Duration::from_secs_f64(begins[begins.len() - 1] - begins[0]) / (STEPS - 1)
}

/// Returns the time that a step takes buildah, by two builds of which one has twenty steps more.
fn twenty_by(buildah: &Buildah) -> Duration {
    let time = |steps: u32| {
        let dir = dockerfile(&(0..steps).map(|_| "true".to_owned()).collect::<Vec<_>>());
        let storage = buildah.storage(dir.path(), "storage");
        storage.build(dir.path(), false)
    };
    let one = time(1);
    time(STEPS + 1).saturating_sub(one) / STEPS
}

/// Measures the time from a line's print in the guest until the line is in a followed log. The
/// guest's clock is the host's, but for the time that the message with the time took.
pub(super) async fn log_lines(workshop: &Workshop) -> Vec<Row> {
    let client = &workshop.client;
    // The time is that of a file, since busybox's `date` has no fractions of a second.
    let print = "touch /tmp/now; echo at $(stat -c '%Y %y' /tmp/now)";
    let command = format!("for n in $(seq {LINES}); do {print}; sleep 0.1; done");
    let id = client.begin(&body(workshop, "lines", &json!([run(&command)]))).await;
    let mut follow = client.follow(&id, None).await;
    let (mut took, mut lines) = (Vec::new(), Vec::new());
    while let Some(event) = follow.next().await {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        if event.seq.is_none() {
            assert_eq!(event.data["status"], "ready", "{}\n{lines:?}", event.data);
            break;
        }
        let text = event.data["text"].as_str().unwrap().to_owned();
        took.extend(text.split_once(MARK).map(|(_, at)| now.saturating_sub(since_1970(at))));
        lines.push(text);
    }
    assert_eq!(took.len(), LINES, "{lines:?}");
    let high = shown(percentile(&took, 95));
    vec![
        Row::alone("a line from its print to a follower", &took, ""),
        Row::value("the same, 95th of a hundred", &high, "≤ 1000 ms"),
    ]
}

/// Reads a time of `stat`: seconds since 1970, and the time of day with its fraction of a second.
fn since_1970(text: &str) -> Duration {
    let whole = text.split(' ').next().unwrap().parse().unwrap();
    let fraction = text.split('.').nth(1).unwrap().split(' ').next().unwrap();
    Duration::new(whole, fraction.parse().unwrap())
}
