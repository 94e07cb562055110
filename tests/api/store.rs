//! The platform's store, on a real S3 server: a capsule that is paused outlives its host, and
//! goes on elsewhere.

use crate::hosts::Second;
use serde_json::json;
use tests::{Client, Driver, Platform, S3, eventually};

const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// Resumes a capsule of a host that is drained, until it is resumed on another: a control plane
/// that does not know of the drain yet resumes it where it is, and then it is paused again.
async fn goes_elsewhere(client: &Client, id: &str) {
    let shown = async || client.get(&format!("/v1/capsules/{id}")).await.expect(200);
    let from = shown().await["host_id"].clone();
    eventually("it goes on elsewhere", || async {
        let now = shown().await;
        if now["status"] == "paused" && now["stored"] == true {
            client.resume(id).await;
        }
        let now = shown().await;
        (now["status"] == "running" && now["host_id"] != from).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_capsule_outlives_its_host() {
    let s3 = S3::start().await;
    let mut vars = s3.vars();
    vars.push(("WRENN_STORE_KEY", KEY));
    let platform = Platform::start(Driver::Fake, &vars).await;
    let client = platform.client();
    let mut second = Second::tagged(&platform, &client).await;
    let body = json!({ "memory_mb": 128, "host_tags": ["second"] });
    let (moves, stays) = (client.create(&body).await, client.create(&body).await);
    let shown = async |id: &str| client.get(&format!("/v1/capsules/{id}")).await.expect(200);
    assert_eq!(shown(&moves).await["stored"], false);
    client.pause(&moves).await;
    eventually("it is in the store", || async {
        (shown(&moves).await["stored"] == true).then_some(())
    })
    .await;
    let tokens: Vec<u8> =
        s3.find("").iter().flat_map(|path| std::fs::read(path).unwrap()).collect();
    let ledger = second.dir.path().join(format!("capsules/{moves}/capsule.json"));
    let ledger: serde_json::Value =
        serde_json::from_slice(&std::fs::read(ledger).unwrap()).unwrap();
    let token = ledger["envd_token"].as_str().unwrap();
    let at = |text: &str| tokens.windows(text.len()).any(|w| w == text.as_bytes());
    assert!(!tokens.is_empty() && !at(token), "a token is readable in the store");
    // Resumed where it is, and paused again: there is one snapshot of it there, the last.
    client.resume(&moves).await;
    assert_eq!(shown(&moves).await["stored"], false);
    client.pause(&moves).await;
    eventually("the last one is there alone", || async {
        let trees = s3.find(&format!("trees/capsules/{moves}"));
        let last = trees.len() == 1 && trees[0].ends_with("2");
        (last && shown(&moves).await["stored"] == true).then_some(())
    })
    .await;
    // The host is gone for good. What was paused goes on, what ran does not.
    second.kill();
    let path = format!("/v1/hosts/{}", second.id);
    let loss = client.get(&format!("{path}/delete-preview")).await.expect(200);
    assert_eq!(loss["capsules"].as_array().unwrap().len(), 1);
    assert_eq!(loss["capsules"][0]["id"], stays.as_str());
    client.delete(&format!("{path}?force=true")).await.expect(204);
    assert_eq!(shown(&stays).await["status"], "error");
    assert_eq!(shown(&moves).await["status"], "paused");
    client.resume(&moves).await;
    let now = shown(&moves).await;
    assert!(now["host_id"].as_str().is_some_and(|id| id != second.id), "{now}");
    assert_eq!(client.out(&moves, "echo up").await, "up\n");
    // Lost while it runs, it can be taken back to what it was paused as, if its owner says so.
    let third = Second::start(&platform, &client).await;
    client.pause(&moves).await;
    eventually("it is in the store", || async {
        (shown(&moves).await["stored"] == true).then_some(())
    })
    .await;
    let local = client.get("/v1/hosts").await.expect(200);
    let local = local["items"].as_array().unwrap().iter().find(|h| h["name"] == "local").unwrap();
    let local = format!("/v1/hosts/{}", local["id"].as_str().unwrap());
    client.post(&format!("{local}/drain"), &json!({})).await.expect(200);
    goes_elsewhere(&client, &moves).await;
    assert_eq!(shown(&moves).await["host_id"], third.id.as_str());
    client.post(&format!("{local}/drain"), &json!({ "drain": false })).await.expect(200);
    let path = format!("/v1/hosts/{}", third.id);
    drop(third);
    client.delete(&format!("{path}?force=true")).await.expect(204);
    assert_eq!(shown(&moves).await["status"], "error");
    client.resume(&moves).await;
    assert_eq!(client.out(&moves, "echo up").await, "up\n");
    // Removed, nothing of it is left there.
    for id in [&moves, &stays] {
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    }
    assert_eq!(s3.find("trees/capsules"), Vec::<std::path::PathBuf>::new());
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_returns_has_no_say_over_what_went_on_elsewhere() {
    let s3 = S3::start().await;
    let platform = Platform::start(Driver::Fake, &s3.vars()).await;
    let client = platform.client();
    let mut second = Second::tagged(&platform, &client).await;
    let id = client.create(&json!({ "memory_mb": 128, "host_tags": ["second"] })).await;
    client.pause(&id).await;
    let shown = async || client.get(&format!("/v1/capsules/{id}")).await.expect(200);
    eventually("it is in the store", || async { (shown().await["stored"] == true).then_some(()) })
        .await;
    // Drained, it gives its capsules to others, as soon as every control plane knows.
    client.post(&format!("/v1/hosts/{}/drain", second.id), &json!({})).await.expect(200);
    goes_elsewhere(&client, &id).await;
    eventually("the copy that was left is removed", || async {
        let left = std::fs::read_dir(second.dir.path().join("capsules")).unwrap().count();
        (left == 0).then_some(())
    })
    .await;
    client.pause(&id).await;
    eventually("it is in the store", || async { (shown().await["stored"] == true).then_some(()) })
        .await;
    assert_eq!(s3.find(&format!("trees/capsules/{id}")).len(), 1);
    // Without the store it is paused as it would be, and goes on where it is.
    client.resume(&id).await;
    std::fs::rename(s3.objects(), s3.objects().with_extension("away")).unwrap();
    client.pause(&id).await;
    client.resume(&id).await;
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    second.kill();
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_begun_from_on_any_host() {
    let s3 = S3::start().await;
    let platform = Platform::start(Driver::Fake, &s3.vars()).await;
    let client = platform.client();
    let second = Second::tagged(&platform, &client).await;
    let id = client.create(&json!({ "memory_mb": 128, "host_tags": ["second"] })).await;
    let taken = json!({ "capsule_id": id, "name": "kept" });
    let taken = client.post("/v1/snapshots", &taken).await.expect(201);
    let snapshot = taken["id"].as_str().unwrap();
    eventually("it is in the store", || async {
        (s3.find(&format!("trees/snapshots/{snapshot}")).len() == 1).then_some(())
    })
    .await;
    client.post(&format!("/v1/hosts/{}/drain", second.id), &json!({})).await.expect(200);
    let begun = eventually("it is begun from on another host", || async {
        let made = client.post("/v1/capsules", &json!({ "template": "kept" })).await;
        (made.status.as_u16() == 201).then_some(made.body)
    })
    .await;
    assert_ne!(begun["host_id"], second.id.as_str());
    assert_eq!(client.out(begun["id"].as_str().unwrap(), "echo up").await, "up\n");
    client.delete("/v1/snapshots/kept").await.expect(204);
    assert_eq!(s3.find("trees/snapshots").len(), 0);
    platform.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_copy_gives_way_to_what_the_store_has() {
    let s3 = S3::start().await;
    let mut platform = Platform::start(Driver::Fake, &s3.vars()).await;
    let client = platform.client();
    let mut second = Second::tagged(&platform, &client).await;
    let id = client.create(&json!({ "memory_mb": 128, "host_tags": ["second"] })).await;
    let stored = async || {
        eventually("it is in the store", || async {
            let shown = client.get(&format!("/v1/capsules/{id}")).await.expect(200);
            (shown["stored"] == true).then_some(())
        })
        .await;
    };
    client.pause(&id).await;
    stored().await;
    let folder = second.dir.path().join("capsules").join(&id);
    // It goes on elsewhere, and is paused there.
    second.kill();
    client.delete(&format!("/v1/hosts/{}?force=true", second.id)).await.expect(204);
    client.resume(&id).await;
    client.pause(&id).await;
    stored().await;
    // The host has its old copy still, and is asked to go on with the capsule: not with that.
    platform.kill();
    assert!(folder.join("kept/1").exists() && !folder.join("kept/2").exists());
    second.process = platform.agent(&client, second.dir.path(), &second.address).await.0;
    let agent = platform.client_of_agent(&second.address).below("/wrenn.host.v1.Host");
    let list = agent.post("/ListCapsules", &json!({})).await.expect(200);
    assert_eq!(list["capsules"][0]["state"], "CAPSULE_STATE_PAUSED", "{list}");
    let ledger = std::fs::read(folder.join("capsule.json")).unwrap();
    let ledger: serde_json::Value = serde_json::from_slice(&ledger).unwrap();
    let resume =
        json!({ "capsuleId": id, "generation": 100, "stored": 2, "teamId": ledger["team"] });
    agent.post("/ResumeCapsule", &resume).await.expect(200);
    assert!(folder.join("kept/2").exists());
    agent.post("/DestroyCapsule", &json!({ "capsuleId": id })).await.expect(200);
    second.kill();
    platform.resume().await;
    platform.client().delete(&format!("/v1/capsules/{id}")).await.expect(204);
    platform.finish();
}
