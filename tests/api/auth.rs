//! Permissions: every route of the OpenAPI document, against every kind of caller. The expectations
//! stand here, apart from the platform's own table. A route without an expectation fails.

use crate::capsule;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use std::collections::{BTreeMap, BTreeSet};
use tests::{Client, Driver, Platform, eventually, signal};

/// Required permission of each route: `open`, `token` (a token of its own, else 401), `user`,
/// `anyone`, `platform`, or a permission in the team.
const EXPECTED: &str = "
    open GET /health, GET /version, GET /v1/capabilities, GET /openapi.json, GET /docs, POST /v1/auth/signup,
    open POST /v1/auth/activate, POST /v1/auth/login,
    open POST /v1/auth/password/reset, POST /v1/auth/password/confirm, GET /v1/auth/providers,
    open GET /v1/auth/oauth/{provider}
    token POST /v1/hosts/register, POST /v1/hosts/refresh, POST /v1/hosts/{id}/heartbeat,
    token GET /v1/auth/oauth/{provider}/callback
    user POST /v1/auth/logout, POST /v1/auth/token, GET /v1/me, PATCH /v1/me, DELETE /v1/me,
    user POST /v1/me/password, GET /v1/me/sessions, DELETE /v1/me/sessions,
    user DELETE /v1/me/sessions/{id}, POST /v1/me/providers/{provider},
    user DELETE /v1/me/providers/{provider}, POST /v1/teams, POST /v1/invitations/accept
    anyone GET /v1/teams, PATCH /v1/templates/{name}
    read GET /v1/capsules, GET /v1/capsules/{id}, GET /v1/capsules/{id}/logs, GET /v1/snapshots,
    read GET /v1/capsules/summary, GET /v1/capsules/{id}/lineage,
    read GET /v1/capsules/{id}/ports, GET /v1/capsules/{id}/ports/{port},
    read GET /v1/snapshots/{name}, GET /v1/templates,
    read GET /v1/hosts, GET /v1/usage, GET /v1/events, GET /v1/events/stream, GET /v1/templates/{name},
    read GET /v1/templates/{name}/versions, GET /v1/templates/{name}/tags, GET /v1/builds,
    read GET /v1/builds/{id}, GET /v1/builds/{id}/logs, GET /v1/capsules/{id}/metrics,
    read POST /v1/capsules/metrics, GET /v1/metrics
    exec POST /v1/capsules/{id}/ping, POST /v1/capsules/{id}/exec, GET /v1/capsules/{id}/exec/stream,
    exec GET /v1/capsules/{id}/pty, GET /v1/capsules/{id}/processes,
    exec DELETE /v1/capsules/{id}/processes/{selector}, GET /v1/capsules/{id}/terminals,
    exec GET /v1/capsules/{id}/processes/{selector}/stream, GET /v1/capsules/{id}/files,
    exec PUT /v1/capsules/{id}/files, POST /v1/capsules/{id}/files/read,
    exec GET /v1/capsules/{id}/files/archive, PUT /v1/capsules/{id}/files/archive,
    exec POST /v1/capsules/{id}/files/write, POST /v1/capsules/{id}/files/stream/read,
    exec POST /v1/capsules/{id}/files/stream/write, POST /v1/capsules/{id}/files/list,
    exec POST /v1/capsules/{id}/files/stat, POST /v1/capsules/{id}/files/mkdir,
    exec POST /v1/capsules/{id}/files/move, POST /v1/capsules/{id}/files/remove,
    exec POST /v1/capsules/{id}/ports/{port}/links, GET /v1/capsules/{id}/ports/{port}/tcp,
    exec POST /v1/capsules/{id}/code, GET /v1/capsules/{id}/code/executions/{execution_id},
    exec POST /v1/capsules/{id}/code/executions/{execution_id}/interrupt,
    exec GET /v1/capsules/{id}/code/contexts, POST /v1/capsules/{id}/code/contexts,
    exec GET /v1/capsules/{id}/code/contexts/{context_id},
    exec DELETE /v1/capsules/{id}/code/contexts/{context_id},
    exec POST /v1/capsules/{id}/code/contexts/{context_id}/restart,
    exec POST /v1/capsules/{id}/code/contexts/{context_id}/interrupt,
    exec POST /v1/capsules/{id}/code/contexts/{context_id}/complete,
    exec GET /v1/capsules/{id}/code/contexts/{context_id}/variables
    change PATCH /v1/capsules/{id}, POST /v1/capsules/bulk,
    change POST /v1/capsules, DELETE /v1/capsules/{id}, POST /v1/capsules/{id}/pause,
    change POST /v1/capsules/{id}/resume, POST /v1/capsules/{id}/fork, POST /v1/snapshots,
    change POST /v1/capsules/{id}/timeout, PUT /v1/capsules/{id}/ports/{port},
    change PUT /v1/capsules/{id}/network, POST /v1/capsules/{id}/traffic-token,
    change POST /v1/capsules/{id}/links/rotate, DELETE /v1/capsules/{id}/logs,
    change DELETE /v1/snapshots/{name}, DELETE /v1/templates/{name},
    change POST /v1/templates/{name}/tags, DELETE /v1/templates/{name}/tags/{tag},
    change POST /v1/builds, POST /v1/builds/{id}/cancel, GET /v1/builds/files/{hash},
    change PUT /v1/builds/files/{hash}
    team GET /v1/teams/{id}, GET /v1/teams/{id}/members, GET /v1/teams/{id}/limits,
    team GET /v1/api-keys, POST /v1/teams/{id}/leave
    keys POST /v1/api-keys, DELETE /v1/api-keys/{id}
    admin PATCH /v1/teams/{id}, PATCH /v1/teams/{id}/members/{user},
    admin DELETE /v1/teams/{id}/members/{user}, GET /v1/teams/{id}/invitations,
    admin POST /v1/teams/{id}/invitations, DELETE /v1/teams/{id}/invitations/{invitation},
    admin GET /v1/audit-logs, GET /v1/audit-logs/export, GET /v1/channels, POST /v1/channels,
    admin GET /v1/channels/{id}, PATCH /v1/channels/{id}, DELETE /v1/channels/{id},
    admin POST /v1/channels/{id}/secret, POST /v1/channels/{id}/test,
    admin GET /v1/channels/{id}/deliveries, GET /v1/registries, PUT /v1/registries/{host},
    admin DELETE /v1/registries/{host}
    own DELETE /v1/teams/{id}, POST /v1/teams/{id}/transfer
    platform GET /metrics, POST /v1/hosts, GET /v1/hosts/{id}, DELETE /v1/hosts/{id},
    platform POST /v1/hosts/{id}/token, POST /v1/hosts/{id}/drain, PUT /v1/hosts/{id}/tags,
    platform GET /v1/hosts/{id}/delete-preview, GET /v1/hosts/{id}/metrics, GET /v1/admin/users,
    platform GET /v1/hosts/{id}/metrics/history,
    platform POST /v1/admin/users, PATCH /v1/admin/users/{id}, DELETE /v1/admin/users/{id},
    platform GET /v1/admin/teams, GET /v1/admin/teams/{id}/limits,
    platform PUT /v1/admin/teams/{id}/limits, GET /v1/admin/audit-logs
