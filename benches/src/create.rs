//! The first create of a template and size, which boots.

use crate::bare::{Bare, Namespace};
use crate::stats::Row;
use serde_json::json;
use std::time::{Duration, Instant};
use tests::Platform;

const BOOTS: usize = 11;

/// Measures the first create of a template and size, up to its first command's answer. The floor is
/// the bare VMM's boot up to envd's first answer.
pub(crate) async fn measure(platform: &Platform) -> [Row; 1] {
    let client = platform.client();
    let at = Namespace::new("create");
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    // The first round only warms caches.
    for round in 0..=u32::try_from(BOOTS).unwrap() {
        // Each round has a disk size of its own, so each create boots.
        let started = Instant::now();
        let size = json!({ "disk_mib": 6000 + std::process::id() % 900 * 12 + round });
        let made = client.post("/v1/capsules", &size).await.expect(201);
        let id = made["id"].as_str().unwrap();
        client.out(id, "true").await;
        ours.push(started.elapsed());
        assert_eq!(made["booted"], true, "{made}");
        bare.push(Bare::like(platform, id).boot(&at));
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    }
    let (ours, bare): (Vec<Duration>, Vec<Duration>) = (ours.split_off(1), bare.split_off(1));
    [Row::ratio("first create to first command ÷ bare VMM to /health", &ours, &bare, "≤ 1.25")]
}
