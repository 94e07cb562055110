//! The audit log: its entries, their team, and ways to read it.

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use std::collections::HashSet;
use tests::{Client, Driver, Platform, eventually};

async fn entries(client: &Client, query: &str) -> Vec<Value> {
    let page = client.get(&format!("/v1/audit-logs{query}")).await.expect(200);
    page["items"].as_array().unwrap().clone()
}

async fn actions(client: &Client, query: &str) -> Vec<String> {
    let mut entries = entries(client, query).await;
    entries.reverse();
    entries.iter().map(|e| e["action"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn capsule_changes_are_audited_with_actor_and_address() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let id = client.create(&json!({})).await;
    client.pause(&id).await;
    client.resume(&id).await;
    let port = client.put(&format!("/v1/capsules/{id}/ports/80"), &json!({ "public": true })).await;
    port.expect(200);
    client.change(&id, "timeout", &json!({ "lifetime": 60 })).await;
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    let told = actions(&client, &format!("?resource={id}")).await;
    assert_eq!(
        told,
        [
            "capsule.create",
            "capsule.pause",
            "capsule.resume",
            "capsule.set_port",
            "capsule.set_timeout",
            "capsule.delete"
        ]
    );
    let keys = client.get("/v1/api-keys").await.expect(200);
    let mut keys = keys["items"].as_array().unwrap().iter();
    let own =
        keys.find(|key| client.key().starts_with(key["key_prefix"].as_str().unwrap())).unwrap();
    for entry in entries(&client, &format!("?resource={id}")).await {
        assert_eq!(entry["actor_type"], "api_key", "{entry}");
        assert_eq!(entry["actor_id"], own["id"], "{entry}");
        assert_eq!((&entry["address"], &entry["status"]), (&json!("127.0.0.1"), &json!("ok")));
    }
    platform.finish();
}

#[tokio::test]
async fn each_build_is_audited_with_its_begin_and_its_end() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let body = |command: &str| {
        let steps = json!([{ "run": { "command": command } }]);
        json!({ "name": "web", "from": { "image": "debian:12" }, "steps": steps })
    };
    let ready = client.build(&body("true")).await.id;
    let failed = client.attempt(&body("exit 3")).await.id;
    let cancelled = client.begin(&body("sleep 1000")).await;
    client.cancel(&cancelled).await.expect(200);
    client.ended(&cancelled).await;
    let template = client.get("/v1/templates/web").await.expect(200);
    let query = format!("?resource={}", template["id"].as_str().unwrap());
    let mut told = entries(&client, &query).await;
    told.reverse();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let told: Vec<[String; 3]> = told
        .iter()
        .map(|e| [text(&e["action"]), text(&e["actor_type"]), text(&e["metadata"]["build"])])
        .collect();
    assert_eq!(
        told,
        [
            ["template.build", "api_key", &ready],
            ["template.build_ready", "system", &ready],
            ["template.build", "api_key", &failed],
            ["template.build_failed", "system", &failed],
            ["template.build", "api_key", &cancelled],
            ["template.cancel", "api_key", &cancelled],
            ["template.build_failed", "system", &cancelled],
        ]
    );
    platform.finish();
}

#[tokio::test]
async fn pause_by_host_timeout_is_audited_with_host_as_actor() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let id = client.create(&json!({ "lifetime": 1, "on_timeout": "pause" })).await;
    eventually("it is paused", async || (client.status(&id).await == "paused").then_some(())).await;
    let paused = entries(&client, &format!("?resource={id}&action=capsule.pause")).await;
    assert_eq!(paused.len(), 1);
    assert_eq!(paused[0]["actor_type"], "host", "{}", paused[0]);
    platform.finish();
}

