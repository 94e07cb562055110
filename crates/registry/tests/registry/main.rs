//! Pulls from a registry in this process, which has every fault that a test asks for. Each fault
//! ends in its own error within its time.
#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

mod archive;
mod fake;
mod faults;
mod guard;
mod login;
mod pull;
mod sample;
mod tls;
