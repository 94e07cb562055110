//! The contracts between Wrenn's processes, generated from `proto/`: `host` between a
//! control plane and a host agent, `process` and `filesystem` between anyone and envd.
//! Holds no behaviour beyond what both ends must agree on: a few names, and how links are signed.

#![allow(clippy::all, unreachable_pub, reason = "generated code is held to its generator's rules")]

mod rpc {
    include!(concat!(env!("OUT_DIR"), "/rpc.rs"));
}

mod refusal;
mod signature;

pub use refusal::{REFUSAL, Refusal};
pub use rpc::wrenn::host::v1 as host;
pub use rpc::{filesystem, process};
pub use signature::{Operation, SignedFile};

/// The port on which envd serves inside a guest.
pub const ENVD_PORT: u16 = 49983;
/// Version of envd. The SDKs gate their features on it: everything that it unlocks is there. An
/// agent brings back no guest whose envd is newer than the one that it knows.
pub const ENVD_VERSION: &str = "0.6.13";
/// Path at which envd lists the servers of its guest.
pub const PORTS: &str = "/ports";
/// Path at which envd switches a connection to one of a server on the guest's loopback. The query
/// names the `port`.
pub const CONNECT_PORT: &str = "/ports/connect";
/// Message of the `unavailable` error by which a host tells of a guest whose agent is silent. A
/// host that cannot be reached sends no message.
pub const SILENT: &str = "the capsule's agent does not answer";
/// Header that carries envd's token.
pub const ACCESS_TOKEN: &str = "x-access-token";
/// Header of each answer of envd's `/files/archive`. An envd without that route sends none.
pub const ARCHIVE: &str = "x-envd-archive";
/// Header by which a stream's caller chooses how often a keepalive is sent, in seconds.
pub const KEEPALIVE_INTERVAL: &str = "keepalive-ping-interval";
/// Message with which envd ends a program's stream, or its start, at the program's deadline.
pub const DEADLINE_PASSED: &str = "the deadline passed";
