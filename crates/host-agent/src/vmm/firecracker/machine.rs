//! A running Firecracker process. Its API's socket stays in the machine's root, so that a later
//! agent can use it too.

use super::api::{Api, PROMPT};
use super::changes::Changes;
use super::figures::Figures;
use super::files::{LOG, METRICS, STATE, WRITTEN};
use super::jail::Jail;
use super::output::Output;
use crate::snapshot::memory::Memory;
use crate::sys;
use crate::vmm::{Error, Machine, Metadata, Threads, VmmRecord, kill_record, wait_record};
use daemon::{Tasks, blocking};
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::json;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Most bytes of the devices' state that are read.
const STATE_MAX: u64 = 64 << 20;
/// Assumed least write speed of a disk, in bytes a second.
const BYTES_PER_SECOND: u64 = 16 << 20;
/// Log messages of a Firecracker whose guest has shut down or reset. A killed one logs neither.
/// Since 1.15, Firecracker treats a triple fault as an error, and logs the second message.
const LAST_WORDS: [&str; 2] =
    ["Firecracker exiting successfully", "Unexpected exit reason on vcpu run: Shutdown"];
/// Most bytes of the last words in a message.
const WORDS: usize = 2000;
/// Prefix of the names of vCPU threads.
const VCPU: &str = "fc_vcpu ";

pub(super) struct FirecrackerMachine {
    pub api: Arc<Api>,
    pub record: VmmRecord,
    pub jail: Jail,
    pub outputs: Option<Arc<Outputs>>,
    /// True with a network, and so with a metadata service.
    pub has_network: bool,
}

/// Outputs of a machine, which are read until this is dropped.
pub(super) struct Outputs {
    pub console: Output,
    pub log: Output,
    pub _figures: Figures,
}

impl Outputs {
    /// Makes the pipes that a machine is to write to.
    pub(super) fn make(jail: &Jail, tasks: &Tasks) -> io::Result<Self> {
        for pipe in [console(jail).0, log(jail).0, jail.root.join(METRICS)] {
            jail.pipe(&pipe)?;
        }
        Self::open(jail, tasks)
    }

    fn open(jail: &Jail, tasks: &Tasks) -> io::Result<Self> {
        let open = |(pipe, file): (PathBuf, PathBuf)| Output::open(&pipe, &file, jail.uid, tasks);
        let (console, log) = (open(console(jail))?, open(log(jail))?);
        let figures = Figures::open(&jail.root.join(METRICS), jail.uid, tasks)?;
        Ok(Self { console, log, _figures: figures })
    }
}

/// Returns the pipe and the file of the guest's console.
fn console(jail: &Jail) -> (PathBuf, PathBuf) {
    (jail.own.join("console"), jail.own.join("console.log"))
}

/// Returns the pipe and the file of Firecracker's log.
fn log(jail: &Jail) -> (PathBuf, PathBuf) {
    (jail.root.join(LOG), jail.own.join("vmm.log"))
}

impl FirecrackerMachine {
    /// Returns a machine without a network that already runs. If its pipes cannot be opened, its
    /// output is not read.
    pub(super) fn found(api: Arc<Api>, record: VmmRecord, jail: Jail, tasks: &Tasks) -> Self {
        let outputs = Outputs::open(&jail, tasks);
        let warn = |error: &io::Error| {
            tracing::warn!(%error, name = jail.name, "cannot read the output of a machine");
        };
        let outputs = outputs.inspect_err(warn).ok().map(Arc::new);
        Self { api, record, jail, outputs, has_network: false }
    }

    /// Returns the end of Firecracker's log.
    fn log(&self) -> String {
        let said = self.outputs.as_ref().map(|outputs| outputs.log.read()).unwrap_or_default();
        String::from_utf8_lossy(&said).into_owned()
    }

    /// Describes the end of a process that has ended: its exit status, if it was a child of this
    /// agent, and its last words. The words may come from the jailer, or from the guest's kernel.
    pub(super) fn end(&self) -> Option<String> {
        if self.record.is_alive() {
            return None;
        }
        let status = sys::exit_status(self.record.pid);
        let status = status.map(|status| format!(" ({status})")).unwrap_or_default();
        let console =
            self.outputs.as_ref().map(|outputs| outputs.console.read()).unwrap_or_default();
        let console = String::from_utf8_lossy(&console).into_owned();
        let said = format!("{} {}", last(&console), last(&self.log()));
        let said = Some(said.trim()).filter(|said| !said.is_empty()).unwrap_or("nothing");
        Some(format!("Firecracker ended{status}; its log ended with: {said}"))
    }

    async fn set(&self, state: &str) -> io::Result<()> {
        self.api.patch(&self.jail.root, "/vm", json!({ "state": state })).await
    }

