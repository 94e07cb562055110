//! Pauses, resumes, forks and snapshots: the answer of each, in any order and at any moment.

use crate::auth::other_team;
use crate::capsule;
use rand::Rng;
use reqwest::Method;
use serde_json::json;
use sqlx::{Connection, PgConnection};
use std::collections::BTreeSet;
use std::time::Duration;
use tests::{Client, Driver, Platform, Upstream, eventually, processes_of};
use types::{CapsuleState, SnapshotId};

#[tokio::test]
async fn pause_and_resume_are_idempotent() {
    let (platform, client, id) = capsule().await;
    for _ in 0..2 {
        client.pause(&id).await;
        assert!(processes_of(&id).is_empty());
    }
    let exec = format!("/v1/capsules/{id}/exec");
    client.post(&exec, &json!({ "cmd": "true" })).await.refuses(409, "capsule_paused", "paused");
    let proxied = client.send(client.to_port(Method::GET, &id, 80, "/")).await;
    assert_eq!(proxied.status, 409, "{}", proxied.body);
    let files = format!("/v1/capsules/{id}/files?path=/tmp/x");
    client.get(&files).await.refuses(409, "capsule_paused", "paused");
    assert!(client.get(&format!("/v1/capsules/{id}/logs")).await.status.is_success());
    for _ in 0..2 {
        client.resume(&id).await;
    }
    assert_eq!(client.out(&id, "echo up").await, "up\n");
    client.pause(&id).await;
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    for what in ["pause", "resume", "fork", "timeout", "ping"] {
        let path = format!("/v1/capsules/{id}/{what}");
        client.post(&path, &json!({})).await.refuses(404, "not_found", "capsule");
    }
    platform.finish();
}

#[tokio::test]
async fn wrong_input_names_its_field_and_changes_nothing() {
    let (platform, client, id) = capsule().await;
    let path = |what: &str| format!("/v1/capsules/{id}/{what}");
    for (path, body, holding) in [
        (path("pause"), json!({ "memory": 1 }), "memory"),
        (path("pause"), json!({ "memori": true }), "memori"),
        (path("resume"), json!({ "lifetime": 0 }), "lifetime"),
        (path("resume"), json!({ "snapshot": 0 }), "snapshot"),
        (path("resume"), json!({ "snapshot": 1 }), "pause it first"),
        (path("fork"), json!({ "count": 0 }), "count"),
        (path("fork"), json!({ "count": 101 }), "count"),
        (path("fork"), json!({ "lifetime": 99_999_999 }), "lifetime"),
        (path("timeout"), json!({ "lifetime": 99_999_999 }), "lifetime"),
        (path("timeout"), json!({ "on_timeout": "explode" }), "on_timeout"),
        (path("timeout"), json!({ "idle_timeout": -1 }), "idle_timeout"),
        ("/v1/capsules".to_owned(), json!({ "lifetime": 0 }), "lifetime"),
        ("/v1/capsules".to_owned(), json!({ "on_timeout": "" }), "on_timeout"),
        ("/v1/snapshots".to_owned(), json!({}), "capsule_id"),
        ("/v1/snapshots".to_owned(), json!({ "capsule_id": "x" }), "capsule_id"),
        ("/v1/snapshots".to_owned(), json!({ "capsule_id": id, "name": "a b" }), "name"),
        (
            "/v1/snapshots".to_owned(),
            json!({ "capsule_id": id, "name": "snap-0000000000000000000000001" }),
            "name",
        ),
    ] {
        client.post(&path, &body).await.refuses(400, "invalid_request", holding);
    }
    let base = json!({ "capsule_id": id, "name": "base" });
    client.post("/v1/snapshots", &base).await.refuses(409, "conflict", "template");
    let list = client.get("/v1/capsules").await.expect(200);
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert_eq!(list["items"][0]["status"], "running");
    assert_eq!(client.get("/v1/snapshots").await.expect(200)["items"], json!([]));
    platform.finish();
}

