//! Deaths around the pool. A ready machine dies, and the agent dies while it fills the pool. The
//! agent also dies at each step of a create that takes a machine. Nothing is left, and the pool
//! fills again.

use super::{are_gone, delete, pooled, take};
use crate::small;
use reqwest::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::time::Duration;
use tests::{Client, Platform, ReadyMachine, eventually};

/// Kills the processes of machines. Some may have ended before.
fn kill(machines: &[ReadyMachine]) {
    for pid in machines.iter().flat_map(ReadyMachine::processes) {
        let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
    }
}

/// Kills the platform and starts it with a failpoint, or without one.
async fn restart(platform: &mut Platform, failpoint: Option<(&str, &str)>) -> Client {
    platform.kill();
    for kind in ["WRENN_FAIL_AT", "WRENN_DIE_AT"] {
        let step = failpoint.filter(|(wanted, _)| *wanted == kind).map(|(_, step)| step);
        platform.set_var(kind, step);
    }
    platform.resume().await;
    platform.client()
}

/// Waits until every capsule runs. Returns the ids of all.
async fn running(client: &Client) -> Vec<String> {
    let items = eventually("every capsule has come to rest", || async {
        let list = client.get("/v1/capsules").await.expect(200);
        let items = list["items"].as_array().unwrap().clone();
        items.iter().all(|item| item["status"] == "running").then_some(items)
    })
    .await;
    let id = |item: &Value| item["id"].as_str().unwrap().to_owned();
    items.iter().map(id).collect()
}

/// Removes all capsules but one.
async fn delete_others(client: &Client, kept: &str) {
    for id in running(client).await {
        if id != kept {
            delete(client, &id).await;
        }
    }
}

#[tokio::test]
async fn dead_machine_of_the_pool_is_replaced_and_never_given_out() {
    let (platform, client, _first) = pooled(&[]).await;
    for at_once in [false, true, true] {
        let waiting = platform.ready(1).await;
        kill(&waiting);
        if !at_once {
            are_gone(&platform, &waiting).await;
            eventually("each death is counted", async || {
                let dropped = platform.figure("wrenn_host_ready_dropped_total").await;
                (dropped >= waiting.len()).then_some(())
            })
            .await;
        }
        let id = client.create(&small()).await;
        assert_eq!(client.out(&id, "echo up").await, "up\n");
        assert_eq!(platform.machine(&id).len(), 1, "at once: {at_once}");
    }
    platform.settles(4).await;
    // The death of a claimed machine is its capsule's.
    let id = take(&platform, &client, &small()).await;
    for pid in platform.machine(&id) {
        tests::signal(pid, Signal::KILL);
    }
    eventually("the capsule is known to have failed", || async {
        (client.status(&id).await == "error").then_some(())
    })
    .await;
    delete(&client, &id).await;
    platform.settles(4).await;
    platform.finish();
}

#[tokio::test]
async fn agent_killed_while_its_pool_fills_leaks_nothing() {
    let (mut platform, mut client, first) = pooled(&[]).await;
    for millis in [60, 300, 900] {
        // Creates at once ask for more than one machine.
        let body = small();
        tokio::join!(client.create(&body), client.create(&body));
        tokio::time::sleep(Duration::from_millis(millis)).await;
        let half = platform.ready_machines();
        client = restart(&mut platform, None).await;
        are_gone(&platform, &half).await;
        platform.settles(3).await;
        delete_others(&client, &first).await;
        platform.settles(1).await;
    }
    // The pool fills again, and an agent that stops in order ends its machines.
    client.create(&small()).await;
    take(&platform, &client, &small()).await;
    let waiting = platform.ready(1).await;
    platform.stop();
    for machine in &waiting {
        assert!(machine.processes().is_empty(), "{machine:?} outlives its agent");
    }
    platform.resume().await;
    platform.settles(3).await;
    assert_eq!(platform.client().out(&first, "echo up").await, "up\n");
    platform.finish();
}

#[tokio::test]
async fn claim_that_fails_or_dies_at_any_step_leaves_no_trace() {
    let (mut platform, _, kept) = pooled(&[]).await;
    for step in ["ready.claimed", "ready.moved"] {
        // The create whose claim fails makes a machine of its own.
        let client = restart(&mut platform, Some(("WRENN_FAIL_AT", step))).await;
        client.create(&small()).await;
        platform.ready(1).await;
        let id = client.create(&small()).await;
        assert_eq!(platform.machine_name(&id), id, "after {step}");
        assert_eq!(platform.machine(&id).len(), 1, "after {step}");
        assert_eq!(client.out(&id, "echo up").await, "up\n", "after {step}");
        platform.settles(3).await;
        delete_others(&client, &kept).await;
        platform.settles(1).await;

        let client = restart(&mut platform, Some(("WRENN_DIE_AT", step))).await;
        client.create(&small()).await;
        let waiting = platform.ready(1).await;
        let create = client.request(Method::POST, "/v1/capsules").json(&small());
        let _ = create.send().await;
        platform.wait_dead();
        let client = restart(&mut platform, None).await;
        are_gone(&platform, &waiting).await;
        let all = running(&client).await;
        assert!(all.contains(&kept), "after {step}");
        platform.settles(all.len()).await;
        for id in &all {
            assert_eq!(client.out(id, "echo up").await, "up\n", "after {step}");
        }
        delete_others(&client, &kept).await;
    }
    platform.settles(1).await;
    platform.finish();
}
