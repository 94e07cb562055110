//! Life of capsules: creation, pages of the list, details and deletion. Many are created at once,
//! up to the capacity.

use crate::capsule;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tests::{Driver, Platform, eventually, processes_of};

#[tokio::test]
async fn created_capsule_is_shown_until_deleted() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let body = json!({ "vcpus": 2, "memory_mib": 256, "disk_mib": 100, "idle_timeout": 9,
        "envs": { "GREETING": "hello" }, "metadata": { "owner": "ü" } });
    let mut made = client.post("/v1/capsules", &body).await.expect(201);
    assert_eq!(made.as_object_mut().unwrap().remove("booted"), Some(json!(true)));
    // Only the answer to a create has the token.
    let token = made.as_object_mut().unwrap().remove("traffic_token");
    assert!(token.is_some_and(|token| token.is_string()));
    let id = made["id"].as_str().unwrap();
    assert!(id.starts_with("cl-") && id.len() == 28, "{id}");
    let shown = client.get(&format!("/v1/capsules/{id}")).await.expect(200);
    assert_eq!(shown, made);
    for (field, value) in [
        ("status", json!("running")),
        ("template", json!("base")),
        ("vcpus", json!(2)),
        ("memory_mib", json!(256)),
        ("disk_mib", json!(100)),
        ("idle_timeout", json!(9)),
        ("metadata", json!({ "owner": "ü" })),
    ] {
        assert_eq!(shown[field], value, "{field}");
    }
    assert!(shown["started_at"].is_string() && shown["host_id"].is_string(), "{shown}");
    assert_eq!(client.out(id, "echo $GREETING").await, "hello\n");
    assert_eq!(processes_of(id).len(), 1);
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    assert!(processes_of(id).is_empty());
    client.get(&format!("/v1/capsules/{id}")).await.refuses(404, "not_found", "capsule");
    client.delete(&format!("/v1/capsules/{id}")).await.refuses(404, "not_found", "capsule");
    let exec = client.post(&format!("/v1/capsules/{id}/exec"), &json!({ "cmd": "true" })).await;
    exec.refuses(404, "not_found", "capsule");
    platform.finish();
}

#[tokio::test]
async fn renamed_fields_are_accepted_by_either_name_and_answered_by_both() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let former = json!({ "memory_mb": 256, "disk_mb": 100, "timeout_sec": 9, "timeout": 900 });
    let present = json!({ "memory_mib": 256, "disk_mib": 100, "idle_timeout": 9, "lifetime": 900 });
    let both = json!({ "memory_mb": 256, "memory_mib": 256, "disk_mb": 100, "disk_mib": null,
        "idle_timeout": 9, "timeout_sec": 9, "lifetime": 900, "timeout": 900 });
    for body in [former, present, both] {
        let id = client.create(&body).await;
        let shown = client.get(&format!("/v1/capsules/{id}")).await.expect(200);
        for (field, value) in [
            ("memory_mib", 256),
            ("memory_mb", 256),
            ("disk_mib", 100),
            ("disk_mb", 100),
            ("idle_timeout", 9),
            ("timeout_sec", 9),
        ] {
            assert_eq!(shown[field], value, "{field} of {body}");
        }
        assert!(shown["ends_at"].is_string(), "{shown}");
        let set = client.change(&id, "timeout", &json!({ "timeout_sec": 8 })).await;
        assert_eq!((&set["idle_timeout"], &set["ends_at"]), (&json!(8), &Value::Null));
        let set = client.change(&id, "timeout", &json!({ "lifetime": 60, "timeout": 60 })).await;
        assert!(set["ends_at"].is_string(), "{set}");
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    }
    platform.finish();
}

#[tokio::test]
async fn different_values_of_a_renamed_field_are_refused_and_create_nothing() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    for (body, told) in [
        (json!({ "timeout_sec": 1, "idle_timeout": 2 }), "idle_timeout differs from timeout_sec"),
        (json!({ "timeout": 1, "lifetime": 2 }), "lifetime differs from timeout"),
        (json!({ "memory_mb": 128, "memory_mib": 256 }), "memory_mib differs from memory_mb"),
        (json!({ "disk_mb": 100, "disk_mib": 101 }), "disk_mib differs from disk_mb"),
        (json!({ "memory_mb": "x" }), "memory_mb is invalid: invalid type"),
        (json!({ "memory_mb": 1 }), "memory_mib must be between 128 and 65536"),
    ] {
        client.post("/v1/capsules", &body).await.refuses(400, "invalid_request", told);
    }
    // Clients of the earlier system's API know only the former names.
    let small = client.post("/api/v1/capsules", &json!({ "memory_mb": 1 })).await;
    small.refuses(400, "invalid_request", "memory_mb must be between 128 and 65536");
    let list = client.get("/v1/capsules").await.expect(200);
    assert_eq!(list["items"], json!([]));
    let id = client.create(&json!({})).await;
    let exec = format!("/v1/capsules/{id}/exec");
    let body = json!({ "cmd": "true", "timeout": 1, "timeout_sec": 2 });
    let told = "timeout differs from timeout_sec";
    client.post(&exec, &body).await.refuses(400, "invalid_request", told);
    let body = json!({ "cmd": "true", "timeout_sec": 20 });
    client.post(&exec, &body).await.expect(200);
    let links = format!("/v1/capsules/{id}/ports/80/links");
    client.post(&links, &json!({ "expires_sec": 60 })).await.expect(201);
    platform.finish();
}

