//! Watches of real folders. No event is lost without an error.

use super::{envd, stream, unframed};
use crate::capsule;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs::{self, File};
use std::time::Duration;
use tests::Client;

const CREATE: &str = "EVENT_TYPE_CREATE";

/// Calls a method of envd's file system service. Returns status and answer.
async fn call(envd: &Client, token: &str, method: &str, body: &Value) -> (u16, Value) {
    let request = envd.request(Method::POST, &format!("/filesystem.Filesystem/{method}"));
    let answer = request.header("x-access-token", token).json(body).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// Fetches the events of a watcher.
async fn fetch(envd: &Client, token: &str, watcher: &Value) -> (u16, Value) {
    call(envd, token, "GetWatcherEvents", &json!({ "watcherId": watcher })).await
}

#[tokio::test]
async fn watcher_fetches_events_of_ten_thousand_files_together() {
    let (platform, _, id) = capsule().await;
    let (envd, token) = envd(&platform, &id);
    let dir = tempfile::tempdir().unwrap();
    let (status, made) = call(&envd, &token, "CreateWatcher", &json!({ "path": dir.path() })).await;
    assert_eq!(status, 200, "{made}");
    for n in 0..10_000 {
        File::create(dir.path().join(n.to_string())).unwrap();
    }
    let (status, answer) = fetch(&envd, &token, &made["watcherId"]).await;
    assert_eq!(status, 200, "{answer}");
    let events = answer["events"].as_array().unwrap();
    assert_eq!(events.len(), 10_000);
    for (n, event) in events.iter().enumerate() {
        assert_eq!((&event["name"], &event["type"]), (&json!(n.to_string()), &json!(CREATE)));
    }
    let (status, answer) = fetch(&envd, &token, &made["watcherId"]).await;
    assert_eq!((status, answer), (200, json!({})));
    platform.finish();
}

#[tokio::test]
async fn unfetched_watcher_ends_with_error_after_its_events() {
    let (platform, _, id) = capsule().await;
    let (envd, token) = envd(&platform, &id);
    let dir = tempfile::tempdir().unwrap();
    let (status, made) = call(&envd, &token, "CreateWatcher", &json!({ "path": dir.path() })).await;
    assert_eq!(status, 200, "{made}");
    let (one, other) = (dir.path().join("one"), dir.path().join("other"));
    File::create(&one).unwrap();
    // Each file causes four events: more than envd keeps, and more than the kernel does.
    for _ in 0..20_000 {
        fs::rename(&one, &other).unwrap();
        fs::rename(&other, &one).unwrap();
    }
    let (status, answer) = fetch(&envd, &token, &made["watcherId"]).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["events"][0], json!({ "name": "one", "type": CREATE }));
    let (status, error) = fetch(&envd, &token, &made["watcherId"]).await;
    assert_eq!((status, &error["code"]), (429, &json!("resource_exhausted")), "{error}");
    assert!(error["message"].as_str().unwrap().contains("list the folder again"), "{error}");
    let (status, error) = fetch(&envd, &token, &made["watcherId"]).await;
    assert_eq!((status, &error["code"]), (404, &json!("not_found")), "{error}");
    platform.finish();
}

#[tokio::test]
async fn recursive_watch_covers_nine_thousand_folders_or_names_limit() {
    const FOLDERS: usize = 9000;
    let (platform, _, id) = capsule().await;
    let (envd, token) = envd(&platform, &id);
    let dir = tempfile::tempdir().unwrap();
    let folder = |n: usize| format!("{}/{n}", n % 90);
    for n in 0..FOLDERS {
        fs::create_dir_all(dir.path().join(folder(n))).unwrap();
    }
    let body = json!({ "path": dir.path(), "recursive": true });
    let (status, made) = call(&envd, &token, "CreateWatcher", &body).await;
    if status != 200 {
        // This machine may allow fewer watches than a guest.
        assert_eq!((status, &made["code"]), (429, &json!("resource_exhausted")), "{made}");
        assert!(made["message"].as_str().unwrap().contains("max_user_watches"), "{made}");
        return platform.finish();
    }
    for n in 0..FOLDERS {
        File::create(dir.path().join(folder(n)).join("f")).unwrap();
    }
    let (status, answer) = fetch(&envd, &token, &made["watcherId"]).await;
    assert_eq!(status, 200, "{answer}");
    let events = answer["events"].as_array().unwrap();
    let names: HashSet<_> = events.iter().map(|event| event["name"].as_str().unwrap()).collect();
    let wanted: Vec<_> = (0..FOLDERS).map(|n| format!("{}/f", folder(n))).collect();
    let missing: Vec<_> = wanted.iter().filter(|name| !names.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "{} of them, such as {}", missing.len(), missing[0]);
    let removed = json!({ "watcherId": made["watcherId"] });
    let (status, answer) = call(&envd, &token, "RemoveWatcher", &removed).await;
    assert_eq!((status, answer), (200, json!({})));
    platform.finish();
}

#[tokio::test]
async fn watch_of_removed_folder_ends_with_error_after_its_events() {
    let (platform, _, id) = capsule().await;
    let (envd, token) = envd(&platform, &id);
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    let watch = json!({ "path": root, "recursive": true });
    let request = stream(&envd, &token, "/filesystem.Filesystem/WatchDir", &[watch]);
    let mut answer = request.send().await.unwrap();
    let mut seen = answer.chunk().await.unwrap().unwrap().to_vec();
    assert!(unframed(&seen)[0]["start"].is_object());
    fs::create_dir(root.join("sub")).unwrap();
    fs::remove_dir_all(&root).unwrap();
    let limit = tokio::time::Instant::now() + Duration::from_secs(60);
    while let Some(chunk) =
        tokio::time::timeout_at(limit, answer.chunk()).await.expect("it ends").unwrap()
    {
        seen.extend(chunk);
    }
    let messages = unframed(&seen);
    assert_eq!(messages[1]["filesystem"]["name"], "sub");
    assert_eq!(messages.last().unwrap()["error"]["code"], "not_found", "{messages:?}");
    platform.finish();
}