";

/// Required permission of each route for others' clients. These routes are in no document of ours.
const OF_OTHERS: &str = "
    read GET /sandboxes, GET /v2/sandboxes, GET /sandboxes/{id}, GET /sandboxes/{id}/metrics,
    read GET /teams/{id}/metrics, GET /teams/{id}/metrics/max,
    read GET /sandboxes/metrics, GET /sandboxes/{id}/logs, GET /v2/sandboxes/{id}/logs,
    read GET /snapshots, GET /templates, GET /v2/templates, GET /templates/aliases/{alias},
    read GET /volumes, GET /secrets, GET /api/v1/capsules, GET /api/v1/capsules/{id}/metrics,
    read GET /api/v1/capsules/stats, GET /api/v1/capsules/usage, GET /api/v1/snapshots,
    read GET /api/v1/events/stream, GET /templates/{id}, GET /templates/{id}/tags,
    read GET /templates/{id}/builds/{build}/status, GET /templates/{id}/builds/{build}/logs
    change POST /sandboxes, POST /v2/sandboxes, DELETE /sandboxes/{id},
    change POST /sandboxes/{id}/connect, POST /v2/sandboxes/{id}/connect,
    change POST /sandboxes/{id}/timeout, POST /sandboxes/{id}/refreshes,
    change POST /sandboxes/{id}/pause, POST /sandboxes/{id}/resume, POST /sandboxes/{id}/fork,
    change POST /sandboxes/{id}/snapshots, PUT /sandboxes/{id}/network, DELETE /templates/{id},
    change POST /v3/templates, POST /volumes, POST /secrets, POST /api/v1/snapshots,
    change POST /templates, POST /v2/templates, POST /templates/{id}, PATCH /templates/{id},
    change PATCH /v2/templates/{id}, POST /templates/tags, DELETE /templates/tags,
    change GET /templates/{id}/files/{hash}, POST /v2/templates/{id}/builds/{build},
    change POST /templates/{id}/builds/{build}
    anyone GET /teams
    open PUT /templates/{id}/files/{hash}
