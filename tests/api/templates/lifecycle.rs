//! Builds and templates from begin to end: status, cancel, lists, versions, files, deletion, publishing,
//! and what other teams see.

use super::{is_quiet, number, platform, runs};
use crate::auth::other_team;
use reqwest::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tests::{Client, Tree, eventually};

#[tokio::test]
async fn build_passes_its_phases_and_becomes_a_version() {
    let (platform, client) = platform().await;
    let mut body = runs("web:v1", &["echo", "exit 0", "done"]);
    body["tags"] = json!(["prod"]);
    body["vcpus"] = 2.into();
    body["memory_mib"] = 300.into();
    body["env"] = json!({ "A": "b" });
    let begun = client.post("/v1/builds", &body).await.expect(201);
    assert_eq!((&begun["status"], &begun["template"]), (&json!("building"), &json!("web")));
    assert!(begun["id"].as_str().unwrap().starts_with("bld-"), "{begun}");
    let built = client.ended(begun["id"].as_str().unwrap()).await;
    let shown = &built.body;
    assert_eq!(
        (&shown["status"], &shown["step"], &shown["steps"]),
        (&json!("ready"), &json!(3), &json!(3))
    );
    assert!(shown.get("phase").is_none() && shown.get("error").is_none(), "{shown}");
    assert_eq!(shown["images"][0]["reference"], "debian:12", "{shown}");
    assert!(shown["images"][0]["digest"].as_str().unwrap().starts_with("sha256:"), "{shown}");
    assert_eq!(shown["provenance"]["steps"].as_array().unwrap().len(), 3, "{shown}");
    let template = client.get("/v1/templates/web").await.expect(200);
    assert_eq!((&template["vcpus"], &template["memory_mib"]), (&json!(2), &json!(300)));
    assert!(template.get("version").is_none(), "no build has the tag `default`: {template}");
    let mut tags: Vec<_> = template["tags"].as_array().unwrap().clone();
    tags.sort_by_key(Value::to_string);
    assert_eq!(json!(tags), json!(["prod", "v1"]));
    // A create has the template's sizes, and names the version or the tag.
    let made = client.post("/v1/capsules", &json!({ "template": "web:prod" })).await.expect(201);
    assert_eq!((&made["vcpus"], &made["memory_mib"]), (&json!(2), &json!(300)), "{made}");
    assert!(made["template"].as_str().unwrap().starts_with("web"), "{made}");
    client.post("/v1/capsules", &json!({ "template": "web" })).await.refuses(
        404,
        "no_version",
        "default",
    );
    let none = client.post("/v1/capsules", &json!({ "template": "nowhere" })).await;
    none.refuses(404, "not_found", "template");
    let seen = client.get("/v1/templates/web").await.expect(200);
    assert_eq!(seen["spawn_count"], 1, "{seen}");
    // The builder's capsule is no capsule of the user's.
    let listed = client.get("/v1/capsules").await.expect(200);
    assert_eq!(listed["items"].as_array().unwrap().len(), 1, "{listed}");
    is_quiet(&platform).await;
    // Lists are newest first, in pages.
    for n in 0..3 {
        client.build(&runs("web", &[&format!("n{n}")])).await;
    }
    client.attempt(&runs("web", &["exit 1"])).await;
    let page = client.get("/v1/builds?template=web&limit=2").await.expect(200);
    assert_eq!(page["items"][0]["status"], "error", "{page}");
    let next = format!("/v1/builds?template=web&before={}", page["next"].as_str().unwrap());
    assert_eq!(client.get(&next).await.expect(200)["items"].as_array().unwrap().len(), 3);
    let failed = client.get("/v1/builds?status=error").await.expect(200);
    assert_eq!(failed["items"].as_array().unwrap().len(), 1);
    let versions = client.get("/v1/templates/web/versions").await.expect(200);
    assert_eq!(versions["items"].as_array().unwrap().len(), 4, "{versions}");
    assert!(versions["items"].as_array().unwrap().iter().all(|one| one["status"] == "ready"));
    platform.finish();
}

