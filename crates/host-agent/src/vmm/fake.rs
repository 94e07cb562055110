//! A driver without machines: `envd` on the host, one process per capsule, on a loopback port. It
//! serves tests of everything above the trait. It isolates nothing and is chosen only on request.

use super::{Driver, Error, Found, Machine, Saved, Spec, VmmRecord, kill_record, wait_record};
use crate::snapshot::memory::Memory;
use crate::sys;
use futures::FutureExt;
use futures::future::BoxFuture;
use rustix::process::{Pid, Signal};
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use types::Isolation;

pub(crate) struct FakeDriver {
    pub envd: PathBuf,
}

struct FakeMachine(VmmRecord);

impl Driver for FakeDriver {
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

    fn boot(&self, spec: Spec) -> BoxFuture<'_, Result<Box<dyn Machine>, Error>> {
        async move {
            let record = self.start(&spec).map_err(|e| Error::new("cannot start envd", e))?;
            Ok(Box::new(FakeMachine(record)) as Box<dyn Machine>)
        }
        .boxed()
    }

    fn fingerprint(&self) -> String {
        "fake".to_owned()
    }

    /// Boots again, since a fake machine saves nothing; envd starts anew.
    fn restore(&self, spec: Spec, _saved: Saved) -> BoxFuture<'_, Result<Box<dyn Machine>, Error>> {
        self.boot(spec)
    }

    fn adopt(&self, found: Found<'_>) -> Option<Box<dyn Machine>> {
        let machine = FakeMachine(found.record.clone());
        found.record.is_alive().then(|| Box::new(machine) as Box<dyn Machine>)
    }
}

impl FakeDriver {
    fn start(&self, spec: &Spec) -> io::Result<VmmRecord> {
        let port = free_port()?;
        let child = sys::spawn_envd(&self.envd, port, &spec.name, &spec.dir)?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        VmmRecord::of(pid, Some(port)).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// Returns a free port below those that the kernel assigns to outgoing connections (32,768 and up).
/// So no other process takes the port before envd does.
fn free_port() -> io::Result<u16> {
    const FIRST: u64 = 10_000;
    const LAST: u64 = 32_000;
    let mut failed = io::ErrorKind::AddrInUse.into();
    for _ in 0..100 {
        let random = RandomState::new().build_hasher().finish();
        let port = u16::try_from(FIRST + random % (LAST - FIRST)).map_err(io::Error::other)?;
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => return Ok(port),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

impl FakeMachine {
    fn signal(&self, signal: Signal) -> Result<(), Error> {
        let gone = || Error::new("cannot signal envd", io::ErrorKind::NotFound.into());
        let pid = Pid::from_raw(self.0.pid).filter(|_| self.0.is_alive()).ok_or_else(gone)?;
        let sent = rustix::process::kill_process(pid, signal);
        sent.map_err(|e| Error::new("cannot signal envd", e.into()))
    }
}

impl Machine for FakeMachine {
    fn record(&self) -> VmmRecord {
        self.0.clone()
    }

    fn loopback(&self, port: u16) -> Option<SocketAddr> {
        let port = if port == protocol::ENVD_PORT { self.0.port? } else { port };
        Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    }

    fn ended(&self) -> BoxFuture<'_, String> {
        async {
            wait_record(&self.0).await;
            "envd ended".to_owned()
        }
        .boxed()
    }

    fn console(&self) -> BoxFuture<'_, Vec<u8>> {
        async { Vec::new() }.boxed()
    }

    fn freeze(&self) -> BoxFuture<'_, Result<(), Error>> {
        std::future::ready(self.signal(Signal::STOP)).boxed()
    }

    fn thaw(&self) -> BoxFuture<'_, Result<(), Error>> {
        std::future::ready(self.signal(Signal::CONT)).boxed()
    }

    fn most_memory(&self, _: u64) -> u64 {
        0
    }

    fn save(&self, mut state: File, _: u64) -> BoxFuture<'_, Result<Option<Memory>, Error>> {
        let wrote = state.write_all(b"fake").map(|()| None);
        std::future::ready(wrote.map_err(|e| Error::new("cannot write the state", e))).boxed()
    }

    fn kill(&self) -> BoxFuture<'_, Result<(), Error>> {
        kill_record(&self.0).boxed()
    }

    fn log_tail(&self) -> String {
        String::new()
    }

    fn trim_logs(&self) {}
}
