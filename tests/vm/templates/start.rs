//! Start and ready commands: the machine that is saved after them, and starts in each capsule.

use super::{capsule_of, delete, is_quiet, machines, over_app, with, workshop};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tests::{Build, Client, Platform, Workshop, eventually};

/// Commands of a small HTTP server. It writes its process id and its variable `COLOUR`.
const SERVE: &str = "mkdir -p /tmp/www; echo ${COLOUR:-none} > /tmp/www/colour; \
    echo $$ > /tmp/www/pid; echo serving; exec httpd -f -p 8000 -h /tmp/www";
const READY: &str = "wget -q -O - http://127.0.0.1:8000/pid";

fn serving(workshop: &Workshop, name: &str) -> Value {
    let steps = json!([{ "env": { "COLOUR": "red" } }]);
    with(over_app(workshop, name, &steps), json!({ "start": SERVE, "ready": READY }))
}

/// Asks the capsule's server for a file.
async fn page(client: &Client, id: &str, path: &str) -> String {
    let answer = client.to_port(Method::GET, id, 8000, path).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{path}");
    answer.text().await.unwrap()
}

/// Returns the server's process id, with its start in the machine's time.
async fn process(client: &Client, id: &str) -> String {
    let look = "pid=$(cat /tmp/www/pid); echo $pid $(cut -d ' ' -f 22 /proc/$pid/stat)";
    client.out(id, look).await
}

fn before(build: &Build, first: &str, second: &str) -> bool {
    let at = |text| build.lines.iter().position(|line| line.contains(text));
    at(first).zip(at(second)).is_some_and(|(first, second)| first < second)
}

#[tokio::test]
async fn started_server_answers_right_after_create_as_the_same_process() {
    let workshop = workshop().await;
    let (client, platform) = (&workshop.client, &workshop.platform);
    let built = client.build(&serving(&workshop, "web")).await;
    assert_eq!(built.count("[start] [stdout]: serving"), 1, "{:?}", built.lines);
    assert!(before(&built, "Running start command: ", "Waiting for template to be ready: "));
    assert!(before(&built, "Waiting for template to be ready: ", "Template is ready"));
    let mut ids = Vec::new();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let made = client.post("/v1/capsules", &json!({ "template": "web" })).await.expect(201);
        assert!(made.get("booted").is_none(), "restored, not booted: {made}");
        let id = made["id"].as_str().unwrap().to_owned();
        assert_eq!(page(client, &id, "/colour").await, "red\n");
        seen.push(process(client, &id).await);
        ids.push(id);
    }
    assert!(seen.iter().all(|one| *one == seen[0]), "one process, saved once: {seen:?}");
    let listed = client.get(&format!("/v1/capsules/{}/processes", ids[0])).await.expect(200);
    assert!(listed.to_string().contains("\"start\""), "the process has the tag `start`: {listed}");

    // The program goes on over a pause, and in a fork.
    client.pause(&ids[0]).await;
    client.resume(&ids[0]).await;
    let fork = format!("/v1/capsules/{}/fork", ids[1]);
    let forked = client.post(&fork, &json!({ "count": 1 })).await.expect(201);
    let child = forked["items"][0]["id"].as_str().unwrap().to_owned();
    for id in [&ids[0], &child] {
        assert_eq!(process(client, id).await, seen[0]);
        assert_eq!(page(client, id, "/pid").await.trim(), seen[0].split(' ').next().unwrap());
    }
    // A build with an equal start has a machine of its own, which runs start again.
    let again = client.build(&serving(&workshop, "web")).await;
    assert_eq!(again.count("Template is ready"), 1, "{:?}", again.lines);

    // Another size has another machine, which boots once and is saved after start, too.
    let larger = json!({ "template": "web", "memory_mib": 320 });
    let first = client.create(&larger).await;
    assert_eq!(page(client, &first, "/colour").await, "red\n");
    let count = machines(platform).await;
    let second = client.create(&larger).await;
    assert_eq!(machines(platform).await, count + 1, "no machine beside the capsule's");
    assert_eq!(process(client, &first).await, process(client, &second).await);
    // After an upgrade, the saved machine does not fit. It is made again, with start.
    for id in ids.iter().chain([&child, &first, &second]) {
        delete(client, id).await;
    }
    std::fs::remove_dir_all(platform.dir().join("golden")).unwrap();
    let made = client.post("/v1/capsules", &json!({ "template": "web" })).await.expect(201);
    let id = made["id"].as_str().unwrap();
    assert_eq!(page(client, id, "/colour").await, "red\n");
    delete(client, id).await;
    workshop.finish();
}

/// Lists the saved machines of a version, by their keys.
fn saved(platform: &Platform, version: &str) -> Vec<String> {
    let all = std::fs::read_dir(platform.dir().join("golden")).into_iter().flatten().flatten();
    let of = all.filter(|entry| {
        let text = std::fs::read_to_string(entry.path().join("manifest.json"));
        text.is_ok_and(|text| text.contains(version))
    });
    let names = of.map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| !name.ends_with(".new")).collect()
}

