//! API keys: formats, confinement to capsules, and expiry.

use serde_json::json;
use sqlx::{Connection, PgConnection};
use std::time::{Duration, Instant};
use tests::{Client, Driver, Platform, Replica, eventually};

async fn make(platform: &Platform, owner: &Client, wanted: serde_json::Value) -> (Client, String) {
    let made = owner.post("/v1/api-keys", &wanted).await.expect(201);
    let id = made["id"].as_str().unwrap().to_owned();
    (platform.client_with(made["key"].as_str().unwrap()), id)
}

#[tokio::test]
async fn created_key_is_shown_once_in_requested_form() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let owner = platform.client();
    let e2b = owner.post("/v1/api-keys", &json!({ "name": "one" })).await.expect(201);
    let key = e2b["key"].as_str().unwrap();
    let hex = |text: &str| text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit());
    assert!(key.strip_prefix("e2b_").is_some_and(hex), "{key}");
    assert_eq!(e2b["key_prefix"], key[..10]);
    let wrn =
        owner.post("/v1/api-keys", &json!({ "name": "two", "form": "wrn" })).await.expect(201);
    let other = wrn["key"].as_str().unwrap();
    assert!(other.strip_prefix("wrn_").is_some_and(hex), "{other}");
    platform.client_with(other).get("/v1/capsules").await.expect(200);
    let listed = owner.get("/v1/api-keys").await.expect(200);
    assert!(!listed.to_string().contains(&key[4..]));
    let names: Vec<_> =
        listed["items"].as_array().unwrap().iter().map(|k| k["name"].clone()).collect();
    assert_eq!(names[..2], ["two", "one"]);
    for (bad, field) in [
        (json!({ "name": "" }), "name"),
        (json!({ "name": "x", "form": "sk" }), "form"),
        (json!({ "name": "x", "scopes": ["all"] }), "scopes"),
        (json!({ "name": "x", "expires_in": 0 }), "expires_in"),
    ] {
        owner.post("/v1/api-keys", &bad).await.refuses(400, "invalid_request", field);
    }
    owner.post("/v1/api-keys", &json!({ "name": "x", "template": "none" })).await.refuses(
        404,
        "not_found",
        "template",
    );
    platform.finish();
}

#[tokio::test]
async fn revoked_key_is_refused_within_a_second_on_every_replica() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let replica = Replica::start(&platform);
    let owner = platform.client();
    let (key, id) = make(&platform, &owner, json!({ "name": "k" })).await;
    let there = key.at(&replica.url);
    let capsule = owner.create(&json!({})).await;
    for _ in 0..3 {
        key.get("/v1/capsules").await.expect(200);
        there.get("/v1/capsules").await.expect(200);
    }
    let port = there.to_port(reqwest::Method::GET, &capsule, 49983, "/health");
    assert!(there.send(port).await.status.is_success());
    owner.delete(&format!("/v1/api-keys/{id}")).await.expect(204);
    let since = Instant::now();
    for client in [&key, &there] {
        eventually("it is refused", async || {
            (client.get("/v1/capsules").await.status.as_u16() == 401).then_some(())
        })
        .await;
    }
    eventually("the proxy refuses it", async || {
        let port = there.to_port(reqwest::Method::GET, &capsule, 49983, "/health");
        (there.send(port).await.status.as_u16() == 401).then_some(())
    })
    .await;
    // The key's cache entries would live for two minutes.
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
    owner.delete(&format!("/v1/api-keys/{id}")).await.refuses(404, "not_found", "key");
    platform.finish();
}

#[tokio::test]
async fn key_expires_at_its_time() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let wanted = json!({ "name": "k", "expires_in": 2 });
    let (key, _) = make(&platform, &platform.client(), wanted).await;
    key.get("/v1/capsules").await.expect(200);
    eventually("it has expired", async || {
        (key.get("/v1/capsules").await.status.as_u16() == 401).then_some(())
    })
    .await;
    platform.finish();
}

#[tokio::test]
async fn key_last_use_is_written_at_most_once_a_minute() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let (key, _) = make(&platform, &platform.client(), json!({ "name": "used" })).await;
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    for _ in 0..50 {
        key.get("/v1/capsules").await.expect(200);
    }
    // The row's version and place change with each write.
    let sql = "SELECT xmin::text || ctid::text FROM api_keys WHERE name = 'used' \
               AND last_used_at > now() - interval '1 minute'";
    let first: String = sqlx::query_scalar(sql).fetch_one(&mut db).await.unwrap();
    for _ in 0..50 {
        key.get("/v1/capsules").await.expect(200);
    }
    let second: String = sqlx::query_scalar(sql).fetch_one(&mut db).await.unwrap();
    assert_eq!(first, second);
    platform.finish();
}

