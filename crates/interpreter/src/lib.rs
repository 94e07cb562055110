//! The code interpreter: stateful execution of code in contexts, with rich results, at port 49999
//! of a capsule. It is the second mode of envd's executable, and a process of its own.
//!
//! ```text
//! http ──▶ contexts ──▶ context (queue, deadlines, escalation) ──▶ kernel: Jupyter, Node, bash
//!   ▲                      │                                          │ Unix sockets, pipes
//!   └── execution ◀────────┘ lines, held back by slow readers         ▼
//!                                                             processes of the user
//! ```
//! envd starts it when the image has `/etc/wrenn/interpreter.json`, and tells it settings, epochs
//! and pauses over a socket (`agent`).

#![allow(clippy::disallowed_methods, reason = "it ends with its guest, never before its tasks")]

mod account;
mod agent;
mod context;
mod contexts;
mod error;
mod execution;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod http;
mod kernel;
mod launch;
mod line;
mod lock;
mod process;
mod result;
mod serve;
mod services;
mod settings;
mod state;
mod warm;

use anyhow::Context as _;
use std::path::PathBuf;

/// Threads for calls that may block.
const BLOCKING_THREADS: usize = 8;
/// Stack of each of these threads, in bytes.
const STACK: usize = 256 * 1024;

/// Arguments of the interpreter's mode.
#[derive(Debug, Default, PartialEq, Eq)]
struct Arguments {
    /// Settings file. `None` is the image's own.
    settings: Option<PathBuf>,
    /// Port of an ordinary machine's loopback. `None` means that envd started this process.
    port: Option<u16>,
}

/// Runs the interpreter until it is told to end.
///
/// # Errors
/// When an argument or the settings file is wrong, or the port is taken.
pub fn main() -> anyhow::Result<()> {
    let arguments = parse(std::env::args().skip(2))?;
    let settings = settings::Settings::read(arguments.settings.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(STACK)
        .build()?;
    runtime.block_on(serve::run(settings, arguments.port))?;
    // A drop of the runtime would kill kernels that did not hear of the end in time.
    std::process::exit(0)
}

fn parse(mut args: impl Iterator<Item = String>) -> anyhow::Result<Arguments> {
    const USAGE: &str = "usage: envd interpreter [--settings FILE] [--port N]";
    let mut parsed = Arguments::default();
    while let Some(name) = args.next() {
        let value = args.next().context(USAGE)?;
        match name.as_str() {
            "--settings" => parsed.settings = Some(PathBuf::from(value)),
            "--port" => parsed.port = Some(value.parse().context("--port must be a number")?),
            _ => anyhow::bail!("argument {name} is unknown; {USAGE}"),
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> anyhow::Result<Arguments> {
        parse(args.iter().map(|arg| (*arg).to_owned()))
    }

    #[test]
    fn arguments_are_read_and_unknown_ones_are_named() {
        assert_eq!(parsed(&[]).unwrap(), Arguments::default());
        let both = parsed(&["--port", "7", "--settings", "/x"]).unwrap();
        assert_eq!(both, Arguments { settings: Some("/x".into()), port: Some(7) });
        assert!(parsed(&["--port", "x"]).unwrap_err().to_string().contains("--port"));
        assert!(parsed(&["--prot", "7"]).unwrap_err().to_string().contains("--prot"));
        assert!(parsed(&["--port"]).unwrap_err().to_string().contains("usage"));
    }
}
