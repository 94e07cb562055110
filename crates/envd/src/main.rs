//! envd: the first process of a capsule and its agent.
//!
//! As PID 1 it brings the guest up (`init`), then serves. `envd --port N` serves on an ordinary
//! machine. `envd interpreter` serves the code interpreter, in a process of its own. A single HTTP port carries everything: Connect RPC for processes and the file system,
//! and plain HTTP for contents, health and metrics. envd dials no server but the metadata service
//! and, for the host, servers on the guest's loopback. Once `/init` has set a token, callers must
//! present it.

#![allow(clippy::disallowed_methods, reason = "envd ends with its guest, never before its tasks")]

mod auth;
mod budget;
mod build;
mod cgroup;
mod clock;
mod code_server;
mod console;
mod epoch;
mod error;
mod filesystem;
mod guest;
mod helpers;
mod http;
mod identity;
mod init;
mod jobs;
mod lock;
mod metadata;
mod metrics;
mod open;
mod overlay;
mod paths;
mod peer;
mod ports;
mod process;
mod profile;
mod root;
mod rpc;
mod sys;
mod users;

use crate::http::Server;
use anyhow::Context;
use guest::{Guest, Held};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

fn main() -> anyhow::Result<()> {
    if std::process::id() == 1 {
        let held = init::bring_up();
        // From here on this is the child that serves. PID 1 stays behind and reaps.
        return serve(protocol::ENVD_PORT, Some(held));
    }
    if let Some(code) = helpers::run() {
        std::process::exit(code);
    }
    let mut args = std::env::args().skip(1);
    if std::env::args().nth(1).as_deref() == Some("interpreter") {
        return interpreter::main();
    }
    match (args.next().as_deref(), args.next()) {
        (Some("--port"), Some(port)) => {
            serve(port.parse().context("--port must be a number")?, None)
        }
        _ => anyhow::bail!("usage: envd --port N"),
    }
}

/// Serves at a port. A guest has files of its own, `held`; an ordinary machine has none.
fn serve(port: u16, held: Option<Held>) -> anyhow::Result<()> {
    let in_guest = held.is_some();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(jobs::THREADS)
        .thread_stack_size(256 * 1024)
        .build()?;
    runtime.block_on(async move {
        let guest = Arc::new(Guest::new(held, port));
        code_server::supervise::spawn(&guest);
        // On an ordinary machine, only that machine may reach envd.
        let address = if in_guest { [0, 0, 0, 0] } else { [127, 0, 0, 1] };
        let listener = tokio::net::TcpListener::bind(SocketAddr::from((address, port)))
            .await
            .with_context(|| format!("cannot listen on port {port}"))?;
        let host = in_guest.then_some(IpAddr::from(init::network::GATEWAY));
        Server::new(http::router(guest), host).serve(listener).await;
        Ok(())
    })
}
