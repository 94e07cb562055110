//! wip
#![allow(dead_code, reason = "wip")]
mod cgroup;
mod config;
mod guest;
mod network;
mod storage;
mod sys;
mod vmm;
pub use config::{Config, DriverChoice};
