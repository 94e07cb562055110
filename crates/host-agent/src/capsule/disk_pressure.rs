//! Guests that wait for room on the host's disk. While half of the reserve is gone, a guest whose
//! disk grows is stopped. So the database and removals can still write. A guest that meets a full
//! disk nevertheless is stopped by its VMM, if the VMM can do so. Both kinds of guest run again by
//! themselves when there is room. This module also counts the bytes in each capsule's snapshots.
//!
//! The guest of a running capsule stands still only for want of room, or while an operation works
//! on it. [`Manager::freeze`] notes that a thaw is owed, and [`Manager::thaw`] clears the note when
//! it succeeds. Each later check of the disk retries the owed thaws.

use super::manager::{Manager, State, chain};
use super::record::CapsuleRecord;
use super::{Error, boot, io_error};
use crate::guest::Guest;
use crate::room::Level;
use crate::storage;
use crate::vmm::{self, Machine};
use daemon::{blocking, lock};
use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use types::CapsuleId;

/// Period of the checks of the disk.
const LOOK: Duration = Duration::from_millis(250);
/// Period of the counts of the bytes of snapshots.
const MEASURE: Duration = Duration::from_secs(15);
/// Time between two attempts to thaw a guest.
const AGAIN: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 2000 });

/// Room that a capsule takes on its host's disk.
#[derive(Default)]
pub(super) struct Usage {
    /// Bytes of its own disk at the last check; `None` while there is plenty of room.
    disk: Option<u64>,
    /// True while the guest stands still for want of room.
    pub waits: bool,
    /// True from before a freeze or an attempt to thaw until a thaw has succeeded.
    pub thaw_owed: bool,
    /// Earliest time of the next attempt to thaw the guest.
    next_thaw: Option<Instant>,
    /// Bytes on the host's disk that only its snapshots hold.
    pub snapshot_bytes: u64,
}

/// Action to take with a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Nothing,
    /// Note the guest as waiting, since its VMM has stopped it.
    NoteWaiting,
    Freeze,
    Thaw,
}

impl Usage {
    /// Returns the usage of a capsule that begins to run and whose snapshots have `snapshot_bytes`
    /// bytes.
    pub(super) fn of(snapshot_bytes: u64) -> Self {
        Self { snapshot_bytes, ..Self::default() }
    }

    /// Decides on a running guest whose disk has `disk` bytes. Pure.
    fn decide(&mut self, level: Level, disk: Option<u64>, stopped: bool, now: Instant) -> Action {
        let grows = self.disk.zip(disk).is_some_and(|(before, now)| now > before);
        self.disk = disk;
        let due = self.next_thaw.is_none_or(|at| at <= now);
        let room = matches!(level, Level::Plenty | Level::Enough);
        let thaws = if self.waits || stopped { room } else { self.thaw_owed };
        if thaws && due {
            self.next_thaw = Some(now + AGAIN);
            return Action::Thaw;
        }
        match (stopped, self.waits) {
            (_, true) => Action::Nothing,
            (true, false) => Action::NoteWaiting,
            (false, false) if level == Level::Low && grows => Action::Freeze,
            (false, false) => Action::Nothing,
        }
    }
}

impl Manager {
    /// Checks the disk and counts the bytes of snapshots, for as long as the process lives.
    pub(super) async fn watch_disk(&self) {
        // The first count comes before any answer, since an uncounted snapshot would be reported as
        // empty.
        let this = self.clone();
        let _ = tokio::task::spawn_blocking(move || this.measure()).await;
        let this = self.clone();
        self.context.tasks.every(LOOK, move || {
            let this = this.clone();
            async move { this.look_at_disk().await }
        });
        let this = self.clone();
        self.context.tasks.every(MEASURE, move || {
            let this = this.clone();
            async move {
                let _ = tokio::task::spawn_blocking(move || this.measure()).await;
            }
        });
    }

