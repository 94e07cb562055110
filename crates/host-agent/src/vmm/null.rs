//! A driver without machines, in which the server at one port is every capsule's guest. Benchmarks
//! of the layers above use it, with a thousand hosts in one process. No part of a capsule runs.
//! Unit tests use its machine alone.

use super::{Driver, Error, Found, Machine, Metadata, Saved, Spec, Threads, VmmRecord};
use crate::snapshot::memory::Memory;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::fs::File;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use types::Isolation;

pub(crate) struct NullDriver {
    pub port: u16,
}

/// A machine that runs nothing. A unit test sets its fields, and reads its counts.
pub(crate) struct NullMachine {
    /// Record of the machine; its port is the guest's.
    pub record: VmmRecord,
    pub console: Vec<u8>,
    /// Name of the threads of the recorded process that play the guest's processors.
    pub vcpus: Option<&'static str>,
    pub frozen: AtomicBool,
    /// Number of thaws that are still to be refused.
    pub refusals: AtomicU32,
    /// Number of freezes so far.
    pub freezes: AtomicU32,
    /// Number of saves so far.
    pub saves: AtomicU32,
}

impl NullMachine {
    /// Returns a machine whose record matches no process and whose guest is the server at `port`.
    pub(crate) fn at(port: u16) -> Self {
        Self {
            record: VmmRecord { pid: 0, started: 0, boot: String::new(), port: Some(port) },
            console: Vec::new(),
            vcpus: None,
            frozen: AtomicBool::new(false),
            refusals: AtomicU32::new(0),
            freezes: AtomicU32::new(0),
            saves: AtomicU32::new(0),
        }
    }
}

impl Driver for NullDriver {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn accelerator(&self) -> &'static str {
        "none"
    }

    fn isolation(&self) -> Isolation {
        Isolation::None
    }

    fn boots_images(&self) -> bool {
        false
    }

    fn fingerprint(&self) -> String {
        "null".to_owned()
    }

    fn boot(&self, _spec: Spec) -> BoxFuture<'_, Result<Box<dyn Machine>, Error>> {
        let machine = NullMachine::at(self.port);
        std::future::ready(Ok(Box::new(machine) as Box<dyn Machine>)).boxed()
    }

    fn restore(&self, spec: Spec, _saved: Saved) -> BoxFuture<'_, Result<Box<dyn Machine>, Error>> {
        self.boot(spec)
    }

    fn adopt(&self, _: Found<'_>) -> Option<Box<dyn Machine>> {
        Some(Box::new(NullMachine::at(self.port)))
    }
}

impl Machine for NullMachine {
    fn record(&self) -> VmmRecord {
        self.record.clone()
    }

    fn loopback(&self, _port: u16) -> Option<SocketAddr> {
        Some(SocketAddr::from((Ipv4Addr::LOCALHOST, self.record.port?)))
    }

    fn ended(&self) -> BoxFuture<'_, String> {
        std::future::pending().boxed()
    }

    fn vcpus(&self) -> Option<Threads> {
        Threads::find(self.record.pid, self.vcpus?)
    }

    fn console(&self) -> BoxFuture<'_, Vec<u8>> {
        std::future::ready(self.console.clone()).boxed()
    }

    fn freeze(&self) -> BoxFuture<'_, Result<(), Error>> {
        self.freezes.fetch_add(1, Ordering::AcqRel);
        self.frozen.store(true, Ordering::Release);
        std::future::ready(Ok(())).boxed()
    }

    fn thaw(&self) -> BoxFuture<'_, Result<(), Error>> {
        let less = |left: u32| left.checked_sub(1);
        let refused = self.refusals.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        if refused.is_ok() {
            let error = Error::new("thawing", io::ErrorKind::TimedOut.into());
            return std::future::ready(Err(error)).boxed();
        }
        self.frozen.store(false, Ordering::Release);
        std::future::ready(Ok(())).boxed()
    }

    fn is_stopped(&self) -> BoxFuture<'_, Result<bool, Error>> {
        std::future::ready(Ok(self.frozen.load(Ordering::Acquire))).boxed()
    }

    fn most_memory(&self, _: u64) -> u64 {
        0
    }

    fn save(&self, mut state: File, _: u64) -> BoxFuture<'_, Result<Option<Memory>, Error>> {
        self.saves.fetch_add(1, Ordering::AcqRel);
        let wrote = state.write_all(b"null").map(|()| None);
        std::future::ready(wrote.map_err(|e| Error::new("cannot write the state", e))).boxed()
    }

    fn moved<'a>(
        &'a self,
        _: &'a Path,
        _: &'a Metadata,
    ) -> BoxFuture<'a, Result<Arc<dyn Machine>, Error>> {
        let machine = Self { record: self.record.clone(), ..Self::at(0) };
        std::future::ready(Ok(Arc::new(machine) as Arc<dyn Machine>)).boxed()
    }

    fn kill(&self) -> BoxFuture<'_, Result<(), Error>> {
        std::future::ready(Ok(())).boxed()
    }

    fn log_tail(&self) -> String {
        String::new()
    }

    fn trim_logs(&self) {}
}

/// A null driver that counts as one whose machines boot images. Its guest answers nowhere.
#[cfg(test)]
pub(crate) struct ImageDriver;

#[cfg(test)]
impl Driver for ImageDriver {
    fn name(&self) -> &'static str {
        "images"
    }

    fn accelerator(&self) -> &'static str {
        "none"
    }

    fn isolation(&self) -> Isolation {
        Isolation::None
    }

    fn boots_images(&self) -> bool {
        true
    }

    fn fingerprint(&self) -> String {
        "images".to_owned()
    }

    fn boot(&self, spec: Spec) -> BoxFuture<'_, Result<Box<dyn Machine>, Error>> {
        async move { NullDriver { port: 1 }.boot(spec).await }.boxed()
    }

    fn restore(&self, spec: Spec, _saved: Saved) -> BoxFuture<'_, Result<Box<dyn Machine>, Error>> {
        self.boot(spec)
    }

    fn adopt(&self, _: Found<'_>) -> Option<Box<dyn Machine>> {
        None
    }
}
