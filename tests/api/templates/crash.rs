//! `kill -9` of the control plane and the host at each named step of a build. The build ends, its log
//! has no gap, nothing of it is left, and the next build is ready.

use super::{is_quiet, number, platform, runs};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tests::{Client, Platform, eventually};
use types::SnapshotId;

/// Lets the platform die at a step of a build, and starts it again. The request may have no answer.
async fn die_at(platform: &mut Platform, step: &str, body: &Value) -> Client {
    platform.kill();
    platform.set_var("WRENN_DIE_AT", Some(step));
    platform.resume().await;
    let request = platform.client().request(reqwest::Method::POST, "/v1/builds").json(body);
    let _ = request.send().await;
    platform.wait_dead();
    platform.set_var("WRENN_DIE_AT", None);
    platform.resume().await;
    platform.client()
}

/// Waits until every build of a template has ended. Returns the newest.
async fn newest(client: &Client, name: &str) -> Value {
    eventually("all builds have ended", async || {
        let page = client.get(&format!("/v1/builds?template={name}")).await.expect(200);
        let items = page["items"].as_array().unwrap().clone();
        let ended = |item: &Value| matches!(item["status"].as_str(), Some("ready" | "error"));
        items.iter().all(ended).then(|| items.first().cloned())?
    })
    .await
}

/// Checks that the host has a version for each ready build, and nothing of other builds.
#[allow(clippy::print_stdout, reason = "a test that fails shows the last look")]
async fn is_consistent(platform: &Platform) {
    is_quiet(platform).await;
    eventually("versions are those of the ready builds", async || {
        let names = |at: &str| -> Vec<String> {
            let entries =
                std::fs::read_dir(platform.dir().join(at)).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
        };
        let versions = names("images/templates").iter().filter(|name| *name != "base").count();
        let ready = number(platform, "SELECT count(*) FROM builds WHERE status = 'ready'").await;
        let rows = number(platform, "SELECT count(*) FROM host_versions").await;
        let under_way = names("builds");
        let fits = i64::try_from(versions).unwrap() == ready && rows == ready;
        if !fits || !under_way.is_empty() {
            println!("{versions} versions, {ready} ready, {rows} rows, {under_way:?}");
        }
        (fits && under_way.is_empty()).then_some(())
    })
    .await;
}

/// Kills the platform at each of the steps. Builds for the last steps fail by themselves.
#[allow(clippy::print_stdout, reason = "a test that fails shows the last step")]
async fn crash_at(steps: &[&str], last: &str) {
    let (mut platform, _) = platform().await;
    for step in steps {
        let body = runs("web", &["shared", step, last]);
        let client = die_at(&mut platform, step, &body).await;
        let ended = newest(&client, "web").await;
        println!("{step}: {} {}", ended["status"], ended["error"]);
        // `lines` checks that the log has no gap.
        let lines = client.lines(ended["id"].as_str().unwrap()).await;
        let doubled = lines.iter().filter(|line| line.ends_with("[stdout]: shared")).count();
        assert!(doubled <= 1, "{step}: {lines:?}");
        is_consistent(&platform).await;
        let next = client.build(&runs("web", &["shared", step, "well"])).await;
        let id = client.create(&json!({ "template": format!("web@{}", next.id) })).await;
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
        is_consistent(&platform).await;
    }
    platform.finish();
}

#[tokio::test]
async fn crash_at_any_step_until_the_guest_runs_leaves_nothing() {
    let steps = [
        "control.build.place",
        "control.build.placed",
        "control.build.begin",
        "control.build.begun",
        "build.prepared",
        "control.build.create",
        "control.build.created",
        "control.build.run",
        "control.build.running",
    ];
    crash_at(&steps, "end").await;
}

#[tokio::test]
async fn crash_at_any_step_while_steps_run_or_are_kept_leaves_nothing() {
    let steps = [
        "build.step",
        "control.build.events",
        "control.build.stored",
        "build.close",
        "build.layer.staged",
        "build.layer.installed",
        "build.version.staged",
        "build.version.installed",
        "build.end",
        "control.build.complete",
        "control.build.completed",
    ];
    crash_at(&steps, "end").await;
}

#[tokio::test]
async fn crash_at_any_step_of_a_failure_leaves_nothing() {
    let steps = ["control.build.fail", "control.build.failing", "control.build.failed"];
    crash_at(&steps, "exit 1").await;
}

/// Waits until the rows and folders of snapshots are those of the versions. Snapshots that no build
/// names are made old first.
#[allow(clippy::print_stdout, reason = "a test that fails shows the last look")]
async fn has_only_snapshots_of_versions(platform: &Platform) {
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let age = "UPDATE snapshots SET updated_at = now() - interval '1 hour' \
               WHERE NOT EXISTS (SELECT 1 FROM builds b WHERE b.snapshot_id = snapshots.id)";
    sqlx::query(age).execute(&mut db).await.unwrap();
    let ready = "SELECT count(*) FROM builds WHERE status = 'ready' AND snapshot_id IS NOT NULL";
    eventually("snapshots are those of the versions", async || {
        let entries = std::fs::read_dir(platform.dir().join("snapshots")).into_iter().flatten();
        let names = entries.flatten().map(|entry| entry.file_name().into_string().unwrap());
        let folders = names.filter(|name| name.parse::<SnapshotId>().is_ok()).count();
        let folders = i64::try_from(folders).unwrap();
        let rows = number(platform, "SELECT count(*) FROM snapshots").await;
        let versions = number(platform, ready).await;
        println!("{folders} folders, {rows} rows, {versions} versions");
        (folders == versions && rows == versions).then_some(())
    })
    .await;
}

#[tokio::test]
#[allow(clippy::print_stdout, reason = "a test that fails shows the last step")]
async fn crash_while_a_capsule_becomes_a_version_leaves_no_other_snapshot() {
    let (mut platform, client) = platform().await;
    let id = client.create(&json!({})).await;
    let body = json!({ "name": "warm", "from": { "capsule": { "id": id, "memory": true } } });
    let steps =
        ["control.build.capture", "snapshot.renamed", "control.snapshot", "control.build.complete"];
    for step in steps {
        let client = die_at(&mut platform, step, &body).await;
        let ended = newest(&client, "warm").await;
        println!("{step}: {} {}", ended["status"], ended["error"]);
        assert!(ended["status"] == "ready" || ended["error"]["message"].is_string(), "{ended}");
        is_quiet(&platform).await;
        has_only_snapshots_of_versions(&platform).await;
        // The capsule runs on, and a later build captures it.
        eventually("the capsule runs", async || {
            (client.status(&id).await == "running").then_some(())
        })
        .await;
        let next = client.build(&body).await;
        let restored = client.create(&json!({ "template": format!("warm@{}", next.id) })).await;
        client.delete(&format!("/v1/capsules/{restored}")).await.expect(204);
        has_only_snapshots_of_versions(&platform).await;
    }
    platform.finish();
}