#[tokio::test]
async fn snapshots_are_paged_and_visible_to_their_team_only() {
    let (platform, client, id) = capsule().await;
    client.pause(&id).await;
    let mut names = Vec::new();
    for name in ["a", "b", "c"] {
        let body = json!({ "capsule_id": id, "name": name });
        let taken = client.post("/v1/snapshots", &body).await.expect(201);
        assert_eq!((&taken["capsule_id"], &taken["name"]), (&json!(id), &json!(name)));
        names.push(name);
    }
    let unnamed = client.post("/v1/snapshots", &json!({ "capsule_id": id })).await.expect(201);
    assert_eq!(unnamed["name"], unnamed["id"]);
    let (mut seen, mut next) = (Vec::new(), String::new());
    for _ in 0..2 {
        let page = client.get(&format!("/v1/snapshots?limit=2{next}")).await.expect(200);
        seen.extend(page["items"].as_array().unwrap().iter().map(|one| one["name"].clone()));
        next = page["next"].as_str().map(|id| format!("&before={id}")).unwrap_or_default();
    }
    assert_eq!(next, "");
    assert_eq!(seen, [unnamed["id"].clone(), json!("c"), json!("b"), json!("a")]);
    let stranger = other_team(&platform).await;
    let secret = unnamed["id"].as_str().unwrap();
    for name in ["a", secret] {
        let path = format!("/v1/snapshots/{name}");
        stranger.get(&path).await.refuses(404, "not_found", "snapshot");
        stranger.delete(&path).await.refuses(404, "not_found", "snapshot");
        let made = stranger.post("/v1/capsules", &json!({ "template": name })).await;
        made.refuses(404, "not_found", "template");
    }
    let taken = stranger.post("/v1/snapshots", &json!({ "capsule_id": id })).await;
    taken.refuses(404, "not_found", "capsule");
    assert_eq!(stranger.get("/v1/snapshots").await.expect(200)["items"], json!([]));
    let child = client.create(&json!({ "template": "b" })).await;
    let wrong = client.post("/v1/capsules", &json!({ "template": "b", "memory_mib": 300 })).await;
    wrong.refuses(400, "invalid_request", "memory_mib");
    assert_eq!(client.out(&child, "echo up").await, "up\n");
    for name in ["a", "b", "c", secret] {
        client.delete(&format!("/v1/snapshots/{name}")).await.expect(204);
    }
    let left = std::fs::read_dir(platform.dir().join("snapshots")).unwrap().count();
    assert_eq!(left, 0);
    platform.finish();
}

#[tokio::test]
async fn pause_drains_short_commands_and_interrupts_long_ones() {
    let (platform, client, id) = capsule().await;
    let exec = |seconds: &str| {
        let body = json!({ "cmd": "sleep", "args": [seconds] });
        let (client, path) = (client.clone(), format!("/v1/capsules/{id}/exec"));
        tokio::spawn(async move { client.post(&path, &body).await })
    };
    let (short, long) = (exec("0.7"), exec("100"));
    eventually("both run", || async {
        let list = client.get(&format!("/v1/capsules/{id}/processes")).await.expect(200);
        (list["processes"].as_array().unwrap().len() == 2).then_some(())
    })
    .await;
    let pause = {
        let (client, id) = (client.clone(), id.clone());
        tokio::spawn(async move { client.pause(&id).await })
    };
    assert_eq!(short.await.unwrap().expect(200)["exit_code"], 0);
    long.await.unwrap().refuses(409, "capsule_interrupted", "paused");
    pause.await.unwrap();
    platform.finish();
}

/// A failed pause leaves the capsule running, whatever the reason and whoever asked.
#[tokio::test]
async fn failed_pause_leaves_capsule_running() {
    let (mut platform, _, id) = capsule().await;
    for step in [
        "pause.drained",
        "pause.frozen",
        "pause.saved",
        "pause.written",
        "snapshot.staged",
        "snapshot.renamed",
    ] {
        platform.stop();
        platform.set_var("WRENN_FAIL_AT", Some(step));
        platform.resume().await;
        let client = platform.client();
        let failed = client.post(&format!("/v1/capsules/{id}/pause"), &json!({})).await;
        failed.refuses(500, "pause_failed", "keeps running");
        assert_eq!(client.status(&id).await, "running", "{step}");
        assert_eq!(client.out(&id, "echo up").await, "up\n", "{step}");
        let path = format!("/v1/capsules/{id}/timeout");
        // The log covers all rounds. Requests during an attempt may be refused.
        let tried = || platform.log().matches("cannot apply a capsule's timeout").count();
        let before = tried();
        client.post(&path, &json!({ "lifetime": 0 })).await.expect(200);
        eventually("a due pause fails", || async { (tried() > before).then_some(()) }).await;
        assert_eq!(client.status(&id).await, "running", "{step}");
        assert_eq!(client.out(&id, "echo up").await, "up\n", "{step}");
        client.post(&path, &json!({})).await.expect(200);
    }
    platform.stop();
    platform.set_var("WRENN_FAIL_AT", None);
    platform.resume().await;
    platform.client().pause(&id).await;
    platform.client().resume(&id).await;
    platform.finish();
}

