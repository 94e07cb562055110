//! Measures the platform against its floor and prints a table. Both sides of each row are
//! measured in turns in one run, so that the machine's noise falls on both; a row's figure is a
//! ratio, or a difference, of medians.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark that cannot run says so")]

mod bare;
mod exec;
mod files;
mod idle;
mod inside;
mod proxy;
mod rival;
mod stats;

use serde_json::json;
use stats::{Row, print};
use std::time::Duration;
use tests::{Driver, Platform};

const BOOTS: usize = 11;

#[tokio::main]
async fn main() {
    // Named on the command line, or all. Idleness comes first: what a guest has written, it goes
    // on writing to its disk for a while.
    let named: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |name: &str| named.is_empty() || named.iter().any(|one| one == name);
    let mut rows = Vec::new();
    if ["idle", "create", "exec", "files"].into_iter().any(&wanted) {
        rows.extend(guests(&wanted).await);
    }
    if wanted("proxy") {
        rows.extend(proxy::measure().await);
    }
    print(&rows);
}

/// What is measured with real guests.
async fn guests(wanted: impl Fn(&str) -> bool) -> Vec<Row> {
    let platform = Platform::start(Driver::Tcg, &[]).await;
    let client = platform.client();
    let id = client.create(&json!({})).await;
    let mut rows = Vec::new();
    if wanted("idle") {
        rows.extend(idle::measure(&platform, &id).await);
    }
    if wanted("create") {
        rows.extend(create(&platform, &id).await);
    }
    if wanted("exec") {
        rows.push(exec::measure(&platform, &id).await);
    }
    if wanted("files") {
        rows.extend(files::measure(&platform, &id).await);
    }
    platform.finish();
    rows
}

/// From the request for a capsule to its first command's answer, against the bare VMM's way to
/// envd's first answer.
async fn create(platform: &Platform, like: &str) -> [Row; 2] {
    let client = platform.client();
    let floor = bare::Bare::like(platform, like);
    let (mut ours, mut bare, mut removed) = (Vec::new(), Vec::new(), Vec::new());
    // The first of each only warms caches.
    for _ in 0..=BOOTS {
        bare.push(floor.boot());
        let started = std::time::Instant::now();
        let id = client.create(&json!({})).await;
        client.out(&id, "true").await;
        ours.push(started.elapsed());
        let started = std::time::Instant::now();
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
        removed.push(started.elapsed());
    }
    let removal = stats::shown(stats::median(&removed));
    let (ours, bare): (Vec<Duration>, Vec<Duration>) = (ours.split_off(1), bare.split_off(1));
    [
        Row::ratio("create to first command ÷ bare VMM to /health", &ours, &bare, "≤ 1.25"),
        Row::new("removal, until nothing is left", &removal, "–", &removal, ""),
    ]
}
