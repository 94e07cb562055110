//! A hop of HTTP, as the proxies of the control plane and of the host agent share it.
//!
//! [`serve`] accepts requests. [`Outgoing`] passes a request on through a [`Pool`] of connections.
//! [`tunnel`] joins two connections that no longer speak HTTP. [`ConnTracker`] counts requests
//! under way and lets them drain. [`Shares`] bounds the share of each holder.
//!
//! Bodies are streamed: a hop never holds more of a body than a socket's buffer. This crate knows
//! neither capsules nor rights to reach them.

mod activity;
mod body;
mod connection;
mod forward;
pub mod headers;
mod pool;
mod read_ahead;
mod server;
mod shares;
mod sync;
mod timed;
mod timer;
mod tracker;
mod tunnel;

pub use activity::Held;
pub use body::{Body, BoxError, STALL, Stalled, Until};
pub use connection::{Stream, Switched};
pub use forward::{Outgoing, join};
pub use pool::{Dial, Error, Failed, Pool, Sent};
pub use read_ahead::ReadAhead;
pub use server::{Handler, Limits, Standing, Tls, serve, serve_stream, serve_tls};
pub use shares::{Bounds, Full, Share, Shares};
pub use timer::SILENCE;
pub use tracker::{ConnTracker, Drain, Drained, Permit, Refused};
