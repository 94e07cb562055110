//! Choice of a build's host: the isolation tier of the team holds for builders too.

use super::{number, platform, runs};
use serde_json::json;

#[tokio::test]
async fn build_waits_for_a_host_of_the_isolation_tier_that_the_team_requires() {
    let (platform, operator) = platform().await;
    platform.user("root@example.com").await;
    let owner = platform.user("owner@example.com").await;
    let teams = owner.get("/v1/teams").await.expect(200);
    let path = format!("/v1/teams/{}", teams["items"][0]["id"].as_str().unwrap());
    owner.patch(&path, &json!({ "isolation": "kvm" })).await.expect(200);
    // The wait lets each control plane hear of the change.
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    let id = owner.begin(&runs("web", &["x"])).await;
    owner.logged(&id, "the isolation tier `kvm` or a stronger one").await;
    let capsules = "SELECT count(*) FROM capsules WHERE build_id IS NOT NULL";
    assert_eq!(number(&platform, capsules).await, 0, "no builder is on a host of a lower tier");
    // A waiting build may be cancelled. Builds of other teams go on.
    owner.cancel(&id).await.expect(200);
    let ended = owner.ended(&id).await;
    assert_eq!(ended.body["error"]["message"], "The build was canceled.", "{}", ended.body);
    operator.build(&runs("theirs", &["x"])).await;
    let waiting = owner.begin(&runs("web", &["x"])).await;
    owner.logged(&waiting, "Waiting for a host: ").await;
    owner.patch(&path, &json!({ "isolation": "none" })).await.expect(200);
    let ended = owner.ended(&waiting).await;
    assert_eq!(ended.body["status"], "ready", "{:?}", ended.lines);
    assert_eq!(ended.count("Waiting for a host: "), 1, "{:?}", ended.lines);
    platform.finish();
}