    async fn look_at_disk(&self) {
        let level = self.context.room.look();
        let disks = match level {
            Level::Plenty => HashMap::new(),
            Level::Enough | Level::Scarce | Level::Low => self.running_disks().await,
        };
        let now = Instant::now();
        let mut actions = Vec::new();
        for (id, capsule) in self.lock().iter_mut() {
            let (State::Running, Some((machine, _))) = (&capsule.state, &capsule.running) else {
                continue;
            };
            let stopped = machine.waits_for_room();
            match capsule.usage.decide(level, disks.get(id).copied(), stopped, now) {
                Action::Nothing => {}
                Action::NoteWaiting => {
                    tracing::warn!(%id, "a guest waits for room on the host's disk");
                    capsule.usage.waits = true;
                    self.changed();
                }
                action @ (Action::Freeze | Action::Thaw) => actions.push((*id, action)),
            }
        }
        for (id, action) in actions {
            let this = self.clone();
            self.context.tasks.spawn(async move {
                let done = match action {
                    Action::Freeze => this.freeze_for_room(id).await,
                    Action::Thaw | Action::NoteWaiting | Action::Nothing => this.thaw_due(id).await,
                };
                if let Err(error) = done {
                    tracing::warn!(%id, ?action, error = chain(&error), "freezing or thawing");
                }
            });
        }
    }

    /// Returns the bytes that the disk of each running capsule takes on the host's disk. No lock is
    /// held meanwhile, since every request to a capsule needs it and a disk may be slow.
    async fn running_disks(&self) -> HashMap<CapsuleId, u64> {
        let ids: Vec<CapsuleId> = {
            let capsules = self.lock();
            let running = capsules.iter().filter(|(_, capsule)| capsule.state == State::Running);
            running.map(|(id, _)| *id).collect()
        };
        let this = self.clone();
        let measure = move || Ok(ids.into_iter().map(|id| (id, this.disk_bytes(id))).collect());
        blocking(measure).await.unwrap_or_default()
    }

    /// Returns the bytes that a capsule's own disk takes on the host's disk.
    pub(super) fn disk_bytes(&self, id: CapsuleId) -> u64 {
        let disk = boot::folder(&self.context, id).join(storage::DISK);
        disk.metadata().map_or(0, |found| found.blocks() * 512)
    }

    /// Stops a guest that would fill the disk.
    async fn freeze_for_room(&self, id: CapsuleId) -> Result<(), Error> {
        let lock = self.capsule_lock(id)?;
        let _guard = lock.lock().await;
        let Some((machine, _)) = self.running(id) else { return Ok(()) };
        self.freeze(id, &*machine).await?;
        metrics::counter!("wrenn_host_guests_stopped_for_room_total").increment(1);
        tracing::warn!(%id, "a guest is stopped: it takes room of which the host has too little");
        self.change(id, |capsule| capsule.usage.waits = true);
        self.changed();
        Ok(())
    }

    /// Thaws a guest that waited for room or that is owed a thaw, and sets its clock.
    async fn thaw_due(&self, id: CapsuleId) -> Result<(), Error> {
        let lock = self.capsule_lock(id)?;
        // An operation that holds the lock thaws its guest itself. If that fails, a later check
        // comes here again.
        let Ok(held) = lock.try_lock() else { return Ok(()) };
        let Some((machine, guest)) = self.running(id) else { return Ok(()) };
        let waited = self.change(id, |capsule| capsule.usage.waits) == Some(true);
        self.thaw(id, &*machine).await?;
        if waited {
            self.changed();
            tracing::info!(%id, "a guest goes on: there is room on the host's disk");
        }
        let lost = || io_error("reading the capsule's record")(std::io::ErrorKind::NotFound.into());
        let record = CapsuleRecord::load(&boot::folder(&self.context, id)).ok_or_else(lost)?;
        drop(held);
        let refreshed = guest.refresh(&record.envd_token).await;
        refreshed.map_err(io_error("setting the clock of a guest that goes on"))
    }

    /// Sets the clock of a thawed guest and thaws its file system, once its agent answers. Gives up
    /// when the guest's connections are cut, as each pause and each end does. Does nothing while an
    /// earlier call for the same guest still tries.
    pub(super) fn refresh_later(&self, id: CapsuleId, guest: Guest, token: String) {
        let Some(held) = guest.become_refresher() else { return };
        let tasks = self.context.tasks.clone();
        self.context.tasks.spawn(async move {
            let _held = held;
            let refreshed = async {
                while guest.refresh(&token).await.is_err() {
                    tokio::time::sleep(AGAIN).await;
                }
            };
            tokio::select! {
                () = refreshed => tracing::info!(%id, "a guest that was silent answers"),
                () = guest.gone() => {}
                () = tasks.stopping() => {}
            }
        });
    }

    /// Stops a running capsule's guest. From here on a thaw is owed, even when this fails. A VMM
    /// that did not answer in time may still stop the guest.
    pub(super) async fn freeze(
        &self,
        id: CapsuleId,
        machine: &dyn Machine,
    ) -> Result<(), vmm::Error> {
        self.change(id, |capsule| capsule.usage.thaw_owed = true);
        machine.freeze().await
    }

