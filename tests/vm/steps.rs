//! `kill -9` at each named step of a pause, a resume and a snapshot of a real guest. After the
//! restart there is either the running capsule or the complete snapshot with memory and disk.
//! Nothing else is left.

use crate::capsule;
use serde_json::{Value, json};
use std::fs;
use tests::{Client, Platform, eventually, processes_of};

/// Makes the platform die at a step of a request, and starts it again.
async fn die_at(platform: &mut Platform, step: &str, path: &str, body: &Value) -> Client {
    platform.kill();
    platform.set_var("WRENN_DIE_AT", Some(step));
    platform.resume().await;
    let request = platform.client().request(reqwest::Method::POST, path).json(body);
    let _ = request.send().await;
    platform.wait_dead();
    platform.set_var("WRENN_DIE_AT", None);
    platform.resume().await;
    platform.client()
}

/// Waits until a capsule is `running` or `paused`.
async fn rest(client: &Client, id: &str) -> String {
    eventually("it has come to rest", || async {
        let status = client.status(id).await;
        matches!(status.as_str(), "running" | "paused").then_some(status)
    })
    .await
}

/// Checks that only things of one capsule in this state exist.
fn check(platform: &Platform, id: &str, status: &str, step: &str) {
    let running = usize::from(status == "running");
    assert_eq!(processes_of(id).len(), running, "machines after {step}, {status}");
    let there = platform.leftovers();
    let counts = [there.namespaces.len(), there.links.len()];
    assert_eq!(counts, [running; 2], "after {step}, {status}: {there:?}");
    let kept = fs::read_dir(platform.dir().join(format!("capsules/{id}/kept"))).unwrap().flatten();
    let kept: Vec<_> = kept.map(|e| e.file_name().into_string().unwrap()).collect();
    assert!(kept.len() <= 2 && kept.iter().all(|name| !name.ends_with(".new")), "{kept:?}");
    let folder = platform.dir().join(format!("capsules/{id}"));
    assert_eq!(folder.join("disk.ext4").exists(), running == 1, "a disk after {step}");
}

#[tokio::test]
async fn crash_at_any_step_of_pause_loses_nothing() {
    let (mut platform, client, id) = capsule().await;
    client.pause(&id).await;
    client.resume(&id).await;
    let pause = format!("/v1/capsules/{id}/pause");
    let steps = [
        ("control.pausing", "running"),
        ("pause.drained", "running"),
        ("pause.quiesced", "running"),
        ("pause.frozen", "running"),
        ("pause.saved", "running"),
        ("pause.written", "running"),
        ("snapshot.staged", "running"),
        ("snapshot.renamed", "paused"),
        ("pause.committed", "paused"),
        ("release.killed", "paused"),
        ("pause.settled", "paused"),
    ];
    for (round, (step, wanted)) in steps.into_iter().enumerate() {
        let client = platform.client();
        let put = format!("echo {round} > f; echo {round} > /dev/shm/m; cat f /dev/shm/m");
        let written = client.out(&id, &put).await;
        let client = die_at(&mut platform, step, &pause, &json!({})).await;
        let status = rest(&client, &id).await;
        assert_eq!(status, wanted, "after {step}");
        check(&platform, &id, &status, step);
        if status == "paused" {
            client.resume(&id).await;
        }
        assert_eq!(client.out(&id, "cat f /dev/shm/m").await, written, "after {step}");
    }
    platform.finish();
}

#[tokio::test]
async fn crash_at_any_step_of_resume_or_snapshot_loses_nothing() {
    let (mut platform, client, id) = capsule().await;
    client.out(&id, "echo kept > f; echo kept > /dev/shm/m").await;
    client.pause(&id).await;
    let resume = format!("/v1/capsules/{id}/resume");
    for step in ["control.resuming", "boot.begun", "boot.wired", "boot.machine", "boot.ready"] {
        let client = die_at(&mut platform, step, &resume, &json!({})).await;
        let status = rest(&client, &id).await;
        // Before the last step, the host recorded that the guest has everything it needs.
        assert_eq!(status, if step == "boot.ready" { "running" } else { "paused" }, "after {step}");
        check(&platform, &id, &status, step);
        if status == "paused" {
            client.resume(&id).await;
        }
        assert_eq!(client.out(&id, "cat f /dev/shm/m").await, "kept\nkept\n", "after {step}");
        client.pause(&id).await;
    }
    platform.client().resume(&id).await;
    let body = json!({ "capsule_id": id, "name": "mine" });
    for step in ["snapshot.frozen", "snapshot.copied", "snapshot.staged"] {
        let client = die_at(&mut platform, step, "/v1/snapshots", &body).await;
        assert_eq!(rest(&client, &id).await, "running", "after {step}");
        assert_eq!(client.out(&id, "cat f /dev/shm/m").await, "kept\nkept\n", "after {step}");
        let list = client.get("/v1/snapshots").await.expect(200);
        assert_eq!(list["items"], json!([]), "after {step}");
        let names = fs::read_dir(platform.dir().join("snapshots")).unwrap().count();
        assert_eq!(names, 0, "something is left after {step}");
        // The name is taken until the unfinished snapshot is given up.
        client.post("/v1/snapshots", &body).await.refuses(409, "conflict", "name");
        let sql = "UPDATE snapshots SET updated_at = now() - interval '1 hour'";
        sqlx_run(&platform, sql).await;
        eventually("the name is free", || async {
            let other = json!({ "capsule_id": id, "name": "mine" });
            let taken = client.post("/v1/snapshots", &other).await;
            (taken.status == 201).then_some(())
        })
        .await;
        client.delete("/v1/snapshots/mine").await.expect(204);
    }
    platform.finish();
}

async fn sqlx_run(platform: &Platform, sql: &'static str) {
    use sqlx::{Connection, PgConnection};
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    sqlx::query(sql).execute(&mut db).await.unwrap();
}
