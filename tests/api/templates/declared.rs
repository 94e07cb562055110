//! Templates, builds, tags and registry logins, as far as no host has to build.

use recipe::tags::{Assignment, resolve};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tests::{Client, Driver, Platform};

async fn platform() -> (Platform, Client) {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    (platform, client)
}

async fn db(platform: &Platform) -> PgConnection {
    PgConnection::connect(&platform.database_url()).await.unwrap()
}

/// Declares a build of a name. Returns the ids of template and build.
async fn declare(client: &Client, name: &str) -> (String, String) {
    let made = client.post("/v3/templates", &json!({ "name": name })).await.expect(202);
    let text = |field: &str| made[field].as_str().unwrap().to_owned();
    (text("templateID"), text("buildID"))
}

/// Ends a build, as a host would.
async fn end(db: &mut PgConnection, build: &str, status: &str) {
    let sql = "UPDATE builds SET status = $2, ended_at = now() WHERE id = $1::uuid";
    sqlx::query(sql).bind(build).bind(status).execute(db).await.unwrap();
}

async fn set_limits(client: &Client, limits: Value) {
    let teams = client.get("/v1/teams").await.expect(200);
    let team = teams["items"][0]["id"].as_str().unwrap().to_owned();
    client.put(&format!("/v1/admin/teams/{team}/limits"), &limits).await.expect(200);
    // The wait lets a second replica hear of the change.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
}

#[tokio::test]
async fn declared_build_waits_and_newer_one_of_same_tag_supersedes_it() {
    let (platform, client) = platform().await;
    let wanted = json!({ "name": "My-Tpl:v1", "tags": ["V2", "v1"], "cpuCount": 2 });
    let made = client.post("/v3/templates", &wanted).await.expect(202);
    assert_eq!(made["names"], json!(["my-tpl"]));
    assert_eq!((&made["tags"], &made["public"]), (&json!(["v1", "v2"]), &json!(false)));
    let (template, first) =
        (made["templateID"].as_str().unwrap(), made["buildID"].as_str().unwrap());
    let status = format!("/templates/{template}/builds/{first}/status?logsOffset=0");
    let seen = client.get(&status).await.expect(200);
    assert_eq!(seen["status"], "waiting");
    assert_eq!((&seen["logs"], &seen["logEntries"]), (&json!([]), &json!([])));
    let (again, second) = declare(&client, "my-tpl:v2").await;
    assert_eq!(again, template);
    let seen = client.get(&status).await.expect(200);
    assert_eq!(seen["status"], "error");
    let reason = seen["reason"]["message"].as_str().unwrap();
    assert_eq!(reason, "The build was canceled because it was superseded by a newer one.");
    // Another tag's build goes on, and a name without a tag gets the tag `default`.
    let (_, third) = declare(&client, "my-tpl").await;
    let list = client.get("/v1/builds?template=my-tpl").await.expect(200);
    let states: Vec<_> = list["items"].as_array().unwrap().iter().map(|b| &b["status"]).collect();
    assert_eq!(states, ["waiting", "waiting", "error"]);
    assert_eq!(list["items"][0]["tags"], json!(["default"]));
    let foreign = uuid_text(&list["items"][0]);
    assert!(foreign.starts_with("bld-"));
    // A steps' list with an unknown template fails the build, not the request.
    let start = format!("/v2/templates/{template}/builds/{third}");
    client.post(&start, &json!({})).await.refuses_plain(400);
    let answer = client.post(&start, &json!({ "fromTemplate": "nothing" })).await;
    assert_eq!((answer.status.as_u16(), answer.body), (202, json!("")));
    let status = format!("/templates/{template}/builds/{third}/status");
    let seen = client.get(&status).await.expect(200);
    assert_eq!((&seen["status"], &seen["reason"]["step"]), (&json!("error"), &json!("base")));
    assert_eq!(seen["reason"]["message"], "template 'nothing' not found");
    assert_eq!(seen["logEntries"][0]["message"], "Build failed: template 'nothing' not found");
    let late = client.post(&start, &json!({ "fromTemplate": "base" })).await;
    assert_eq!(late.status.as_u16(), 400);
    assert_eq!(late.body["message"], "build is not in waiting state");
    // A cancelled build has ended, and a second cancel changes nothing.
    let id = &list["items"][1]["id"].as_str().unwrap();
    for _ in 0..2 {
        let ended = client.post(&format!("/v1/builds/{id}/cancel"), &json!({})).await.expect(200);
        assert_eq!(
            (&ended["status"], &ended["error"]["message"]),
            (&json!("error"), &json!("The build was canceled."))
        );
    }
    assert!(!second.is_empty());
    platform.finish();
}

