//! Logs of real guests: a program's lines over pauses, forks and a killed agent, and the console.

use crate::capsule;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tests::{Client, Platform, eventually};

/// Returns the texts of a source's lines in a capsule's log, read page by page.
async fn lines(platform: &Platform, id: &str, source: &str) -> Vec<String> {
    let agent: Client = platform.agent_client().below("/wrenn.host.v1.Host");
    let record = platform.dir().join("capsules").join(id).join("capsule.json");
    let record: Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    let (mut cursor, mut texts) = (String::new(), Vec::new());
    loop {
        let ask = json!({ "capsuleId": id, "teamId": record["team"], "sources": [source],
            "cursor": cursor, "limit": 50 });
        let page = agent.post("/ReadLog", &ask).await.expect(200);
        for entry in page["entries"].as_array().into_iter().flatten() {
            let text = STANDARD.decode(entry["text"].as_str().unwrap_or_default()).unwrap();
            texts.push(String::from_utf8(text).unwrap());
        }
        if page["more"] != true {
            return texts;
        }
        cursor = page["cursor"].as_str().unwrap().to_owned();
    }
}

/// Returns the numbers that the program of the test wrote, once the last is greater than `after`.
async fn numbers(platform: &Platform, id: &str, after: u64) -> Vec<u64> {
    eventually("the program's lines are in the log", || async {
        let lines = lines(platform, id, "process").await;
        let numbers: Vec<u64> = lines.iter().filter_map(|line| line.parse().ok()).collect();
        (*numbers.last()? > after).then_some(numbers)
    })
    .await
}

fn assert_in_row(numbers: &[u64]) {
    let pairs = numbers.iter().zip(&numbers[1..]);
    for (one, next) in pairs {
        assert_eq!(one + 1, *next, "{numbers:?}");
    }
}

#[tokio::test]
async fn each_line_is_logged_once_over_pause_fork_and_killed_agent() {
    let (mut platform, client, id) = capsule().await;
    let script = "i=0; while sleep 0.05; do i=$((i+1)); echo $i; done";
    let body = json!({ "cmd": "sh", "args": ["-c", script], "background": true });
    client.post(&format!("/v1/capsules/{id}/exec"), &body).await.expect(202);
    let first = numbers(&platform, &id, 20).await;
    client.pause(&id).await;
    client.resume(&id).await;
    let later = numbers(&platform, &id, first[first.len() - 1] + 40).await;
    assert_eq!(later[0], 1);
    assert_in_row(&later);
    let fork = format!("/v1/capsules/{id}/fork");
    let forked = client.post(&fork, &json!({ "count": 1 })).await.expect(201);
    let child = forked["items"][0]["id"].as_str().unwrap().to_owned();
    let of_child = numbers(&platform, &child, 0).await;
    assert_in_row(&of_child);
    assert!(of_child[0] > 1, "the child repeats lines from before its epoch");
    let of_child = lines(&platform, &child, "lifecycle").await;
    assert_eq!(of_child, ["The capsule started from a snapshot"]);
    let console = "echo wrenn-console-line > /dev/ttyS0";
    client
        .post(
            &format!("/v1/capsules/{id}/exec"),
            &json!({
                "cmd": "sh", "args": ["-c", console], "user": "root"
            }),
        )
        .await
        .expect(200);
    eventually("the console's line is in the log", || async {
        let lines = lines(&platform, &id, "console").await;
        lines.iter().any(|line| line.contains("wrenn-console-line")).then_some(())
    })
    .await;
    platform.kill();
    platform.resume().await;
    let last = numbers(&platform, &id, later[later.len() - 1] + 80).await;
    assert_eq!(last[0], 1);
    assert_in_row(&last);
    let console = lines(&platform, &id, "console").await;
    let found = console.iter().filter(|line| line.contains("wrenn-console-line"));
    assert_eq!(found.count(), 1);
    platform.finish();
}