#[tokio::test]
async fn concurrent_requests_wake_paused_capsule_once_and_are_served() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let id = client.create(&json!({ "auto_resume": true })).await;
    let upstream = Upstream::echo();
    for round in 0..3 {
        client.pause(&id).await;
        let pausing = if round == 2 {
            // Requests during the pause wait for its end.
            client.resume(&id).await;
            let (client, id) = (client.clone(), id.clone());
            Some(tokio::spawn(async move { client.pause(&id).await }))
        } else {
            None
        };
        let asking = (0..20).map(|n| {
            let (client, id, port) = (client.clone(), id.clone(), upstream.port);
            tokio::spawn(async move {
                if n % 2 == 0 {
                    let answer = client.to_port(Method::GET, &id, port, "/").send().await.unwrap();
                    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
                } else {
                    let answer = client.sh(&id, "echo up").await;
                    assert_eq!(answer["stdout"], "up\n");
                }
            })
        });
        // The pause itself may cut a command, which then reports this. Requests to a paused capsule
        // always succeed.
        let done = futures::future::join_all(asking.collect::<Vec<_>>()).await;
        if let Some(pausing) = pausing {
            let _ = pausing.await;
        } else {
            done.into_iter().for_each(|one| one.unwrap());
            assert_eq!(processes_of(&id).len(), 1);
        }
    }
    platform.finish();
}

/// The host pauses the capsule by itself, so the row says `running` for a while. Requests in that
/// time are sent again once the capsule has woken.
#[tokio::test]
async fn requests_during_pause_by_host_are_served_after_wake() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let wanted = json!({ "auto_resume": true, "timeout": 1, "on_timeout": "pause" });
    let id = client.create(&wanted).await;
    let upstream = Upstream::echo();
    for _ in 0..60 {
        let answer = client.to_port(Method::GET, &id, upstream.port, "/").send().await.unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    platform.finish();
}

/// Several clients act at random on one capsule. Each answer fits, and every move between states is
/// legal. At the end the capsule follows the last request.
#[tokio::test]
async fn random_concurrent_operations_make_only_legal_state_moves() {
    let (platform, client, first) = capsule().await;
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    for sql in [
        "CREATE TABLE moves (n serial, id uuid, before text, after text, generation bigint)",
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         INSERT INTO moves (id, before, after, generation) \
         VALUES (OLD.id, OLD.status, NEW.status, NEW.generation); RETURN NULL; END $$",
        "CREATE TRIGGER note AFTER UPDATE OF status ON capsules \
         FOR EACH ROW EXECUTE FUNCTION note()",
    ] {
        sqlx::query(sql).execute(&mut db).await.unwrap();
    }
    for round in 0..8 {
        let id = if round == 0 { first.clone() } else { client.create(&json!({})).await };
        let clients = (0..6).map(|_| tokio::spawn(history(client.clone(), id.clone())));
        for done in futures::future::join_all(clients).await {
            done.unwrap();
        }
        // The capsule still resumes, whatever happened before.
        client.resume(&id).await;
        assert_eq!(processes_of(&id).len(), 1);
        assert_eq!(client.out(&id, "echo up").await, "up\n");
        client.pause(&id).await;
        assert!(processes_of(&id).is_empty());
        let doomed = {
            let (client, id) = (client.clone(), id.clone());
            tokio::spawn(async move { client.delete(&format!("/v1/capsules/{id}")).await })
        };
        history(client.clone(), id.clone()).await;
        let deleted = doomed.await.unwrap();
        assert!(matches!(deleted.status.as_u16(), 204 | 409), "{}", deleted.body);
        eventually("it is removed", || async {
            let again = client.delete(&format!("/v1/capsules/{id}")).await;
            (again.status == 404).then_some(())
        })
        .await;
        assert!(processes_of(&id).is_empty(), "a machine without a capsule");
    }
    let moves: Vec<(uuid::Uuid, String, String, i64)> =
        sqlx::query_as("SELECT id, before, after, generation FROM moves ORDER BY n")
            .fetch_all(&mut db)
            .await
            .unwrap();
    assert!(moves.len() > 100, "only {} moves", moves.len());
    let mut generations = BTreeSet::new();
    for (id, before, after, generation) in &moves {
        let (from, to): (CapsuleState, CapsuleState) =
            (before.parse().unwrap(), after.parse().unwrap());
        assert!(from.may_become(to), "{from} to {to}");
        assert!(generations.insert((*id, *generation)), "a generation twice");
    }
    platform.finish();
}

