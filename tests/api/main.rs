//! Tests of the real control plane and the real host agent over the fake driver. No machine and no
//! network namespace is made, and everything else is real.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test fails by panicking")]

mod accounts;
mod adoption;
mod audit;
mod auth;
mod away;
mod browser;
mod bulk;
mod choice;
mod cli;
mod cluster;
mod code;
mod crash;
mod e2b;
mod envd;
mod events;
mod exec;
mod files;
mod history;
mod host_logs;
mod hosts;

mod identity;
mod input;
mod isolation;
mod keep;
mod keys;
mod life;
mod lifecycle;
mod limits;
mod lists;
mod load;
mod logs;
mod names;
mod oauth;
mod objects;
mod openapi;
mod operators;
mod passive;
mod ports;
mod processes;
mod proxy;
mod races;
mod removal;
mod revocation;
mod schema;
mod silent;
mod sql;
mod stats;
mod store;
mod streams;
mod stuck;
mod teams;
mod templates;
mod terminals;
mod traces;
mod usage;

use tests::{Client, Driver, Platform};

/// Starts a platform. Returns it with a client and one capsule.
async fn capsule() -> (Platform, Client, String) {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let client = platform.client();
    let id = client.create(&serde_json::json!({})).await;
    (platform, client, id)
}
