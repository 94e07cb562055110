//! Names of capsules: rules, uniqueness, names in place of ids, and names of forks. Creators,
//! parents and lineage of capsules.

use crate::auth::other_team;
use crate::capsule;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tests::{Client, Driver, Platform};

/// Starts a platform with a client.
async fn platform() -> (Platform, Client) {
    let platform = Platform::start(Driver::Fake, &[("WRENN_MEMORY_MIB", "100000")]).await;
    let client = platform.client();
    (platform, client)
}

/// Returns the body of a create with a name.
fn named(name: &str) -> Value {
    json!({ "name": name, "memory_mib": 128 })
}

/// Forks a capsule, and returns the names of the copies.
async fn fork(client: &Client, capsule: &str, body: &Value) -> Vec<String> {
    let path = format!("/v1/capsules/{capsule}/fork");
    let forked = client.post(&path, body).await.expect(201);
    assert_eq!(forked["errors"], json!([]));
    let names = forked["items"].as_array().unwrap().iter();
    names.map(|item| item["name"].as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn name_stands_for_living_capsule_wherever_an_id_does() {
    let (platform, client) = platform().await;
    let id = client.create(&named("web")).await;
    let seen = client.get("/v1/capsules/web").await.expect(200);
    assert_eq!((&seen["id"], &seen["name"]), (&json!(id), &json!("web")));
    assert_eq!(client.out("web", "echo up").await, "up\n");
    let port = client.get("/v1/capsules/web/ports/80").await.expect(200);
    assert!(port["url"].as_str().unwrap().contains(&id), "{port}");
    client.pause("web").await;
    client.resume("web").await;
    let body = json!({ "capsule_id": "web", "name": "saved" });
    let taken = client.post("/v1/snapshots", &body).await.expect(201);
    assert_eq!(taken["capsule_id"], id.as_str());
    let listed = client.get("/v1/snapshots?capsule_id=web").await.expect(200);
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
    let key = json!({ "name": "k", "capsule": "web" });
    assert_eq!(client.post("/v1/api-keys", &key).await.expect(201)["capsule_id"], id.as_str());
    client.delete("/v1/capsules/web").await.expect(204);
    client.get("/v1/capsules/web").await.refuses(404, "not_found", "capsule");
    client.get("/v1/capsules/nobody").await.refuses(404, "not_found", "capsule");
    platform.finish();
}

#[tokio::test]
async fn name_belongs_to_one_living_capsule_of_its_team() {
    let (platform, client) = platform().await;
    client.create(&named("web")).await;
    let other = client.create(&named("other")).await;
    let told = "another living capsule of the team has the name 'web'";
    client.post("/v1/capsules", &named("web")).await.refuses(409, "name_taken", told);
    let path = format!("/v1/capsules/{other}");
    let rename = json!({ "name": "web", "metadata": { "a": "b" } });
    client.patch(&path, &rename).await.refuses(409, "name_taken", told);
    let kept = client.get(&path).await.expect(200);
    assert_eq!((&kept["name"], &kept["metadata"]), (&json!("other"), &json!({})));
    let fork = client.post(&format!("{path}/fork"), &json!({ "name": "web" })).await;
    fork.refuses(409, "name_taken", told);
    let living = client.get("/v1/capsules").await.expect(200);
    assert_eq!(living["items"].as_array().unwrap().len(), 2, "a refused create left a capsule");
    // Another team has names of its own.
    other_team(&platform).await.create(&named("web")).await;
    client.delete("/v1/capsules/web").await.expect(204);
    client.create(&named("web")).await;
    platform.finish();
}

#[tokio::test]
async fn invalid_name_is_refused() {
    let (platform, client, id) = capsule().await;
    let long = "a".repeat(64);
    for name in ["Web", "-a", "a b", "a_b", "é", "cl", "cl-x", "summary", "metrics", &id, &long] {
        let made = client.post("/v1/capsules", &named(name)).await;
        made.refuses(400, "invalid_request", "name must");
        let changed = client.patch(&format!("/v1/capsules/{id}"), &json!({ "name": name })).await;
        changed.refuses(400, "invalid_request", "name must");
    }
    client.post("/v1/capsules", &named("")).await.refuses(400, "invalid_request", "name must");
    let many = json!({ "name": "x", "count": 2 });
    let forked = client.post(&format!("/v1/capsules/{id}/fork"), &many).await;
    forked.refuses(400, "invalid_request", "name needs a `count` of 1");
    platform.finish();
}

#[tokio::test]
async fn of_concurrent_creates_with_a_name_one_succeeds() {
    let (platform, client) = platform().await;
    let body = named("web");
    let all = (0..8).map(|_| client.post("/v1/capsules", &body));
    let all = futures::future::join_all(all).await;
    let made = all.iter().filter(|answer| answer.status.as_u16() == 201).count();
    assert_eq!(made, 1, "{all:?}");
    for answer in all.into_iter().filter(|answer| answer.status.as_u16() != 201) {
        answer.refuses(409, "name_taken", "web");
    }
    platform.finish();
}

#[tokio::test]
async fn copies_get_next_free_names_also_at_once() {
    let (platform, client) = platform().await;
    client.create(&named("web")).await;
    assert_eq!(fork(&client, "web", &json!({})).await, ["web-2"]);
    client.create(&named("web-4")).await;
    assert_eq!(fork(&client, "web", &json!({})).await, ["web-3"]);
    // A copy of a copy has the same stem.
    assert_eq!(fork(&client, "web-2", &json!({})).await, ["web-5"]);
    client.delete("/v1/capsules/web-3").await.expect(204);
    assert_eq!(fork(&client, "web", &json!({})).await, ["web-3"]);
    assert_eq!(fork(&client, "web", &json!({ "name": "mine" })).await, ["mine"]);
    let four = json!({ "count": 4 });
    let (one, two) =
        futures::future::join(fork(&client, "web", &four), fork(&client, "web", &four)).await;
    let names: BTreeSet<String> = one.into_iter().chain(two).collect();
    let wanted: BTreeSet<String> = (6..14).map(|n| format!("web-{n}")).collect();
    assert_eq!(names, wanted);
    let unnamed = client.create(&json!({ "memory_mib": 128 })).await;
    assert_eq!(fork(&client, &unnamed, &json!({})).await, [""]);
    platform.finish();
}

#[tokio::test]
async fn name_is_hidden_from_other_teams_and_confined_keys() {
    let (platform, client, id) = capsule().await;
    client.create(&named("secret")).await;
    let key = json!({ "name": "one", "capsule": id, "scopes": ["capsules:admin"] });
    let key = client.post("/v1/api-keys", &key).await.expect(201);
    let confined = platform.client_with(key["key"].as_str().unwrap());
    let strangers = [other_team(&platform).await, confined.clone()];
    for stranger in &strangers {
        for name in ["secret", "nobody"] {
            let path = format!("/v1/capsules/{name}");
            stranger.get(&path).await.refuses(404, "not_found", "capsule not found");
            stranger.delete(&path).await.refuses(404, "not_found", "capsule not found");
            let run = stranger.post(&format!("{path}/exec"), &json!({ "cmd": "true" })).await;
            run.refuses(404, "not_found", "capsule not found");
            let rename = stranger.patch(&path, &json!({ "metadata": {} })).await;
            rename.refuses(404, "not_found", "capsule not found");
        }
        let listed = stranger.get("/v1/capsules?name=secret").await.expect(200);
        assert_eq!(listed["items"], json!([]));
    }
    // A refusal of a taken name would tell that it is taken.
    for name in ["secret", "free"] {
        let rename = confined.patch(&format!("/v1/capsules/{id}"), &json!({ "name": name })).await;
        rename.refuses(403, "forbidden", "restricted");
    }
    client.get("/v1/capsules/secret").await.expect(200);
    platform.finish();
}

#[tokio::test]
async fn change_sets_given_fields_and_keeps_the_others() {
    let (platform, client) = platform().await;
    let body = json!({ "name": "web", "metadata": { "a": "b" }, "lifetime": 3600 });
    client.create(&body).await;
    let change = async |body: Value| client.patch("/v1/capsules/web", &body).await.expect(200);
    let before = client.get("/v1/capsules/web").await.expect(200);
    let same = change(json!({})).await;
    assert_eq!(same, before);
    let changed = change(json!({ "auto_resume": true, "idle_timeout": 60 })).await;
    assert_eq!((&changed["auto_resume"], &changed["idle_timeout"]), (&json!(true), &json!(60)));
    assert_eq!(changed["metadata"], json!({ "a": "b" }));
    assert!(changed["ends_at"].is_string(), "{changed}");
    let changed = change(json!({ "metadata": { "c": "d" } })).await;
    assert_eq!((&changed["metadata"], &changed["name"]), (&json!({ "c": "d" }), &json!("web")));
    let renamed = change(json!({ "name": "site" })).await;
    assert_eq!((&renamed["name"], &renamed["auto_resume"]), (&json!("site"), &json!(true)));
    client.get("/v1/capsules/web").await.refuses(404, "not_found", "capsule");
    let unnamed = client.patch("/v1/capsules/site", &json!({ "name": "" })).await.expect(200);
    assert_eq!(unnamed["name"], Value::Null);
    let path = format!("/v1/capsules/{}", unnamed["id"].as_str().unwrap());
    for (body, told) in [
        (json!({ "colour": 1 }), "colour"),
        (json!({ "idle_timeout": 99_999_999 }), "idle_timeout must"),
        (json!({ "metadata": { "a": "x".repeat(17_000) } }), "metadata must"),
    ] {
        client.patch(&path, &body).await.refuses(400, "invalid_request", told);
    }
    platform.finish();
}

#[tokio::test]
async fn capsule_shows_creator_parent_and_times() {
    let (platform, client, id) = capsule().await;
    let user = platform.user("ada@example.com").await;
    let own = user.create(&json!({ "memory_mib": 128 })).await;
    let own = user.get(&format!("/v1/capsules/{own}")).await.expect(200);
    assert_eq!(own["created_by"]["type"], "user", "{own}");
    assert!(own["created_by"]["label"].is_string(), "{own}");
    let path = format!("/v1/capsules/{id}");
    let seen = client.get(&path).await.expect(200);
    assert_eq!(seen["created_by"]["type"], "api_key", "{seen}");
    assert!(seen["created_by"]["id"].as_str().unwrap().starts_with("key-"), "{seen}");
    assert_eq!(seen["parent"]["type"], "template", "{seen}");
    assert!(seen["isolation"].is_string() && seen["last_active_at"].is_string(), "{seen}");
    assert_eq!((&seen["paused_at"], &seen["ended_at"]), (&Value::Null, &Value::Null));
    client.pause(&id).await;
    let paused = client.get(&path).await.expect(200);
    assert_eq!(paused["paused_at"], paused["state_since"], "{paused}");
    assert_ne!(paused["state_since"], seen["state_since"]);
    client.resume(&id).await;
    assert_eq!(client.get(&path).await.expect(200)["paused_at"], Value::Null);
    client.delete(&path).await.expect(204);
    client.get(&path).await.refuses(404, "not_found", "capsule");
    let ended = client.get(&format!("{path}?ended=true")).await.expect(200);
    assert_eq!(ended["status"], "stopped", "{ended}");
    assert_eq!(ended["ended_at"], ended["state_since"], "{ended}");
    let stranger = other_team(&platform).await.get(&format!("{path}?ended=true")).await;
    stranger.refuses(404, "not_found", "capsule");
    platform.finish();
}

#[tokio::test]
async fn lineage_has_origins_copies_and_snapshots() {
    let (platform, client) = platform().await;
    let web = client.create(&named("web")).await;
    fork(&client, "web", &json!({})).await;
    fork(&client, "web-2", &json!({})).await;
    let body = json!({ "capsule_id": "web-2", "name": "saved" });
    let saved = client.post("/v1/snapshots", &body).await.expect(201);
    let child = client.create(&json!({ "template": "saved", "name": "child" })).await;
    let lineage =
        async |name: &str| client.get(&format!("/v1/capsules/{name}/lineage")).await.expect(200);
    let of_child = lineage("child").await;
    let kinds = |list: &Value| -> Vec<String> {
        let list = list.as_array().unwrap().iter();
        list.map(|entry| format!("{} {}", entry["type"], entry["name"]).replace('"', "")).collect()
    };
    let wanted = ["snapshot saved", "capsule web-2", "capsule web", "template base"];
    assert_eq!(kinds(&of_child["parents"]), wanted);
    assert_eq!(of_child["truncated"], false);
    let of_copy = lineage("web-2").await;
    assert_eq!(kinds(&of_copy["children"]), ["capsule child", "capsule web-3"]);
    assert_eq!(kinds(&of_copy["snapshots"]), ["snapshot saved"]);
    assert_eq!(of_copy["children"][0]["parent"]["id"], saved["id"]);
    // Rows of ended capsules keep the chain.
    client.delete("/v1/capsules/web").await.expect(204);
    let after = lineage("child").await;
    assert_eq!(kinds(&after["parents"]), wanted);
    assert_eq!(after["parents"][2]["status"], "stopped");
    let ended = lineage(&web).await;
    assert_eq!(kinds(&ended["children"]), ["capsule web-2"]);
    let stranger = other_team(&platform).await;
    let path = format!("/v1/capsules/{child}/lineage");
    stranger.get(&path).await.refuses(404, "not_found", "capsule");
    platform.finish();
}

#[tokio::test]
async fn erased_user_leaves_no_name_on_capsules() {
    let (platform, client) = platform().await;
    let owner = platform.user("owner@example.com").await;
    let teams = owner.get("/v1/teams").await.expect(200);
    let team = teams["items"][0]["id"].as_str().unwrap().to_owned();
    let (member, user) = platform.member(&owner, &team, "member").await;
    let id = member.in_team(&team).create(&json!({ "memory_mib": 128 })).await;
    let path = format!("/v1/capsules/{id}");
    let seen = owner.in_team(&team).get(&path).await.expect(200);
    assert_eq!(seen["created_by"]["id"], user.as_str(), "{seen}");
    client.delete(&format!("/v1/admin/users/{user}")).await.expect(204);
    let seen = owner.in_team(&team).get(&path).await.expect(200);
    assert_eq!(seen["created_by"], json!({ "type": "user" }));
    platform.finish();
}

#[tokio::test]
async fn commands_take_names_in_place_of_ids() {
    let (platform, client) = platform().await;
    let run = |args: &[&str]| {
        let out = platform.run(&[&["capsule"][..], args].concat());
        assert!(out.status.success(), "{out:?}");
        String::from_utf8(out.stdout).unwrap()
    };
    let id = run(&["create", "--name", "web", "--memory", "128", "--metadata", "job=42"]);
    let id = id.trim();
    assert_eq!(run(&["exec", "web", "-n", "--", "echo", "hi"]), "hi\n");
    assert!(run(&["get", "web"]).contains(id));
    let listed = run(&["list", "-q", "we", "--status", "running", "--metadata", "job=42"]);
    assert!(listed.lines().nth(1).is_some_and(|line| line.contains("web")), "{listed}");
    assert_eq!(run(&["list", "--template", "nosuch"]).lines().count(), 1);
    run(&["rename", "web", "site"]);
    run(&["set", "site", "--metadata", "job=43", "--auto-resume", "true"]);
    let seen = client.get("/v1/capsules/site").await.expect(200);
    assert_eq!((&seen["metadata"], &seen["auto_resume"]), (&json!({ "job": "43" }), &json!(true)));
    run(&["kill", "site"]);
    assert!(run(&["get", id]).contains("stopped"));
    assert!(run(&["list", "--ended", "--sort", "-state_since"]).contains(id));
    let gone = platform.run(&["capsule", "get", "site"]);
    assert!(String::from_utf8_lossy(&gone.stderr).contains("capsule not found"), "{gone:?}");
    platform.finish();
}

/// A name in a path costs a look-up by the unique index. The rest of the path stays as it is.
#[tokio::test]
async fn name_in_a_path_leaves_the_other_parameters_as_they_are() {
    let (platform, client) = platform().await;
    client.create(&named("web")).await;
    let body = json!({ "cmd": "sleep", "args": ["100"], "background": true, "tag": "web" });
    client.post("/v1/capsules/web/exec", &body).await.expect(202);
    client.delete("/v1/capsules/web/processes/web").await.expect(204);
    platform.finish();
}
