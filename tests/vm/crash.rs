//! `kill -9` around real machines. Running machines keep running and are found again. Nothing half
//! made or half removed is left.

use crate::{capsule, small};
use serde_json::json;
use std::time::Duration;
use tests::{Client, Socket, eventually, processes_of};

#[tokio::test]
async fn vms_survive_platform_crash_and_are_adopted() {
    let (mut platform, client, id) = capsule().await;
    let count =
        "cd /tmp; i=0; while :; do i=$((i+1)); echo $i > new; mv new count; sleep 0.1; done";
    let body =
        json!({ "cmd": "bash", "args": ["-c", count], "background": true, "tag": "counter" });
    client.post(&format!("/v1/capsules/{id}/exec"), &body).await.expect(202);
    let machine = processes_of(&id);
    let mut last = 0;
    for round in 0..3 {
        match round {
            // The kill comes in the middle of a command.
            0 => {
                let sleep = client.sh(&id, "sleep 5");
                let _ = tokio::time::timeout(Duration::from_millis(300), sleep).await;
                platform.kill();
            }
            1 => platform.kill(),
            _ => platform.stop(),
        }
        platform.resume().await;
        let client = platform.client();
        assert_eq!(processes_of(&id), machine, "another machine");
        let seen = client.get(&format!("/v1/capsules/{id}")).await.expect(200);
        assert_eq!(seen["status"], "running");
        let now = client.out(&id, "sleep 0.3; cat /tmp/count").await.trim().parse::<u32>().unwrap();
        assert!(now > last, "the guest's processes have stopped");
        last = now;
        let list = client.get(&format!("/v1/capsules/{id}/processes")).await.expect(200);
        assert_eq!(list["processes"][0]["tag"], "counter", "{list}");
        assert!(client.get(&format!("/v1/capsules/{id}/logs")).await.status.is_success());
    }
    platform.finish();
}

#[tokio::test]
async fn platform_crash_during_boot_or_removal_leaves_nothing_unfinished() {
    let (mut platform, client, kept) = capsule().await;
    for millis in [80, 400, 1400] {
        let client = platform.client();
        let create = tokio::spawn({
            let client = client.clone();
            async move {
                let request = client.request(reqwest::Method::POST, "/v1/capsules").json(&small());
                let _ = request.send().await;
            }
        });
        tokio::time::sleep(Duration::from_millis(millis)).await;
        platform.kill();
        create.await.unwrap();
        platform.resume().await;
        let client = platform.client();
        let running = eventually("every capsule has come to rest", || async {
            let list = client.get("/v1/capsules").await.expect(200);
            let items = list["items"].as_array().unwrap().clone();
            items.iter().all(|item| item["status"] == "running").then_some(items.len())
        })
        .await;
        let what = format!("only the parts of {running} capsules are left");
        platform.left_until(&what, |left| left.counts() == [running; 3]).await;
    }
    let doomed = client.at(platform.url()).create(&small()).await;
    let delete = tokio::spawn({
        let (client, path) = (platform.client(), format!("/v1/capsules/{doomed}"));
        async move {
            let _ = client.request(reqwest::Method::DELETE, &path).send().await;
        }
    });
    tokio::time::sleep(Duration::from_millis(8)).await;
    platform.kill();
    delete.await.unwrap();
    platform.resume().await;
    let client = platform.client();
    assert_eq!(client.out(&kept, "echo up").await, "up\n");
    let _ = client.delete(&format!("/v1/capsules/{doomed}")).await;
    eventually("the removal has come to its end", || async {
        (client.get(&format!("/v1/capsules/{doomed}")).await.status == 404).then_some(())
    })
    .await;
    assert!(processes_of(&doomed).is_empty());
    platform.finish();
}

/// Opens a stream of an endless command.
async fn endless(client: &Client, id: &str) -> Socket {
    let mut socket = client.socket(&format!("/v1/capsules/{id}/exec/stream")).await;
    socket.send(json!({ "type": "start", "cmd": "sleep", "args": ["1000"] })).await;
    assert_eq!(socket.next().await.unwrap()["type"], "start");
    socket
}

/// Checks that a stream of a machine that is gone ends, with the reason.
async fn breaks(mut socket: Socket) {
    let frame = socket.next().await.unwrap();
    assert_eq!(frame["code"], "guest_unavailable", "{frame}");
    assert!(socket.next().await.is_none());
}

#[tokio::test]
async fn killed_vm_is_reported_and_removed() {
    let (platform, client, id) = capsule().await;
    let other = client.create(&small()).await;
    let (stream, deleted) = (endless(&client, &id).await, endless(&client, &other).await);
    client.delete(&format!("/v1/capsules/{other}")).await.expect(204);
    breaks(deleted).await;
    tests::signal(processes_of(&id)[0], rustix::process::Signal::KILL);
    breaks(stream).await;
    let seen = eventually("the capsule is known to have failed", || async {
        let seen = client.get(&format!("/v1/capsules/{id}")).await.expect(200);
        (seen["status"] == "error").then_some(seen)
    })
    .await;
    assert_eq!(seen["error"], "the VMM ended");
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    let what = "no part of either capsule is left";
    platform.left_until(what, |left| left.counts() == [0; 3] && left.cgroups.is_empty()).await;
    platform.finish();
}

/// Remains of a machine that dies while no agent runs belong to its capsule. Their removal takes
/// nothing from later capsules.
#[tokio::test]
async fn vm_killed_while_agent_is_down_is_reported_and_harms_no_other() {
    let (mut platform, _, id) = capsule().await;
    let machine = processes_of(&id)[0];
    platform.kill();
    tests::signal(machine, rustix::process::Signal::KILL);
    platform.resume().await;
    let client = platform.client();
    eventually("the capsule is known to have failed", || async {
        (client.status(&id).await == "error").then_some(())
    })
    .await;
    let other = client.create(&small()).await;
    assert_eq!(client.out(&other, "echo up").await, "up\n");
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    assert_eq!(client.out(&other, "echo up").await, "up\n");
    client.delete(&format!("/v1/capsules/{other}")).await.expect(204);
    platform.left_until("no part of either capsule is left", |left| left.counts() == [0; 3]).await;
    platform.finish();
}

#[tokio::test]
async fn removal_during_boot_takes_effect_at_once() {
    let (platform, client, _) = capsule().await;
    let create = tokio::spawn({
        let client = client.clone();
        async move { client.post("/v1/capsules", &small()).await }
    });
    let booting = eventually("it boots", || async {
        let list = client.get("/v1/capsules").await.expect(200);
        let found =
            list["items"].as_array().unwrap().iter().find(|i| i["status"] == "starting")?.clone();
        Some(found["id"].as_str().unwrap().to_owned())
    })
    .await;
    client.delete(&format!("/v1/capsules/{booting}")).await.expect(204);
    assert_eq!(create.await.unwrap().status.as_u16(), 409);
    platform.left_until("one folder is left", |left| left.folders.len() == 1).await;
    platform.finish();
}