/// Runs a dozen operations in a random order. Each succeeds, or is refused for a fitting reason.
async fn history(client: Client, id: String) {
    for _ in 0..12 {
        let what = rand::rng().random_range(0..4);
        let path = |what: &str| format!("/v1/capsules/{id}/{what}");
        let answer = match what {
            0 => client.post(&path("pause"), &json!({})).await,
            1 => client.post(&path("resume"), &json!({})).await,
            2 => client.post(&path("exec"), &json!({ "cmd": "echo", "args": ["x"] })).await,
            _ => client.get(&format!("/v1/capsules/{id}")).await,
        };
        let (status, code) = (answer.status.as_u16(), answer.body["error"]["code"].as_str());
        let fits = match (what, status) {
            (0, 200) => answer.body["status"].is_string(),
            (1, 200) => answer.body["status"] != "error",
            (2, 200) => answer.body["stdout"] == "x\n",
            (_, 200) => true,
            (_, 404) => code == Some("not_found"),
            (2, 409) => {
                let codes = ["capsule_paused", "capsule_not_running", "capsule_interrupted"];
                code.is_some_and(|code| codes.contains(&code))
            }
            (_, 409) => matches!(code, Some("conflict" | "capsule_not_running")),
            // The capsule is between two states, or being removed.
            (2, 503) => code == Some("guest_unavailable"),
            _ => false,
        };
        assert!(fits, "{what}: {status} {}", answer.body);
    }
}

