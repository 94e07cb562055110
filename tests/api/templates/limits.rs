//! Limits of builds and templates, and repeated requests.

use super::{limit, number, platform, runs, team};
use reqwest::Method;
use serde_json::json;
use sqlx::{Connection, PgConnection};
use std::fs::File;
use std::path::PathBuf;
use tests::{Answer, Client, Platform};

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
async fn builds_stop_at_the_storage_of_templates_and_a_deletion_makes_room() {
    let (platform, client) = platform().await;
    let path = format!("/v1/teams/{}/limits", team(&client).await);
    limit(&client, &client, json!({ "template_mib": 1 })).await;
    let declared = client.post("/v3/templates", &json!({ "name": "late" })).await.expect(202);
    let first = client.build(&runs("one", &["x"])).await;
    let seen = client.get(&path).await.expect(200);
    assert_eq!((&seen["limits"]["template_mib"], &seen["template_mib"]), (&json!(1), &json!(1)));
    let text = "1 of 1 MiB of templates are in use";
    for name in ["one", "two"] {
        client.post("/v1/builds", &runs(name, &["y"])).await.refuses(429, "limit_reached", text);
    }
    let e2b = client.post("/v3/templates", &json!({ "name": "two" })).await;
    assert_eq!(e2b.status, 429, "{}", e2b.body);
    assert!(e2b.body["message"].as_str().unwrap().contains(text), "{}", e2b.body);
    // A build that was declared before is not begun either, and waits on.
    let [template, build] = ["templateID", "buildID"].map(|id| declared[id].as_str().unwrap());
    let begin = format!("/v2/templates/{template}/builds/{build}");
    let late = client.post(&begin, &json!({ "fromTemplate": "base" })).await;
    assert_eq!(late.status, 429, "{}", late.body);
    assert!(late.body["message"].as_str().unwrap().contains(text), "{}", late.body);
    // Nothing that exists is lost: the version serves, and a capsule may run.
    let id = client.create(&json!({ "template": format!("one@{}", first.id) })).await;
    let captured = json!({ "name": "two", "from": { "capsule": { "id": id, "memory": true } } });
    client.post("/v1/builds", &captured).await.refuses(429, "limit_reached", text);
    assert_eq!(number(&platform, "SELECT count(*) FROM builds").await, 2);
    // The limit stays when a request leaves it out, and a deletion makes room.
    limit(&client, &client, json!({ "capsules": 9 })).await;
    client.post("/v1/builds", &runs("two", &["y"])).await.refuses(429, "limit_reached", text);
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    client.delete("/v1/templates/one").await.expect(204);
    client.build(&runs("two", &["y"])).await;
    // Zero lifts the limit.
    limit(&client, &client, json!({ "template_mib": 0 })).await;
    client.build(&runs("three", &["z"])).await;
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

async fn upload(client: &Client, hash: &str) -> Answer {
    let asked = client.request(Method::PUT, &format!("/v1/builds/files/{hash}"));
    client.send(asked.body("a")).await
}

/// Returns the path of the only team's archive on the host.
async fn archive(platform: &Platform, client: &Client, hash: &str) -> PathBuf {
    platform.dir().join("files").join(team(client).await).join(hash)
}

/// Makes an archive as large as this for host and database, without any room on the disk.
async fn grow(platform: &Platform, client: &Client, hash: &str, gib: u32) {
    let bytes = u64::from(gib) << 30;
    let path = archive(platform, client, hash).await;
    File::options().write(true).open(path).unwrap().set_len(bytes).unwrap();
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let sql = "UPDATE build_files SET bytes = $2 WHERE hash = $1";
    let grown = sqlx::query(sql).bind(hash).bind(i64::try_from(bytes).unwrap());
    assert_eq!(grown.execute(&mut db).await.unwrap().rows_affected(), 1);
}

#[tokio::test]
async fn upload_at_the_limit_removes_the_oldest_files_that_no_build_uses() {
    let (platform, client) = platform().await;
    let [used, old, recent, first, second] = [1, 2, 3, 4, 5].map(|n: u8| format!("{n:064x}"));
    let has = async |hash: &str| {
        let seen = client.get(&format!("/v1/builds/files/{hash}")).await;
        let is_there = archive(&platform, &client, hash).await.exists();
        assert_eq!(is_there, seen.status == 200, "{hash}: {}", seen.body);
        is_there
    };
    for hash in [&used, &old, &recent] {
        upload(&client, hash).await.expect(200);
        grow(&platform, &client, hash, 4).await;
    }
    let mut body = runs("web", &["sleep 1000"]);
    let copy = json!({ "copy": { "sources": ["a"], "dest": "/a", "files": used } });
    body["steps"].as_array_mut().unwrap().push(copy);
    let id = client.begin(&body).await;
    client.logged(&id, "RUN sleep 1000").await;
    // The build keeps its files, although they are the oldest.
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let sql = "UPDATE build_files SET used_at = now() - interval '1 day' WHERE hash = $1";
    sqlx::query(sql).bind(&used).execute(&mut db).await.unwrap();
    upload(&client, &first).await.expect(200);
    for (hash, stays) in [(&used, true), (&old, false), (&recent, true), (&first, true)] {
        assert_eq!(has(hash).await, stays, "{hash}");
    }
    // An upload that cannot fit removes nothing.
    grow(&platform, &client, &used, 10).await;
    upload(&client, &second).await.refuses(429, "limit_reached", "uploaded files");
    for (hash, stays) in [(&used, true), (&recent, true), (&first, true), (&second, false)] {
        assert_eq!(has(hash).await, stays, "{hash}");
    }
    client.cancel(&id).await.expect(200);
    client.ended(&id).await;
    upload(&client, &second).await.expect(200);
    for (hash, stays) in [(&used, false), (&recent, true), (&first, true), (&second, true)] {
        assert_eq!(has(hash).await, stays, "{hash}");
    }
    platform.finish();
}