#[tokio::test]
async fn template_key_creates_and_sees_only_capsules_of_its_template() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let owner = platform.client();
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let sql = "INSERT INTO templates (id, team_id, name, vcpus, memory_mib, disk_mib) \
               SELECT gen_random_uuid(), id, 'own', 1, 128, 64 FROM teams WHERE name = 'Default'";
    sqlx::query(sql).execute(&mut db).await.unwrap();
    let (key, _) = make(&platform, &owner, json!({ "name": "k", "template": "base" })).await;
    let other = json!({ "name": "k", "template": "own" });
    let (strange, _) = make(&platform, &owner, other).await;
    let id = key.create(&json!({ "template": "base" })).await;
    strange.post("/v1/capsules", &json!({ "template": "base" })).await.refuses(
        404,
        "not_found",
        "template",
    );
    strange.get(&format!("/v1/capsules/{id}")).await.refuses(404, "not_found", "capsule");
    assert_eq!(strange.get("/v1/capsules").await.expect(200)["items"], json!([]));
    assert_eq!(key.out(&id, "echo hi").await, "hi\n");
    // The proxy applies the same confinement.
    for (client, wanted) in [(&key, 200), (&strange, 404)] {
        let port = client.to_port(reqwest::Method::GET, &id, 49983, "/health");
        assert_eq!(client.send(port).await.status.as_u16() / 100, wanted / 100);
    }
    // The key also sees a fork of a capsule that it sees.
    let forked = key.post(&format!("/v1/capsules/{id}/fork"), &json!({})).await.expect(201);
    let child = forked["items"][0]["id"].as_str().unwrap();
    key.get(&format!("/v1/capsules/{child}")).await.expect(200);
    platform.finish();
}

/// Snapshots belong to the team, so a confined key replaces and removes none, by any route.
#[tokio::test]
async fn confined_key_cannot_change_team_snapshots() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let owner = platform.client();
    let id = owner.create(&json!({})).await;
    let golden = json!({ "capsule_id": id, "name": "golden" });
    let golden = owner.post("/v1/snapshots", &golden).await.expect(201);
    let (by_capsule, _) = make(&platform, &owner, json!({ "name": "k", "capsule": id })).await;
    let (by_template, _) =
        make(&platform, &owner, json!({ "name": "k", "template": "base" })).await;
    for key in [&by_capsule, &by_template] {
        let ours = json!({ "capsule_id": id, "name": "golden", "overwrite": true });
        key.post("/v1/snapshots", &ours).await.refuses(403, "forbidden", "");
        let named = json!({ "name": "golden" });
        let e2bs = key.post(&format!("/sandboxes/{id}/snapshots"), &named).await;
        assert_eq!((e2bs.status.as_u16(), &e2bs.body["code"]), (403, &json!(403)), "{}", e2bs.body);
        let unnamed = key.post(&format!("/sandboxes/{id}/snapshots"), &json!({})).await;
        assert_eq!(unnamed.status.as_u16(), 403);
        let earlier = json!({ "sandbox_id": id, "name": "golden" });
        let earlier = key.post("/api/v1/snapshots?overwrite=true", &earlier).await;
        earlier.refuses(403, "forbidden", "");
        key.delete("/v1/snapshots/golden").await.refuses(403, "forbidden", "");
        key.delete("/api/v1/snapshots/golden").await.refuses(403, "forbidden", "");
        assert_eq!(key.delete("/templates/golden").await.status.as_u16(), 403);
    }
    let listed = owner.get("/v1/snapshots").await.expect(200);
    let ids: Vec<_> = listed["items"].as_array().unwrap().iter().map(|s| &s["id"]).collect();
    assert_eq!(ids, [&golden["id"]]);
    // A caller who may remove the snapshot may replace it.
    owner
        .post(&format!("/sandboxes/{id}/snapshots"), &json!({ "name": "golden" }))
        .await
        .expect(201);
    assert_ne!(owner.get("/v1/snapshots/golden").await.expect(200)["id"], golden["id"]);
    platform.finish();
}

/// A fork is refused to a caller who would not see the copies, before anything is made.
#[tokio::test]
async fn capsule_key_cannot_fork() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let owner = platform.client();
    let id = owner.create(&json!({})).await;
    let (key, _) = make(&platform, &owner, json!({ "name": "k", "capsule": id })).await;
    let fork = json!({ "count": 3 });
    key.post(&format!("/v1/capsules/{id}/fork"), &fork).await.refuses(403, "forbidden", "beyond");
    assert_eq!(key.post(&format!("/sandboxes/{id}/fork"), &fork).await.status.as_u16(), 403);
    let listed = owner.get("/v1/capsules").await.expect(200);
    assert_eq!(listed["items"].as_array().unwrap().len(), 1, "{listed}");
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let sql = "SELECT (SELECT count(*) FROM capsules) + (SELECT count(*) FROM snapshots)";
    let rows: i64 = sqlx::query_scalar(sql).fetch_one(&mut db).await.unwrap();
    assert_eq!(rows, 1, "nothing was made");
    platform.finish();
}

#[tokio::test]
async fn read_only_key_reaches_no_port() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let owner = platform.client();
    let id = owner.create(&json!({})).await;
    let wanted = json!({ "name": "k", "scopes": ["capsules:read"] });
    let (key, _) = make(&platform, &owner, wanted).await;
    let port = key.to_port(reqwest::Method::GET, &id, 49983, "/health");
    key.send(port).await.refuses_plain(403);
    key.get(&format!("/v1/capsules/{id}/logs")).await;
    key.post(&format!("/v1/capsules/{id}/exec"), &json!({ "cmd": "true" })).await.refuses(
        403,
        "forbidden",
        "capsules:exec",
    );
    platform.finish();
}
