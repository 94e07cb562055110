//! Real guests, under software emulation, which every machine has, or by the Firecracker that
//! `WRENN_TEST_FIRECRACKER` names, with `WRENN_TEST_GUESTS=firecracker`; needs root. Each test ends with a guard that finds any process,
//! namespace, link, mount, group or folder left.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test fails by panicking")]

mod cold;
mod crash;
mod damage;
mod egress;
mod ends;
mod files;
mod fork;
mod full;
mod guest;
mod hostile;
mod internet;
mod isolation;
mod keep;
mod kernel;
mod metadata;
mod moves;
mod partition;
mod ports;
mod probe;
mod processes;
mod proxy;
mod removal;
mod silent;
mod steps;
mod vmm;
mod watch;

use serde_json::{Value, json};
use tests::{Client, Driver, Platform};

/// A small capsule.
fn small() -> Value {
    json!({ "memory_mb": 256, "disk_mb": 256 })
}

/// A platform, a client of it, and one small capsule.
async fn capsule() -> (Platform, Client, String) {
    let platform = Platform::start(Driver::Guests, &[]).await;
    let client = platform.client();
    let id = client.create(&small()).await;
    (platform, client, id)
}
