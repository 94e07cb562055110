//! The pool of networks, without a pool of machines. Ready networks take no room from capsules, and
//! a killed agent leaves none.

use crate::small;
use tests::{Driver, Platform, eventually};

/// Metric of the networks that wait for a create.
const READY: &str = "wrenn_host_ready_networks";
/// Metric of the networks that creates got.
const TAKEN: &str = "wrenn_host_networks_taken_total";

/// Waits until one network is ready.
async fn has_one_ready(platform: &Platform) {
    eventually("a network is ready", async || (platform.figure(READY).await == 1).then_some(()))
        .await;
}

#[tokio::test]
async fn ready_networks_serve_creates_and_leave_the_whole_range_to_capsules() {
    // The range has four networks, and a quarter of them may be ready.
    let slot = std::env::var("NEXTEST_TEST_GLOBAL_SLOT").unwrap_or_else(|_| "200".to_owned());
    let range = format!("10.199.{slot}.0/29");
    let vars = [("WRENN_READY_NETWORKS", "4"), ("WRENN_NETWORK", range.as_str())];
    let mut platform = Platform::start(Driver::Guests, &vars).await;
    let client = platform.client();
    let mut ids = Vec::new();
    for number in 0..4 {
        // The last create may come while the pool makes the last network.
        if number < 3 {
            has_one_ready(&platform).await;
        }
        ids.push(client.create(&small()).await);
    }
    let from_pool = platform.figure(&format!("{TAKEN}{{from=\"ready\"}}")).await;
    assert!(from_pool >= 3, "{from_pool} of four networks were ready");
    assert_eq!(platform.figure(TAKEN).await, 4);
    platform.settles(4).await;
    let refused = client.post("/v1/capsules", &small()).await;
    refused.refuses(503, "no_capacity", "");
    platform.settles(4).await;
    for id in &ids {
        assert_eq!(client.out(id, "echo up").await, "up\n");
    }
    // A network is free once nothing is left of its capsule.
    client.delete(&format!("/v1/capsules/{}", ids[0])).await.expect(204);
    platform.settles(3).await;
    for kills in [true, false] {
        match kills {
            true => platform.kill(),
            false => platform.stop(),
        }
        platform.resume().await;
        has_one_ready(&platform).await;
        platform.settles(3).await;
        assert_eq!(platform.client().out(&ids[1], "echo up").await, "up\n");
    }
    // Without the setting, nothing of the pool is kept.
    platform.kill();
    platform.set_var("WRENN_READY_NETWORKS", Some("0"));
    platform.resume().await;
    assert_eq!(platform.figure(READY).await, 0);
    platform.settles(3).await;
    let client = platform.client();
    let last = client.create(&small()).await;
    assert_eq!(client.out(&last, "echo up").await, "up\n");
    platform.settles(4).await;
    platform.finish();
}
