//! Watches in a guest. envd raises the kernel's limits for them.

use crate::capsule;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::HashSet;
use tests::Platform;

/// Calls a method of envd's file system service in a capsule.
async fn call(platform: &Platform, id: &str, method: &str, body: &Value) -> Value {
    let record = std::fs::read(platform.dir().join(format!("capsules/{id}/capsule.json")));
    let record: Value = serde_json::from_slice(&record.unwrap()).unwrap();
    let token = record["envd_token"].as_str().unwrap();
    let envd = platform.agent_client().below(&format!("/proxy/{id}/49983"));
    let request = envd.request(Method::POST, &format!("/filesystem.Filesystem/{method}"));
    envd.send(request.header("x-access-token", token).json(body)).await.expect(200)
}

#[tokio::test]
async fn recursive_watch_covers_nine_thousand_directories_of_small_guest() {
    let (platform, client, id) = capsule().await;
    let limits = client.out(&id, "cd /proc/sys/fs/inotify && cat max_user_instances").await;
    assert_eq!(limits, "1024\n");
    // A small disk has too few inodes.
    client.out(&id, "mkdir /dev/shm/w && cd /dev/shm/w && seq 9000 | xargs mkdir").await;
    let body = json!({ "path": "/dev/shm/w", "recursive": true });
    let made = call(&platform, &id, "CreateWatcher", &body).await;
    client.out(&id, "cd /dev/shm/w && for d in *; do : >$d/f; done").await;
    let fetched = call(&platform, &id, "GetWatcherEvents", &made).await;
    let events = fetched["events"].as_array().unwrap();
    let names: HashSet<_> = events.iter().map(|event| event["name"].as_str().unwrap()).collect();
    let missing = (1..=9000).filter(|n| !names.contains(format!("{n}/f").as_str())).count();
    assert_eq!(missing, 0, "of {} names", names.len());
    platform.finish();
}