#[tokio::test]
async fn refusals_are_counted_in_audit_log_of_their_team() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let id = client.create(&json!({})).await;
    let wanted = json!({ "name": "k", "scopes": ["capsules:read"] });
    let made = client.post("/v1/api-keys", &wanted).await.expect(201);
    let key = platform.client_with(made["key"].as_str().unwrap());
    for _ in 0..7 {
        key.delete(&format!("/v1/capsules/{id}")).await.refuses(403, "forbidden", "");
        platform.client_with("e2b_wrong").get("/v1/capsules").await.refuses(
            401,
            "unauthorized",
            "",
        );
    }
    let other = crate::auth::other_team(&platform).await;
    other.get(&format!("/v1/capsules/{id}")).await.refuses(404, "not_found", "");
    let count = |entries: &[Value]| -> i64 {
        entries.iter().map(|entry| entry["metadata"]["count"].as_i64().unwrap()).sum()
    };
    let key = made["id"].as_str().unwrap();
    let query = format!("?status=refused&actor={key}");
    let refused = eventually("the refusals are written", async || {
        let entries = entries(&client, &query).await;
        (count(&entries) == 7).then_some(entries)
    })
    .await;
    assert_eq!(refused[0]["metadata"]["code"], "forbidden");
    assert_eq!(refused[0]["resource_id"], "/v1/capsules/{id}");
    // The platform's log shows anonymous attempts. The team's log does not.
    let all = "/v1/admin/audit-logs?status=refused&actor=anonymous";
    eventually("the failures are written", async || {
        let page = client.get(all).await.expect(200);
        let entries = page["items"].as_array().unwrap();
        (count(entries) == 7 && entries[0]["metadata"]["code"] == "unauthorized").then_some(())
    })
    .await;
    assert!(entries(&client, "?actor=anonymous").await.is_empty());
    // The team's log does not show attempts that others made under their own names either.
    let foreign = "/v1/admin/audit-logs?action=capsule.refused";
    eventually("the other team's try is written", async || {
        let page = client.get(foreign).await.expect(200);
        (page["items"][0]["resource_id"] == id.as_str()).then_some(())
    })
    .await;
    assert!(entries(&client, "?action=capsule.refused").await.is_empty());
    platform.finish();
}

#[tokio::test]
async fn audit_log_is_paged_filtered_and_exported_per_team() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let sql = "INSERT INTO audit_logs (id, team_id, actor_type, actor_id, resource_type, \
               resource_id, action, status, created_at) SELECT gen_random_uuid(), t.id, 'system', \
               'system', 'x', 'x-' || n, 'x.done', 'ok', now() - n * interval '1 second' \
               FROM teams t, generate_series(1, 250) n WHERE t.name = 'Default'";
    sqlx::query(sql).execute(&mut db).await.unwrap();
    let (mut seen, mut before) = (Vec::new(), String::new());
    loop {
        let path = format!("/v1/audit-logs?action=x.done&limit=100{before}");
        let page = client.get(&path).await.expect(200);
        seen.extend(page["items"].as_array().unwrap().iter().map(|e| e["resource_id"].clone()));
        // A new entry between two pages does not shift the pages.
        client.post("/v1/api-keys", &json!({ "name": "k" })).await.expect(201);
        match page["next"].as_str() {
            Some(next) => before = format!("&before={next}"),
            None => break,
        }
    }
    let wanted: Vec<Value> = (1..=250).map(|n| json!(format!("x-{n}"))).collect();
    assert_eq!(seen, wanted);
    let exported = client.request(reqwest::Method::GET, "/v1/audit-logs/export?resource_type=x");
    let text = exported.send().await.unwrap().text().await.unwrap();
    let lines: HashSet<String> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["resource_id"].to_string())
        .collect();
    assert_eq!(lines.len(), 250);
    let old = time_ago(&mut db, 100).await;
    let some = entries(&client, &format!("?action=x.done&to={old}")).await;
    assert!(some.len() == 100 && some[0]["resource_id"] == "x-100", "{}", some[0]);
    client.get("/v1/audit-logs?from=yesterday").await.refuses(400, "invalid_request", "from");
    client.get("/v1/audit-logs?before=x").await.refuses(400, "invalid_request", "before");
    client.get("/v1/audit-logs?colour=1").await.refuses(400, "invalid_request", "colour");
    platform.finish();
}

