//! Removals that answer once the capsule is out of reach. The host removes the rest behind the
//! answer, also after its agent's death.

use crate::capsule;
use serde_json::json;
use std::time::Duration;
use tests::{Client, Driver, Platform, eventually, processes_of};

/// Removes a capsule. Checks that it is out of reach at the answer.
async fn remove(client: &Client, id: &str) {
    let path = format!("/v1/capsules/{id}");
    client.delete(&path).await.expect(204);
    assert!(processes_of(id).is_empty(), "its machine runs on");
    is_gone(client, id).await;
    let exec = client.post(&format!("{path}/exec"), &json!({ "cmd": "true" })).await;
    exec.refuses(404, "not_found", "capsule");
    client.delete(&path).await.refuses(404, "not_found", "capsule");
}

/// Checks that neither a look at a capsule nor the list finds it.
async fn is_gone(client: &Client, id: &str) {
    client.get(&format!("/v1/capsules/{id}")).await.refuses(404, "not_found", "capsule");
    let list = client.get("/v1/capsules").await.expect(200);
    let items = list["items"].as_array().unwrap();
    assert!(items.iter().all(|item| item["id"] != id), "{list}");
}

/// Waits until the host has the folders of `count` capsules.
async fn has_folders(platform: &Platform, count: usize) {
    eventually("the host has nothing of removed capsules", async || {
        (platform.leftovers().folders.len() == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn removed_capsules_memory_is_free_at_the_answer() {
    let platform = Platform::start(Driver::Fake, &[("WRENN_MEMORY_MIB", "512")]).await;
    let client = platform.client();
    for _ in 0..5 {
        let id = client.create(&json!({ "memory_mib": 512 })).await;
        remove(&client, &id).await;
    }
    has_folders(&platform, 0).await;
    platform.finish();
}

#[tokio::test]
async fn agent_killed_right_after_removals_answer_leaves_nothing() {
    let (mut platform, _, kept) = capsule().await;
    for millis in [0, 1, 3, 10] {
        let client = platform.client();
        let doomed = client.create(&json!({})).await;
        remove(&client, &doomed).await;
        tokio::time::sleep(Duration::from_millis(millis)).await;
        platform.kill();
        platform.resume().await;
        let client = platform.client();
        is_gone(&client, &doomed).await;
        has_folders(&platform, 1).await;
        is_gone(&client, &doomed).await;
        assert_eq!(client.out(&kept, "echo up").await, "up\n");
    }
    platform.finish();
}

/// A host that cannot remove a capsule's folder keeps trying, and its next agent succeeds.
#[tokio::test]
async fn removal_that_fails_behind_its_answer_is_done_later() {
    let (mut platform, _, kept) = capsule().await;
    platform.stop();
    platform.set_var("WRENN_FAIL_AT", Some("unmake.released"));
    platform.resume().await;
    let client = platform.client();
    let doomed = client.create(&json!({})).await;
    remove(&client, &doomed).await;
    assert_eq!(platform.leftovers().folders.len(), 2, "the failpoint was not passed");
    platform.kill();
    platform.set_var("WRENN_FAIL_AT", None);
    platform.resume().await;
    let client = platform.client();
    has_folders(&platform, 1).await;
    is_gone(&client, &doomed).await;
    assert_eq!(client.out(&kept, "echo up").await, "up\n");
    platform.finish();
}
