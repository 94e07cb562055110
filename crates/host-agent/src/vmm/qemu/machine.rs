//! A running QEMU process. Its sockets for commands stay in the capsule's folder, so that a later
//! agent can use them too.

use super::super::metadata::Service;
use super::super::qmp::{self, Qmp};
use super::super::{Error, Machine, Metadata, Saved, Threads, VmmRecord};
use super::super::{kill_record, overwrite, wait_record};
use crate::snapshot::memory::{self, Memory};
use daemon::{blocking, lock};
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::json;
use std::fs::File;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Bytes of console output that QEMU keeps; QEMU requires a power of two.
pub(super) const CONSOLE: usize = 64 * 1024;
pub(super) const LOG: &str = "qemu.log";
const CONSOLE_LOG: &str = "console.log";
/// Most bytes of QEMU's own log; a larger log is emptied.
const LOG_MAX: u64 = 1 << 20;
/// Most bytes of the last words in a message.
const WORDS: usize = 2000;
/// Message of QEMU for each feature that emulation lacks.
const HARMLESS: &str = "TCG doesn't support requested feature";
/// Time limit for requests that QEMU handles at once.
const LIMIT: Duration = Duration::from_secs(60);
/// Prefix of the names of vCPU threads, with `debug-threads=on`.
const VCPU: &str = "CPU ";

pub(super) struct QemuMachine {
    pub record: VmmRecord,
    pub dir: PathBuf,
    /// Metadata service of the guest; `None` without a network.
    service: Option<Service>,
    /// True while QEMU has stopped the guest because the host's disk is full.
    full: AtomicBool,
    /// Connection that loaded the machine, for the next command. QEMU serves one connection at a
    /// time, so no further one is made meanwhile.
    loaded: Mutex<Option<Qmp>>,
    /// Count of all bytes of the console; `None` before the first read. Whoever reads the console
    /// holds the lock.
    console: tokio::sync::Mutex<Option<u64>>,
}

impl QemuMachine {
    pub(super) fn new(record: VmmRecord, dir: PathBuf, service: Option<Service>) -> Self {
        let (full, loaded) = (AtomicBool::new(false), Mutex::default());
        Self { record, dir, service, full, loaded, console: tokio::sync::Mutex::default() }
    }

    /// Returns a connection for commands.
    async fn commands(&self) -> io::Result<Qmp> {
        let loaded = lock(&self.loaded).take();
        match loaded {
            Some(qmp) => Ok(qmp),
            None => Qmp::connect(&self.dir, qmp::COMMANDS).await,
        }
    }

    async fn watch(&self) -> io::Result<String> {
        Qmp::connect(&self.dir, qmp::EVENTS).await?.guest_ended(&self.full).await
    }

    /// Appends new output from QEMU's ring buffer to the console file, and keeps the end of it.
    /// Returns the count of the new bytes.
    async fn drain_console(&self) -> io::Result<usize> {
        let mut qmp = self.commands().await?;
        let arguments = json!({ "device": "console", "size": CONSOLE, "format": "base64" });
        let read = qmp.command("ringbuf-read", arguments).await?;
        use base64::Engine;
        let new = base64::engine::general_purpose::STANDARD.decode(read.as_str().unwrap_or(""));
        let new = new.map_err(io::Error::other)?;
        if new.is_empty() {
            return Ok(0);
        }
        let mut all = self.kept_console();
        all.extend(&new);
        let from = all.len().saturating_sub(CONSOLE);
        let file = self.dir.join(CONSOLE_LOG);
        let file = File::options().write(true).create(true).truncate(false).open(file)?;
        overwrite(&file, &all[from..])?;
        Ok(new.len())
    }

    /// Returns the address of the guest's memory in the process.
    async fn address(&self, qmp: &mut Qmp) -> io::Result<u64> {
        let ask = json!({ "command-line": "gpa2hva 0" });
        let told = qmp.command("human-monitor-command", ask).await?;
        // `Host virtual address for 0x0 (m0) is 0x7f…`
        let text = told.as_str().unwrap_or_default().trim();
        let address = text.rsplit_once("0x").and_then(|(_, n)| u64::from_str_radix(n, 16).ok());
        address.ok_or_else(|| {
            io::Error::other(format!("QEMU reported no address of its memory: {text}"))
        })
    }

    /// Checks that the process still lives, so that a file opened by its number belongs to the
    /// machine.
    fn check(&self) -> io::Result<()> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        self.record.is_alive().then_some(()).ok_or_else(gone)
    }

    async fn limited<T>(
        &self,
        what: &str,
        work: impl Future<Output = io::Result<T>>,
    ) -> Result<T, Error> {
        let done = tokio::time::timeout(LIMIT, work).await;
        done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|e| Error::new(what, e))
    }

    async fn ask(&self, command: &str) -> io::Result<()> {
        let mut qmp = self.commands().await?;
        qmp.command(command, json!({})).await.map(|_| ())
    }

    /// Loads saved parts into a process that waits for them.
    pub(super) async fn load(&self, saved: Saved, bytes: u64) -> io::Result<()> {
        let mut qmp = Qmp::connect(&self.dir, qmp::COMMANDS).await?;
        if !saved.above.is_empty() {
            let address = self.address(&mut qmp).await?;
            let to = File::options().write(true).open(format!("/proc/{}/mem", self.record.pid))?;
            self.check()?;
            // The memory comes before the devices, which read their rings in it.
            let above = Arc::clone(&saved.above);
            let work = move || memory::install(&above, &to, address, bytes);
            blocking(work).await?;
        }
        let loaded = tokio::time::timeout(LIMIT, async {
            qmp.pass(&saved.state, "getfd", json!({ "fdname": "state" })).await?;
            qmp.command("migrate-incoming", json!({ "uri": "fd:state" })).await?;
            qmp.loaded().await
        });
        loaded.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        *lock(&self.loaded) = Some(qmp);
        Ok(())
    }

    fn kept_console(&self) -> Vec<u8> {
        std::fs::read(self.dir.join(CONSOLE_LOG)).unwrap_or_default()
    }
}

