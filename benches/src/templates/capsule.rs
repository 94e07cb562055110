//! Templates of a running capsule: the time that the capsule stands still meanwhile.

use super::timed;
use crate::stats::{Row, median, shown};
use serde_json::json;
use std::cell::Cell;
use std::time::{Duration, Instant};
use tests::{Client, Workshop};

const ROUNDS: usize = 3;
/// Time of the look at a capsule of which no template is made.
const LOOK: Duration = Duration::from_secs(5);
/// Wait after a refused command.
const WAIT: Duration = Duration::from_millis(5);
/// Longest time without an answer.
const SILENT: Duration = Duration::from_secs(60);
/// Bytes that the capsule has written.
const WRITTEN: usize = 200_000_000;

/// Measures templates of files, and of files and memory. The floor is the same capsule at rest.
pub(super) async fn measure(workshop: &Workshop) -> Vec<Row> {
    let client = &workshop.client;
    let id = client.create(&json!({ "template": "six" })).await;
    let fill = format!("head -c {WRITTEN} /dev/urandom > /written; sync");
    let fill = json!({ "cmd": "sh", "args": ["-c", fill], "timeout": 120 });
    let filled = client.post(&format!("/v1/capsules/{id}/exec"), &fill).await.expect(200);
    assert_eq!(filled["exit_code"], 0, "{filled}");
    let mut rows = Vec::new();
    for (what, memory, goal) in [("files", false, "≤ 500 ms"), ("files and memory", true, "")] {
        let (mut during, mut at_rest, mut builds) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            at_rest.push(gap_at_rest(client, &id).await);
            let from = json!({ "capsule": { "id": id, "memory": memory } });
            let body = json!({ "name": format!("of-capsule-{memory}-{round}"), "from": from });
            let (gap, took) = gap_during(client, &id, &body).await;
            during.push(gap);
            builds.push(took);
        }
        rows.push(longest(&format!("stall of a capsule, template of its {what}"), &during, goal));
        rows.push(longest("the same capsule at rest", &at_rest, ""));
        rows.push(Row::alone(&format!("template of a capsule's {what}"), &builds, ""));
    }
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    rows
}

/// Makes a row of the longest of some gaps.
fn longest(what: &str, gaps: &[Duration], goal: &str) -> Row {
    let (most, middle) = (shown(gaps.iter().copied().max().unwrap()), shown(median(gaps)));
    Row::new(&format!("longest {what}, of {ROUNDS}"), &most, "–", &format!("median {middle}"), goal)
}

/// Returns the longest gap while nothing else is asked of the capsule.
async fn gap_at_rest(client: &Client, id: &str) -> Duration {
    let ended = Cell::new(false);
    let look = async {
        tokio::time::sleep(LOOK).await;
        ended.set(true);
    };
    tokio::join!(gap(client, id, &ended), look).0
}

/// Returns the longest gap while a build goes on, and the time of the build.
async fn gap_during(client: &Client, id: &str, body: &serde_json::Value) -> (Duration, Duration) {
    let ended = Cell::new(false);
    let build = async {
        let (took, _) = timed(client, body).await;
        ended.set(true);
        took
    };
    tokio::join!(gap(client, id, &ended), build)
}

/// Runs `true` in the capsule again and again until `ended`. Returns the longest time between two
/// answers.
async fn gap(client: &Client, id: &str, ended: &Cell<bool>) -> Duration {
    let (path, body) = (format!("/v1/capsules/{id}/exec"), json!({ "cmd": "true" }));
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    while !ended.get() {
        let answer = client.post(&path, &body).await;
        // A refused command did not run, so the gap goes on.
        if answer.status != 200 {
            assert!(last.elapsed() < SILENT, "the capsule does not answer: {}", answer.body);
            tokio::time::sleep(WAIT).await;
            continue;
        }
        longest = longest.max(last.elapsed());
        last = Instant::now();
    }
    longest.max(last.elapsed())
}