fn uuid_text(build: &Value) -> String {
    build["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn names_and_tags_are_refused_with_the_texts_of_the_service() {
    let (platform, client) = platform().await;
    for (body, status, begin) in [
        (json!({}), 400, "Name is required"),
        (json!({ "name": ":x" }), 400, "Name is required"),
        (json!({ "name": "a b" }), 400, "Invalid name: "),
        (json!({ "name": "name:" }), 400, "Invalid tag: "),
        (json!({ "name": "a", "tags": ["é"] }), 400, "Invalid tag: "),
        (json!({ "name": "other/a" }), 400, "Invalid name: "),
        (json!({ "name": "base" }), 403, "Alias 'base' already used"),
        (json!({ "name": "a", "cpuCount": 3 }), 400, "CPU count must be 1 or an even number"),
        (json!({ "name": "a", "memoryMB": 513 }), 400, "Memory must be divisible by 2"),
        (json!({ "name": ["a"] }), 400, "validation error"),
    ] {
        let answer = client.post("/v3/templates", &body).await;
        let message = answer.body["message"].as_str().unwrap();
        assert!(message.starts_with(begin), "{body}: {message}");
        assert_eq!(answer.status.as_u16(), status, "{body}");
    }
    let (template, build) = declare(&client, "a").await;
    let files = format!("/templates/{template}/files");
    let wrong = client.get(&format!("{files}/x")).await;
    assert_eq!(
        (wrong.status.as_u16(), &wrong.body["message"]),
        (400, &json!("Invalid files hash"))
    );
    let asked = client.get(&format!("{files}/{}", "0".repeat(64))).await.expect(201);
    assert_eq!(asked["present"], false);
    let url = asked["url"].as_str().unwrap();
    assert!(url.starts_with(client.base()), "{url} {}", client.base());
    // The address works without a key, and no other address does.
    let path = url.strip_prefix(client.base()).unwrap();
    let stranger = platform.client_with("");
    for changed in [path.replace("expires=", "expires=1"), path.replace("/files/0", "/files/1")] {
        let answer = stranger.request(Method::PUT, &changed).body("x").send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 401, "{changed}");
    }
    let missing = client.get(&format!("/templates/{template}/builds/x/status")).await;
    assert_eq!(missing.body["message"], "Invalid build ID: x");
    let _ = build;
    platform.finish();
}

#[tokio::test]
async fn limits_of_templates_and_builds_name_themselves() {
    let (platform, client) = platform().await;
    let (_, one) = declare(&client, "a").await;
    declare(&client, "b").await;
    let refused = client.post("/v3/templates", &json!({ "name": "c" })).await;
    assert_eq!(refused.status.as_u16(), 429);
    let text = "you have reached the maximum number of concurrent template builds (2)";
    assert!(refused.body["message"].as_str().unwrap().starts_with(text), "{}", refused.body);
    // A superseded build makes room for the one that supersedes it.
    declare(&client, "b").await;
    let mut db = db(&platform).await;
    end(&mut db, &one, "ready").await;
    set_limits(&client, json!({ "templates": 2, "builds": 0 })).await;
    let refused = client.post("/v3/templates", &json!({ "name": "c" })).await;
    assert_eq!(refused.body["message"], "the team has reached its limit: 2 of 2 templates exist");
    // A client that does not know the limits leaves them as they are.
    set_limits(&client, json!({ "capsules": 10 })).await;
    client.post("/v3/templates", &json!({ "name": "c" })).await.refuses_plain(429);
    let build = json!({ "name": "c", "from": { "image": "debian" } });
    client.post("/v1/builds", &build).await.refuses(429, "limit_reached", "templates");
    platform.finish();
}