impl Machine for QemuMachine {
    fn record(&self) -> VmmRecord {
        self.record.clone()
    }

    fn ended(&self) -> BoxFuture<'_, String> {
        async {
            tokio::select! {
                () = wait_record(&self.record) => "the VMM ended".to_owned(),
                reason = async {
                    loop {
                        match self.watch().await {
                            Ok(reason) => break reason,
                            // QEMU serves one connection at a time, or has just gone.
                            Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
                        }
                    }
                } => reason,
            }
        }
        .boxed()
    }

    fn vcpus(&self) -> Option<Threads> {
        Threads::find(self.record.pid, VCPU)
    }

    fn console(&self) -> BoxFuture<'_, Vec<u8>> {
        async { self.counted_console().await.0 }.boxed()
    }

    fn counted_console(&self) -> BoxFuture<'_, (Vec<u8>, u64)> {
        async {
            let mut count = self.console.lock().await;
            let before = count.unwrap_or_else(|| self.kept_console().len() as u64);
            // A machine that has ended has its last words only in the file.
            let new = self.drain_console().await.unwrap_or(0);
            let all = self.kept_console();
            let now = (before + new as u64).max(all.len() as u64);
            *count = Some(now);
            (all, now)
        }
        .boxed()
    }

    fn freeze(&self) -> BoxFuture<'_, Result<(), Error>> {
        let stop = async {
            let mut qmp = self.commands().await?;
            qmp.command("stop", json!({})).await?;
            // QEMU obeys even when the guest has ended and there is nothing to stop.
            match qmp.status().await? {
                status if qmp::has_ended(&status) => {
                    Err(io::Error::other(format!("the guest has ended: {status}")))
                }
                _ => Ok(()),
            }
        };
        self.limited("cannot stop the guest", stop).boxed()
    }

    fn thaw(&self) -> BoxFuture<'_, Result<(), Error>> {
        // The flag is cleared before the guest runs, since a repeated write may fail at once.
        self.full.store(false, Ordering::Release);
        self.limited("cannot resume the guest", self.ask("cont")).boxed()
    }

    fn waits_for_room(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    fn is_stopped(&self) -> BoxFuture<'_, Result<bool, Error>> {
        let ask = async {
            let mut qmp = self.commands().await?;
            Ok(qmp.status().await? != "running")
        };
        self.limited("cannot read the guest's status", ask).boxed()
    }

    /// Returns the process's own memory, which includes all pages that the guest has written.
    fn most_memory(&self, bytes: u64) -> u64 {
        crate::sys::own_memory(self.record.pid).map_or(bytes, |own| own.min(bytes))
    }

    fn save(&self, state: File, bytes: u64) -> BoxFuture<'_, Result<Option<Memory>, Error>> {
        let work = async move {
            let mut qmp = self.commands().await?;
            let set = qmp.pass(&state, "add-fd", json!({})).await?["fdset-id"].take();
            // The migration is not live, so that the disks stay open to this process.
            let to = json!({ "filename": format!("/dev/fdset/{set}"), "live": false });
            let saved = qmp.command("xen-save-devices-state", to).await;
            qmp.command("remove-fd", json!({ "fdset-id": set })).await?;
            saved?;
            let (pid, address) = (self.record.pid, self.address(&mut qmp).await?);
            let memory = Memory::of_process(pid, address, bytes)?;
            self.check()?;
            Ok(Some(memory))
        };
        self.limited("cannot save the state of the machine", work).boxed()
    }

    /// Connections over the sockets go on, since new ones alone need the path.
    fn moved<'a>(
        &'a self,
        dir: &'a Path,
        metadata: &'a Metadata,
    ) -> BoxFuture<'a, Result<Arc<dyn Machine>, Error>> {
        let set = self.service.as_ref().map_or(Ok(()), |service| service.set(metadata));
        let moved = set.map(|()| -> Arc<dyn Machine> {
            Arc::new(Self {
                record: self.record.clone(),
                dir: dir.to_owned(),
                service: self.service.clone(),
                full: AtomicBool::new(self.waits_for_room()),
                loaded: Mutex::new(lock(&self.loaded).take()),
                // The file is counted anew.
                console: tokio::sync::Mutex::default(),
            })
        });
        let moved = moved.map_err(|e| Error::new("cannot replace the guest's metadata", e));
        std::future::ready(moved).boxed()
    }

    fn kill(&self) -> BoxFuture<'_, Result<(), Error>> {
        kill_record(&self.record).boxed()
    }

    fn log_tail(&self) -> String {
        let log = std::fs::read(self.dir.join(LOG)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log[log.len().saturating_sub(WORDS)..]).into_owned();
        // An emulated processor lacks some features of its model, which is no reason for an end.
        let words: Vec<&str> = log.lines().filter(|line| !line.contains(HARMLESS)).collect();
        words.join("; ")
    }

    fn trim_logs(&self) {
        // QEMU appends, so its next message goes to the new end.
        let log = File::options().write(true).open(self.dir.join(LOG));
        if let Ok(log) = log
            && log.metadata().is_ok_and(|found| found.len() > LOG_MAX)
        {
            let _ = log.set_len(0);
        }
    }
}
