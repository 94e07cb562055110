//! Isolation tiers: the minimum that a team or a template requires, and placement by it.

use serde_json::json;
use tests::{Client, Driver, Platform, eventually};

/// Waits until each replica answers creates with this status. A replica hears of a change within a
/// second.
async fn becomes(client: &Client, status: u16) {
    let what = format!("creates are answered with {status}");
    eventually(&what, || async {
        let mut all = true;
        for _ in 0..2 {
            let made = client.post("/v1/capsules", &json!({})).await;
            if let Some(id) = made.body["id"].as_str() {
                client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
            }
            all &= made.status.as_u16() == status;
        }
        all.then_some(())
    })
    .await;
}

#[tokio::test]
async fn placement_uses_no_host_below_required_tier() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let operator = platform.client();
    platform.user("root@example.com").await;
    let owner = platform.user("owner@example.com").await;
    let teams = owner.get("/v1/teams").await.expect(200);
    assert_eq!(teams["items"][0]["isolation"], "none");
    let path = format!("/v1/teams/{}", teams["items"][0]["id"].as_str().unwrap());
    let hosts = operator.get("/v1/hosts").await.expect(200);
    assert_eq!(hosts["items"][0]["isolation"], "none");
    let id = owner.create(&json!({})).await;
    // A team's minimum holds from its next capsule on, for this team alone.
    let changed = owner.patch(&path, &json!({ "isolation": "kvm" })).await.expect(200);
    assert_eq!(changed["isolation"], "kvm");
    becomes(&owner, 503).await;
    owner.post("/v1/capsules", &json!({})).await.refuses(503, "no_capacity", "tier `kvm`");
    owner.pause(&id).await;
    owner.resume(&id).await;
    operator.create(&json!({})).await;
    for (body, holding) in [
        (json!({ "isolation": "strong" }), "isolation"),
        (json!({ "isolation": "kvm", "colour": 1 }), "colour"),
        (json!({ "name": "" }), "name"),
    ] {
        owner.patch(&path, &body).await.refuses(400, "invalid_request", holding);
    }
    owner.patch(&path, &json!({ "isolation": "none" })).await.expect(200);
    becomes(&owner, 201).await;
    // A template's minimum holds for every team. Only operators set it.
    let base = "/v1/templates/base";
    let jailed = json!({ "isolation": "jailed" });
    owner.patch(base, &jailed).await.refuses(403, "forbidden", "");
    assert_eq!(operator.patch(base, &jailed).await.expect(200)["isolation"], "jailed");
    for client in [&owner, &operator] {
        let made = client.post("/v1/capsules", &json!({})).await;
        made.refuses(503, "no_capacity", "tier `jailed`");
    }
    operator.patch("/v1/templates/none", &jailed).await.refuses(404, "not_found", "template");
    operator.patch(base, &json!({})).await.refuses(400, "invalid_request", "isolation");
    let said = platform.wrenn().args(["template", "require", "base", "none"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), "none");
    operator.create(&json!({})).await;
    platform.finish();
}
