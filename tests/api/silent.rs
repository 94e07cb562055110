//! Guests whose agent answers nothing, and operations requested more than once at a time. A guest
//! can stop its agent at will, so nothing may wait for it for long.

use crate::capsule;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::Duration;
use tests::{Answer, Client, Driver, Platform, eventually, processes_of, signal};
use tokio::task::JoinHandle;

/// Time for several attempts of a host, each of which waits for a guest.
const TRIES: Duration = Duration::from_secs(180);

/// Stops the agent of a capsule's guest, or lets it continue.
fn signal_agent(id: &str, what: Signal) {
    let agents = processes_of(id);
    assert_eq!(agents.len(), 1);
    signal(agents[0], what);
}

fn ask(client: &Client, id: &str, what: &str, body: Value) -> JoinHandle<Answer> {
    let (client, path) = (client.clone(), format!("/v1/capsules/{id}/{what}"));
    tokio::spawn(async move { client.post(&path, &body).await })
}

async fn becomes(client: &Client, id: &str, status: &str) {
    eventually(status, || async { (client.status(id).await == status).then_some(()) }).await;
}

/// Waits until a capsule has a status, over several attempts of its host.
async fn becomes_after_tries(client: &Client, id: &str, status: &str) {
    let waiting = async {
        while client.status(id).await != status {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let waited = tokio::time::timeout(TRIES, waiting).await;
    assert!(waited.is_ok(), "not in time: {status}");
}

#[tokio::test]
async fn pause_and_snapshot_of_silent_guest_fail_and_guest_keeps_running() {
    let (platform, client, id) = capsule().await;
    signal_agent(&id, Signal::STOP);
    for memory in [true, false] {
        let body = json!({ "memory": memory });
        let paused = client.post(&format!("/v1/capsules/{id}/pause"), &body).await;
        paused.refuses(500, "pause_failed", "the capsule's envd does not answer");
        assert_eq!(client.status(&id).await, "running", "memory: {memory}");
    }
    let body = json!({ "capsule_id": id, "name": "silent" });
    let taken = client.post("/v1/snapshots", &body).await;
    taken.refuses(500, "snapshot_failed", "the capsule's envd does not answer");
    assert_eq!(client.get("/v1/snapshots").await.expect(200)["items"], json!([]));
    signal_agent(&id, Signal::CONT);
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    client.pause(&id).await;
    client.resume(&id).await;
    platform.finish();
}

#[tokio::test]
async fn delete_ends_pause_waiting_for_silent_guest() {
    let (platform, client, id) = capsule().await;
    for memory in [false, true] {
        let id = if memory { client.create(&json!({})).await } else { id.clone() };
        signal_agent(&id, Signal::STOP);
        let pausing = ask(&client, &id, "pause", json!({ "memory": memory }));
        becomes(&client, &id, "pausing").await;
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
        assert!(processes_of(&id).is_empty());
        assert_eq!(client.status(&id).await, "gone");
        let paused = pausing.await.unwrap();
        assert!(!paused.status.is_success(), "{}", paused.body);
    }
    platform.left_until("no folder is left", |left| left.folders.is_empty()).await;
    platform.finish();
}

#[tokio::test]
async fn lifetime_of_silent_guest_is_enforced() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let create = async |on_timeout: &str| {
        let id = client.create(&json!({ "lifetime": 1000, "on_timeout": on_timeout })).await;
        signal_agent(&id, Signal::STOP);
        id
    };
    let killed = create("kill").await;
    let kept = [create("pause").await, create("pause_disk").await];
    for id in &kept {
        client.change(id, "timeout", &json!({ "lifetime": 0 })).await;
    }
    // The time ends while a pause waits for the guest.
    client.change(&killed, "timeout", &json!({ "lifetime": 2 })).await;
    let paused = client.post(&format!("/v1/capsules/{killed}/pause"), &json!({})).await;
    assert!(!paused.status.is_success(), "{}", paused.body);
    becomes(&client, &killed, "gone").await;
    for id in &kept {
        becomes_after_tries(&client, id, "paused").await;
        assert!(processes_of(id).is_empty());
        client.resume(id).await;
        assert_eq!(client.out(id, "echo up").await, "up\n");
    }
    platform.finish();
}

/// A stopped agent holds a pause under way, so that others certainly ask meanwhile.
#[tokio::test]
async fn same_pause_under_way_is_joined_and_other_operation_conflicts() {
    let (platform, client, id) = capsule().await;
    signal_agent(&id, Signal::STOP);
    let first = ask(&client, &id, "pause", json!({}));
    becomes(&client, &id, "pausing").await;
    let joined = [ask(&client, &id, "pause", json!({})), ask(&client, &id, "pause", json!({}))];
    for (what, body) in [("pause", json!({ "memory": false })), ("resume", json!({}))] {
        let refused = client.post(&format!("/v1/capsules/{id}/{what}"), &body).await;
        refused.refuses(409, "conflict", "under way");
    }
    first.await.unwrap().refuses(500, "pause_failed", "does not answer");
    for joined in joined {
        joined.await.unwrap().refuses(500, "pause_failed", "");
    }
    signal_agent(&id, Signal::CONT);
    for round in 0..5 {
        for what in ["pause", "resume"] {
            let all = (0..6).map(|_| ask(&client, &id, what, json!({}))).collect::<Vec<_>>();
            for answer in futures::future::join_all(all).await {
                let answer = answer.unwrap();
                assert_eq!(answer.status, 200, "{what}, round {round}: {}", answer.body);
            }
        }
    }
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    platform.finish();
}

#[tokio::test]
async fn concurrent_deletes_of_changing_capsule_all_finish() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    for round in 0..5 {
        let id = client.create(&json!({})).await;
        if round % 2 == 1 {
            client.pause(&id).await;
        }
        let path = format!("/v1/capsules/{id}");
        let what = if round % 2 == 1 { "resume" } else { "pause" };
        let changing = ask(&client, &id, what, json!({}));
        let all = (0..4).map(|_| client.delete(&path));
        for answer in futures::future::join_all(all).await {
            let done = matches!(answer.status.as_u16(), 204 | 404);
            assert!(done, "round {round}: {} {}", answer.status, answer.body);
        }
        changing.await.unwrap();
        assert_eq!(client.status(&id).await, "gone", "round {round}");
        assert!(processes_of(&id).is_empty(), "round {round}");
    }
    platform.finish();
}
