//! Guests whose agent answers nothing, or only some requests. A pause of such a guest is refused in
//! time, and a removal waits for no guest. Thaws that a VMM refuses are retried.

mod thaws;

use super::*;
use crate::capsule::State;
use crate::capsule::boot::Ready;
use crate::capsule::destroy::wait_gone;
use crate::capsule::due::pause_due;
use crate::capsule::lifetime::Due;
use crate::capsule::record::Phase;
use crate::capsule::registry::{Capsule, Running};
use crate::guest::Route;
use crate::snapshot::memory::Memory;
use crate::vmm::null::NullDriver;
use crate::vmm::{self, Machine, VmmRecord};
use daemon::Tasks;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A machine that only counts its freezes and saves.
#[derive(Default)]
struct Counting {
    freezes: AtomicU32,
    saves: AtomicU32,
}

impl Counting {
    fn counts(&self) -> (u32, u32) {
        (self.freezes.load(Ordering::Acquire), self.saves.load(Ordering::Acquire))
    }
}

impl Machine for Counting {
    /// Returns the record of the test's own process, which lives.
    fn record(&self) -> VmmRecord {
        VmmRecord::of(i32::try_from(std::process::id()).unwrap(), None).unwrap()
    }

    fn ended(&self) -> BoxFuture<'_, String> {
        std::future::pending().boxed()
    }

    fn console(&self) -> BoxFuture<'_, Vec<u8>> {
        std::future::ready(Vec::new()).boxed()
    }

    fn freeze(&self) -> BoxFuture<'_, Result<(), vmm::Error>> {
        self.freezes.fetch_add(1, Ordering::AcqRel);
        std::future::ready(Ok(())).boxed()
    }

    fn thaw(&self) -> BoxFuture<'_, Result<(), vmm::Error>> {
        std::future::ready(Ok(())).boxed()
    }

    fn most_memory(&self, _: u64) -> u64 {
        0
    }

    fn save(&self, mut state: File, _: u64) -> BoxFuture<'_, Result<Option<Memory>, vmm::Error>> {
        self.saves.fetch_add(1, Ordering::AcqRel);
        state.write_all(b"state").unwrap();
        std::future::ready(Ok(None)).boxed()
    }

    fn kill(&self) -> BoxFuture<'_, Result<(), vmm::Error>> {
        std::future::ready(Ok(())).boxed()
    }

    fn log_tail(&self) -> String {
        String::new()
    }

    fn trim_logs(&self) {}
}

/// Starts a running capsule whose agent is at `agent`.
async fn running(dir: &Path, agent: SocketAddr) -> (Manager, CapsuleId, Arc<Counting>) {
    let context = Arc::new(AgentContext::for_tests(dir, Box::new(NullDriver { port: 1 })));
    let manager = Manager::new(Arc::clone(&context), None).await.unwrap();
    let record =
        CapsuleRecord { id: CapsuleId::new(), phase: Phase::Running, ..CapsuleRecord::unknown() };
    let folder = files::folder(&context, record.id);
    fs::create_dir_all(&folder).unwrap();
    record.save(&folder).unwrap();
    let registry = &manager.host.registry;
    registry.insert(record.id, Capsule::new(&record, State::Running));
    let machine = Arc::<Counting>::default();
    let running = Running {
        machine: Arc::clone(&machine) as Arc<dyn Machine>,
        guest: Guest::new(Route::Loopback(agent), "", 1, Tasks::default()),
    };
    let ready = Ready { running, kind: None, life: Lifetime::default() };
    liveness::run(&manager.host, record.id, ready);
    (manager, record.id, machine)
}

/// Returns an agent that takes connections and answers nothing.
fn silent() -> (SocketAddr, TcpListener) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    (listener.local_addr().unwrap(), listener)
}

/// Returns an agent that answers health checks and nothing else. The flag is set once it was asked
/// for something else.
async fn evasive() -> (SocketAddr, Arc<AtomicBool>) {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let agent = listener.local_addr().unwrap();
    let asked = Arc::<AtomicBool>::default();
    let flag = Arc::clone(&asked);
    Tasks::default().spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let flag = Arc::clone(&flag);
            Tasks::default().spawn(async move {
                let mut head = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut head).await {
                    if head[..read].starts_with(b"GET /health") {
                        let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
                    } else {
                        flag.store(true, Ordering::Release);
                    }
                }
            });
        }
    });
    (agent, asked)
}

/// Returns an agent that answers health checks, and refuses everything else.
async fn refusing() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let agent = listener.local_addr().unwrap();
    Tasks::default().spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            Tasks::default().spawn(async move {
                let mut head = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut head).await {
                    // A request's body may come by itself.
                    let answer: &[u8] = match &head[..read] {
                        head if head.starts_with(b"GET /health") => {
                            b"HTTP/1.1 204 No Content\r\n\r\n"
                        }
                        head if head.starts_with(b"POST ") => {
                            b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"
                        }
                        _ => b"",
                    };
                    let _ = stream.write_all(answer).await;
                }
            });
        }
    });
    agent
}

fn state(manager: &Manager, id: CapsuleId) -> Option<State> {
    manager.host.registry.state(id)
}