/// A record of an unknown version, as after a downgrade, destroys no snapshot.
#[tokio::test]
async fn record_of_unknown_version_is_an_error_and_keeps_its_files() {
    let (mut platform, client, id) = capsule().await;
    client.pause(&id).await;
    platform.stop();
    let folder = platform.dir().join(format!("capsules/{id}"));
    let record = std::fs::read(folder.join("capsule.json")).unwrap();
    std::fs::write(folder.join("capsule.json"), r#"{"version":"of tomorrow"}"#).unwrap();
    platform.resume().await;
    let client = platform.client();
    eventually("it is told", || async { (client.status(&id).await == "error").then_some(()) })
        .await;
    assert!(folder.join("kept/1/manifest.json").exists());
    platform.stop();
    std::fs::write(folder.join("capsule.json"), record).unwrap();
    platform.resume().await;
    platform.client().resume(&id).await;
    assert_eq!(platform.client().out(&id, "echo up").await, "up\n");
    platform.finish();
}

/// `kill -9` at each named step of a create, a fork and a removal.
#[tokio::test]
async fn platform_crash_at_any_failpoint_leaves_nothing_half_done() {
    let (mut platform, _, kept) = capsule().await;
    let delete = "DELETE";
    let create = ("POST", "/v1/capsules".to_owned());
    let fork = ("POST", format!("/v1/capsules/{kept}/fork"));
    let steps = [
        ("control.starting", &create),
        ("boot.begun", &create),
        ("boot.wired", &create),
        ("boot.machine", &create),
        ("boot.ready", &create),
        ("snapshot.copied", &fork),
        ("control.forked", &fork),
        ("boot.machine", &fork),
    ];
    for (step, (method, path)) in steps {
        let client = die_at(&mut platform, step, method, path).await;
        rest(&platform, &client, &kept, step).await;
    }
    for step in ["release.killed", "unmake.released"] {
        let doomed = platform.client().create(&json!({})).await;
        let path = format!("/v1/capsules/{doomed}");
        let client = die_at(&mut platform, step, delete, &path).await;
        rest(&platform, &client, &kept, step).await;
        eventually("it is removed", || async {
            (client.status(&doomed).await == "gone").then_some(())
        })
        .await;
        assert!(processes_of(&doomed).is_empty());
    }
    platform.finish();
}

async fn die_at(platform: &mut Platform, step: &str, method: &str, path: &str) -> Client {
    platform.kill();
    platform.set_var("WRENN_DIE_AT", Some(step));
    platform.resume().await;
    let method = method.parse().unwrap();
    let _ = platform.client().request(method, path).json(&json!({})).send().await;
    platform.wait_dead();
    platform.set_var("WRENN_DIE_AT", None);
    platform.resume().await;
    platform.client()
}

/// Waits until every capsule runs, and checks that exactly the expected things exist.
async fn rest(platform: &Platform, client: &Client, kept: &str, step: &str) {
    let items = eventually("every capsule has come to rest", || async {
        let list = client.get("/v1/capsules").await.expect(200);
        let items = list["items"].as_array().unwrap().clone();
        items.iter().all(|item| item["status"] == "running").then_some(items)
    })
    .await;
    let ids: Vec<_> = items.iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect();
    assert!(ids.iter().any(|id| id == kept), "after {step}");
    for id in &ids {
        assert_eq!(processes_of(id).len(), 1, "after {step}");
    }
    let what = format!("only the folders of capsules are left after {step}");
    platform.left_until(&what, |left| left.folders.len() == ids.len()).await;
    assert_eq!(client.get("/v1/snapshots").await.expect(200)["items"], json!([]));
    assert_eq!(client.out(kept, "echo up").await, "up\n", "after {step}");
    for id in ids.iter().filter(|id| *id != kept) {
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    }
}

/// `kill -9` before the name goes over to a new snapshot, and after that change.
#[tokio::test]
async fn crash_during_overwrite_leaves_one_snapshot_of_the_name() {
    let (mut platform, client, id) = capsule().await;
    let body = json!({ "capsule_id": id, "name": "p1", "overwrite": true });
    let mut last = client.post("/v1/snapshots", &body).await.expect(201)["id"].clone();
    for (step, replaced) in [("control.snapshot", false), ("control.replaced", true)] {
        platform.kill();
        platform.set_var("WRENN_DIE_AT", Some(step));
        platform.resume().await;
        let request = platform.client().request(Method::POST, "/v1/snapshots").json(&body);
        let _ = request.send().await;
        platform.wait_dead();
        platform.set_var("WRENN_DIE_AT", None);
        platform.resume().await;
        let client = platform.client();
        let listed = client.get("/v1/snapshots").await.expect(200);
        let items = listed["items"].as_array().unwrap();
        assert!(items.len() == 1 && items[0]["name"] == "p1", "after {step}: {listed}");
        assert_eq!(items[0]["id"] != last, replaced, "after {step}");
        // An interrupted overwrite is removed once it is old.
        let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
        let age = "UPDATE snapshots SET updated_at = now() - interval '1 hour' \
                   WHERE status = 'making' AND name IS NULL";
        let aged = sqlx::query(age).execute(&mut db).await.unwrap().rows_affected();
        assert_eq!(aged, u64::from(!replaced), "after {step}");
        let kept = [items[0]["id"].as_str().unwrap().to_owned()];
        eventually("the rest is removed", || async {
            (snapshots_of(&platform).await == (1, kept.to_vec())).then_some(())
        })
        .await;
        last = client.post("/v1/snapshots", &body).await.expect(201)["id"].clone();
    }
    platform.finish();
}

/// Returns the number of rows of snapshots, and the snapshots that the host has.
async fn snapshots_of(platform: &Platform) -> (i64, Vec<String>) {
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let count = sqlx::query_scalar("SELECT count(*) FROM snapshots");
    let count: i64 = count.fetch_one(&mut db).await.unwrap();
    let folder = std::fs::read_dir(platform.dir().join("snapshots")).unwrap();
    let names = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    (count, names.filter(|name| name.parse::<SnapshotId>().is_ok()).collect())
}