    async fn capture(&self, mut state: File, bytes: u64) -> io::Result<Memory> {
        let (jail, changes) = (self.jail.clone(), Changes(self.jail.own.clone()));
        let asking = changes.clone();
        let kind = blocking(move || {
            jail.remove(STATE)?;
            jail.remove(WRITTEN)?;
            asking.ask()
        });
        let kind = kind.await?;
        let what = json!({
            "snapshot_type": kind,
            "snapshot_path": STATE,
            "mem_file_path": WRITTEN,
        });
        let limit = PROMPT + Duration::from_secs(bytes / BYTES_PER_SECOND);
        self.api.put_for(&self.jail.root, "/snapshot/create", what, limit).await?;
        let jail = self.jail.clone();
        let work = move || {
            changes.add(&jail.root.join(WRITTEN), kind, jail.uid)?;
            io::copy(&mut jail.open(STATE)?.take(STATE_MAX), &mut state)?;
            jail.remove(STATE)?;
            changes.memory(bytes)
        };
        blocking(work).await
    }
}

/// Returns the last part of a text, in one line.
fn last(text: &str) -> String {
    let from = text.floor_char_boundary(text.len().saturating_sub(WORDS));
    text[from..].trim().lines().collect::<Vec<_>>().join("; ")
}

impl Machine for FirecrackerMachine {
    fn record(&self) -> VmmRecord {
        self.record.clone()
    }

    fn ended(&self) -> BoxFuture<'_, String> {
        async {
            wait_record(&self.record).await;
            self.api.forget(&self.jail.root);
            let log = self.log();
            match LAST_WORDS.iter().any(|words| log.contains(words)) {
                true => "the guest ended".to_owned(),
                false => "the VMM ended".to_owned(),
            }
        }
        .boxed()
    }

    fn vcpus(&self) -> Option<Threads> {
        Threads::find(self.record.pid, VCPU)
    }

    fn console(&self) -> BoxFuture<'_, Vec<u8>> {
        let read = self.outputs.as_ref().map(|outputs| outputs.console.read());
        std::future::ready(read.unwrap_or_default()).boxed()
    }

    fn counted_console(&self) -> BoxFuture<'_, (Vec<u8>, u64)> {
        let read = self.outputs.as_ref().map(|outputs| outputs.console.read_counted());
        std::future::ready(read.unwrap_or_default()).boxed()
    }

    fn freeze(&self) -> BoxFuture<'_, Result<(), Error>> {
        async { self.set("Paused").await.map_err(|e| Error::new("cannot stop the guest", e)) }
            .boxed()
    }

    fn thaw(&self) -> BoxFuture<'_, Result<(), Error>> {
        async { self.set("Resumed").await.map_err(|e| Error::new("cannot resume the guest", e)) }
            .boxed()
    }

    fn is_stopped(&self) -> BoxFuture<'_, Result<bool, Error>> {
        let ask = async {
            let about = self.api.get(&self.jail.root, "/").await?;
            Ok(about["state"] == "Paused")
        };
        ask.map(|told: io::Result<bool>| {
            told.map_err(|e| Error::new("cannot read the guest's status", e))
        })
        .boxed()
    }

    /// Counts the memory twice: Firecracker writes all of it in its root, and the agent writes it
    /// again to the snapshot.
    fn most_memory(&self, bytes: u64) -> u64 {
        bytes.saturating_mul(2)
    }

    fn save(&self, state: File, bytes: u64) -> BoxFuture<'_, Result<Option<Memory>, Error>> {
        async move {
            let captured = self.capture(state, bytes).await;
            captured.map(Some).map_err(|e| Error::new("Firecracker cannot write a snapshot", e))
        }
        .boxed()
    }

    /// Each file of the jail is open or found anew below the folder, so the jail moves with it.
    fn moved<'a>(
        &'a self,
        dir: &'a Path,
        metadata: &'a Metadata,
    ) -> BoxFuture<'a, Result<Arc<dyn Machine>, Error>> {
        async move {
            // Connections are kept by the root's path.
            self.api.forget(&self.jail.root);
            let jail = self.jail.moved(dir);
            if self.has_network {
                let put = self.api.put(&jail.root, "/mmds", metadata.json()).await;
                put.map_err(|e| Error::new("cannot replace the guest's metadata", e))?;
            }
            let (api, outputs) = (Arc::clone(&self.api), self.outputs.clone());
            let (record, has_network) = (self.record.clone(), self.has_network);
            let moved = Self { api, record, jail, outputs, has_network };
            Ok(Arc::new(moved) as Arc<dyn Machine>)
        }
        .boxed()
    }

    fn kill(&self) -> BoxFuture<'_, Result<(), Error>> {
        async {
            let killed = kill_record(&self.record).await;
            self.api.forget(&self.jail.root);
            killed
        }
        .boxed()
    }

    fn log_tail(&self) -> String {
        last(&self.log())
    }

    fn trim_logs(&self) {
        // The outputs never hold more than their bound.
    }
}
