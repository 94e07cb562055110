//! Limits: how much a team and a key may have, and how often they may ask.

use reqwest::Method;
use serde_json::{Value, json};
use tests::{Client, Driver, Platform, eventually};

async fn team(client: &Client) -> String {
    let teams = client.get("/v1/teams").await.expect(200);
    teams["items"][0]["id"].as_str().unwrap().to_owned()
}

async fn set(operator: &Client, team: &str, limits: Value) {
    operator.put(&format!("/v1/admin/teams/{team}/limits"), &limits).await.expect(200);
    // On the other replica, too, where there are two.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
}

#[tokio::test]
async fn of_those_who_ask_at_once_as_many_get_one_as_there_is_room_for() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let team = team(&client).await;
    set(&client, &team, json!({ "capsules": 3 })).await;
    let body = json!({});
    let creates = (0..10).map(|_| client.post("/v1/capsules", &body));
    let made = futures::future::join_all(creates).await;
    let (good, bad): (Vec<_>, Vec<_>) = made.into_iter().partition(|a| a.status == 201);
    assert_eq!(good.len(), 3);
    for refused in bad {
        refused.refuses(429, "limit_reached", "3 of 3 capsules");
    }
    let seen = client.get(&format!("/v1/teams/{team}/limits")).await.expect(200);
    assert_eq!((&seen["limits"]["capsules"], &seen["capsules"]), (&json!(3), &json!(3)));
    // What is refused makes nothing; what ends makes room.
    let list = client.get("/v1/capsules").await.expect(200);
    assert_eq!(list["items"].as_array().unwrap().len(), 3);
    let id = good[0].body["id"].as_str().unwrap();
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    client.create(&json!({})).await;
    platform.finish();
}

#[tokio::test]
async fn a_paused_capsule_takes_no_processor_and_comes_back_when_there_is_room() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let team = team(&client).await;
    set(&client, &team, json!({ "vcpus": 4, "memory_mb": 2048 })).await;
    let body = json!({ "vcpus": 2, "memory_mb": 1024 });
    let one = client.create(&body).await;
    client.create(&body).await;
    client.post("/v1/capsules", &body).await.refuses(429, "limit_reached", "4 of 4 vCPUs");
    let thin = json!({ "vcpus": 1, "memory_mb": 512 });
    client.post("/v1/capsules", &thin).await.refuses(429, "limit_reached", "vCPUs");
    client.pause(&one).await;
    let third = client.create(&body).await;
    let resume = format!("/v1/capsules/{one}/resume");
    client.post(&resume, &json!({})).await.refuses(429, "limit_reached", "vCPUs");
    assert_eq!(client.status(&one).await, "paused");
    client.pause(&third).await;
    client.resume(&one).await;
    platform.finish();
}

#[tokio::test]
async fn a_key_has_limits_of_its_own_within_its_teams() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let owner = platform.client();
    let wanted = json!({ "name": "k", "limits": { "capsules": 1 } });
    let made = owner.post("/v1/api-keys", &wanted).await.expect(201);
    assert_eq!(made["limits"], json!({ "capsules": 1 }));
    let key = platform.client_with(made["key"].as_str().unwrap());
    let id = key.create(&json!({})).await;
    key.post("/v1/capsules", &json!({})).await.refuses(429, "limit_reached", "the key");
    // A fork is one more.
    let fork = format!("/v1/capsules/{id}/fork");
    key.post(&fork, &json!({})).await.refuses(429, "limit_reached", "the key");
    owner.create(&json!({})).await;
    key.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    key.create(&json!({})).await;
    platform.finish();
}

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_ask_again() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let owner = platform.client();
    let wanted = json!({ "name": "k", "limits": { "requests_per_sec": 2, "creates_per_sec": 1 } });
    let made = owner.post("/v1/api-keys", &wanted).await.expect(201);
    let key = platform.client_with(made["key"].as_str().unwrap());
    let mut statuses = Vec::new();
    for _ in 0..20 {
        let answer = key.request(Method::GET, "/v1/capsules").send().await.unwrap();
        let status = answer.status().as_u16();
        if status == 429 {
            assert_eq!(answer.headers()["retry-after"], "1");
        }
        statuses.push(status);
    }
    assert_eq!(statuses[..4], [200; 4]);
    assert!(statuses.contains(&429), "{statuses:?}");
    // Others of the team are not held up.
    owner.get("/v1/capsules").await.expect(200);
    eventually("it is let in again", async || {
        (key.get("/v1/capsules").await.status.as_u16() == 200).then_some(())
    })
    .await;
    let wanted = json!({ "name": "c", "limits": { "creates_per_sec": 1 } });
    let made = owner.post("/v1/api-keys", &wanted).await.expect(201);
    let key = platform.client_with(made["key"].as_str().unwrap());
    let body = json!({});
    let creates = futures::future::join_all((0..12).map(|_| key.post("/v1/capsules", &body))).await;
    let refused: Vec<_> = creates.into_iter().filter(|answer| answer.status != 201).collect();
    assert!(refused.len() >= 6, "{}", refused.len());
    for answer in refused {
        answer.refuses(429, "too_many_requests", "creates");
    }
    platform.finish();
}

#[tokio::test]
async fn a_stranger_asks_to_come_in_only_so_often() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let anyone = platform.client_with("");
    let asked = (0..200).map(|_| anyone.get("/v1/auth/providers"));
    let answers = futures::future::join_all(asked).await;
    let refused: Vec<_> = answers.into_iter().filter(|answer| answer.status != 200).collect();
    assert!(refused.len() > 50, "{}", refused.len());
    for answer in refused {
        answer.refuses(429, "too_many_requests", "requests");
    }
    // Who has shown who they are is not held up.
    platform.client().get("/v1/capsules").await.expect(200);
    platform.finish();
}

#[tokio::test]
async fn the_platforms_limits_are_everyones_who_has_none_set() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let operator = platform.client();
    let (team, platforms) = (team(&operator).await, format!("team-{}", "0".repeat(25)));
    let seen = operator.get(&format!("/v1/teams/{team}/limits")).await.expect(200);
    assert_eq!(seen["limits"]["capsules"], 1000);
    set(&operator, &platforms, json!({ "capsules": 1, "vcpus": 0 })).await;
    operator.create(&json!({})).await;
    operator.post("/v1/capsules", &json!({})).await.refuses(
        429,
        "limit_reached",
        "1 of 1 capsules",
    );
    set(&operator, &team, json!({ "capsules": 2 })).await;
    operator.create(&json!({})).await;
    operator.post("/v1/capsules", &json!({})).await.refuses(
        429,
        "limit_reached",
        "2 of 2 capsules",
    );
    let path = "/v1/admin/teams/team-0000000000000000000000001/limits";
    operator.put(path, &json!({})).await.refuses(404, "not_found", "team");
    let path = format!("/v1/admin/teams/{team}/limits");
    operator.put(&path, &json!({ "capsules": 3_000_000_000_u32 })).await.refuses(
        400,
        "invalid_request",
        "capsules",
    );
    operator.put(&path, &json!({ "colour": 1 })).await.refuses(400, "invalid_request", "colour");
    platform.finish();
}
