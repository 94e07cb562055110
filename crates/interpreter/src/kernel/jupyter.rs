//! Kernels that speak Jupyter's protocol. A task of its own drives each of them over two sockets:
//! `shell` takes requests and replies, `iopub` publishes output.
//!
//! ```text
//! Driven ── orders ──▶ Driver ──▶ shell (DEALER), control (DEALER, by kernelspec)
//!                        │ ◀──── iopub (SUB), the process's end
//!                        └─────▶ messages to the context
//! ```

mod connection;
mod dialect;
mod driver;
pub(super) mod events;
mod link;
mod questions;

pub(crate) use connection::{Connection, Files, Transport};
pub(crate) use dialect::Dialect;

use super::driven::{self, Driven};
use super::{Saved, Started};
use crate::process::Process;
use connection::Sockets;
use driver::Driver;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Means by which a kernel is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum InterruptMode {
    Signal,
    Message,
}

/// Facts of a running kernel. They suffice to find it again.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct Facts {
    pub connection: Connection,
    pub files: Files,
    pub interrupt: InterruptMode,
    pub dialect: Dialect,
}

impl driven::Facts for Facts {
    fn hold(&self, process: &Process, held: bool) {
        send(process, self.dialect, if held { libc::SIGSTOP } else { libc::SIGCONT });
    }

    fn remove(&self) {
        self.files.remove();
    }
}

/// Connects to a kernel that has just been started, and waits until it answers. `envs` is the
/// environment of its process.
///
/// # Errors
/// Returns an error if the process ends first, or if it does not answer within its time.
pub(crate) async fn open(
    process: Process,
    facts: Facts,
    envs: &BTreeMap<String, String>,
) -> io::Result<Started> {
    let unused = facts.files.unused();
    let sockets = connection::open(&facts, process.end()).await?;
    unused.keep();
    Ok(started(process, facts, sockets, |driver| driver.boot(envs), 0))
}

/// Connects to the kernel of an earlier interpreter. `Kind::Ended` of the newest run follows once
/// the kernel is idle, also if the run has ended before.
///
/// # Errors
/// Returns an error if the process has ended or its sockets do not answer. The process is then
/// killed.
pub(crate) async fn adopt(saved: &Saved) -> io::Result<Started> {
    let facts: Facts = serde_json::from_value(saved.driver.clone())?;
    let process = Process::adopt(saved)?;
    // The earlier interpreter may have stopped the process.
    send(&process, facts.dialect, libc::SIGCONT);
    let unused = facts.files.unused();
    let sockets = connection::reopen(&facts).await?;
    unused.keep();
    Ok(started(process, facts, sockets, |driver| driver.resume(saved.run), saved.run))
}

/// Makes the parts of a connected kernel, and spawns its driver after a first step.
fn started(
    process: Process,
    facts: Facts,
    sockets: Sockets,
    first: impl FnOnce(&mut Driver),
    run: u64,
) -> Started {
    let (orders, receiver) = mpsc::unbounded_channel();
    let (sender, messages) = mpsc::unbounded_channel();
    let process = Arc::new(process);
    let (link, inputs) = link::split(sockets);
    let mut driver = Driver::new(&process, &facts, link, receiver, sender);
    first(&mut driver);
    tokio::spawn(driver.drive(inputs));
    Started { kernel: Box::new(Driven::new(process, facts, orders, run)), messages }
}

/// Sends a signal to a kernel, and not to the programs of its code. A kernel that is not ours may
/// be the child of a script, so its whole group gets the signal.
fn send(process: &Process, dialect: Dialect, signal: i32) {
    match dialect {
        Dialect::Python => process.signal_alone(signal),
        Dialect::R | Dialect::Java | Dialect::Other => process.signal(signal),
    }
}

/// Returns the silent code around a run, in each dialect.
#[cfg(feature = "fuzzing")]
pub(super) fn silent_code(setup: &super::Setup) -> Vec<String> {
    let changes = dialect::Changes::of(setup, &mut BTreeMap::new());
    let around = |dialect: Dialect| [dialect.before(&changes), dialect.after(&changes)];
    let dialects = [Dialect::Python, Dialect::R, Dialect::Java];
    dialects.into_iter().flat_map(around).flatten().collect()
}
