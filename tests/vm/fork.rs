//! Forks and snapshots of real guests. Each child is a machine of its own, and no other capsule
//! notices.

use crate::{capsule, small};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use tests::{Client, processes_of};

fn ids(forked: &Value) -> Vec<String> {
    assert_eq!(forked["errors"], json!([]), "{forked}");
    let items = forked["items"].as_array().unwrap();
    items.iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
}

/// Returns the values that must be unique to each capsule.
pub(crate) async fn own(client: &Client, id: &str) -> Vec<String> {
    let script = "head -c 16 /dev/urandom | base64; cat /proc/sys/kernel/random/uuid; \
                  cat /proc/sys/kernel/random/boot_id; cat /etc/machine-id; \
                  python3 -c 'import os; print(os.urandom(16).hex())'";
    let out = client.out(id, script).await;
    let mut own: Vec<String> = out.lines().map(str::to_owned).collect();
    assert_eq!(own.len(), 5, "{out}");
    let port = client.get(&format!("/v1/capsules/{id}/ports/80")).await.expect(200);
    own.push(port["traffic_token"].as_str().unwrap().to_owned());
    own
}

#[tokio::test]
async fn ten_forks_share_only_the_sources_state() {
    let (platform, client, source) = capsule().await;
    client.out(&source, "echo kept > /tmp/disk; echo kept > /dev/shm/memory").await;
    let count =
        "i=0; cd /dev/shm; while :; do i=$((i+1)); echo $i > .c; mv .c count; sleep 1; done";
    let body = json!({ "cmd": "sh", "args": ["-c", count], "background": true, "tag": "count" });
    client.post(&format!("/v1/capsules/{source}/exec"), &body).await.expect(202);
    let fork = format!("/v1/capsules/{source}/fork");
    let children = ids(&client.post(&fork, &json!({ "count": 10 })).await.expect(201));
    assert_eq!(children.len(), 10);
    let mut seen = BTreeSet::new();
    let all = [children.as_slice(), std::slice::from_ref(&source)].concat();
    for id in &all {
        assert_eq!(client.out(id, "cat /tmp/disk /dev/shm/memory").await, "kept\nkept\n");
        for value in own(&client, id).await {
            assert!(seen.insert(value.clone()), "{value} twice, of {id}");
        }
        let list = client.get(&format!("/v1/capsules/{id}/processes")).await.expect(200);
        assert_eq!(list["processes"][0]["tag"], "count", "{list}");
        let before: u32 = client.out(id, "cat /dev/shm/count").await.trim().parse().unwrap();
        // The count continues, however slowly. The command's own end is the test's time limit.
        let counts = format!("until [ $(cat /dev/shm/count) -gt {before} ]; do sleep 0.2; done");
        client.out(id, &counts).await;
    }
    // Writes of one capsule are invisible to the others.
    client.out(&children[0], "echo other > /tmp/disk; echo other > /dev/shm/memory").await;
    for id in [&source, &children[1]] {
        assert_eq!(client.out(id, "cat /tmp/disk /dev/shm/memory").await, "kept\nkept\n");
    }
    // The source's token opens the source alone. Each child's guest has a token of its own.
    let agent = platform.agent_client().below(&format!("/proxy/{}/49983", children[0]));
    agent.get("/envs").await.expect(401);
    // The snapshot behind a fork is removed with it. Children can be paused and forked like other
    // capsules.
    assert_eq!(client.get("/v1/snapshots").await.expect(200)["items"], json!([]));
    assert_eq!(fs::read_dir(platform.dir().join("snapshots")).unwrap().count(), 0);
    client.pause(&children[0]).await;
    let fork = format!("/v1/capsules/{}/fork", children[0]);
    let grandchild = ids(&client.post(&fork, &json!({})).await.expect(201)).remove(0);
    assert_eq!(client.status(&children[0]).await, "paused");
    assert_eq!(client.out(&grandchild, "cat /tmp/disk /dev/shm/memory").await, "other\nother\n");
    client.resume(&children[0]).await;
    assert_eq!(client.out(&children[0], "cat /tmp/disk /dev/shm/memory").await, "other\nother\n");
    platform.finish();
}

