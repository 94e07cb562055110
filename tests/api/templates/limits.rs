//! Limits of builds and templates, and repeated requests.

use super::{limit, number, platform, runs, team};
use reqwest::Method;
use serde_json::json;
use tests::Client;

#[tokio::test]
async fn builds_at_once_stop_at_the_team_limit_with_the_text_that_clients_wait_for() {
    let (platform, client) = platform().await;
    limit(&client, &client, json!({ "builds": 1 })).await;
    let first = client.begin(&runs("one", &["sleep 3"])).await;
    let text = "you have reached the maximum number of concurrent template builds (1)";
    client.post("/v1/builds", &runs("two", &["x"])).await.refuses(429, "too_many_builds", text);
    let e2b = client.post("/v3/templates", &json!({ "name": "two" })).await;
    assert_eq!((e2b.status.as_u16(), &e2b.body["code"]), (429, &json!(429)), "{}", e2b.body);
    assert!(e2b.body["message"].as_str().unwrap().starts_with(text), "{}", e2b.body);
    client.ended(&first).await;
    // Clients that wait for that text get through, one after another.
    let others = ["two", "three", "four"].map(|name| patient(&client, name));
    for build in futures::future::join_all(others).await {
        assert_eq!(client.ended(&build).await.body["status"], "ready");
    }
    let refused = number(&platform, "SELECT count(*) FROM templates WHERE name = 'two'").await;
    assert_eq!(refused, 1, "a refused build makes no template");
    platform.finish();
}

/// Asks until the platform takes the build.
async fn patient(client: &Client, name: &str) -> String {
    loop {
        let answer = client.post("/v1/builds", &runs(name, &["x"])).await;
        if answer.status == 201 {
            return answer.body["id"].as_str().unwrap().to_owned();
        }
        assert_eq!(answer.status, 429, "{}", answer.body);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn new_limits_stay_when_a_request_leaves_them_out_and_remove_nothing() {
    let (platform, client) = platform().await;
    client.build(&runs("one", &["x"])).await;
    client.build(&runs("two", &["x"])).await;
    let team = team(&client).await;
    limit(&client, &client, json!({ "templates": 1 })).await;
    client.post("/v1/builds", &runs("three", &["x"])).await.refuses(
        429,
        "limit_reached",
        "template",
    );
    // The team keeps its templates, and builds them anew.
    client.build(&runs("two", &["y"])).await;
    client.create(&json!({ "template": "one" })).await;
    limit(&client, &client, json!({ "capsules": 9 })).await;
    let seen = client.get(&format!("/v1/teams/{team}/limits")).await.expect(200);
    let limits = &seen["limits"];
    assert_eq!((&limits["templates"], &limits["capsules"]), (&json!(1), &json!(9)), "{seen}");
    client.post("/v1/builds", &runs("three", &["x"])).await.refuses(
        429,
        "limit_reached",
        "template",
    );
    platform.finish();
}

#[tokio::test]
async fn repeated_request_with_an_idempotency_key_is_one_build() {
    let (platform, client) = platform().await;
    let ask = |name: &str| {
        let asked = client.request(Method::POST, "/v1/builds").header("idempotency-key", "once");
        client.send(asked.json(&runs(name, &["x"])))
    };
    let (first, second) = tokio::join!(ask("web"), ask("web"));
    let ids: Vec<_> = [first, second]
        .into_iter()
        .filter(|answer| answer.status == 201)
        .map(|answer| answer.body["id"].clone())
        .collect();
    assert!(!ids.is_empty());
    let third = ask("web").await.expect(201);
    assert!(ids.iter().all(|id| *id == third["id"]), "{ids:?}");
    assert_eq!(number(&platform, "SELECT count(*) FROM builds").await, 1);
    let other = ask("other").await;
    assert!(other.status.is_client_error(), "{} {}", other.status, other.body);
    assert_eq!(number(&platform, "SELECT count(*) FROM builds").await, 1);
    client.ended(third["id"].as_str().unwrap()).await;
    platform.finish();
}

#[tokio::test]
async fn request_that_can_never_work_is_refused_with_its_field() {
    let (platform, client) = platform().await;
    let image = json!({ "image": "debian" });
    let run = json!({ "run": { "command": "x" } });
    for (more, field) in [
        (json!({}), "from"),
        (json!({ "from": image, "dockerfile": "FROM a" }), "from"),
        (json!({ "from": image, "steps": [{ "fly": 1 }] }), "steps[0]"),
        (
            json!({ "from": image, "steps": [run, { "run": { "command": "x" }, "user": "y" }] }),
            "steps[1]",
        ),
        (json!({ "dockerfile": "FROM debian\nFLY me" }), "dockerfile"),
        (json!({ "dockerfile": "RUN x" }), "dockerfile"),
        (json!({ "from": image, "colour": 1 }), "colour"),
        (json!({ "from": image, "vcpus": 0 }), "vcpus"),
        (json!({ "from": image, "start_each": true }), "start_each"),
        (json!({ "from": image, "ready_within_sec": 0 }), "ready_within_sec"),
        (json!({ "from": image, "pull": "never" }), "pull"),
        (json!({ "from": image, "env": { "A=B": "c" } }), "env"),
        (json!({ "from": image, "workdir": "here" }), "workdir"),
        (json!({ "from": { "image": "UP/Case" } }), "image 'UP/Case'"),
        (json!({ "dockerfile": "FROM UP/Case" }), "image 'UP/Case'"),
    ] {
        let mut body = json!({ "name": "web" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = client.post("/v1/builds", &body).await;
        answer.refuses(400, "invalid_request", field);
    }
    let hash = "a".repeat(64);
    let copy = json!({ "copy": { "sources": ["a"], "dest": "/a", "files": hash } });
    let absent = json!({ "name": "web", "from": image, "steps": [copy] });
    client.post("/v1/builds", &absent).await.refuses(400, "files_missing", &hash);
    assert_eq!(number(&platform, "SELECT count(*) FROM builds").await, 0);
    platform.finish();
}
