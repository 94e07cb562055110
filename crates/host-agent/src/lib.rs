//! wip
#![allow(dead_code, reason = "wip")]
mod config;
mod network;
mod sys;
pub use config::{Config, DriverChoice};