#[tokio::test]
async fn tag_resolves_as_the_pure_rule_says() {
    let (platform, client) = platform().await;
    set_limits(&client, json!({ "builds": 0 })).await;
    let mut db = db(&platform).await;
    let (_, first) = declare(&client, "a:other").await;
    end(&mut db, &first, "ready").await;
    let (mut builds, mut list) = (vec![(first, true)], Vec::new());
    let mut random = 7_u64;
    for sequence in 1..40 {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        match random >> 60 {
            0..=6 => {
                let (_, build) = declare(&client, "a:t").await;
                let is_ready = random & 1 << 40 == 0;
                end(&mut db, &build, if is_ready { "ready" } else { "error" }).await;
                builds.push((build, is_ready));
                list.push(Assignment { build: builds.len() - 1, sequence, deleted: false });
            }
            7..=12 => {
                let ready: Vec<usize> = (0..builds.len()).filter(|at| builds[*at].1).collect();
                let chosen = ready[usize::try_from(random >> 32 & 0xff).unwrap() % ready.len()];
                let target = format!("a:{}", builds[chosen].0);
                let body = json!({ "target": target, "tags": ["T"] });
                let made = client.post("/templates/tags", &body).await.expect(201);
                assert_eq!(made, json!({ "tags": ["t"], "buildID": builds[chosen].0 }));
                list.push(Assignment { build: chosen, sequence, deleted: false });
            }
            _ => {
                let body = json!({ "name": "a", "tags": ["t"] });
                let gone = client.request(Method::DELETE, "/templates/tags").json(&body);
                client.send(gone).await.expect(204);
                list.iter_mut().for_each(|assignment| assignment.deleted = true);
            }
        }
        let wanted = resolve(&list, |build| builds[build].1);
        let probe = json!({ "target": "a:t", "tags": ["probe"] });
        let answer = client.post("/templates/tags", &probe).await;
        match wanted {
            Some(build) => assert_eq!(answer.expect(201)["buildID"], builds[build].0),
            None => {
                assert_eq!(answer.status.as_u16(), 404);
                assert_eq!(answer.body["message"], "Template 'a' with tag 't' not found");
            }
        }
    }
    platform.finish();
}

#[tokio::test]
async fn tags_are_assigned_listed_and_deleted() {
    let (platform, client) = platform().await;
    let mut db = db(&platform).await;
    let (template, build) = declare(&client, "web").await;
    client.get("/templates/aliases/web:v1").await.refuses_plain(404);
    let none = json!({ "version": "default", "tags": ["v1"] });
    client.post("/v1/templates/web/tags", &none).await.refuses(404, "no_version", "default");
    end(&mut db, &build, "ready").await;
    let made = client.post("/v1/templates/web/tags", &none).await.expect(201);
    assert_eq!(made["items"].as_array().unwrap().len(), 2);
    let found = client.get("/v1/templates/web").await.expect(200);
    assert_eq!((&found["tags"], &found["own"]), (&json!(["default", "v1"]), &json!(true)));
    assert!(found["version"].as_str().unwrap().starts_with("bld-"));
    let alias = client.get("/templates/aliases/web%3Av1").await.expect(200);
    assert_eq!(alias["templateID"], template);
    let tags = client.get(&format!("/templates/{template}/tags")).await.expect(200);
    assert_eq!((&tags[1]["tag"], &tags[1]["buildID"]), (&json!("v1"), &json!(build)));
    client.delete("/v1/templates/web/tags/default").await.refuses(
        400,
        "invalid_request",
        "Cannot delete the 'default' tag",
    );
    client.delete("/v1/templates/web/tags/v1").await.expect(204);
    client.delete("/v1/templates/web/tags/v1").await.refuses(404, "not_found", "tag");
    client.get("/templates/aliases/web:v1").await.refuses_plain(404);
    let public = json!({ "public": true });
    let names = client.patch(&format!("/v2/templates/{template}"), &public).await.expect(200);
    assert_eq!(names, json!({ "names": ["web"] }));
    assert_eq!(client.get("/v1/templates/web").await.expect(200)["shared"], true);
    let isolation = json!({ "isolation": "none" });
    client.patch("/v1/templates/base", &isolation).await.expect(200);
    client.delete("/v1/templates/web").await.expect(204);
    client.get("/v1/templates/web").await.refuses(404, "not_found", "template");
    let events = sqlx::query_scalar::<_, String>(
        "SELECT DISTINCT action FROM audit_logs WHERE resource_type = 'template' ORDER BY action",
    );
    let actions = events.fetch_all(&mut db).await.unwrap();
    let wanted = [
        "template.declare",
        "template.delete",
        "template.publish",
        "template.set_isolation",
        "template.tag",
        "template.untag",
    ];
    assert_eq!(actions, wanted);
    platform.finish();
}

