//! The boot of a capsule, in phases. Each phase is a type, and each step consumes the phase before
//! it. An [`Origin`] is the source of the machine: an image, a saved disk, or a whole saved
//! machine.
//!
//! ```text
//!            prepare            launch              initialize
//!  record ────────────▶ Prepared ─────▶ Launched ────────────▶ Ready
//!            disk ∥ network      machine          guest answers, has its identity
//! ```
//! A phase owns the handles of its parts, and a step that fails drops them with its phase. So no
//! handle holds the network when the caller calls `teardown`, which goes by the record alone. The
//! record names each part before a failure is returned, and says `Running` only for [`Ready`].

pub(super) mod parts;

use super::lifetime::{Lifetime, now_ms};
use super::record::{CapsuleRecord, Phase};
use super::registry::{Running, StartKind};
use super::template_snapshot::PendingTemplateSnapshot;
use super::{Error, files, io_error};
use crate::context::AgentContext;
use crate::guest::{Guest, Identity};
use crate::network::Network;
use crate::placeholder;
use crate::snapshot::{Layers, Snapshot};
use crate::vmm::{Disks, Machine, Spec};
use parts::ClaimedSave;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Time limit for a guest that boots to answer. An emulated guest on a busy machine takes a while.
const READY: Duration = Duration::from_secs(90);
/// Time limit for a restored guest to answer. It answered before it was saved and does not boot.
const READY_AGAIN: Duration = Duration::from_secs(60);

/// Source of a capsule's machine.
pub(super) enum Origin {
    /// The template's image and an empty disk. The booted machine may become a template snapshot.
    Image(Option<PendingTemplateSnapshot>),
    /// A saved disk, on which a kernel boots.
    Disk(Snapshot),
    /// A whole saved machine, for the same capsule to continue.
    Resume(Snapshot),
    /// A whole saved machine, for another capsule to begin from.
    Fork(Snapshot),
}

impl Origin {
    fn snapshot(&self) -> Option<&Snapshot> {
        match self {
            Self::Image(_) => None,
            Self::Disk(snapshot) | Self::Resume(snapshot) | Self::Fork(snapshot) => Some(snapshot),
        }
    }

    /// Returns the kind of a start from here.
    fn kind(&self) -> StartKind {
        match self {
            Self::Image(_) | Self::Disk(_) => StartKind::Booted,
            Self::Fork(_) => StartKind::Forked,
            Self::Resume(_) => StartKind::Resumed,
        }
    }

    /// Returns the layers of the saved memory; none when a kernel is booted.
    fn layers(&self) -> Option<Layers> {
        match self {
            Self::Image(_) | Self::Disk(_) => None,
            Self::Resume(snapshot) => snapshot.manifest.memory.clone(),
            Self::Fork(snapshot) => {
                let all = snapshot.manifest.memory.clone()?.all;
                Some(Layers { shared: all.len(), all })
            }
        }
    }
}

/// Phase of a boot, with its duration.
pub(super) struct Stage {
    pub name: &'static str,
    pub took: Duration,
}

/// Inputs of all phases of a boot.
struct Boot<'a> {
    context: &'a AgentContext,
    record: &'a mut CapsuleRecord,
    origin: Origin,
    cancel: &'a CancellationToken,
    /// The capsule's folder.
    dir: PathBuf,
    laps: Laps,
}

/// Durations of the phases that have ended.
struct Laps {
    stages: Vec<Stage>,
    since: Instant,
}

impl Laps {
    fn start() -> Self {
        Self { stages: Vec::new(), since: Instant::now() }
    }

    /// Notes the end of a phase.
    fn end(&mut self, name: &'static str) {
        self.stages.push(Stage { name, took: self.since.elapsed() });
        self.since = Instant::now();
    }
}

/// A capsule with disk, saved memory and network, and without a machine.
struct Prepared<'a> {
    boot: Boot<'a>,
    disks: Option<Disks>,
    saved: Option<ClaimedSave>,
    network: Option<Network>,
}

/// A capsule with a machine, whose guest may not answer yet.
struct Launched<'a> {
    boot: Boot<'a>,
    machine: Arc<dyn Machine>,
    guest: Guest,
    /// True for a restored machine, which stands still.
    restored: bool,
}

/// A capsule whose guest answers.
pub(super) struct Ready {
    pub running: Running,
    pub stages: Vec<Stage>,
    /// Origin of the machine; `None` when an earlier agent process started it.
    pub kind: Option<StartKind>,
    pub life: Lifetime,
}

/// Makes all parts of a capsule. On failure, or when `cancel` is cancelled, the caller removes
/// them.
pub(super) async fn boot(
    context: &AgentContext,
    record: &mut CapsuleRecord,
    origin: Origin,
    cancel: &CancellationToken,
) -> Result<Ready, Error> {
    let dir = files::folder(context, record.id);
    let boot = Boot { context, record, origin, cancel, dir, laps: Laps::start() };
    boot.prepare().await?.launch().await?.initialize().await
}