";

/// Routes whose success would end the capsule, team or session that the test needs. Other tests
/// cover them.
const ENDS: [&str; 10] = [
    "DELETE /sandboxes/{id}",
    "POST /sandboxes/{id}/pause",
    "POST /v1/auth/logout",
    "DELETE /v1/me",
    "DELETE /v1/me/sessions",
    "DELETE /v1/capsules/{id}",
    "DELETE /v1/teams/{id}",
    "POST /v1/teams/{id}/leave",
    "POST /v1/teams/{id}/transfer",
    "POST /v1/capsules/{id}/pause",
];

/// Permissions of each kind of caller in the team, and whether the caller is a user.
const CALLERS: [(&str, &[&str], bool); 9] = [
    ("viewer", &["read", "team"], true),
    ("member", &["read", "team", "exec", "change", "keys"], true),
    ("admin", &["read", "team", "exec", "change", "keys", "admin"], true),
    ("owner", &["read", "team", "exec", "change", "keys", "admin", "own"], true),
    ("unscoped key", &["read", "exec", "change", "team"], false),
    ("capsules:read", &["read"], false),
    ("capsules:exec", &["read", "exec"], false),
    ("capsules:admin", &["read", "exec", "change"], false),
    ("team:admin", &["team", "keys", "admin"], false),
];

/// Returns every route with its required permission.
fn expected() -> BTreeMap<String, &'static str> {
    let mut all = read(EXPECTED);
    all.extend(read(OF_OTHERS));
    all
}

fn read(text: &'static str) -> BTreeMap<String, &'static str> {
    let mut out = BTreeMap::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let (takes, routes) = line.trim().split_once(' ').unwrap();
        for route in routes.split(',').map(str::trim).filter(|route| !route.is_empty()) {
            assert!(out.insert(route.to_owned(), takes).is_none(), "{route} twice");
        }
    }
    out
}

#[test]
fn every_route_has_an_expectation() {
    let document: Value = serde_json::from_str(include_str!("../../openapi.json")).unwrap();
    let mut routes = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        routes.extend(
            item.as_object().unwrap().keys().map(|m| format!("{} {path}", m.to_uppercase())),
        );
    }
    assert!(routes.len() > 100);
    // These are other names for documented routes.
    for alias in ["read", "write"] {
        routes.insert(format!("POST /v1/capsules/{{id}}/files/stream/{alias}"));
    }
    routes.extend(control_plane::routes_of_others());
    let expected: BTreeSet<String> = expected().into_keys().collect();
    let missing: Vec<_> = routes.symmetric_difference(&expected).collect();
    assert!(missing.is_empty(), "without an expectation, or without a route: {missing:?}");
}

/// Returns a route's path with ids filled in.
fn path(route: &str, capsule: &str, team: &str) -> String {
    let id = match route {
        route if route.contains("/v1/capsules") || route.contains("/sandboxes") => capsule,
        route if route.starts_with("/v1/teams") || route.starts_with("/teams") => team,
        _ => "none",
    };
    let filled = route.replace("{id}", id).replace("{selector}", "1").replace("{port}", "80");
    let filled = filled.replace("{user}", "none").replace("{invitation}", "none");
    let none = uuid::Uuid::nil().to_string();
    let filled = filled.replace("{context_id}", &none).replace("{execution_id}", &none);
    let names = ["{provider}", "{name}", "{alias}", "{hash}", "{tag}", "{host}", "{build}"];
    names.iter().fold(filled, |path, name| path.replace(name, "none"))
}

