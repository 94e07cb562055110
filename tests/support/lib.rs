//! Shared support for whole-system tests: a platform on free ports for each test, and its clients.
//! A guard finds what a test leaves behind. All traffic stays on this machine.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test fails by panicking"
)]

mod accounts;
mod balancer;
mod browser;
mod builds;
mod caddy;
mod client;
mod cluster;
mod guard;
mod hook;
mod oci;
mod platform;
mod pools;
mod registry;
mod replica;
mod s3;
mod smtp;
mod sql_tap;
mod trees;
mod upstream;

pub use accounts::{PASSWORD, mailed};
pub use browser::Browser;
pub use builds::{Build, Follow, LogEvent, Workshop, lines_of};
pub use caddy::{Caddy, free_port};
pub use client::{Answer, Client, Socket};
pub use guard::{Leftovers, held_in_namespaces, held_in_removed_namespaces, processes_of, signal};
pub use hook::{Heard, Hook};
pub use oci::{Image, Tree, busybox, digest, gzip, hash};
pub use platform::{Driver, Platform, binary, firecracker, memory_or_disk, set_guests, told};
pub use pools::{POOLS, ReadyMachine};
pub use registry::Registry;
pub use replica::Replica;
pub use s3::S3;
pub use smtp::Smtp;
pub use sql_tap::{RoundTrip, SqlTap};
pub use upstream::{SharedPort, Upstream, Wire};

use std::future::Future;
use std::time::{Duration, Instant};

/// Time limit for a condition to become true.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` returns a value.
///
/// # Panics
/// When the time limit passes. The message quotes `what`.
pub async fn eventually<T, F>(what: &str, mut condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let limit = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < limit, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Returns the number of rounds of a test: `usual` or, as in `tests/long`, what a variable says.
///
/// # Panics
/// When the variable is no number.
#[must_use]
pub fn rounds(variable: &str, usual: usize) -> usize {
    std::env::var(variable).map_or(usual, |rounds| rounds.parse().unwrap())
}

/// Returns the path of a program that `./test` put on the PATH.
///
/// # Panics
/// When the program is missing.
#[must_use]
pub fn program(name: &str) -> std::path::PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.exists());
    found.unwrap_or_else(|| panic!("{name} is missing: run ./test, which installs it"))
}