#[tokio::test]
async fn capsule_pages_list_each_once_newest_first() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(client.create(&json!({ "memory_mib": 128 })).await);
    }
    made.reverse();
    let (mut seen, mut before) = (Vec::new(), String::new());
    for page in 0.. {
        assert!(page < 4, "no end of pages");
        let list = client.get(&format!("/v1/capsules?limit=2{before}")).await.expect(200);
        let items = list["items"].as_array().unwrap();
        seen.extend(items.iter().map(|item| item["id"].as_str().unwrap().to_owned()));
        match list["next"].as_str() {
            Some(next) => before = format!("&before={next}"),
            None => break,
        }
    }
    assert_eq!(seen, made);
    let hosts = client.get("/v1/hosts").await.expect(200);
    assert_eq!(hosts["items"][0]["capsules"], 5);
    assert_eq!(hosts["items"][0]["driver"], "fake");
    let templates = client.get("/v1/templates").await.expect(200);
    assert_eq!(templates["items"][0]["name"], "base");
    assert_eq!(templates["items"][0]["shared"], true);
    platform.finish();
}

#[tokio::test]
async fn create_beyond_host_capacity_is_refused_until_space_is_free() {
    let platform = Platform::start(Driver::Fake, &[("WRENN_MEMORY_MIB", "512")]).await;
    let client = platform.client();
    let body = json!({ "memory_mib": 256 });
    let first = client.create(&body).await;
    client.create(&body).await;
    let third = client.post("/v1/capsules", &body).await;
    third.refuses(503, "no_capacity", "MiB of memory");
    assert_eq!(client.get("/v1/capsules").await.expect(200)["items"].as_array().unwrap().len(), 2);
    client.delete(&format!("/v1/capsules/{first}")).await.expect(204);
    client.create(&body).await;
    platform.finish();
}

#[tokio::test]
async fn concurrent_creates_and_deletes_each_happen_once() {
    let platform = Platform::start(Driver::Fake, &[("WRENN_MEMORY_MIB", "100000")]).await;
    let client = platform.client();
    let body = json!({ "memory_mib": 128, "disk_mib": 256 });
    let made = futures::future::join_all((0..40).map(|_| client.create(&body))).await;
    let ids: BTreeSet<&String> = made.iter().collect();
    assert_eq!(ids.len(), 40);
    let run = futures::future::join_all(made.iter().map(|id| client.out(id, "echo $$"))).await;
    assert_eq!(run.len(), 40);
    // Two clients delete each capsule at once: one succeeds, and neither causes harm.
    let ends = made.iter().flat_map(|id| [id, id]);
    let client_of = &client;
    let ends =
        ends.map(|id| async move { client_of.delete(&format!("/v1/capsules/{id}")).await.status });
    for status in futures::future::join_all(ends).await {
        assert!([204, 404, 409].contains(&status.as_u16()), "{status}");
    }
    eventually("every capsule is gone", || async {
        let list = client.get("/v1/capsules").await.expect(200);
        list["items"].as_array().unwrap().is_empty().then_some(())
    })
    .await;
    platform.finish();
}

#[tokio::test]
async fn health_version_and_metrics_are_served() {
    let (platform, client, _) = capsule().await;
    let open = platform.client_with("");
    let health = open.get("/health").await.expect(200);
    assert_eq!(health["status"], "ok");
    assert_eq!(open.get("/version").await.expect(200)["version"], health["version"]);
    let odd = client.request(reqwest::Method::from_bytes(b"BREW").unwrap(), "/health");
    client.send(odd).await.refuses(405, "method_not_allowed", "method");
    let figures = client.get("/metrics").await.expect(200);
    let figures = figures.as_str().unwrap();
    for name in ["wrenn_http_requests_total", "wrenn_capsule_create_seconds", "wrenn_boot_stage"] {
        assert!(figures.contains(name), "{name} is not in {figures}");
    }
    assert!(!figures.contains("cl-"), "a capsule's id is a label");
    assert!(!figures.contains("BREW"), "what a client makes up is a label");
    platform.finish();
}

#[tokio::test]
async fn client_disconnect_during_create_leaves_nothing_half_done() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    for millis in [1, 3, 6, 10, 20, 40] {
        let body = json!({ "memory_mib": 128 });
        let gone = client.post("/v1/capsules", &body);
        let _ = tokio::time::timeout(std::time::Duration::from_millis(millis), gone).await;
    }
    let ids = eventually("each create has come to its end", || async {
        let list = client.get("/v1/capsules").await.expect(200);
        let items = list["items"].as_array().unwrap().clone();
        let done = items.iter().all(|item| item["status"] == "running");
        done.then(|| items.iter().map(|i| i["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>())
    })
    .await;
    for id in ids {
        assert_eq!(client.out(&id, "echo up").await, "up\n");
    }
    platform.finish();
}
