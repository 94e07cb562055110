//! Changes of many capsules by one request, and the abilities of the platform.

use crate::auth::other_team;
use serde_json::{Value, json};
use tests::{Client, Driver, Platform};

const PATH: &str = "/v1/capsules/bulk";

async fn bulk(client: &Client, body: &Value) -> Value {
    client.post(PATH, body).await.expect(200)
}

/// Returns the ids of a result, in order.
fn ids(result: &Value) -> Vec<&str> {
    result["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn bulk_change_by_filter_changes_those_that_meet_it() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let job = json!({ "metadata": { "job": "7" } });
    let (first, second) = (client.create(&job).await, client.create(&job).await);
    let other = client.create(&json!({ "name": "other" })).await;
    let filter = json!({ "metadata": { "job": "7" } });
    let look = json!({ "action": "pause", "filter": filter, "dry_run": true });
    let seen = bulk(&client, &look).await;
    assert_eq!(ids(&seen), [&second, &first]);
    assert!(seen["items"].as_array().unwrap().iter().all(|item| item["status"] == "running"));
    assert_eq!(client.status(&first).await, "running");
    let paused = bulk(&client, &json!({ "action": "pause", "filter": filter })).await;
    assert_eq!(ids(&paused), [&second, &first]);
    assert!(paused["items"].as_array().unwrap().iter().all(|item| item["status"] == "paused"));
    // Capsules that are paused do not meet the filter any more.
    let again = bulk(&client, &json!({ "action": "pause", "filter": filter })).await;
    assert_eq!(again, json!({ "items": [], "more": false }));
    bulk(&client, &json!({ "action": "resume", "filter": filter })).await;
    assert_eq!(client.status(&second).await, "running");
    let named = json!({ "action": "delete", "filter": { "q": "oth" } });
    let gone = bulk(&client, &named).await;
    assert_eq!(gone["items"], json!([{ "id": other, "name": "other", "status": "stopped" }]));
    client.get(&format!("/v1/capsules/{other}")).await.refuses(404, "not_found", "capsule");
    let entries = client.get("/v1/audit-logs?action=capsule.pause").await.expect(200);
    assert_eq!(entries["items"].as_array().unwrap().len(), 2, "{entries}");
    platform.finish();
}

#[tokio::test]
async fn capsule_that_cannot_change_has_its_error_and_stops_no_other() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let mine = client.create(&json!({})).await;
    let stranger = other_team(&platform).await;
    let theirs = stranger.create(&json!({})).await;
    let body = json!({ "action": "delete", "ids": [theirs, mine, mine] });
    let gone = bulk(&client, &body).await;
    assert_eq!(ids(&gone), [&theirs, &mine]);
    assert_eq!(gone["items"][0]["error"]["code"], "not_found", "{gone}");
    assert_eq!(gone["items"][1]["status"], "stopped", "{gone}");
    assert_eq!(stranger.status(&theirs).await, "running");
    platform.finish();
}

#[tokio::test]
async fn confined_key_changes_only_its_capsule_and_wrong_fields_are_named() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let (own, other) = (client.create(&json!({})).await, client.create(&json!({})).await);
    let wanted = json!({ "name": "k", "capsule": own, "scopes": ["capsules:admin"] });
    let made = client.post("/v1/api-keys", &wanted).await.expect(201);
    let confined = platform.client_with(made["key"].as_str().unwrap());
    let paused = bulk(&confined, &json!({ "action": "pause", "filter": {} })).await;
    assert_eq!(ids(&paused), [&own]);
    let refused = bulk(&confined, &json!({ "action": "delete", "ids": [other] })).await;
    assert_eq!(refused["items"][0]["error"]["code"], "not_found", "{refused}");
    assert_eq!(client.status(&other).await, "running");
    let many = vec![own.clone(); 101];
    for (body, field) in [
        (json!({ "action": "explode", "filter": {} }), "action"),
        (json!({ "action": "pause" }), "ids"),
        (json!({ "action": "pause", "ids": [], }), "ids"),
        (json!({ "action": "pause", "ids": ["web"] }), "ids"),
        (json!({ "action": "pause", "ids": many }), "ids"),
        (json!({ "action": "pause", "ids": [own], "filter": {} }), "filter"),
        (json!({ "action": "pause", "filter": { "status": ["stopped"] } }), "filter.status"),
        (json!({ "action": "pause", "filter": { "colour": "red" } }), "colour"),
    ] {
        client.post(PATH, &body).await.refuses(400, "invalid_request", field);
    }
    let named = json!({ "name": "bulk" });
    client.post("/v1/capsules", &named).await.refuses(400, "invalid_request", "name");
    platform.finish();
}

#[tokio::test]
async fn anybody_may_ask_for_the_abilities_of_the_platform() {
    let platform = Platform::start(Driver::Fake, &[("WRENN_METRICS_DAYS", "0")]).await;
    let told = platform.client_with("").get("/v1/capabilities").await.expect(200);
    let version = platform.client().get("/version").await.expect(200);
    assert_eq!(told["version"], version["version"]);
    let features = told["features"].as_array().unwrap();
    assert!(features.contains(&json!("capsules.logs")), "{told}");
    assert!(!features.contains(&json!("capsules.metrics")), "{told}");
    assert_eq!(told["limits"]["largest"]["vcpus"], 32);
    assert_eq!(told["limits"]["metrics_days"], 0);
    assert!(!told["domains"].as_array().unwrap().is_empty(), "{told}");
    let providers = platform.client().get("/v1/auth/providers").await.expect(200);
    assert_eq!(
        (&told["signup"], &told["providers"]),
        (&providers["signup"], &providers["providers"])
    );
    // Size limits are those that a create checks.
    let large = json!({ "vcpus": 33 });
    platform.client().post("/v1/capsules", &large).await.refuses(400, "invalid_request", "vcpus");
    platform.finish();
}
