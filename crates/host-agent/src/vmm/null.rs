//! A driver without machines, in which the server at one port is every capsule's guest. Benchmarks
//! of the layers above use it, with a thousand hosts in one process. No part of a capsule runs.

use super::{Driver, Error, Found, Machine, Saved, Spec, VmmRecord};
use crate::snapshot::memory::Memory;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use types::Isolation;

pub(crate) struct NullDriver {
    pub port: u16,
}

struct NullMachine {
    port: u16,
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
        "hollow".to_owned()
    }

    fn boot(&self, _spec: Spec) -> BoxFuture<'_, Result<Box<dyn Machine>, Error>> {
        let machine = NullMachine { port: self.port };
        std::future::ready(Ok(Box::new(machine) as Box<dyn Machine>)).boxed()
    }

    fn restore(&self, spec: Spec, _saved: Saved) -> BoxFuture<'_, Result<Box<dyn Machine>, Error>> {
        self.boot(spec)
    }

    fn adopt(&self, _: Found<'_>) -> Option<Box<dyn Machine>> {
        Some(Box::new(NullMachine { port: self.port }))
    }
}

impl Machine for NullMachine {
    /// Returns a record that matches no process.
    fn record(&self) -> VmmRecord {
        VmmRecord { pid: 0, started: 0, boot: String::new(), port: Some(self.port) }
    }

    fn loopback(&self, _port: u16) -> Option<SocketAddr> {
        Some(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)))
    }

    fn ended(&self) -> BoxFuture<'_, String> {
        std::future::pending().boxed()
    }

    fn console(&self) -> BoxFuture<'_, Vec<u8>> {
        std::future::ready(Vec::new()).boxed()
    }

    fn freeze(&self) -> BoxFuture<'_, Result<(), Error>> {
        std::future::ready(Ok(())).boxed()
    }

    fn thaw(&self) -> BoxFuture<'_, Result<(), Error>> {
        std::future::ready(Ok(())).boxed()
    }

    fn most_memory(&self, _: u64) -> u64 {
        0
    }

    fn save(&self, mut state: File, _: u64) -> BoxFuture<'_, Result<Option<Memory>, Error>> {
        let wrote = state.write_all(b"hollow").map(|()| None);
        std::future::ready(wrote.map_err(|e| Error::new("writing the state", e))).boxed()
    }

    fn kill(&self) -> BoxFuture<'_, Result<(), Error>> {
        std::future::ready(Ok(())).boxed()
    }

    fn log_tail(&self) -> String {
        String::new()
    }

    fn trim_logs(&self) {}
}
