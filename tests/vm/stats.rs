//! Metrics of a real guest: the host's counts and the guest's reports.

use crate::capsule;
use serde_json::{Value, json};
use tests::{Client, eventually};

/// Returns the capsule's samples of the last minutes, once they fulfil a condition.
async fn samples(client: &Client, id: &str, what: &str, holds: fn(&[Value]) -> bool) -> Vec<Value> {
    let path = format!("/v1/capsules/{id}/metrics?points=1000");
    eventually(what, async || {
        let series = client.get(&path).await.expect(200);
        let items = series["items"].as_array().unwrap().clone();
        holds(&items).then_some(items)
    })
    .await
}

#[tokio::test]
async fn host_counts_processor_memory_and_network_and_a_pause_is_a_gap() {
    let (platform, client, id) = capsule().await;
    let counted = |items: &[Value]| {
        items.iter().any(|item| {
            item["network_sent"].is_number()
                && item["guest_disk_used"].is_number()
                && item["source"] == "host"
        })
    };
    let first = samples(&client, &id, "the host counts", counted).await;
    let last = first.last().unwrap();
    assert!(last["memory_used"].as_u64().unwrap() > 8 << 20, "{last}");
    let oom = "perl -e 'my @x; push @x, \"x\" x 1e6 while 1' 2>/dev/null; true";
    client.sh(&id, oom).await;
    let killed =
        |items: &[Value]| items.iter().any(|item| item["guest_oom_kills"].as_u64() > Some(0));
    samples(&client, &id, "the guest tells of the kill", killed).await;
    let busy = json!({ "cmd": "sh", "args": ["-c", "while :; do :; done"], "background": true });
    client.post(&format!("/v1/capsules/{id}/exec"), &busy).await.expect(202);
    let works = |items: &[Value]| {
        items.iter().any(|item| {
            item["source"] == "host" && item["cpu_max_percent"].as_f64().unwrap() > 50.0
        })
    };
    samples(&client, &id, "the work is counted", works).await;
    client.pause(&id).await;
    client.resume(&id).await;
    let again = |items: &[Value]| items.iter().filter(|item| item["gap"] == true).count() > 1;
    samples(&client, &id, "the resumed machine begins anew", again).await;
    platform.finish();
}