/// Returns a machine's private memory, which belongs to no file, in KiB.
fn private_kib(pid: i32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let field = |name: &str| -> u64 {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    field("Anonymous:")
}

#[tokio::test]
async fn named_snapshot_is_a_template_and_outlives_its_source() {
    let (platform, client, source) = capsule().await;
    client.out(&source, "echo kept > /tmp/disk; head -c 50000000 /dev/urandom > /dev/shm/x").await;
    let sum = client.out(&source, "sha256sum /dev/shm/x").await;
    let machine = processes_of(&source);
    let body = json!({ "capsule_id": source, "name": "mine" });
    let taken = client.post("/v1/snapshots", &body).await.expect(201);
    assert_eq!(processes_of(&source), machine, "the source did not go on");
    assert!(taken["size_bytes"].as_u64().unwrap() > 50_000_000, "{taken}");
    client.post("/v1/snapshots", &body).await.refuses(409, "conflict", "name");
    client.delete(&format!("/v1/capsules/{source}")).await.expect(204);
    let mut children = Vec::new();
    for from in ["mine", taken["id"].as_str().unwrap()] {
        let child = client.create(&json!({ "template": from })).await;
        // Shared memory exists once, so a machine's private memory is below the 50 MB that both
        // hold.
        let private = private_kib(processes_of(&child)[0]);
        assert!(private < 45_000, "{private} KiB of a machine's own");
        assert_eq!(
            client.out(&child, "cat /tmp/disk; sha256sum /dev/shm/x").await,
            format!("kept\n{sum}")
        );
        let shown = client.get(&format!("/v1/capsules/{child}")).await.expect(200);
        assert_eq!(shown["snapshot"], taken["id"], "{shown}");
        children.push(child);
    }
    client.delete("/v1/snapshots/mine").await.expect(204);
    client.get("/v1/snapshots/mine").await.refuses(404, "not_found", "snapshot");
    let gone = client.post("/v1/capsules", &json!({ "template": "mine" })).await;
    gone.refuses(404, "not_found", "template");
    // Capsules that began from the snapshot keep what they need, through a pause too.
    client.pause(&children[0]).await;
    client.resume(&children[0]).await;
    assert_eq!(client.out(&children[0], "sha256sum /dev/shm/x").await, sum);
    platform.finish();
}

#[tokio::test]
async fn only_first_capsule_of_a_size_boots() {
    let (platform, client, _) = capsule().await;
    let size = json!({ "memory_mib": 192, "disk_mib": 128 });
    let golden = platform.dir().join("golden");
    let before = fs::read_dir(&golden).unwrap().count();
    let made = futures::future::join_all((0..3).map(|_| client.post("/v1/capsules", &size))).await;
    let made: Vec<_> = made.into_iter().map(|answer| answer.expect(201)).collect();
    let booted = made.iter().filter(|one| one["booted"] == true).count();
    assert!(booted <= 1, "{made:?}");
    let seen: Vec<_> = made.iter().map(|one| one["id"].as_str().unwrap()).collect();
    let mut own_ids = BTreeSet::new();
    for id in seen {
        own_ids.insert(client.out(id, "cat /etc/machine-id").await);
    }
    assert_eq!(own_ids.len(), 3);
    assert_eq!(fs::read_dir(&golden).unwrap().count(), before + 1);
    // A damaged template machine is detected and made anew.
    for file in fs::read_dir(&golden).unwrap().flatten() {
        let layer = fs::read_dir(file.path()).unwrap().flatten();
        let mut layer = layer.filter(|f| f.file_name().to_string_lossy().ends_with(".pages"));
        let path = layer.next().unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        bytes[100_000] ^= 1;
        // The damage goes into a new file, since others may have the old file by a link.
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
    }
    let mut platform = platform;
    platform.kill();
    platform.resume().await;
    let client = platform.client();
    let after = client.post("/v1/capsules", &small()).await.expect(201);
    assert_eq!(after["booted"], true, "a damaged machine was brought back: {after}");
    assert_eq!(client.out(after["id"].as_str().unwrap(), "echo up").await, "up\n");
    // A template machine that no longer fits, here because of another name server, is made anew
    // too.
    platform.stop();
    platform.set_var("WRENN_DNS", Some("9.9.9.9"));
    platform.resume().await;
    assert_eq!(fs::read_dir(&golden).unwrap().count(), 0, "what does not fit is kept");
    let after = platform.client().post("/v1/capsules", &small()).await.expect(201);
    assert_eq!(after["booted"], true, "{after}");
    // The folder is removed, so that it is not left for other tests.
    fs::remove_dir_all(&golden).unwrap();
    platform.finish();
}
