//! What whole-system tests share: a platform of their own on free ports, clients of it, and a
//! guard that finds what a test leaves behind. Traffic stays on this machine.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test fails by panicking"
)]

mod accounts;
mod balancer;
mod browser;
mod caddy;
mod client;
mod guard;
mod hook;
mod platform;
mod replica;
mod s3;
mod smtp;
mod upstream;

pub use accounts::{PASSWORD, mailed};
pub use browser::Browser;
pub use caddy::{Caddy, free_port};
pub use client::{Answer, Client, Socket};
pub use guard::{Leftovers, held_in_namespaces, held_in_removed_namespaces, processes_of, signal};
pub use hook::{Heard, Hook};
pub use platform::{Driver, Platform, binary, firecracker, set_guests, told};
pub use replica::Replica;
pub use s3::S3;
pub use smtp::Smtp;
pub use upstream::{Upstream, Wire};

use std::future::Future;
use std::time::{Duration, Instant};

/// How long a condition may take to come true before a test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` gives a value.
///
/// # Panics
/// When it does not in time; `what` says what was waited for.
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

/// Where a program is that `./test` put on the path.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn program(name: &str) -> std::path::PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.exists());
    found.unwrap_or_else(|| panic!("{name} is missing: run ./test, which installs it"))
}
