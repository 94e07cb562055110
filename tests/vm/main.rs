//! Tests with real guests. The guests run under software emulation, which every machine has. With
//! `WRENN_TEST_GUESTS=firecracker` they run by the Firecracker that `WRENN_TEST_FIRECRACKER` names.
//! The tests need root. Each test ends with a guard that finds any process, namespace, link, mount,
//! group or folder left.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test fails by panicking")]

mod code;
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
mod image;
mod internet;
mod isolation;
mod keep;
mod kernel;
mod logs;
mod metadata;
mod moves;
mod partition;
mod ports;
mod probe;
mod processes;
mod proxy;
mod ready;
mod removal;
mod rounds;
mod silent;
mod stats;
mod steps;
mod templates;
mod terminals;
mod vmm;
mod watch;

use serde_json::{Value, json};
use tests::{Client, Driver, Platform};

/// Returns the body of a create of a small capsule.
fn small() -> Value {
    json!({ "memory_mib": 256, "disk_mib": 256 })
}

/// Starts a platform. Returns it with a client and one small capsule.
async fn capsule() -> (Platform, Client, String) {
    let platform = Platform::start(Driver::Guests, &[]).await;
    let client = platform.client();
    let id = client.create(&small()).await;
    (platform, client, id)
}