#[tokio::test]
async fn cancelled_build_ends_at_once_in_every_phase() {
    let (platform, client) = platform().await;
    for wait in [0, 300, 1500] {
        let id = client.begin(&runs("web", &[&format!("first {wait}"), "sleep 1000"])).await;
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let since = Instant::now();
        client.cancel(&id).await.expect(200);
        let ended = client.ended(&id).await;
        assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
        assert_eq!(ended.body["status"], "error", "{}", ended.body);
        assert_eq!(ended.body["error"]["message"], "The build was canceled.", "{}", ended.body);
        is_quiet(&platform).await;
        // A repeated cancel changes nothing.
        assert_eq!(client.cancel(&id).await.expect(200)["error"], ended.body["error"]);
    }
    let built = client.build(&runs("web", &["x"])).await;
    assert_eq!(client.cancel(&built.id).await.expect(200)["status"], "ready");
    client.cancel("bld-0").await.refuses(404, "not_found", "build");
    platform.finish();
}

#[tokio::test]
async fn template_is_deleted_with_its_versions_unless_something_uses_it() {
    let (platform, client) = platform().await;
    client.build(&runs("web", &["x"])).await;
    let id = client.create(&json!({ "template": "web" })).await;
    let path = "/v1/templates/web";
    client.delete(path).await.refuses(409, "template_in_use", &id);
    client.pause(&id).await;
    client.delete(path).await.refuses(409, "template_in_use", &id);
    client.post("/v1/snapshots", &json!({ "capsule_id": id, "name": "kept" })).await.expect(201);
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    client.delete(path).await.refuses(409, "template_in_use", "kept");
    client.delete("/v1/snapshots/kept").await.expect(204);
    let slow = client.begin(&runs("web", &["sleep 1000"])).await;
    client.delete(path).await.refuses(409, "template_in_use", &slow);
    client.cancel(&slow).await.expect(200);
    client.ended(&slow).await;
    client.delete(path).await.expect(204);
    client.get(path).await.refuses(404, "not_found", "template");
    client.get(&format!("/v1/builds/{slow}")).await.refuses(404, "not_found", "build");
    eventually("the host has no version", async || {
        let left = std::fs::read_dir(platform.dir().join("images/templates"));
        let left =
            left.map_or(0, |left| left.flatten().filter(|e| e.file_name() != "base").count());
        (left == 0).then_some(())
    })
    .await;
    client.delete(path).await.refuses(404, "not_found", "template");
    assert_eq!(client.delete("/v1/templates/base").await.status, 404, "the operator's");
    // The name may be used again, without the earlier tags.
    let again = client.build(&runs("web:v9", &["x"])).await;
    let tags = client.get("/v1/templates/web/tags").await.expect(200);
    assert_eq!(tags["items"].as_array().unwrap().len(), 1, "{tags}");
    assert_eq!(tags["items"][0]["build"], again.id.as_str());
    platform.finish();
}

/// Asks for everything of a template and a build, as a caller who must not see them.
async fn finds_nothing(stranger: &Client, build: &str, hash: &str) {
    for path in [
        "/v1/templates/web".to_owned(),
        "/v1/templates/web/tags".to_owned(),
        "/v1/templates/web/versions".to_owned(),
        format!("/v1/builds/{build}"),
        format!("/v1/builds/{build}/logs"),
        format!("/v1/builds/{build}/logs?follow=true"),
        format!("/v1/builds/files/{hash}"),
    ] {
        let answer = stranger.get(&path).await;
        assert_eq!(answer.status, 404, "{path}: {}", answer.body);
    }
    let tags = json!({ "version": "default", "tags": ["mine"] });
    assert_eq!(stranger.post("/v1/templates/web/tags", &tags).await.status, 404);
    assert_eq!(stranger.cancel(build).await.status, 404);
    assert_eq!(stranger.delete("/v1/templates/web").await.status, 404);
    assert_eq!(stranger.delete("/v1/templates/web/tags/mine").await.status, 404);
    assert_eq!(stranger.patch("/v1/templates/web", &json!({ "public": true })).await.status, 404);
    for template in ["web", &format!("web@{build}")] {
        let made = stranger.post("/v1/capsules", &json!({ "template": template })).await;
        assert_eq!(made.status, 404, "{}", made.body);
    }
    let over = json!({ "name": "own", "from": { "template": "web" } });
    let made = stranger.post("/v1/builds", &over).await;
    assert!(made.status == 404 || made.status == 400, "{} {}", made.status, made.body);
    let builds = stranger.get("/v1/builds").await.expect(200);
    assert_eq!(builds["items"], json!([]));
}