/// Builds a request that is valid except perhaps for its caller.
fn sound(client: &Client, method: &Method, path: &str) -> reqwest::RequestBuilder {
    let mut path = path.to_owned();
    if path.ends_with("/files") || path.ends_with("/files/archive") {
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
            "memory_mib":1,"disk_mib":1,"driver":"","accelerator":"","version":"","templates":[]}}"#
    } else if path.ends_with("/hosts/refresh") {
        r#"{"refresh_token":"x"}"#
    } else if path.ends_with("/files/move") {
        r#"{"source":"/tmp/x","destination":"/tmp/y"}"#
    } else if path.contains("/files") {
        r#"{"path":"/tmp/x"}"#
    } else if path.ends_with("/ports/80") && *method == Method::PUT {
        r#"{"public":true}"#
    } else if path.ends_with("/api/v1/snapshots") {
        r#"{"sandbox_id":"x"}"#
    } else if path.ends_with("/exec") {
        r#"{"cmd":"true"}"#
    } else if path.ends_with("/code") || path.ends_with("/complete") {
        r#"{"code":"1"}"#
    } else {
        return request;
    };
    request.body(body)
}

/// Sends a request and returns only the status, since a stream of events has no end.
async fn status(client: &Client, method: &Method, path: &str) -> u16 {
    sound(client, method, path).send().await.unwrap().status().as_u16()
}

/// Creates another team with a key.
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

/// Creates a key with scopes.
async fn scoped(platform: &Platform, owner: &Client, wanted: Value) -> Client {
    let made = owner.post("/v1/api-keys", &wanted).await.expect(201);
    platform.client_with(made["key"].as_str().unwrap())
}