#[tokio::test]
async fn pause_with_silent_agent_is_refused_and_guest_keeps_running() {
    let dir = tempfile::tempdir().unwrap();
    let (agent, _listener) = silent();
    let (manager, id, machine) = running(dir.path(), agent).await;
    for mode in [PauseMode::Memory, PauseMode::Disk] {
        let paused = manager.pause(id, None, mode).await;
        assert!(matches!(paused, Err(Error::Silent)), "{mode:?}: {paused:?}");
        assert_eq!(state(&manager, id), Some(State::Running), "{mode:?}");
        assert_eq!(machine.counts(), (0, 0), "{mode:?}");
    }
    assert_eq!(manager.numbers(id), Vec::<u64>::new());
}

#[tokio::test]
async fn memory_snapshot_with_silent_agent_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (agent, _listener) = silent();
    let (manager, id, machine) = running(dir.path(), agent).await;
    let taken = manager.snapshot(id, SnapshotId::new(), true).await;
    assert!(matches!(taken, Err(Error::Silent)), "{taken:?}");
    assert_eq!(machine.counts(), (0, 0));
    assert_eq!(manager.snapshots(), Vec::new());
}

#[tokio::test]
async fn due_pause_with_silent_agent_saves_memory_after_retries() {
    let dir = tempfile::tempdir().unwrap();
    let (agent, _listener) = silent();
    let (manager, id, machine) = running(dir.path(), agent).await;
    for _ in 0..2 {
        let paused = pause_due(&manager.host, id, Due::PauseDisk).await;
        assert!(matches!(paused, Err(Error::Silent)), "{paused:?}");
        assert_eq!(machine.counts(), (0, 0));
    }
    pause_due(&manager.host, id, Due::PauseDisk).await.unwrap();
    assert_eq!(state(&manager, id), Some(State::Paused));
    // The memory is saved too, since the disk alone could lack data that the guest has in memory.
    assert_eq!(machine.counts(), (1, 1));
    assert_eq!(manager.numbers(id), [1]);
}

#[tokio::test]
async fn due_disk_pause_refused_by_agent_saves_memory_after_retries() {
    let dir = tempfile::tempdir().unwrap();
    let (manager, id, machine) = running(dir.path(), refusing().await).await;
    for _ in 0..2 {
        let paused = pause_due(&manager.host, id, Due::PauseDisk).await;
        assert!(matches!(paused, Err(Error::Unsaved(_))), "{paused:?}");
        assert_eq!(machine.counts(), (0, 0));
    }
    pause_due(&manager.host, id, Due::PauseDisk).await.unwrap();
    assert_eq!(state(&manager, id), Some(State::Paused));
    assert_eq!(machine.counts(), (1, 1));
}

#[tokio::test]
async fn failed_snapshots_with_silent_agent_leave_one_refresher() {
    let dir = tempfile::tempdir().unwrap();
    let (agent, _listener) = silent();
    let (manager, id, _) = running(dir.path(), agent).await;
    let guest = manager.host.registry.running(id).unwrap().guest;
    for _ in 0..2 {
        let taken = manager.snapshot(id, SnapshotId::new(), false).await;
        assert!(matches!(taken, Err(Error::Silent)), "{taken:?}");
        assert!(guest.become_refresher().is_none(), "nobody waits for the agent");
    }
    assert!(guest.renewed(Tasks::default()).become_refresher().is_some());
}

#[tokio::test]
async fn removal_ends_pause_that_waits_for_guest() {
    let dir = tempfile::tempdir().unwrap();
    let (agent, asked) = evasive().await;
    let (manager, id, machine) = running(dir.path(), agent).await;
    let remove = async {
        while !asked.load(Ordering::Acquire) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        manager.destroy(id, None).await
    };
    let both = async { tokio::join!(manager.pause(id, None, PauseMode::Memory), remove) };
    // A wait for the guest alone may take longer than this.
    let both = tokio::time::timeout(Duration::from_secs(25), Box::pin(both)).await;
    let (paused, removed) = both.expect("the removal waits for the guest");
    assert!(matches!(paused, Err(Error::Stopping)), "{paused:?}");
    removed.unwrap();
    assert_eq!(machine.counts(), (0, 0));
    assert_eq!(state(&manager, id), None);
    wait_gone(&manager.host, id).await.unwrap();
    assert!(!files::folder(&manager.host.context, id).exists());
}

#[tokio::test]
async fn removal_of_earlier_generation_does_not_end_later_pauses() {
    let dir = tempfile::tempdir().unwrap();
    let (agent, _listener) = silent();
    let (manager, id, _) = running(dir.path(), agent).await;
    manager.host.registry.change(id, |capsule| capsule.generation = 5);
    // An earlier removal cancelled the token and had no other effect.
    manager.host.registry.change(id, |capsule| capsule.cancel.cancel());
    assert!(matches!(manager.destroy(id, Some(4)).await, Err(Error::Stale)));
    manager.pause(id, Some(6), PauseMode::Frozen).await.unwrap();
    assert_eq!(state(&manager, id), Some(State::Paused));
}
