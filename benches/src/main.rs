//! Benchmarks of the platform against its floor. Prints a table.
//!
//! Both sides of a row are measured in turns in one run, so the machine's noise falls on both. A
//! row's figure is a ratio, or a difference, of medians.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark that cannot run says so")]

mod accounts;
mod bare;
mod exec;
mod files;
mod firecracker;
mod fleet;
mod idle;
mod images;
mod inside;
mod keep;
mod proxy;
mod rival;
mod stats;
mod templates;

use serde_json::json;
use stats::{Row, print};
use std::time::Duration;
use tests::{Driver, Platform};

const BOOTS: usize = 11;

#[tokio::main]
async fn main() {
    // The command line names benchmarks. Without names all run. Idleness comes first, since a guest
    // goes on writing to its disk for a while after it was used.
    let named: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |name: &str| named.is_empty() || named.iter().any(|one| one == name);
    let mut rows = Vec::new();
    if ["idle", "create", "keep", "clones", "exec", "files"].into_iter().any(&wanted) {
        rows.extend(guests(&wanted).await);
    }
    if wanted("proxy") {
        rows.extend(proxy::measure().await);
    }
    if wanted("admission") {
        rows.extend(accounts::admission().await);
    }
    // The listing takes minutes and gigabytes, so it runs only when it is named.
    if named.iter().any(|one| one == "listing") {
        rows.extend(accounts::listing().await);
    }
    if wanted("jail") {
        rows.extend(firecracker::jail());
    }
    if wanted("firecracker") {
        rows.extend(firecracker::measure().await);
    }
    if wanted("images") {
        rows.extend(images::measure());
    }
    if wanted("templates") {
        rows.extend(templates::measure().await);
    }
    if wanted("fleet") {
        rows.extend(fleet::measure().await);
    }
    print(&rows);
}

/// Runs the benchmarks that need real guests.
async fn guests(wanted: impl Fn(&str) -> bool) -> Vec<Row> {
    let platform = Platform::start(Driver::Guests, &[("WRENN_MEMORY_MIB", "100000")]).await;
    let client = platform.client();
    // No other capsule has this disk size, so this one is booted.
    let odd = 4000 + std::process::id() % 900;
    let made = client.post("/v1/capsules", &json!({ "disk_mib": odd })).await.expect(201);
    assert_eq!(made["booted"], true, "run it again: {made}");
    let id = made["id"].as_str().unwrap().to_owned();
    let mut rows = Vec::new();
    if wanted("idle") {
        rows.extend(idle::measure(&platform, &id).await);
    }
    if wanted("create") {
        rows.extend(create(&platform).await);
    }
    if wanted("keep") {
        rows.extend(keep::measure(&platform, &bare::Bare::like(&platform, &id)).await);
    }
    if wanted("exec") {
        rows.push(exec::measure(&platform, &id).await);
    }
    if wanted("files") {
        rows.extend(files::measure(&platform, &id).await);
    }
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    if wanted("clones") {
        rows.extend(keep::clones(&platform).await);
    }
    platform.finish();
    rows
}

/// Measures the first create of a template and size, which boots, up to its first command's answer.
/// The floor is the bare VMM's boot up to envd's first answer.
async fn create(platform: &Platform) -> [Row; 1] {
    let client = platform.client();
    let at = bare::Namespace::new("create");
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    // The first round only warms caches.
    for round in 0..=u32::try_from(BOOTS).unwrap() {
        // Each round has a disk size of its own, so each create boots.
        let started = std::time::Instant::now();
        let made = client
            .post(
                "/v1/capsules",
                &json!({ "disk_mib": 6000 + std::process::id() % 900 * 12 + round }),
            )
            .await;
        let made = made.expect(201);
        let id = made["id"].as_str().unwrap();
        client.out(id, "true").await;
        ours.push(started.elapsed());
        assert_eq!(made["booted"], true, "{made}");
        bare.push(bare::Bare::like(platform, id).boot(&at));
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    }
    let (ours, bare): (Vec<Duration>, Vec<Duration>) = (ours.split_off(1), bare.split_off(1));
    [Row::ratio("first create to first command ÷ bare VMM to /health", &ours, &bare, "≤ 1.25")]
}
