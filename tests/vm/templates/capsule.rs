//! Templates from capsules, deletion of templates in use, and builds that are cancelled.

use super::{capsule_of, delete, is_quiet, over_app, run, with, workshop};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tests::{Client, eventually};

fn from_capsule(name: &str, id: &str, memory: bool) -> Value {
    json!({ "name": name, "from": { "capsule": { "id": id, "memory": memory } } })
}

#[tokio::test]
async fn template_of_a_capsule_holds_its_files_and_with_memory_its_programs() {
    let workshop = workshop().await;
    let client = &workshop.client;
    client.build(&over_app(&workshop, "web", &json!([run("echo base > /base")]))).await;
    let id = capsule_of(client, "web").await;
    let counting = "i=0; while :; do i=$((i+1)); echo $i > /dev/shm/count; sleep 0.1; done";
    let started = json!({ "cmd": "sh", "args": ["-c", counting], "background": true });
    client.post(&format!("/v1/capsules/{id}/exec"), &started).await.expect(202);
    client
        .out(&id, "echo own > /own; rm /base; mkdir /d; head -c 3000000 /dev/urandom > /d/r")
        .await;
    let sum = client.out(&id, "sha256sum /d/r; cat /etc/machine-id").await;
    let (sum, machine) = sum.split_once('\n').unwrap();

    let files = client.build(&from_capsule("tools:v1", &id, false)).await;
    assert!(client.out(&id, "cat /own").await == "own\n", "the capsule runs on");
    let copy = client.create(&json!({ "template": "tools:v1", "memory_mib": 320 })).await;
    let look =
        "cat /own; test ! -e /base; sha256sum /d/r; test -e /dev/shm/count || echo no-memory";
    assert_eq!(client.out(&copy, look).await, format!("own\n{sum}\nno-memory\n"));
    let other = client.out(&copy, "cat /etc/machine-id").await;
    assert_ne!(other.trim(), machine.trim(), "the identity is no part of the template");

    // A running and a paused capsule alike give their memory.
    client.pause(&id).await;
    let warm = client.build(&from_capsule("warm", &id, true)).await;
    assert_ne!(warm.id, files.id);
    let made = client.post("/v1/capsules", &json!({ "template": "warm" })).await.expect(201);
    assert!(made.get("booted").is_none(), "{made}");
    let restored = made["id"].as_str().unwrap();
    let count =
        async || client.out(restored, "cat /dev/shm/count").await.trim().parse::<u32>().unwrap();
    let first = count().await;
    eventually("it counts on", || async { (count().await > first).then_some(()) }).await;
    // Memory fixes the sizes, and such a build takes no steps.
    let larger = json!({ "template": "warm", "memory_mib": 1024 });
    assert_eq!(client.post("/v1/capsules", &larger).await.status, 400);
    let steps = json!({ "steps": [run("true")] });
    let refused = client.post("/v1/builds", &with(from_capsule("x", &id, true), steps)).await;
    assert_eq!(refused.status, 400, "{}", refused.body);
    // Files that are in a paused capsule's memory alone are no base. A running capsule's files are.
    let paused = client.attempt(&from_capsule("tools:v2", &id, false)).await;
    paused.failed("base", "are only in its memory; resume the capsule");
    client.resume(&id).await;
    let steps = json!({ "steps": [run("cat /own > /seen")] });
    client.build(&with(from_capsule("tools:v2", &id, false), steps)).await;
    for id in [&id, &copy, restored] {
        delete(client, id).await;
    }
    workshop.finish();
}

#[tokio::test]
async fn template_in_use_is_not_deleted_and_afterwards_leaves_nothing() {
    let workshop = workshop().await;
    let (client, platform) = (&workshop.client, &workshop.platform);
    client
        .build(&over_app(&workshop, "web", &json!([run("head -c 4000000 /dev/urandom > /r")])))
        .await;
    let refuses = async |holding: &str| {
        client.delete("/v1/templates/web").await.refuses(409, "template_in_use", holding);
    };
    let id = capsule_of(client, "web").await;
    refuses(&id).await;
    client.pause(&id).await;
    refuses(&id).await;
    client.post("/v1/snapshots", &json!({ "capsule_id": id, "name": "kept" })).await.expect(201);
    delete(client, &id).await;
    refuses("kept").await;
    client.delete("/v1/snapshots/kept").await.expect(204);
    let child = json!({
        "name": "child", "from": { "template": "web" }, "steps": [run("test -e /r")],
        "memory_mib": 256, "disk_mib": 512,
    });
    client.build(&child).await;
    // The child has the files by links of its own, so either answer is sound; it must work after.
    let gone = client.delete("/v1/templates/web").await;
    assert!([204, 409].contains(&gone.status.as_u16()), "{}", gone.body);
    let of_child = capsule_of(client, "child").await;
    assert_eq!(client.out(&of_child, "wc -c < /r").await.trim(), "4000000");
    delete(client, &of_child).await;
    client.delete("/v1/templates/child").await.expect(204);
    if gone.status == 409 {
        client.delete("/v1/templates/web").await.expect(204);
    }
    eventually("no version is left on the host", async || {
        let folder = platform.dir().join("images/templates");
        let left = std::fs::read_dir(folder).unwrap().flatten();
        (left.filter(|entry| entry.file_name() != "base").count() == 0).then_some(())
    })
    .await;
    client.post("/v1/capsules", &json!({ "template": "web" })).await.refuses(404, "not_found", "");
    workshop.finish();
}

/// Cancels a build, and checks that it ends at once with all machines gone.
async fn cancelled(client: &Client, id: &str) {
    let since = Instant::now();
    client.cancel(id).await.expect(200);
    let ended = client.ended(id).await;
    let took = since.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?} on a busy machine");
    assert_eq!(ended.body["status"], "error", "{}", ended.body);
    assert!(ended.body["error"]["message"].as_str().unwrap().contains("cancel"), "{}", ended.body);
}

#[tokio::test]
async fn cancelled_build_ends_at_once_keeps_its_steps_and_leaves_nothing() {
    let workshop = workshop().await;
    let (client, platform) = (&workshop.client, &workshop.platform);
    let steps = json!([run("echo kept > /kept"), run("trap '' TERM; echo asleep; sleep 1000")]);
    let id = client.begin(&over_app(&workshop, "web", &steps)).await;
    client.logged(&id, "[stdout]: asleep").await;
    cancelled(client, &id).await;
    is_quiet(platform, 0).await;
    // The finished step was kept, and another cancel changes nothing.
    client.cancel(&id).await.expect(200);
    let fixed = json!([run("echo kept > /kept"), run("cat /kept")]);
    let built = client.build(&over_app(&workshop, "web", &fixed)).await;
    assert_eq!(built.cached(), [1], "{:?}", built.lines);
    // The same holds while the template gets ready.
    let never = json!({ "start": "sleep 1000", "ready": "false" });
    let id = client.begin(&with(over_app(&workshop, "web", &fixed), never)).await;
    client.logged(&id, "Waiting for template to be ready: ").await;
    cancelled(client, &id).await;
    is_quiet(platform, 0).await;
    // The version before is what it was.
    let capsule = capsule_of(client, "web").await;
    assert_eq!(client.out(&capsule, "cat /kept").await, "kept\n");
    delete(client, &capsule).await;
    workshop.finish();
}
