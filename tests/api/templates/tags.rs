//! Tags of templates: lists of assignments, of which the newest with a ready build counts.

use super::{limit, number, platform, resolve, runs};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tests::Client;

#[tokio::test]
async fn later_request_for_a_tag_wins_even_if_it_ends_first() {
    let (platform, client) = platform().await;
    let slow = client.begin(&runs("web:v1", &["sleep 3"])).await;
    assert_eq!(resolve(&client, "web", "v1").await, None, "no build is ready");
    let quick = client.build(&runs("web:v1", &["quick"])).await.id;
    assert_eq!(resolve(&client, "web", "v1").await.as_ref(), Some(&quick));
    assert_eq!(client.ended(&slow).await.body["status"], "ready");
    assert_eq!(resolve(&client, "web", "v1").await.as_ref(), Some(&quick));
    // A build that fails takes no tag over.
    client.attempt(&runs("web:v1", &["exit 1"])).await.failed("1", "exit status 1");
    assert_eq!(resolve(&client, "web", "v1").await.as_ref(), Some(&quick));
    // The older version stays reachable, and may get the tag back.
    let by_id = client.create(&json!({ "template": format!("web@{slow}") })).await;
    client.delete(&format!("/v1/capsules/{by_id}")).await.expect(204);
    let back = json!({ "version": slow, "tags": ["v1", "default"] });
    assert!(client.post("/v1/templates/web/tags", &back).await.status.is_success());
    assert_eq!(resolve(&client, "web", "v1").await.as_ref(), Some(&slow));
    assert_eq!(client.get("/v1/templates/web").await.expect(200)["version"], slow.as_str());
    // A deleted tag is gone. Its older assignments do not come back.
    client.delete("/v1/templates/web/tags/v1").await.expect(204);
    assert_eq!(resolve(&client, "web", "v1").await, None);
    let gone = client.post("/v1/capsules", &json!({ "template": "web:v1" })).await;
    gone.refuses(404, "no_version", "v1");
    client.create(&json!({ "template": "web" })).await;
    let tags = client.get("/v1/templates/web/tags").await.expect(200);
    assert!(tags["items"].as_array().unwrap().iter().all(|tag| tag["tag"] != "v1"), "{tags}");
    assert_eq!(client.delete("/v1/templates/web/tags/default").await.status, 400);
    platform.finish();
}

#[tokio::test]
async fn names_and_tags_out_of_form_are_refused_with_their_field() {
    let (platform, client) = platform().await;
    for (name, field) in
        [("", "name"), (":x", "name"), ("web:", "name"), ("a b", "name"), ("web:A b", "name")]
    {
        client.post("/v1/builds", &runs(name, &["x"])).await.refuses(400, "invalid_request", field);
    }
    let built = client.build(&runs("Web.App", &["x"])).await;
    assert_eq!(built.body["tags"], json!(["default"]));
    let path = "/v1/templates/Web.App/tags";
    for tags in [json!([]), json!(["A"]), json!([built.id])] {
        let body = json!({ "version": "default", "tags": tags });
        client.post(path, &body).await.refuses(400, "invalid_request", "tags");
    }
    let body = json!({ "version": "none", "tags": ["a"] });
    client.post(path, &body).await.refuses(404, "no_version", "none");
    // A template of the operator's is nobody's to tag or to build over.
    client.post("/v1/builds", &runs("base", &["x"])).await.refuses(409, "name_reserved", "base");
    platform.finish();
}

/// Asks for a build of some tags. Returns its id, and its end by the test's wish.
async fn ask(
    client: &Client,
    rng: &mut rand::rngs::StdRng,
    round: usize,
) -> (String, bool, Vec<&'static str>) {
    let all: [&[&'static str]; 4] = [&["a"], &["b"], &["a", "b"], &["b", "c"]];
    let tags = all.choose(rng).unwrap().to_vec();
    let good = rng.random_bool(0.6);
    let end = if good { format!("good {round}") } else { "exit 1".to_owned() };
    let wait = format!("sleep {}", rng.random_range(0..3));
    let mut body = runs("model", &[&wait, &end]);
    body["tags"] = json!(tags);
    (client.begin(&body).await, good, tags)
}

#[tokio::test]
async fn tags_follow_the_rule_in_random_orders() {
    let (platform, client) = platform().await;
    limit(&client, &client, json!({ "builds": 50 })).await;
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    let mut asked = Vec::new();
    for round in 0..16 {
        asked.push(ask(&client, &mut rng, round).await);
        if round % 4 == 3 {
            // Some builds have ended by now, and others have not.
            let (id, ..) = asked.choose(&mut rng).unwrap();
            client.ended(id).await;
        }
    }
    for (id, good, _) in &asked {
        let wanted = if *good { "ready" } else { "error" };
        assert_eq!(client.ended(id).await.body["status"], wanted, "seed {seed}");
    }
    for tag in ["a", "b", "c", "never"] {
        let newest = asked.iter().rev().find(|(_, good, tags)| *good && tags.contains(&tag));
        let newest = newest.map(|(id, ..)| id.clone());
        assert_eq!(resolve(&client, "model", tag).await, newest, "tag {tag}, seed {seed}");
    }
    let live = "SELECT count(*) FROM builds WHERE status NOT IN ('ready', 'error')";
    assert_eq!(number(&platform, live).await, 0);
    platform.finish();
}