async fn time_ago(db: &mut PgConnection, seconds: i32) -> String {
    // The time lies between two entries.
    let sql = "SELECT to_char((SELECT created_at FROM audit_logs WHERE resource_id = 'x-' || $1) \
               AT TIME ZONE 'UTC' + interval '500 milliseconds', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    sqlx::query_scalar(sql).bind(seconds.to_string()).fetch_one(db).await.unwrap()
}

/// A change and its audit entry are written together. A crash at any time leaves both or neither.
#[tokio::test]
async fn crash_leaves_each_change_with_its_audit_entry_or_neither() {
    let mut platform = Platform::start(Driver::Fake, &[]).await;
    for round in 0..4 {
        let client = platform.client();
        let create = async || {
            let made = client.request(reqwest::Method::POST, "/v1/capsules").body("{}").send();
            made.await.is_ok()
        };
        let creates = futures::future::join_all((0..6).map(|_| create()));
        let dies = async {
            tokio::time::sleep(std::time::Duration::from_millis(20 + 25 * round)).await;
        };
        tokio::select! {
            _ = creates => {}
            () = dies => {}
        }
        platform.kill();
        platform.resume().await;
    }
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let sql = "SELECT id FROM capsules ORDER BY id";
    let capsules: Vec<uuid::Uuid> = sqlx::query_scalar(sql).fetch_all(&mut db).await.unwrap();
    let sql = "SELECT resource_id FROM audit_logs WHERE action = 'capsule.create'";
    let entries: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut db).await.unwrap();
    let capsules: HashSet<String> =
        capsules.into_iter().map(|id| types::CapsuleId(id).to_string()).collect();
    assert!(!capsules.is_empty());
    assert_eq!(capsules, entries.iter().cloned().collect());
    assert_eq!(capsules.len(), entries.len());
    platform.finish();
}

#[tokio::test]
async fn command_access_is_audited_when_enabled() {
    let platform = Platform::start(Driver::Fake, &[("WRENN_AUDIT_ACCESS", "1")]).await;
    let client = platform.client();
    let id = client.create(&json!({})).await;
    client.out(&id, "true").await;
    let path = format!("/v1/capsules/{id}/exec");
    eventually("the command is noted", async || {
        let noted = entries(&client, "?action=capsule.access").await;
        noted.iter().any(|entry| entry["resource_id"] == path.as_str()).then_some(())
    })
    .await;
    platform.finish();
}

#[tokio::test]
async fn rows_older_than_retention_are_deleted() {
    let mut platform = Platform::start(Driver::Fake, &[("WRENN_AUDIT_DAYS", "10")]).await;
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let sql = "INSERT INTO audit_logs (id, team_id, actor_type, actor_id, resource_type, \
               resource_id, action, status, created_at) SELECT gen_random_uuid(), t.id, 'system', \
               'system', 'x', 'x-' || n, 'x.done', 'ok', now() - n * interval '1 day' \
               FROM teams t, generate_series(1, 20) n WHERE t.name = 'Default'";
    sqlx::query(sql).execute(&mut db).await.unwrap();
    let old = "INSERT INTO capsules (id, team_id, template, status, vcpus, memory_mib, disk_mib, \
               envd_token, updated_at) SELECT gen_random_uuid(), id, 'base', 'stopped', 1, 1, 1, '', \
               now() - interval '31 days' FROM teams WHERE name = 'Default'";
    sqlx::query(old).execute(&mut db).await.unwrap();
    drop(db);
    // A new leader does this at its start.
    platform.kill();
    platform.resume().await;
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let count = "SELECT (SELECT count(*) FROM audit_logs WHERE action = 'x.done'), \
                 (SELECT count(*) FROM capsules WHERE status = 'stopped')";
    let mut left = (20_i64, 1_i64);
    for _ in 0..600 {
        left = sqlx::query_as(count).fetch_one(&mut db).await.unwrap();
        if left == (9, 0) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(left, (9, 0));
    platform.finish();
}