    /// Thaws a running capsule's guest. If this fails, a thaw is owed, even when the VMM stopped
    /// the guest by itself.
    pub(super) async fn thaw(
        &self,
        id: CapsuleId,
        machine: &dyn Machine,
    ) -> Result<(), vmm::Error> {
        self.change(id, |capsule| capsule.usage.thaw_owed = true);
        machine.thaw().await?;
        self.change(id, |capsule| {
            (capsule.usage.waits, capsule.usage.thaw_owed) = (false, false);
        });
        Ok(())
    }

    /// Thaws a guest that is owed a thaw, before the guest is asked for something.
    pub(super) async fn thaw_if_owed(
        &self,
        id: CapsuleId,
        machine: &dyn Machine,
    ) -> Result<(), vmm::Error> {
        match self.change(id, |capsule| capsule.usage.thaw_owed) {
            Some(true) => self.thaw(id, machine).await,
            Some(false) | None => Ok(()),
        }
    }

    fn running(&self, id: CapsuleId) -> Option<(Arc<dyn Machine>, Guest)> {
        let capsules = self.lock();
        let capsule = capsules.get(&id).filter(|capsule| capsule.state == State::Running)?;
        capsule.running.clone()
    }

    /// Returns the bytes on disk of each snapshot, by its id, as of the last count.
    pub(crate) fn snapshot_sizes(&self) -> HashMap<String, u64> {
        let sizes = lock(&self.context.snapshot_sizes);
        sizes.iter().map(|(id, bytes)| (id.to_string(), *bytes)).collect()
    }

    /// Counts the bytes of one capsule's snapshots; the next full count replaces the figure.
    pub(super) fn measure_soon(&self, id: CapsuleId) {
        let this = self.clone();
        tokio::task::spawn_blocking(move || {
            let mut seen = HashSet::new();
            storage::used(&this.context.config.golden(), &mut seen);
            let used =
                storage::used(&boot::snapshots_dir(&boot::folder(&this.context, id)), &mut seen);
            this.change(id, |capsule| capsule.usage.snapshot_bytes = used);
        });
    }

    /// Counts the bytes of all snapshots. A file that several of them link counts once.
    fn measure(&self) {
        let config = &self.context.config;
        let mut seen = HashSet::new();
        let mut bytes = storage::used(&config.golden(), &mut seen);
        let ids: Vec<CapsuleId> = self.lock().keys().copied().collect();
        for id in ids {
            let used =
                storage::used(&boot::snapshots_dir(&boot::folder(&self.context, id)), &mut seen);
            self.change(id, |capsule| capsule.usage.snapshot_bytes = used);
            bytes += used;
        }
        let mut sizes = HashMap::new();
        for id in self.snapshots() {
            let used = storage::used(&config.snapshots().join(id.to_string()), &mut seen);
            sizes.insert(id, used);
            bytes += used;
        }
        *lock(&self.context.snapshot_sizes) = sizes;
        bytes += storage::used(&config.capsules(), &mut seen);
        let mib = u32::try_from(bytes >> 20).unwrap_or(u32::MAX);
        metrics::gauge!("wrenn_host_kept_mib").set(f64::from(mib));
    }
}

#[cfg(test)]
mod tests {
    use super::super::manager::Capsule;
    use super::*;
    use crate::AgentContext;
    use crate::capsule::boot::Booted;
    use crate::capsule::lifetime::Lifetime;
    use crate::guest::Route;
    use crate::snapshot::memory::Memory;
    use crate::vmm::VmmRecord;
    use crate::vmm::null::NullDriver;
    use daemon::Tasks;
    use futures::FutureExt;
    use futures::future::BoxFuture;
    use std::fs::File;
    use std::io;
    use std::net::{Ipv4Addr, SocketAddr};
    use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

    /// A machine whose VMM refuses the first thaws.
    struct Stubborn {
        frozen: AtomicBool,
        refusals: AtomicI32,
    }

