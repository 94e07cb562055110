//! Guests in which root has stopped envd. The platform waits for none of them for long, and loses
//! none.

use crate::capsule;
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Duration;
use tests::{Client, eventually, processes_of};

/// Time for several tries of a host, each of which waits for a guest.
const TRIES: Duration = Duration::from_secs(180);

/// Has root stop the agent of a guest, which is the oldest child of its first process.
async fn stop_agent(client: &Client, id: &str) {
    let script = "sleep 1; sudo sh -c 'set -- $(cat /proc/1/task/1/children); kill -STOP $1'";
    let body = json!({ "cmd": "sh", "args": ["-c", script], "background": true });
    let exec = format!("/v1/capsules/{id}/exec");
    client.post(&exec, &body).await.expect(202);
    eventually("the agent is silent", || async {
        let answer = client.post(&exec, &json!({ "cmd": "true" })).await;
        (answer.status != 200).then_some(())
    })
    .await;
}

async fn resume(client: &Client, id: &str, body: &Value) -> tests::Answer {
    client.post(&format!("/v1/capsules/{id}/resume"), body).await
}

#[tokio::test]
async fn pause_with_stopped_agent_is_refused_and_delete_is_immediate() {
    let (platform, client, id) = capsule().await;
    stop_agent(&client, &id).await;
    let files = format!("/v1/capsules/{id}/files?path=/tmp/f");
    let read = client.send(client.request(Method::GET, &files));
    let write = client.send(client.request(Method::PUT, &files).body("x"));
    let both = tokio::time::timeout(TRIES, async { tokio::join!(read, write) }).await;
    let (read, write) = both.expect("calls on files wait for a silent agent");
    read.refuses(503, "guest_unavailable", "does not answer");
    write.refuses(503, "guest_unavailable", "does not answer");
    let path = format!("/v1/capsules/{id}/pause");
    for memory in [false, true] {
        let paused = client.post(&path, &json!({ "memory": memory })).await;
        paused.refuses(500, "pause_failed", "the capsule's envd does not answer");
        assert_eq!(client.status(&id).await, "running", "memory: {memory}");
    }
    let pausing = {
        let client = client.clone();
        tokio::spawn(async move { client.post(&path, &json!({ "memory": false })).await })
    };
    eventually("it is being paused", || async {
        (client.status(&id).await == "pausing").then_some(())
    })
    .await;
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    assert!(processes_of(&id).is_empty());
    assert!(!pausing.await.unwrap().status.is_success());
    platform.finish();
}

#[tokio::test]
async fn lifetime_pauses_guest_with_stopped_agent_and_keeps_its_files() {
    let (platform, client, id) = capsule().await;
    client.out(&id, "echo kept > ~/file; sync").await;
    stop_agent(&client, &id).await;
    client.change(&id, "timeout", &json!({ "lifetime": 0 })).await;
    let paused = async {
        while client.status(&id).await != "paused" {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::time::timeout(TRIES, paused).await.expect("it is paused");
    assert!(processes_of(&id).is_empty());
    // The guest was saved with its agent stopped, so it does not answer. Its snapshot stays.
    resume(&client, &id, &json!({})).await.refuses(503, "guest_unavailable", "does not answer");
    assert_eq!(client.status(&id).await, "paused");
    let booted = resume(&client, &id, &json!({ "memory": false })).await.expect(200);
    assert_eq!(booted["booted"], true, "{booted}");
    assert_eq!(client.out(&id, "cat ~/file").await, "kept\n");
    platform.finish();
}