impl<'a> Boot<'a> {
    /// Writes the record, then makes the disk and opens the saved memory, beside the network.
    async fn prepare(mut self) -> Result<Prepared<'a>, Error> {
        let (context, record) = (self.context, &mut *self.record);
        files::save(record, &self.dir)?;
        daemon::failpoint("boot.begun").map_err(io_error("a failpoint failed"))?;
        let (source, layers) = (self.origin.snapshot(), self.origin.layers());
        record.base_layers = layers.clone().unwrap_or_default();
        (record.system, record.placeholders) = match (source, &layers) {
            (Some(Snapshot { manifest, .. }), Some(_)) => {
                (manifest.system.clone(), manifest.placeholders)
            }
            _ => (context.config.system(), placeholder::COUNT),
        };
        // Both run side by side. Both end before a failure of either is returned, so no part is
        // forgotten.
        let preparing = async {
            let disks = match context.driver.boots_images() {
                true => Some(parts::disks(context, record, &self.dir, source, self.cancel).await?),
                false => None,
            };
            let saved = match (source, &layers) {
                (Some(snapshot), Some(layers)) => {
                    Some(parts::saved(context, &record.team, snapshot, layers, &self.dir).await?)
                }
                _ => None,
            };
            Ok::<_, Error>((disks, saved))
        };
        let (prepared, wired) = tokio::join!(preparing, parts::wire(context, &record.egress));
        let network = wired?;
        record.slot = network.as_ref().map(|network| network.slot);
        // The record is written before a failure is returned, since the undoing goes by the record.
        if let Err(error) = files::save(record, &self.dir) {
            // An open tap would hold the network.
            drop(network);
            parts::unwire(context, record, &self.dir).await;
            return Err(error);
        }
        let (disks, saved) = prepared?;
        daemon::failpoint("boot.wired").map_err(io_error("a failpoint failed"))?;
        self.laps.end("prepared");
        Ok(Prepared { boot: self, disks, saved, network })
    }
}

impl<'a> Prepared<'a> {
    /// Restores or boots the machine.
    async fn launch(self) -> Result<Launched<'a>, Error> {
        let Self { mut boot, disks, saved, network } = self;
        let context = boot.context;
        let (tap, namespace) = network.map_or((None, None), |n| (n.tap, Some(n.namespace)));
        let guard = parts::guard(context, namespace.as_ref(), &boot.record.egress).await?;
        let at = namespace.clone();
        let spec = parts::spec(context, boot.record, boot.dir.clone())?;
        let spec = Spec { disks, tap, namespace: at, ..spec };
        let restored = saved.is_some();
        let machine: Arc<dyn Machine> = Arc::from(match saved {
            // The driver writes too, so the claim lives until the driver is done.
            Some(ClaimedSave { saved, claim: _claim }) => {
                context.driver.restore(spec, saved).await?
            }
            None => context.driver.boot(spec).await?,
        });
        boot.record.machine = Some(machine.record());
        files::save(boot.record, &boot.dir)?;
        daemon::failpoint("boot.machine").map_err(io_error("a failpoint failed"))?;
        boot.laps.end(if restored { "restored" } else { "booted" });
        let route = parts::route(&*machine, namespace)?;
        let guest = parts::guest(context, boot.record, route).guarded(guard);
        Ok(Launched { boot, machine, guest, restored })
    }
}

impl Launched<'_> {
    /// Lets the guest run, and waits until it answers and has its identity.
    async fn initialize(self) -> Result<Ready, Error> {
        let Self { boot, machine, guest, restored } = self;
        let Boot { context, record, origin, cancel, dir, mut laps } = boot;
        let mut identity = parts::identity(context, record);
        if let (true, Some(snapshot)) = (restored, origin.snapshot()) {
            identity.old_token.clone_from(&snapshot.manifest.envd_token);
            machine.thaw().await?;
        }
        identity.fresh = !matches!(origin, Origin::Resume(_));
        let kind = Some(origin.kind());
        tokio::select! {
            ready = wait_ready(context, &machine, (&guest, &dir), &identity, origin) => ready?,
            () = cancel.cancelled() => return Err(Error::Stopping),
        }
        record.phase = Phase::Running;
        record.life.begin(now_ms());
        files::save(record, &dir)?;
        daemon::failpoint("boot.ready").map_err(io_error("a failpoint failed"))?;
        laps.end("ready");
        let running = Running { machine, guest };
        Ok(Ready { running, stages: laps.stages, kind, life: record.life.clone() })
    }
}

