//! Keys that are confined to a template or a capsule, and keys of narrow scopes.

use super::{platform, runs};
use serde_json::{Value, json};
use tests::{Client, Platform, Tree};

async fn key(platform: &Platform, owner: &Client, wanted: Value) -> Client {
    let made = owner.post("/v1/api-keys", &wanted).await.expect(201);
    platform.client_with(made["key"].as_str().unwrap())
}

#[tokio::test]
async fn key_of_a_template_builds_it_and_sees_no_other() {
    let (platform, owner) = platform().await;
    owner.build(&runs("web", &["x"])).await;
    let other = owner.build(&runs("other", &["x"])).await;
    let wanted = json!({ "name": "ci", "template": "web", "scopes": ["capsules:admin"] });
    let key = key(&platform, &owner, wanted).await;
    let built = key.build(&runs("web:v2", &["y"])).await;
    key.post("/v1/templates/web/tags", &json!({ "version": built.id, "tags": ["default"] })).await;
    let id = key.create(&json!({ "template": "web" })).await;
    key.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    for name in ["other", "new"] {
        let refused = key.post("/v1/builds", &runs(name, &["x"])).await;
        assert!([403, 404].contains(&refused.status.as_u16()), "{name}: {}", refused.body);
    }
    for path in [format!("/v1/builds/{}", other.id), format!("/v1/builds/{}/logs", other.id)] {
        let refused = key.get(&path).await;
        assert!([403, 404].contains(&refused.status.as_u16()), "{path}: {}", refused.body);
    }
    assert!(!key.cancel(&other.id).await.status.is_success());
    let builds = key.get("/v1/builds").await.expect(200);
    let names = |list: &Value, field: &str| -> Vec<String> {
        let items = list["items"].as_array().unwrap();
        items.iter().map(|item| item[field].as_str().unwrap().to_owned()).collect()
    };
    assert!(names(&builds, "template").iter().all(|name| name == "web"), "{builds}");
    let templates = key.get("/v1/templates").await.expect(200);
    assert_eq!(names(&templates, "name"), ["web"], "{templates}");
    // Other templates are no base either, since their files would be in the result.
    let over = json!({ "name": "web", "from": { "template": "other" } });
    assert!(!key.post("/v1/builds", &over).await.status.is_success());
    for refused in [
        key.delete("/v1/templates/other").await,
        key.patch("/v1/templates/web", &json!({ "public": true })).await,
        key.get("/v1/registries").await,
    ] {
        assert!(
            [403, 404].contains(&refused.status.as_u16()),
            "{} {}",
            refused.status,
            refused.body
        );
    }
    platform.finish();
}

#[tokio::test]
async fn key_of_a_capsule_or_without_the_scope_builds_nothing() {
    let (platform, owner) = platform().await;
    let built = owner.build(&runs("web", &["x"])).await;
    let id = owner.create(&json!({ "template": "web" })).await;
    let of_capsule = json!({ "name": "c", "capsule": id, "scopes": ["capsules:admin"] });
    let of_capsule = key(&platform, &owner, of_capsule).await;
    let reader = key(&platform, &owner, json!({ "name": "r", "scopes": ["capsules:read"] })).await;
    for key in [&of_capsule, &reader] {
        let refused = key.post("/v1/builds", &runs("web", &["y"])).await;
        assert!([403, 404].contains(&refused.status.as_u16()), "{}", refused.body);
        assert!(!key.delete("/v1/templates/web").await.status.is_success());
        let archive = Tree::new().archive();
        let put =
            key.request(reqwest::Method::PUT, &format!("/v1/builds/files/{}", "c".repeat(64)));
        assert_eq!(key.send(put.body(archive)).await.status, 403);
    }
    assert_eq!(reader.see_build(&built.id).await["status"], "ready");
    assert!(!reader.lines(&built.id).await.is_empty());
    platform.finish();
}
