//! `kill -9` at each named step of a build on a real guest. Each build ends, nothing of it is left, and
//! the next one is ready. `tests/api` has the steps of the control plane.

use super::{capsule_of, delete, is_quiet, over_app, run, with, workshop};
use serde_json::{Value, json};
use std::time::Duration;
use tests::{Build, Workshop};

/// Lets the platform die at a step of a build, and starts it again. Returns the build at its end.
async fn die_at(workshop: &mut Workshop, step: &str, body: &Value) -> Build {
    workshop.platform.kill();
    workshop.platform.set_var("WRENN_DIE_AT", Some(step));
    workshop.resume().await;
    let id = workshop.client.begin(body).await;
    workshop.platform.wait_dead();
    workshop.platform.set_var("WRENN_DIE_AT", None);
    workshop.resume().await;
    workshop.client.ended(&id).await
}

/// Kills the platform at each of the steps.
#[allow(clippy::print_stdout, reason = "a test that fails shows the last step")]
async fn crash_at(steps: &[&str]) {
    let mut workshop = workshop().await;
    for step in steps {
        // Each round has a step of its own, which no cache has.
        let recipe = json!([run("echo shared > /shared"), run(&format!("echo {step} > /own"))]);
        let body = over_app(&workshop, "web", &recipe);
        let died = die_at(&mut workshop, step, &body).await;
        let status = died.body["status"].as_str().unwrap();
        println!("{step}: {status} {}", died.body["error"]);
        if status == "error" {
            let message = died.body["error"]["message"].as_str().unwrap();
            assert!(message.contains("restarted"), "after {step}: {message}");
        }
        is_quiet(&workshop.platform, 0).await;
        workshop.client.build(&body).await;
        let id = capsule_of(&workshop.client, "web").await;
        let seen = workshop.client.out(&id, "cat /shared /own").await;
        assert_eq!(seen, format!("shared\n{step}\n"));
        delete(&workshop.client, &id).await;
        is_quiet(&workshop.platform, 0).await;
    }
    workshop.finish();
}

#[tokio::test]
async fn crash_at_any_step_until_a_step_has_run_leaves_nothing() {
    // The first build pulls the image, so the death at its first step leaves a staged image.
    let steps = ["image_staged", "build.prepared", "boot.machine", "build.step", "build.close"];
    crash_at(&steps).await;
}

#[tokio::test]
async fn crash_at_any_step_while_a_layer_is_kept_leaves_nothing() {
    crash_at(&["builder.sealed", "build.layer.staged", "build.layer.installed"]).await;
}

#[tokio::test]
async fn crash_at_any_step_while_a_version_is_made_leaves_nothing() {
    crash_at(&["build.version.staged", "build.version.installed", "build.end"]).await;
}

#[tokio::test]
async fn crash_while_start_runs_ends_the_build_and_leaves_nothing() {
    let mut workshop = workshop().await;
    let commands =
        json!({ "start": "sleep 1000", "ready": "test -e /now", "ready_within_sec": 15 });
    let body = with(over_app(&workshop, "web", &json!([run("true")])), commands);
    let id = workshop.client.begin(&body).await;
    workshop.client.logged(&id, "Waiting for template to be ready: ").await;
    workshop.platform.kill();
    workshop.resume().await;
    let ended = workshop.client.ended(&id).await;
    // The version is made, so the commands run again. Their limit ends the build.
    ended.failed("finalize", "");
    is_quiet(&workshop.platform, 0).await;
    let quick = with(body, json!({ "ready": "true" }));
    let built = workshop.client.build(&quick).await;
    assert_eq!(built.cached(), [1], "{:?}", built.lines);
    workshop.finish();
}

// The upload goes on while the test waits for the platform's death.
#[tokio::test(flavor = "multi_thread")]
async fn crash_during_an_upload_leaves_no_part_of_it() {
    let mut workshop = workshop().await;
    workshop.platform.kill();
    workshop.platform.set_var("WRENN_DIE_AT", Some("build.files"));
    workshop.resume().await;
    let files = || tests::Tree::new().file("a", 0o644, "a");
    let upload = tokio::spawn({
        let client = workshop.client.clone();
        let archive = tests::gzip(&files().archive());
        async move {
            let path = format!("/v1/builds/files/{}", tests::hash(&archive));
            let _ = client.request(reqwest::Method::PUT, &path).body(archive).send().await;
        }
    });
    workshop.platform.wait_dead();
    let _ = tokio::time::timeout(Duration::from_secs(10), upload).await;
    workshop.platform.set_var("WRENN_DIE_AT", None);
    workshop.resume().await;
    is_quiet(&workshop.platform, 0).await;
    let hash = workshop.client.upload(files()).await;
    let steps = json!([{ "copy": { "sources": ["a"], "dest": "/a", "files": hash } }]);
    workshop.client.build(&over_app(&workshop, "web", &steps)).await;
    workshop.finish();
}