/// Waits until the guest answers and has its identity. Requests may be let in only after that.
async fn wait_ready(
    context: &AgentContext,
    machine: &Arc<dyn Machine>,
    (guest, dir): (&Guest, &Path),
    identity: &Identity,
    origin: Origin,
) -> Result<(), Error> {
    // A restored guest answered before it was saved.
    let answers = context.driver.boots_images() && origin.layers().is_some();
    let limit = if answers { READY_AGAIN } else { READY };
    let begin = async {
        if !answers {
            guest.wait_healthy().await;
        }
        if let Origin::Image(Some(pending)) = origin {
            pending.capture(context, machine, guest, dir).await;
        }
        let begun = match guest.initialize(identity).await {
            Err(error) if answers => {
                tracing::debug!(%error, "the guest does not answer yet");
                guest.wait_healthy().await;
                guest.initialize(identity).await
            }
            begun => begun,
        };
        begun.map_err(io_error("cannot begin the guest's epoch"))
    };
    tokio::select! {
        begun = begin => begun,
        reason = machine.ended() => {
            Err(Error::Died { reason, console: last_words(&**machine).await })
        }
        () = tokio::time::sleep(limit) => {
            let console = last_words(&**machine).await;
            Err(Error::GuestSilent { seconds: limit.as_secs(), console })
        }
    }
}

async fn last_words(machine: &dyn Machine) -> String {
    let console = machine.console().await;
    let from = console.len().saturating_sub(600);
    String::from_utf8_lossy(&console[from..]).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Manifest, Staging};
    use crate::vmm::{self, Driver, Found, Saved};
    use futures::FutureExt;
    use futures::future::BoxFuture;
    use std::fs;
    use std::io::{self, Write};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{OnceLock, Weak};
    use types::{CapsuleId, Isolation};

    /// A driver whose restore writes some bytes and records the number of bytes claimed meanwhile.
    #[derive(Clone, Default)]
    struct Writing {
        context: Arc<OnceLock<Weak<AgentContext>>>,
        claimed: Arc<AtomicU64>,
    }

    const WRITTEN: u64 = 5;

    fn refused() -> BoxFuture<'static, Result<Box<dyn Machine>, vmm::Error>> {
        let error = vmm::Error::new("making a machine", io::ErrorKind::Unsupported.into());
        std::future::ready(Err(error)).boxed()
    }

    impl Driver for Writing {
        fn name(&self) -> &'static str {
            "writing"
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

        fn most_restored(&self, _: u64, _: bool) -> u64 {
            WRITTEN
        }

        fn boot(&self, _: Spec) -> BoxFuture<'_, Result<Box<dyn Machine>, vmm::Error>> {
            refused()
        }

        fn fingerprint(&self) -> String {
            "writing".to_owned()
        }

        fn restore(
            &self,
            _: Spec,
            _: Saved,
        ) -> BoxFuture<'_, Result<Box<dyn Machine>, vmm::Error>> {
            let context = self.context.get().and_then(Weak::upgrade).unwrap();
            self.claimed.store(context.room.claimed(), Ordering::Release);
            refused()
        }

        fn adopt(&self, _: Found<'_>) -> Option<Box<dyn Machine>> {
            None
        }
    }

    #[tokio::test]
    async fn disk_space_stays_claimed_while_driver_restores_a_vm() {
        let dir = tempfile::tempdir().unwrap();
        let driver = Writing::default();
        let context = Arc::new(AgentContext::for_tests(dir.path(), Box::new(driver.clone())));
        driver.context.set(Arc::downgrade(&context)).unwrap();
        if context.room.claim(WRITTEN).is_err() {
            return;
        }
        let mut record = CapsuleRecord { id: CapsuleId::new(), ..CapsuleRecord::unknown() };
        let folder = files::folder(&context, record.id);
        fs::create_dir_all(&folder).unwrap();
        let staging = Staging::begin(&files::snapshots_dir(&folder).join("1")).unwrap();
        staging.state_file().unwrap().write_all(b"state").unwrap();
        let manifest = Manifest {
            fingerprint: "writing".to_owned(),
            system: record.system.clone(),
            template: String::new(),
            team: None,
            resources: record.resources,
            placeholders: 0,
            taken_at_ms: 0,
            memory: Some(Layers::default()),
            state: Some(staging.seal_state().unwrap()),
            disk: None,
            envd_token: None,
        };
        let origin = Origin::Resume(staging.commit(manifest).unwrap());
        let cancel = CancellationToken::new();
        let booted = boot(&context, &mut record, origin, &cancel).await;
        assert!(matches!(booted, Err(Error::Vmm(_))));
        assert_eq!(driver.claimed.load(Ordering::Acquire), WRITTEN);
        assert_eq!(context.room.claimed(), 0);
    }
}
