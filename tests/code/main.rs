//! Tests of the code interpreter with real kernels on this machine: `envd interpreter` over its
//! HTTP port, Python, Node and bash. `./test` fetches the kernels' packages into
//! `target/code-interpreter`. Tests of real guests are in `tests/vm/code.rs`.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test fails by panicking")]

mod contexts;
mod death;
mod idle;
mod interrupts;
mod leftovers;
mod orphans;
mod outcome;
mod output;
mod recovery;
mod rich;
mod server;
mod variables;

use server::Server;
