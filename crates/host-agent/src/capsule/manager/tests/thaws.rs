//! Guests whose VMM refuses thaws. A thaw that is owed is retried until the guest runs.

use super::*;
use crate::capsule::disk_pressure::thaw_due;
use crate::capsule::thaw;
use std::io;
use std::sync::atomic::AtomicI32;

/// A machine whose VMM refuses the first thaws.
struct Stubborn {
    frozen: AtomicBool,
    refusals: AtomicI32,
}

impl Stubborn {
    /// Starts a running capsule on a machine that refuses `refusals` thaws.
    async fn start(dir: &std::path::Path, refusals: i32) -> (Manager, CapsuleId, Arc<Self>) {
        let context = AgentContext::for_tests(dir, Box::new(NullDriver { port: 1 }));
        let manager = Manager::new(Arc::new(context), None).await.unwrap();
        let record = CapsuleRecord { id: CapsuleId::new(), ..CapsuleRecord::unknown() };
        let id = record.id;
        manager.host.registry.insert(id, Capsule::new(&record, State::Running));
        let refusals = AtomicI32::new(refusals);
        let machine = Arc::new(Self { frozen: AtomicBool::new(false), refusals });
        let nowhere = Route::Loopback(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
        let running = Running {
            machine: Arc::clone(&machine) as Arc<dyn Machine>,
            guest: Guest::new(nowhere, "", 1, Tasks::default()),
        };
        let ready = Ready { running, kind: None, life: Lifetime::default() };
        liveness::run(&manager.host, id, ready);
        (manager, id, machine)
    }

    /// Waits until the guest runs and no thaw is owed.
    async fn wait_until_thawed(&self, manager: &Manager, id: CapsuleId) {
        let thawed = async {
            while self.frozen.load(Ordering::Acquire)
                || manager.host.registry.change(id, |capsule| capsule.usage.thaw_owed)
                    != Some(false)
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), thawed).await.unwrap();
    }
}

impl Machine for Stubborn {
    fn record(&self) -> VmmRecord {
        VmmRecord { pid: 0, started: 0, boot: String::new(), port: None }
    }

    fn ended(&self) -> BoxFuture<'_, String> {
        std::future::pending().boxed()
    }

    fn console(&self) -> BoxFuture<'_, Vec<u8>> {
        std::future::ready(Vec::new()).boxed()
    }

    fn freeze(&self) -> BoxFuture<'_, Result<(), vmm::Error>> {
        self.frozen.store(true, Ordering::Release);
        std::future::ready(Ok(())).boxed()
    }

    fn thaw(&self) -> BoxFuture<'_, Result<(), vmm::Error>> {
        if self.refusals.fetch_sub(1, Ordering::AcqRel) > 0 {
            let error = vmm::Error::new("thawing", io::ErrorKind::TimedOut.into());
            return std::future::ready(Err(error)).boxed();
        }
        self.frozen.store(false, Ordering::Release);
        std::future::ready(Ok(())).boxed()
    }

    fn save(&self, _: File, _: u64) -> BoxFuture<'_, Result<Option<Memory>, vmm::Error>> {
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

#[tokio::test]
async fn failed_thaw_is_retried_until_guest_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (manager, id, machine) = Stubborn::start(dir.path(), 3).await;
    // The VMM stops the guest by itself.
    machine.frozen.store(true, Ordering::Release);
    assert!(thaw::thaw(&manager.host, id, &*machine).await.is_err());
    assert!(machine.frozen.load(Ordering::Acquire));
    machine.wait_until_thawed(&manager, id).await;
    assert_eq!(machine.refusals.load(Ordering::Acquire), -1);
}

#[tokio::test]
async fn guest_frozen_by_an_operation_is_not_thawed() {
    let dir = tempfile::tempdir().unwrap();
    let (manager, id, machine) = Stubborn::start(dir.path(), 0).await;
    let lock = manager.host.registry.capsule_lock(id).unwrap();
    let held = lock.lock().await;
    thaw::freeze(&manager.host, id, &*machine).await.unwrap();
    thaw_due(&manager.host, id).await.unwrap();
    assert!(machine.frozen.load(Ordering::Acquire));
    // The operation ends without a thaw, like an operation that panics.
    drop(held);
    machine.wait_until_thawed(&manager, id).await;
}
