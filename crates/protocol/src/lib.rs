//! The contracts between Wrenn's processes, generated from `proto/`. `host` is between a control
//! plane and a host agent. `process` and `filesystem` are between any client and envd.
//!
//! Beyond them, this crate holds only facts that both ends must share: some names, the place of a
//! failure in an error, and the signing of links.

#![allow(clippy::all, unreachable_pub, reason = "generated code is held to its generator's rules")]

mod rpc {
    include!(concat!(env!("OUT_DIR"), "/rpc.rs"));
}

mod failure;
pub mod log;
pub mod lower;
mod refusal;
mod signature;

pub use refusal::{REFUSAL, Refusal};
pub use rpc::wrenn::host::v1 as host;
pub use rpc::{filesystem, process};
pub use signature::{Operation, SignedFile};

/// Port at which envd serves inside a guest.
pub const ENVD_PORT: u16 = 49983;
/// Port at which the code interpreter serves inside a guest.
pub const INTERPRETER_PORT: u16 = 49999;
/// Version of envd. SDKs enable features by it, and envd has every feature that this version
/// enables. An agent restores no guest whose envd is newer than its own.
pub const ENVD_VERSION: &str = "0.6.13";
/// Path at which envd lists the servers of its guest.
pub const PORTS: &str = "/ports";
/// Path at which envd switches a connection to a connection to a server on the guest's loopback.
/// The query names the `port`.
pub const CONNECT_PORT: &str = "/ports/connect";
/// Path at which envd lists all processes of its guest.
pub const PROCESSES: &str = "/processes";
/// Path at which envd signals any process of its guest.
pub const SIGNAL: &str = "/processes/signal";
/// Path at which envd lists the open terminals of its guest.
pub const TERMINALS: &str = "/terminals";
/// Header with which a control plane marks a request to envd as a look, which leaves an idle
/// capsule idle. The control plane removes the header from clients' requests. The agent removes it
/// from all requests to guests.
pub const PASSIVE: &str = "x-wrenn-passive";
/// Header that carries envd's token.
pub const ACCESS_TOKEN: &str = "x-access-token";
/// Header of each answer of envd's `/files/archive`. An envd without that route does not send it.
pub const ARCHIVE: &str = "x-envd-archive";
/// Header with which a stream's caller sets the time between keepalives, in seconds.
pub const KEEPALIVE_INTERVAL: &str = "keepalive-ping-interval";
/// Message with which envd ends a program's stream, or its start, at the program's deadline.
pub const DEADLINE_PASSED: &str = "the deadline passed";

/// Reports whether a port is envd's or the code interpreter's. Whoever reaches such a port runs
/// commands, so neither port is ever public.
#[must_use]
pub const fn is_agent_port(port: u16) -> bool {
    matches!(port, ENVD_PORT | INTERPRETER_PORT)
}