/// Starts a platform with a team that has a capsule, and a client for each of `CALLERS`. The team's
/// owner is no admin of the platform.
async fn callers() -> (Platform, String, String, Vec<Client>) {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let root = platform.user("root@example.com").await;
    root.get("/v1/admin/users").await.expect(200);
    let owner = platform.user("owner@example.com").await;
    let teams = owner.get("/v1/teams").await.expect(200);
    let team = teams["items"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(teams["items"][0]["role"], "owner");
    let id = owner.create(&json!({})).await;
    let mut clients = Vec::new();
    for (who, ..) in CALLERS {
        clients.push(match who {
            "owner" => owner.clone(),
            "unscoped key" => scoped(&platform, &owner, json!({ "name": "k" })).await,
            role @ ("viewer" | "member" | "admin") => platform.member(&owner, &team, role).await.0,
            scope => scoped(&platform, &owner, json!({ "name": "k", "scopes": [scope] })).await,
        });
    }
    (platform, team, id, clients)
}

/// Returns the status that refuses a caller, or `None` for an allowed caller.
fn refusal(takes: &str, may: &[&str], user: bool) -> Option<u16> {
    match takes {
        "open" | "anyone" => None,
        "token" => Some(401),
        "user" => (!user).then_some(403),
        "platform" => Some(403),
        takes => (!may.contains(&takes)).then_some(403),
    }
}

#[tokio::test]
async fn each_route_serves_only_permitted_callers() {
    let (platform, team, id, clients) = callers().await;
    // Requests to the code interpreter must not reach the one of another test.
    let _port = tests::SharedPort::take(crate::code::PORT);
    for (route, takes) in expected() {
        let (method, pattern) = route.split_once(' ').unwrap();
        let (method, path) = (method.parse::<Method>().unwrap(), path(pattern, &id, &team));
        for ((who, may, user), client) in CALLERS.iter().zip(&clients) {
            let refused = refusal(takes, may, *user);
            if refused.is_none() && ENDS.contains(&route.as_str()) {
                continue;
            }
            // A user names the team. Other callers have their own.
            let asked =
                status(&client.in_team(if *user { &team } else { "" }), &method, &path).await;
            match refused {
                Some(refused) => assert_eq!(asked, refused, "{route} by {who}"),
                None => assert!(asked != 401 && asked != 403, "{route} by {who}: {asked}"),
            }
        }
    }
    platform.finish();
}

#[tokio::test]
async fn invalid_credential_is_refused_on_every_protected_route() {
    let (platform, team, id, clients) = callers().await;
    let owner = &clients[3];
    let revoked = owner.post("/v1/api-keys", &json!({ "name": "gone" })).await.expect(201);
    let gone = platform.client_with(revoked["key"].as_str().unwrap());
    gone.get("/v1/capsules").await.expect(200);
    let key = format!("/v1/api-keys/{}", revoked["id"].as_str().unwrap());
    owner.delete(&key).await.expect(204);
    eventually("the key is of no use", async || {
        (gone.get("/v1/capsules").await.status.as_u16() == 401).then_some(())
    })
    .await;
    let long = "x".repeat(4000);
    let keys = ["", "e2b_wrong", "wrs_wrong", "eyJhbGciOiJub25lIn0.e30.", &long];
    let mut clients: Vec<Client> = keys.iter().map(|key| platform.client_with(key)).collect();
    clients.push(gone);
    for (route, takes) in expected() {
        let (method, pattern) = route.split_once(' ').unwrap();
        let (method, path) = (method.parse::<Method>().unwrap(), path(pattern, &id, &team));
        for client in &clients {
            let asked = status(client, &method, &path).await;
            let open = takes == "open";
            let code = "with what is presented";
            assert_eq!(asked == 401, !open, "{route} {code} `{:.10}`: {asked}", client.key());
        }
    }
    platform.finish();
}

/// Reports whether a route acts on single capsules or creates one. A key may be confined to such
/// capsules.
fn is_of_capsules(pattern: &str) -> bool {
    let team = ["/stats", "/usage", "/summary"].iter().any(|end| pattern.ends_with(end));
    (pattern.contains("/v1/capsules") || pattern.contains("sandboxes")) && !team
}

/// Reports whether a route acts on templates or their builds.
fn is_of_templates(pattern: &str) -> bool {
    pattern.contains("/templates") || pattern.starts_with("/v1/builds")
}

#[tokio::test]
async fn resources_of_another_team_are_not_found() {
    let (platform, team, id, clients) = callers().await;
    let key = other_team(&platform).await;
    let user = platform.user("stranger@example.com").await;
    // This key belongs to the same team, but is confined to another capsule.
    let other = clients[3].create(&json!({})).await;
    let wanted = json!({ "name": "one", "capsule": other, "scopes": ["capsules:admin"] });
    let confined = scoped(&platform, &clients[3], wanted).await;
    for (route, takes) in expected() {
        let (method, pattern) = route.split_once(' ').unwrap();
        let (method, path) = (method.parse::<Method>().unwrap(), path(pattern, &id, &team));
        if pattern == "/sandboxes/{id}/metrics" {
            // E2B's clients expect no metrics here, and no error.
            for stranger in [&key, &user, &confined] {
                assert_eq!(stranger.get(&path).await.expect(200), json!([]), "{route}");
            }
        } else if pattern.starts_with("/teams/{id}") {
            // E2B's clients expect this status.
            for stranger in [&key, &user, &confined] {
                assert_eq!(status(stranger, &method, &path).await, 403, "{route}");
            }
        } else if path.contains(&id) {
            for stranger in [&key, &user, &confined] {
                let answer = stranger.send(sound(stranger, &method, &path)).await;
                assert_eq!(answer.status.as_u16(), 404, "{route} by {:.4}", stranger.key());
                assert!(!answer.body.to_string().contains(&id), "{}", answer.body);
            }
        } else if path.contains(&team) {
            for stranger in [&key, &user] {
                assert_eq!(status(stranger, &method, &path).await, 404, "{route}");
            }
            let refused = status(&confined, &method, &path).await;
            assert_eq!(refused, 403, "{route} by a confined key");
        } else if ["read", "change"].contains(&takes) && !is_of_capsules(pattern) {
            let seen = status(&confined, &method, &path).await;
            match pattern {
                "/v1/templates" if method == Method::GET => {
                    assert_eq!(seen, 200, "{route} by a confined key");
                }
                // Keys may be confined to a template, so the template in the request decides.
                pattern if is_of_templates(pattern) => {
                    assert!([400, 403, 404, 501].contains(&seen), "{route}: {seen}");
                }
                _ => assert_eq!(seen, 403, "{route} by a confined key"),
            }
        }
    }
    for stranger in [&key, &user] {
        let seen = stranger.get("/v1/capsules").await.expect(200);
        assert_eq!(seen["items"].as_array().unwrap().len(), 0);
        let page = stranger.get(&format!("/v1/capsules?before={id}")).await.expect(200);
        assert_eq!(page["items"].as_array().unwrap().len(), 0);
        // Naming the other team in the request is refused too.
        stranger.in_team(&team).get("/v1/capsules").await.refuses(404, "not_found", "team");
    }
    let seen = confined.get("/v1/capsules").await.expect(200);
    let ids: Vec<&str> =
        seen["items"].as_array().unwrap().iter().flat_map(|c| c["id"].as_str()).collect();
    assert_eq!(ids, [other.as_str()]);
    clients[3].get(&format!("/v1/capsules/{id}")).await.expect(200);
    platform.finish();
}

#[tokio::test]
async fn key_is_stored_hashed_expires_is_revoked_and_never_logged() {
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
    let refused = async || {
        eventually("the key is of no use", async || {
            (client.get("/v1/capsules").await.status.as_u16() == 401).then_some(())
        })
        .await;
        client.get("/v1/capsules").await.refuses(401, "unauthorized", "X-API-Key");
    };
    sqlx::query("UPDATE api_keys SET expires_at = now()").execute(&mut db).await.unwrap();
    refused().await;
    let revoke = "UPDATE api_keys SET expires_at = NULL, revoked_at = now()";
    sqlx::query(revoke).execute(&mut db).await.unwrap();
    refused().await;
    platform.finish();
}

/// A caller who may only look at a capsule gets no token that allows more, by any route.
#[tokio::test]
async fn read_only_caller_is_shown_no_capsule_token() {
    let (platform, team, id, clients) = callers().await;
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let sql = "SELECT traffic_token, envd_token FROM capsules";
    let tokens: (String, String) = sqlx::query_as(sql).fetch_one(&mut db).await.unwrap();
    let owner = clients[3].get(&format!("/v1/capsules/{id}/ports/80")).await.expect(200);
    assert_eq!(owner["traffic_token"], tokens.0);
    let mut asked = 0;
    for (route, takes) in expected() {
        let (method, pattern) = route.split_once(' ').unwrap();
        if takes != "read" || method != "GET" || pattern.ends_with("/events/stream") {
            continue;
        }
        let path = path(pattern, &id, &team);
        for reader in [clients[0].in_team(&team), clients[5].clone()] {
            let text = reader.request(Method::GET, &path).send().await.unwrap().text().await;
            let text = text.unwrap();
            for token in [&tokens.0, &tokens.1] {
                assert!(!text.contains(token), "{route}: {text}");
            }
            assert!(!text.contains("traffic_token") && !text.contains("AccessToken"), "{route}");
            asked += 1;
        }
    }
    assert!(asked > 30);
    platform.finish();
}

/// With a warm cache, admission asks the database nothing. The database stands still meanwhile.
#[tokio::test]
async fn cached_credential_is_admitted_without_database() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let user = platform.user("a@example.com").await;
    let key = scoped(&platform, &user, json!({ "name": "k" })).await;
    let token = user.post("/v1/auth/token", &json!({})).await.expect(200);
    let token = platform.client_with(token["token"].as_str().unwrap());
    let clients = [platform.client(), user, key, token];
    // The query is invalid, so the request is refused after the caller is known.
    let path = "/v1/capsules?limit=0";
    for client in clients.iter().cycle().take(16) {
        client.get(path).await.refuses(400, "invalid_request", "limit");
    }
    let postmaster = platform.postgres_pid();
    let children = format!("/proc/{postmaster}/task/{postmaster}/children");
    let children = std::fs::read_to_string(children).unwrap();
    let mut all: Vec<i32> = children.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    all.push(postmaster);
    all.iter().for_each(|pid| signal(*pid, rustix::process::Signal::STOP));
    let asked = futures::future::join_all(clients.iter().map(|client| client.get(path)));
    let asked = tokio::time::timeout(std::time::Duration::from_secs(4), asked).await;
    // A replica that hears of no change for long admits nobody from its cache.
    let forgotten = eventually("what was known is forgotten", async || {
        let ask = tokio::time::timeout(std::time::Duration::from_millis(500), clients[0].get(path));
        let answered = ask.await.is_ok_and(|answer| answer.status.as_u16() == 400);
        (!answered).then_some(())
    });
    let forgotten = tokio::time::timeout(std::time::Duration::from_secs(40), forgotten).await;
    all.iter().rev().for_each(|pid| signal(*pid, rustix::process::Signal::CONT));
    assert!(forgotten.is_ok());
    for answer in asked.expect("the database was asked") {
        answer.refuses(400, "invalid_request", "limit");
    }
    platform.finish();
}
