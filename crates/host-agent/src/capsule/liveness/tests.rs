//! Each sign of life alone keeps a guest from counting as halted. In these tests a sleeping process
//! plays the VMM, and its main thread plays the guest's processor.

use super::*;
use crate::guest::Route;
use crate::snapshot::memory::Memory;
use crate::vmm::Error;
use daemon::Tasks;
use futures::FutureExt;
use futures::future::BoxFuture;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command};
use tokio::io::AsyncWriteExt;

struct Vmm {
    process: Child,
    name: &'static str,
    runs: bool,
}

impl Vmm {
    fn start(command: &[&str], name: &'static str) -> Self {
        let process = Command::new(command[0]).args(&command[1..]).spawn().unwrap();
        let vmm = Self { process, name, runs: true };
        // The process first has to become the program that sleeps.
        while vmm.vcpus().and_then(|threads| threads.waits()).is_none() {
            std::thread::yield_now();
        }
        vmm
    }

    fn sleeping() -> Self {
        Self::start(&["sleep", "600"], "sleep")
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).unwrap()
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Machine for Vmm {
    fn record(&self) -> VmmRecord {
        VmmRecord::of(self.pid(), None).unwrap()
    }

    fn ended(&self) -> BoxFuture<'_, String> {
        std::future::pending().boxed()
    }

    fn vcpus(&self) -> Option<Threads> {
        Threads::find(self.pid(), self.name)
    }

    fn is_stopped(&self) -> BoxFuture<'_, Result<bool, Error>> {
        std::future::ready(Ok(!self.runs)).boxed()
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

    fn save(&self, _: File, _: u64) -> BoxFuture<'_, Result<Option<Memory>, Error>> {
        std::future::ready(Ok(None)).boxed()
    }

    fn kill(&self) -> BoxFuture<'_, Result<(), Error>> {
        std::future::ready(Ok(())).boxed()
    }

    fn log_tail(&self) -> String {
        String::new()
    }

    fn trim_logs(&self) {}
}

fn guest_at(at: SocketAddr) -> Guest {
    Guest::new(Route::Loopback(at), "", 1, Tasks::default())
}

/// Returns a guest whose envd takes a connection and never answers.
fn silent() -> (Guest, TcpListener) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    (guest_at(listener.local_addr().unwrap()), listener)
}

#[tokio::test]
async fn guest_with_silent_agent_and_sleeping_vcpus_is_halted() {
    let (guest, _listener) = silent();
    assert!(is_halted(&Vmm::sleeping(), &guest).await);
}

#[tokio::test]
async fn guest_paused_by_its_vmm_is_not_halted() {
    let (guest, _listener) = silent();
    let mut stopped = Vmm::sleeping();
    stopped.runs = false;
    assert!(!is_halted(&stopped, &guest).await);
}

#[tokio::test]
async fn guest_with_occasionally_running_vcpu_is_not_halted() {
    let (guest, _listener) = silent();
    let wakes = Vmm::start(&["sh", "-c", "while :; do sleep 0.02; done"], "sh");
    assert!(!is_halted(&wakes, &guest).await);
}

#[tokio::test]
async fn guest_whose_vmm_is_stopped_is_not_halted() {
    let (guest, _listener) = silent();
    let vmm = Vmm::sleeping();
    let pid = Pid::from_raw(vmm.pid()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    while vmm.vcpus().unwrap().waits().is_some() {
        std::thread::yield_now();
    }
    assert!(!is_halted(&vmm, &guest).await);
    assert!(!vmm.vcpus().unwrap().all_sleep());
}

#[tokio::test]
async fn guest_that_answers_is_not_halted() {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let guest = guest_at(listener.local_addr().unwrap());
    let serve = async {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        }
    };
    let vmm = Vmm::sleeping();
    tokio::select! {
        halted = is_halted(&vmm, &guest) => assert!(!halted),
        () = serve => {}
    }
}

#[tokio::test]
async fn halt_check_ends_when_guest_is_removed() {
    let (guest, _listener) = silent();
    guest.cut();
    assert!(!is_halted(&Vmm::sleeping(), &guest).await);
}
