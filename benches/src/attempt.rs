//! A create up to its first command's answer. A failure is counted, and ends no run.

use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tests::Client;

/// Reasons of failures that are printed for each row.
const SHOWN: usize = 3;

/// An attempt to create a capsule and to run its first command.
pub(crate) struct Attempt {
    /// The capsule, if the create succeeded.
    pub id: Option<String>,
    /// Time up to the command's answer, or the reason of the failure.
    pub took: Result<Duration, String>,
}

/// Creates a capsule and runs a shell command in it, whose output must be `wanted`.
pub(crate) async fn create(client: &Client, body: &Value, command: &str, wanted: &str) -> Attempt {
    let began = Instant::now();
    let made = client.post("/v1/capsules", body).await;
    let id = made.body["id"].as_str().filter(|_| made.status == 201).map(str::to_owned);
    let Some(id) = id else {
        return Attempt { id: None, took: Err(format!("create: {} {}", made.status, made.body)) };
    };
    let exec = json!({ "cmd": "sh", "args": ["-c", command] });
    let ran = client.post(&format!("/v1/capsules/{id}/exec"), &exec).await;
    let took = began.elapsed();
    let good = ran.status == 200 && ran.body["exit_code"] == 0 && ran.body["stdout"] == wanted;
    let failure = || format!("first command of {id}: {} {}", ran.status, ran.body);
    Attempt { took: if good { Ok(took) } else { Err(failure()) }, id: Some(id) }
}

/// Removes the capsules of attempts. Returns their ids.
pub(crate) async fn remove(client: &Client, attempts: &[Attempt]) -> Vec<String> {
    let ids: Vec<String> = attempts.iter().filter_map(|attempt| attempt.id.clone()).collect();
    for id in &ids {
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    }
    ids
}

/// Splits attempts into the times of the good ones and the number of the others. Prints some
/// reasons.
pub(crate) fn sort(attempts: Vec<Attempt>) -> (Vec<Duration>, usize) {
    let (mut times, mut failed) = (Vec::new(), 0);
    for attempt in attempts {
        match attempt.took {
            Ok(took) => times.push(took),
            Err(reason) => {
                if failed < SHOWN {
                    println!("failed: {reason}");
                }
                failed += 1;
            }
        }
    }
    (times, failed)
}