#[tokio::test]
async fn started_machine_is_made_again_after_an_upgrade_before_any_create() {
    let mut workshop = workshop().await;
    let version = workshop.client.build(&serving(&workshop, "web")).await.id;
    let older =
        eventually("the machine is saved", async || saved(&workshop.platform, &version).pop())
            .await;
    // Other name servers play the upgrade, since a saved machine depends on them, too.
    workshop.platform.kill();
    workshop.platform.set_var("WRENN_DNS", Some("9.9.9.9"));
    workshop.resume().await;
    let (client, platform) = (&workshop.client, &workshop.platform);
    let before = machines(platform).await;
    eventually("the machine is saved again", async || {
        saved(platform, &version).pop().filter(|newer| *newer != older)
    })
    .await;
    is_quiet(platform, 0).await;
    assert_eq!(machines(platform).await, before, "the work in the background is no usage");
    let made = client.post("/v1/capsules", &json!({ "template": "web" })).await.expect(201);
    assert!(made.get("booted").is_none(), "restored, not booted: {made}");
    let id = made["id"].as_str().unwrap();
    assert_eq!(page(client, id, "/colour").await, "red\n");
    delete(client, id).await;
    workshop.finish();
}

#[tokio::test]
async fn template_that_never_becomes_ready_names_the_command_and_the_limit() {
    let workshop = workshop().await;
    let client = &workshop.client;
    let body = |start: &str, ready: Option<&str>| {
        let commands = json!({ "start": start, "ready": ready, "ready_within_sec": 3 });
        with(over_app(&workshop, "slow", &json!([])), commands)
    };
    let id = client.begin(&body("sleep 1000", Some("echo not-yet; exit 9"))).await;
    client.logged(&id, "Waiting for template to be ready: ").await;
    let since = Instant::now();
    let failed = client.ended(&id).await;
    assert!(since.elapsed() < Duration::from_secs(30), "{:?}", since.elapsed());
    failed.failed("finalize", "ready command failed");
    assert!(failed.body["error"]["output"].to_string().contains("not-yet"), "{}", failed.body);
    let failed = client.attempt(&body("echo dying >&2; exit 3", Some("false"))).await;
    let text = "start command failed: error running start command: exit status 3";
    failed.failed("finalize", text);
    assert!(failed.body["error"]["output"].to_string().contains("dying"), "{}", failed.body);
    // A start that ends well is no failure. A ready command alone needs no start.
    client.build(&body("echo done > /tmp/done", Some("test -e /tmp/done"))).await;
    let alone = json!({ "ready": "test -e /etc/passwd" });
    client.build(&with(over_app(&workshop, "slow", &json!([])), alone)).await;
    is_quiet(&workshop.platform, 0).await;
    workshop.finish();
}

#[tokio::test]
async fn start_in_each_capsule_sees_the_environment_of_its_create() {
    let workshop = workshop().await;
    let client = &workshop.client;
    let start = format!("test $COLOUR != bad || exit 4; {SERVE}");
    let each = json!({ "start": start, "start_each": true });
    client.build(&with(serving(&workshop, "each"), each)).await;
    let of = |env: Value| json!({ "template": "each", "envs": env });
    let blue = client.create(&of(json!({ "COLOUR": "blue" }))).await;
    assert_eq!(page(client, &blue, "/colour").await, "blue\n");
    let green = client.create(&of(json!({ "COLOUR": "green" }))).await;
    assert_eq!(page(client, &green, "/colour").await, "green\n");
    let plain = client.create(&of(json!({}))).await;
    assert_eq!(page(client, &plain, "/colour").await, "red\n");
    // A failed start fails its create alone, with its reason, and leaves nothing.
    let bad = client.post("/v1/capsules", &of(json!({ "COLOUR": "bad" }))).await;
    bad.refuses(500, "start_failed", "start command failed: ");
    // A resume runs nothing.
    let was = process(client, &blue).await;
    client.pause(&blue).await;
    client.resume(&blue).await;
    assert_eq!(process(client, &blue).await, was);
    for id in [&blue, &green, &plain] {
        delete(client, id).await;
    }
    is_quiet(&workshop.platform, 0).await;
    workshop.finish();
}

#[tokio::test]
async fn helpers_of_ready_commands_work_in_an_image_without_them() {
    let workshop = workshop().await;
    let client = &workshop.client;
    for ready in [
        "[ -n \"$(ss -Htuln sport = :8000)\" ]",
        "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8000/pid | grep -q 200",
        "pgrep httpd > /dev/null",
    ] {
        let body = with(serving(&workshop, "helped"), json!({ "ready": ready }));
        client.build(&with(body, json!({ "ready_within_sec": 60 }))).await;
    }
    // The helpers are no part of the capsule's programs.
    let id = capsule_of(client, "helped").await;
    eventually("the server answers", async || {
        (page(client, &id, "/colour").await == "red\n").then_some(())
    })
    .await;
    assert_ne!(client.sh(&id, "command -v ss").await["exit_code"], 0);
    delete(client, &id).await;
    workshop.finish();
}