#[tokio::test]
async fn registry_login_is_stored_sealed_and_never_shown() {
    let (platform, client) = platform().await;
    let secret = "correct horse battery staple";
    let login = json!({ "basic": { "username": "me", "password": secret } });
    let made = client.put("/v1/registries/GHCR.io", &login).await.expect(200);
    assert_eq!((&made["registry"], &made["username"]), (&json!("ghcr.io"), &json!("me")));
    let other = json!({ "aws": { "access_key_id": "AK", "secret_access_key": secret, "region": "eu-west-1" } });
    client.put("/v1/registries/localhost%3A5000", &other).await.expect(200);
    client.put("/v1/registries/ghcr.io", &login).await.expect(200);
    let listed = client.get("/v1/registries").await.expect(200);
    assert_eq!(listed["items"].as_array().unwrap().len(), 2);
    assert!(!listed.to_string().contains(secret));
    let mut db = db(&platform).await;
    for table in ["registry_logins", "audit_logs", "builds"] {
        let sql = format!("SELECT coalesce(string_agg(t::text, ''), '') FROM {table} t");
        let all: String =
            sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&mut db).await.unwrap();
        assert!(!all.contains(secret), "{table}");
        let coded: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
        assert!(!all.contains(&coded), "{table}");
    }
    client.put("/v1/registries/a%2Fb", &login).await.refuses(400, "invalid_request", "host");
    client
        .put("/v1/registries/a", &json!({ "basic": { "username": "", "password": "x" } }))
        .await
        .refuses(400, "invalid_request", "basic.username");
    client.delete("/v1/registries/ghcr.io").await.expect(204);
    client.delete("/v1/registries/ghcr.io").await.refuses(404, "not_found", "login");
    platform.finish();
}

#[tokio::test]
async fn repeated_build_with_idempotency_key_is_the_same_build() {
    let (platform, client) = platform().await;
    let body = json!({ "name": "web", "from": { "template": "base" },
        "steps": [{ "run": { "command": "true" } }] });
    let post = |body: &Value| {
        let request = client.request(Method::POST, "/v1/builds").json(body);
        client.send(request.header("idempotency-key", "one"))
    };
    let first = post(&body).await.expect(201);
    let second = post(&body).await.expect(201);
    assert_eq!((&first["id"], &first["template"]), (&second["id"], &json!("web")));
    let other = json!({ "name": "web2", "from": { "template": "base" } });
    post(&other).await.refuses(422, "idempotency_key_reused", "");
    let id = first["id"].as_str().unwrap();
    // The stream ends with the build, whose steps no host of this test runs.
    client.post(&format!("/v1/builds/{id}/cancel"), &json!({})).await.expect(200);
    let follow = format!("/v1/builds/{id}/logs?follow=true");
    let stream = client.request(Method::GET, &follow).send().await.unwrap();
    let text = stream.text().await.unwrap();
    assert!(text.contains("event: end") && text.contains(id), "{text}");
    let log = client.get(&format!("/v1/builds/{id}/logs?limit=1")).await.expect(200);
    assert_eq!(log["status"], "error");
    let missing = json!({ "name": "web", "from": { "template": "nothing" } });
    client.post("/v1/builds", &missing).await.refuses(404, "not_found", "nothing");
    let files = json!({ "name": "web", "from": { "image": "debian" }, "context": "0".repeat(64),
        "steps": [{ "copy": { "sources": ["a"], "dest": "/a" } }] });
    client.post("/v1/builds", &files).await.refuses(400, "files_missing", "uploaded");
    platform.finish();
}
