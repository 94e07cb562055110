//! The status of a build, which clients ask for many times a second.

use super::{platform, runs};
use serde_json::json;
use tests::Client;

/// Returns the status codes of so many requests at once.
async fn codes(client: &Client, path: &str, count: usize) -> Vec<u16> {
    let asked = (0..count).map(|_| client.get(path));
    let answers = futures::future::join_all(asked).await;
    answers.iter().map(|answer| answer.status.as_u16()).collect()
}

#[tokio::test]
async fn polls_of_a_build_do_not_count_against_the_rate_of_requests() {
    let (platform, owner) = platform().await;
    let built = owner.build(&runs("web", &["x"])).await;
    let listed = owner.get("/templates").await.expect(200);
    let listed = listed.as_array().unwrap().iter().find(|one| one["aliases"][0] == "web").unwrap();
    let template = listed["templateID"].as_str().unwrap();
    let status = format!("/templates/{template}/builds/{}/status?logsOffset=0", built.id);
    let wanted = json!({ "name": "slow", "limits": { "requests_per_sec": 1 } });
    let made = owner.post("/v1/api-keys", &wanted).await.expect(201);
    let key = platform.client_with(made["key"].as_str().unwrap());
    // The key's rate would let two of these through.
    assert_eq!(codes(&key, &status, 60).await, [200; 60]);
    // The polls used up nothing of the rate, which still holds for other requests.
    assert_eq!(key.get("/v1/builds").await.status, 200);
    let others = codes(&key, "/v1/builds", 20).await;
    assert!(others.contains(&429), "{others:?}");
    assert_eq!(codes(&key, &status, 5).await, [200; 5]);
    // A poll needs a key all the same, and one of the build's team.
    let anyone = platform.client_with("");
    assert_eq!(anyone.get(&status).await.status, 401);
    let stranger = crate::auth::other_team(&platform).await;
    let answer = stranger.get(&status).await;
    assert!([403, 404].contains(&answer.status.as_u16()), "{} {}", answer.status, answer.body);
    platform.finish();
}