    impl Stubborn {
        /// Starts a running capsule on a machine that refuses `refusals` thaws.
        async fn start(dir: &std::path::Path, refusals: i32) -> (Manager, CapsuleId, Arc<Self>) {
            let context = AgentContext::for_tests(dir, Box::new(NullDriver { port: 1 }));
            let manager = Manager::new(Arc::new(context)).await.unwrap();
            let record = CapsuleRecord { id: CapsuleId::new(), ..CapsuleRecord::unknown() };
            let id = record.id;
            manager.lock().insert(id, Capsule::new(&record, State::Running));
            let refusals = AtomicI32::new(refusals);
            let machine = Arc::new(Self { frozen: AtomicBool::new(false), refusals });
            let nowhere = Route::Loopback(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
            let booted = Booted {
                machine: Arc::clone(&machine) as Arc<dyn Machine>,
                guest: Guest::new(nowhere, "", 1, Tasks::default()),
                stages: Vec::new(),
                life: Lifetime::default(),
            };
            manager.run(id, booted);
            (manager, id, machine)
        }

        /// Waits until the guest runs and no thaw is owed.
        async fn wait_until_thawed(&self, manager: &Manager, id: CapsuleId) {
            let thawed = async {
                while self.frozen.load(Ordering::Acquire)
                    || manager.change(id, |capsule| capsule.usage.thaw_owed) != Some(false)
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
        assert!(manager.thaw(id, &*machine).await.is_err());
        assert!(machine.frozen.load(Ordering::Acquire));
        machine.wait_until_thawed(&manager, id).await;
        assert_eq!(machine.refusals.load(Ordering::Acquire), -1);
    }

    #[tokio::test]
    async fn guest_frozen_by_an_operation_is_not_thawed() {
        let dir = tempfile::tempdir().unwrap();
        let (manager, id, machine) = Stubborn::start(dir.path(), 0).await;
        let lock = manager.capsule_lock(id).unwrap();
        let held = lock.lock().await;
        manager.freeze(id, &*machine).await.unwrap();
        manager.thaw_due(id).await.unwrap();
        assert!(machine.frozen.load(Ordering::Acquire));
        // The operation ends without a thaw, like an operation that panics.
        drop(held);
        machine.wait_until_thawed(&manager, id).await;
    }

    #[test]
    fn owed_thaw_is_due_unless_guest_waits_for_disk_space() {
        let (mut usage, now) = (Usage { thaw_owed: true, ..Usage::default() }, Instant::now());
        assert_eq!(usage.decide(Level::Low, Some(5), false, now), Action::Thaw);
        // A failed attempt clears nothing, and the next one comes after a pause.
        assert_eq!(usage.decide(Level::Low, Some(5), false, now), Action::Nothing);
        assert_eq!(usage.decide(Level::Low, Some(5), false, now + AGAIN), Action::Thaw);
        usage.waits = true;
        assert_eq!(usage.decide(Level::Low, Some(5), false, now + 2 * AGAIN), Action::Nothing);
        assert_eq!(usage.decide(Level::Plenty, None, false, now + 2 * AGAIN), Action::Thaw);
    }

    #[test]
    fn low_disk_space_freezes_only_guests_that_write() {
        let (mut writer, mut quiet, now) = (Usage::default(), Usage::default(), Instant::now());
        for level in [Level::Enough, Level::Scarce] {
            assert_eq!(writer.decide(level, Some(5), false, now), Action::Nothing);
            assert_eq!(quiet.decide(level, Some(5), false, now), Action::Nothing);
        }
        assert_eq!(writer.decide(Level::Low, Some(6), false, now), Action::Freeze);
        assert_eq!(quiet.decide(Level::Low, Some(5), false, now), Action::Nothing);
        writer.waits = true;
        assert_eq!(writer.decide(Level::Low, Some(7), false, now), Action::Nothing);
        assert_eq!(writer.decide(Level::Scarce, Some(7), false, now), Action::Nothing);
        assert_eq!(writer.decide(Level::Enough, Some(7), false, now), Action::Thaw);
    }

    #[test]
    fn guest_stopped_by_its_vmm_is_noted_and_thaw_is_retried() {
        let (mut usage, now) = (Usage::default(), Instant::now());
        assert_eq!(usage.decide(Level::Low, Some(5), true, now), Action::NoteWaiting);
        usage.waits = true;
        assert_eq!(usage.decide(Level::Low, Some(5), true, now), Action::Nothing);
        assert_eq!(usage.decide(Level::Plenty, None, true, now), Action::Thaw);
        // A full quota, for example, lets nothing be written although the disk has room.
        assert_eq!(usage.decide(Level::Plenty, None, true, now), Action::Nothing);
        assert_eq!(usage.decide(Level::Plenty, None, true, now + AGAIN), Action::Thaw);
    }
}
