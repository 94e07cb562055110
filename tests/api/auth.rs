//! Who may: nobody without a key, and nobody to what is another team's. The list of routes is
//! the OpenAPI document's, so a new route is covered when it is made.

use crate::capsule;
use reqwest::Method;
use serde_json::Value;
use sqlx::{Connection, PgConnection};
use tests::{Client, Platform};

/// Every operation: method, path with the capsule's id in its place, whether it is open.
fn operations(capsule: &str) -> Vec<(Method, String, bool)> {
    let document: Value = serde_json::from_str(include_str!("../../openapi.json")).unwrap();
    let mut out = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let open = operation["security"]
                .as_array()
                .is_some_and(|s| s.contains(&Value::Object(serde_json::Map::new())));
            let path =
                path.replace("{id}", capsule).replace("{selector}", "1").replace("{port}", "80");
            out.push((method.to_uppercase().parse().unwrap(), path, open));
        }
    }
    assert!(out.len() > 20);
    // Other names for documented routes.
    for alias in ["read", "write"] {
        let path = format!("/v1/capsules/{capsule}/files/stream/{alias}");
        out.push((Method::POST, path, false));
    }
    out
}

/// A request that is right in all but who makes it.
fn sound(client: &Client, method: &Method, path: &str) -> reqwest::RequestBuilder {
    let mut path = path.to_owned();
    if path.ends_with("/files") {
        path += "?path=/tmp/x";
    }
    let request = client.request(method.clone(), &path);
    if path.ends_with("/exec/stream") || path.ends_with("/1/stream") || path.ends_with("/pty") {
        return request
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    }
    if path.ends_with("/tcp") {
        return request.header("connection", "upgrade").header("upgrade", "tcp");
    }
    if path.ends_with("/write") {
        let form = reqwest::multipart::Form::new().text("path", "/tmp/x").text("file", "x");
        return request.multipart(form);
    }
    let body = if path.ends_with("/hosts/register") {
        r#"{"token":"x","address":"127.0.0.1:1","specs":{"arch":"","cpu_cores":1,"vcpus":1,
            "memory_mb":1,"disk_mb":1,"driver":"","accelerator":"","version":"","templates":[]}}"#
    } else if path.ends_with("/hosts/refresh") {
        r#"{"refresh_token":"x"}"#
    } else if path.ends_with("/files/move") {
        r#"{"source":"/tmp/x","destination":"/tmp/y"}"#
    } else if path.contains("/files") {
        r#"{"path":"/tmp/x"}"#
    } else if path.ends_with("/ports/80") && *method == Method::PUT {
        r#"{"public":true}"#
    } else if path.ends_with("/exec") {
        r#"{"cmd":"true"}"#
    } else {
        return request;
    };
    request.body(body)
}

/// Makes another team with a key.
pub(crate) async fn other_team(platform: &Platform) -> Client {
    let key = "e2b_1111111111111111111111111111111111111111";
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let team = uuid::Uuid::new_v4();
    let sql = "INSERT INTO teams (id, name, slug) VALUES ($1, 'Other', 'other')";
    sqlx::query(sql).bind(team).execute(&mut db).await.unwrap();
    let sql = "INSERT INTO api_keys (id, team_id, name, key_hash, key_prefix) \
               VALUES ($1, $2, 'other', sha256(convert_to($3, 'UTF8')), 'e2b_111111')";
    let insert = sqlx::query(sql).bind(uuid::Uuid::new_v4()).bind(team).bind(key);
    insert.execute(&mut db).await.unwrap();
    platform.client_with(key)
}

#[tokio::test]
async fn no_route_serves_without_a_key_and_none_shows_another_teams() {
    let (platform, client, id) = capsule().await;
    let stranger = other_team(&platform).await;
    for (method, path, open) in operations(&id) {
        for key in ["", "e2b_wrong", &"x".repeat(4000)] {
            let asked = platform.client_with(key);
            let answer = asked.send(sound(&asked, &method, &path)).await;
            let status = answer.status.as_u16();
            // A host's own token is in the body.
            let open = open && !path.starts_with("/v1/hosts/");
            assert_eq!(status == 401, !open, "{method} {path} with key `{key:.10}`: {status}");
        }
        if path.starts_with("/v1/hosts/") && !open {
            // What concerns the whole platform is an operator's; a host's own, the host's.
            let answer = stranger.send(sound(&stranger, &method, &path)).await;
            let refused = if path.ends_with("/heartbeat") { 401 } else { 403 };
            assert_eq!(answer.status.as_u16(), refused, "{method} {path} by another team");
        } else if path.contains(&id) {
            let answer = stranger.send(sound(&stranger, &method, &path)).await;
            assert_eq!(answer.status.as_u16(), 404, "{method} {path} by another team");
            assert!(!answer.body.to_string().contains(&id), "{}", answer.body);
        }
    }
    let seen = stranger.get("/v1/capsules").await.expect(200);
    assert_eq!(seen["items"].as_array().unwrap().len(), 0);
    let page = stranger.get(&format!("/v1/capsules?before={id}")).await.expect(200);
    assert_eq!(page["items"].as_array().unwrap().len(), 0);
    client.get(&format!("/v1/capsules/{id}")).await.expect(200);
    platform.finish();
}

#[tokio::test]
async fn a_key_is_stored_hashed_ends_and_is_revoked_and_no_log_holds_it() {
    let (platform, client, id) = capsule().await;
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let dump: Vec<String> =
        sqlx::query_scalar("SELECT k::text FROM api_keys k").fetch_all(&mut db).await.unwrap();
    let file = std::fs::read_to_string(platform.dir().join("../client.json")).unwrap();
    let file: Value = serde_json::from_str(&file).unwrap();
    let key = file["api_key"].as_str().unwrap();
    assert!(key.starts_with("e2b_") && key.len() == 44);
    assert!(!dump.concat().contains(&key[4..]), "the key is stored as it is");
    let token: String =
        sqlx::query_scalar("SELECT envd_token FROM capsules").fetch_one(&mut db).await.unwrap();
    let shown = client.get(&format!("/v1/capsules/{id}")).await.expect(200);
    assert!(!shown.to_string().contains(&token), "the guest's token is shown");
    for secret in [key, &token] {
        assert!(!platform.log().contains(secret), "a secret is in the log");
    }
    sqlx::query("UPDATE api_keys SET expires_at = now()").execute(&mut db).await.unwrap();
    client.get("/v1/capsules").await.refuses(401, "unauthorized", "X-API-Key");
    let revoke = "UPDATE api_keys SET expires_at = NULL, revoked_at = now()";
    sqlx::query(revoke).execute(&mut db).await.unwrap();
    client.get("/v1/capsules").await.refuses(401, "unauthorized", "X-API-Key");
    platform.finish();
}