#[tokio::test]
async fn other_team_sees_nothing_until_the_template_is_public_and_never_its_log() {
    let (platform, client) = platform().await;
    let stranger = other_team(&platform).await;
    let hash = client.upload(Tree::new().file("a", 0o644, "a")).await;
    let built = client.build(&runs("web", &["secret recipe"])).await;
    finds_nothing(&stranger, &built.id, &hash).await;
    // The hash of files counts in one team alone.
    let copy = json!({ "copy": { "sources": ["a"], "dest": "/a", "files": hash } });
    let body = json!({ "name": "own", "from": { "image": "debian" }, "steps": [copy] });
    let refused = stranger.post("/v1/builds", &body).await;
    assert!(refused.status.is_client_error(), "{}", refused.body);
    assert_eq!(refused.body["error"]["code"], "files_missing", "{}", refused.body);
    // Names belong to a team, too.
    stranger.build(&runs("web", &["their own"])).await;
    stranger.delete("/v1/templates/web").await.expect(204);

    let public = client.patch("/v1/templates/web", &json!({ "public": true })).await.expect(200);
    assert_eq!(public["shared"], true, "{public}");
    // Another team's template has its id, or the team's name before its own.
    stranger.get("/v1/templates/web").await.refuses(404, "not_found", "template");
    let path = format!("/v1/templates/{}", public["id"].as_str().unwrap());
    let seen = stranger.get(&path).await.expect(200);
    assert_eq!((&seen["own"], &seen["bytes"]), (&json!(false), &json!(0)), "{seen}");
    assert!(seen.get("tags").is_none(), "{seen}");
    let id = stranger.create(&json!({ "template": seen["id"] })).await;
    for path in [format!("/v1/builds/{}", built.id), format!("/v1/builds/{}/logs", built.id)] {
        assert_eq!(stranger.get(&path).await.status, 404);
    }
    assert!(!seen.to_string().contains("secret recipe"));
    assert_eq!(stranger.patch("/v1/templates/web", &json!({ "public": false })).await.status, 404);
    // Taken back, it serves no new capsule. The running one goes on.
    client.patch("/v1/templates/web", &json!({ "public": false })).await.expect(200);
    let refused = stranger.post("/v1/capsules", &json!({ "template": seen["id"] })).await;
    assert_eq!(refused.status, 404, "{}", refused.body);
    assert_eq!(stranger.status(&id).await, "running");
    client.delete("/v1/templates/web").await.refuses(409, "template_in_use", "another team");
    platform.finish();
}

#[tokio::test]
async fn uploaded_files_are_bounded_and_named_by_a_hash() {
    let (platform, client) = platform().await;
    let put = async |hash: &str, bytes: Vec<u8>| {
        let asked = client.request(Method::PUT, &format!("/v1/builds/files/{hash}"));
        client.send(asked.body(bytes)).await
    };
    for wrong in ["x", &"A".repeat(64), &"a".repeat(63), "..%2f..%2fx"] {
        put(wrong, vec![1]).await.refuses(400, "invalid_request", "hash");
    }
    let hash = "b".repeat(64);
    let path = format!("/v1/builds/files/{hash}");
    client.get(&path).await.refuses(404, "not_found", "files");
    let head = client.request(Method::HEAD, &path).send().await.unwrap();
    assert_eq!(head.status(), 404);
    let sent = put(&hash, vec![7; 300_000]).await.expect(200);
    assert_eq!(sent, json!({ "hash": hash, "bytes": 300_000 }));
    assert_eq!(client.get(&path).await.expect(200), sent);
    assert_eq!(client.request(Method::HEAD, &path).send().await.unwrap().status(), 200);
    // The hash is the client's choice: newer bytes replace the older ones.
    assert_eq!(put(&hash, vec![8; 10]).await.expect(200)["bytes"], 10);
    let kept = platform.dir().join("files");
    let mut found = Vec::new();
    for team in std::fs::read_dir(&kept).unwrap().flatten() {
        found.extend(std::fs::read_dir(team.path()).unwrap().flatten());
    }
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(std::fs::read(found[0].path()).unwrap(), [8; 10]);
    assert_eq!(number(&platform, "SELECT count(*) FROM build_files").await, 1);
    platform.finish();
}
