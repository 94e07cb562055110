//! The parts of a capsule: made in phases, and removed together. The phases are prepared (disk),
//! wired (network), booted (machine) and ready (the guest answers). An [`Origin`] is the source of
//! the machine: an image, a saved disk, or a whole saved machine. Removal does not depend on the
//! phases that were reached. So it serves a failed boot, a pause, a removal and a dead agent alike.

use super::lifetime::{Lifetime, now_ms};
use super::record::{CapsuleRecord, Phase};
use super::template_snapshot::PendingTemplateSnapshot;
use super::{Error, io_error, snapshot_error, unless_cancelled};
use crate::AgentContext;
use crate::guest::{Guest, Identity, Route};
use crate::network::Network;
use crate::network::egress::Guard;
use crate::network::namespace::Namespace;
use crate::room::Claim;
use crate::snapshot::{Layers, Snapshot};
use crate::storage;
use crate::vmm::{self, Disks, Machine, Metadata, Saved, Spec};
use daemon::blocking;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use types::{CapsuleId, Egress};

/// Time limit for a guest that boots to answer. An emulated guest on a busy machine takes a while.
const READY: Duration = Duration::from_secs(90);
/// Time limit for a restored guest to answer. It answered before it was saved and does not boot.
const READY_AGAIN: Duration = Duration::from_secs(60);
/// First user id of VMMs. A VMM's user id is this number plus the network's number.
const FIRST_UID: u32 = 2_000_000;

/// Source of a capsule's machine.
pub(crate) enum Origin {
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

/// A capsule whose guest answers.
pub(crate) struct Booted {
    pub machine: Arc<dyn Machine>,
    pub guest: Guest,
    pub stages: Vec<(&'static str, Duration)>,
    pub life: Lifetime,
}

/// Returns the folder of a capsule.
pub(crate) fn folder(context: &AgentContext, id: CapsuleId) -> PathBuf {
    context.config.capsules().join(id.to_string())
}

/// Returns the folder of a capsule's own snapshots, which are named by their numbers.
pub(crate) fn snapshots_dir(dir: &Path) -> PathBuf {
    dir.join("kept")
}

/// Lists the capsules that have a folder or a control group on this machine.
pub(crate) fn existing(context: &AgentContext) -> Vec<CapsuleId> {
    let folders = fs::read_dir(context.config.capsules()).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        folders.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.extend(context.cgroups.iter().flat_map(|groups| groups.existing()));
    names.sort();
    names.dedup();
    names.iter().filter_map(|name| name.parse().ok()).collect()
}

/// Makes all parts of a capsule. On failure, or when `cancel` is cancelled, the caller removes
/// them.
pub(crate) async fn boot(
    context: &AgentContext,
    record: &mut CapsuleRecord,
    origin: Origin,
    cancel: &CancellationToken,
) -> Result<Booted, Error> {
    let dir = folder(context, record.id);
    let mut stages = Vec::new();
    let mut since = Instant::now();
    let mut lap = |name, stages: &mut Vec<_>| {
        stages.push((name, since.elapsed()));
        since = Instant::now();
    };
    save(record, &dir)?;
    daemon::failpoint("boot.begun").map_err(io_error("a failpoint"))?;
    let layers = origin.layers();
    record.base_layers = layers.clone().unwrap_or_default();
    record.system = match (origin.snapshot(), &layers) {
        (Some(snapshot), Some(_)) => snapshot.manifest.system.clone(),
        _ => context.config.system(),
    };
    // Both run side by side. Both end before a failure of either is returned, so no part is
    // forgotten.
    let preparing = async {
        let disks = match context.driver.boots_images() {
            true => Some(disks(context, record, &dir, origin.snapshot(), cancel).await?),
            false => None,
        };
        let saved = match (origin.snapshot(), &layers) {
            (Some(snapshot), Some(layers)) => {
                Some(saved(context, &record.team, snapshot, layers, &dir).await?)
            }
            _ => None,
        };
        Ok::<_, Error>((disks, saved))
    };
    let (prepared, wired) = tokio::join!(preparing, wire(context, &record.egress));
    let network = wired?;
    record.slot = network.as_ref().map(|network| network.slot);
    // The record is written before a failure is returned, since the undoing goes by the record.
    if let Err(error) = save(record, &dir) {
        // An open tap would hold the network.
        drop(network);
        unwire(context, record, &dir).await;
        return Err(error);
    }
    let (disks, saved) = prepared?;
    daemon::failpoint("boot.wired").map_err(io_error("a failpoint"))?;
    lap("prepared", &mut stages);
    let (tap, namespace) = network.map_or((None, None), |n| (n.tap, Some(n.namespace)));
    let guard = guard(context, namespace.as_ref(), &record.egress).await?;
    let at = namespace.clone();
    let spec = Spec { disks, tap, namespace: at, ..spec(context, record, dir.clone())? };
    let restored = saved.is_some();
    let machine: Arc<dyn Machine> = Arc::from(match saved {
        // The driver writes too, so the claim lives until the driver is done.
        Some((saved, _claim)) => context.driver.restore(spec, saved).await?,
        None => context.driver.boot(spec).await?,
    });
    record.machine = Some(machine.record());
    save(record, &dir)?;
    daemon::failpoint("boot.machine").map_err(io_error("a failpoint"))?;
    lap(if restored { "restored" } else { "booted" }, &mut stages);
    let guest = guest(context, record, route(&*machine, namespace)?).guarded(guard);
    let mut identity = identity(context, record);
    if let (true, Some(snapshot)) = (restored, origin.snapshot()) {
        identity.old_token.clone_from(&snapshot.manifest.envd_token);
        machine.thaw().await?;
    }
    identity.fresh = !matches!(origin, Origin::Resume(_));
    tokio::select! {
        ready = ready(context, &machine, (&guest, &dir), &identity, origin) => ready?,
        () = cancel.cancelled() => return Err(Error::Stopping),
    }
    record.phase = Phase::Running;
    record.life.begin(now_ms());
    save(record, &dir)?;
    daemon::failpoint("boot.ready").map_err(io_error("a failpoint"))?;
    lap("ready", &mut stages);
    Ok(Booted { machine, guest, stages, life: record.life.clone() })
}

fn spec(context: &AgentContext, record: &CapsuleRecord, dir: PathBuf) -> Result<Spec, Error> {
    let name = record.id.to_string();
    let cgroups = match &context.cgroups {
        None => Vec::new(),
        Some(groups) => groups
            .create(&name, &record.resources)
            .map_err(io_error("limiting the capsule's machine"))?,
    };
    Ok(Spec {
        name,
        resources: record.resources,
        dir,
        disks: None,
        tap: None,
        namespace: None,
        uid: uid(record),
        cgroups,
        metadata: metadata(record),
    })
}

/// Returns the user id of a capsule's VMM.
pub(crate) fn uid(record: &CapsuleRecord) -> u32 {
    FIRST_UID + record.slot.unwrap_or(0)
}

/// Returns the metadata that a capsule's guest reads about itself.
pub(crate) fn metadata(record: &CapsuleRecord) -> Metadata {
    Metadata { capsule: record.id.to_string(), template: record.template.clone() }
}

async fn wire(context: &AgentContext, egress: &Egress) -> Result<Option<Network>, Error> {
    match &context.networks {
        None => Ok(None),
        Some(networks) => Ok(Some(networks.create(egress).await?)),
    }
}

/// Takes a capsule's network down unless the written record names the network. Whoever undoes the
/// boot finds only a network that is written down.
async fn unwire(context: &AgentContext, record: &CapsuleRecord, dir: &Path) {
    let written = CapsuleRecord::load(dir).and_then(|written| written.slot);
    if let (Some(networks), Some(slot)) = (&context.networks, record.slot)
        && written != Some(slot)
    {
        networks.discard(slot).await;
    }
}

/// Returns the guard that enforces in a namespace the rules for outgoing connections.
pub(crate) async fn guard(
    context: &AgentContext,
    namespace: Option<&Namespace>,
    egress: &Egress,
) -> Result<Option<Arc<Guard>>, Error> {
    match (&context.networks, namespace) {
        (Some(networks), Some(namespace)) => Ok(Some(networks.guard(namespace, egress).await?)),
        _ => Ok(None),
    }
}

async fn disks(
    context: &AgentContext,
    record: &CapsuleRecord,
    dir: &Path,
    from: Option<&Snapshot>,
    cancel: &CancellationToken,
) -> Result<Disks, Error> {
    let image = match from {
        None => storage::image(&context.config, &record.template),
        Some(snapshot) => snapshot.dir.join(storage::OWN_IMAGE),
    };
    let none = |_| Error::NoTemplate(record.template.clone());
    let copied = from.map_or(0, Snapshot::disk_bytes) + storage::copied_image(&image, dir);
    let _claim = context.room.claim(copied)?;
    let image = storage::link_image(&image, dir).map_err(none)?;
    let (at, mib, from) = (dir.to_owned(), record.resources.disk_mib, from.cloned());
    let ends = cancel.clone();
    // A removal waits for this thread, which then ends early. So nothing is written after the
    // removal.
    let own = blocking(move || match from {
        None => storage::make_disk(&at, mib),
        Some(snapshot) => {
            let none = || std::io::Error::from(std::io::ErrorKind::NotFound);
            snapshot.copy_disk(&at.join(storage::DISK), &ends)?.ok_or_else(none)
        }
    });
    let own = own.await.map_err(snapshot_error("making the capsule's disk"));
    Ok(Disks { image, own: unless_cancelled(cancel, own)? })
}

/// Opens the parts of a saved machine, and links its layers into the capsule's folder for the next
/// pause. The claim covers all writes from here until the driver has restored the machine.
async fn saved(
    context: &AgentContext,
    team: &str,
    snapshot: &Snapshot,
    layers: &Layers,
    dir: &Path,
) -> Result<(Saved, Claim), Error> {
    let here = context.driver.fingerprint();
    if snapshot.manifest.fingerprint != here {
        let taken = snapshot.manifest.fingerprint.clone();
        return Err(Error::Incompatible { taken, here });
    }
    if is_newer(&snapshot.manifest.system.envd, protocol::ENVD_VERSION) {
        let taken = format!("envd {}", snapshot.manifest.system.envd);
        let here = format!("envd {}", protocol::ENVD_VERSION);
        return Err(Error::Incompatible { taken, here });
    }
    let bytes = u64::from(snapshot.manifest.resources.memory_mib) << 20;
    let open = || {
        layers.link(&snapshot.dir, dir)?;
        let mut shared = layers.open(&snapshot.dir)?;
        let above = shared.split_off(layers.shared);
        Ok((shared, above, snapshot.state()?))
    };
    let above = layers.all.len() > layers.shared;
    let claim = context.room.claim(context.driver.most_restored(bytes, above))?;
    let wrong = "opening what was kept of the machine";
    let (shared, above, state) = open().map_err(snapshot_error(wrong))?;
    let image =
        context.images.get(team, layers, shared, bytes).await.map_err(snapshot_error(wrong))?;
    Ok((Saved { image, above: Arc::new(above), state }, claim))
}

/// Reports whether `version` comes after `than`. A text that is no version is never newer.
fn is_newer(version: &str, than: &str) -> bool {
    let numbers = |text: &str| -> Option<Vec<u32>> {
        text.split('.').map(|part| part.parse().ok()).collect()
    };
    numbers(version).zip(numbers(than)).is_some_and(|(version, than)| version > than)
}

fn save(record: &CapsuleRecord, dir: &Path) -> Result<(), Error> {
    record.save(dir).map_err(io_error("writing the capsule's record"))
}

/// Returns a client for the guest at the end of a route.
pub(crate) fn guest(context: &AgentContext, record: &CapsuleRecord, route: Route) -> Guest {
    Guest::new(route, &record.envd_token, context.config.connections, context.tasks.clone())
}

/// Returns the route to a machine's guest.
pub(crate) fn route(machine: &dyn Machine, ns: Option<Namespace>) -> Result<Route, Error> {
    if let Some(at) = machine.loopback(protocol::ENVD_PORT) {
        return Ok(Route::Loopback(at));
    }
    let none = || io_error("finding the guest")(std::io::ErrorKind::NotFound.into());
    Ok(Route::Namespace(ns.ok_or_else(none)?))
}

/// Returns the identity that a capsule's guest is given.
pub(crate) fn identity(context: &AgentContext, record: &CapsuleRecord) -> Identity {
    Identity {
        hostname: "capsule".to_owned(),
        token: record.envd_token.clone(),
        old_token: None,
        envs: record.envs.clone(),
        user: context.driver.boots_images().then_some("user"),
        fresh: true,
    }
}

/// Waits until the guest answers and has its identity. Requests may be let in only after that.
async fn ready(
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
                tracing::debug!(%error, "the guest is not there yet");
                guest.wait_healthy().await;
                guest.initialize(identity).await
            }
            begun => begun,
        };
        begun.map_err(io_error("beginning the guest's epoch"))
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

/// Ends a capsule's machine, and removes its limits and network. Parts that do not exist are
/// skipped.
async fn teardown(
    context: &AgentContext,
    id: CapsuleId,
    record: Option<&CapsuleRecord>,
) -> Result<(), Error> {
    let name = id.to_string();
    if let Some(machine) = record.and_then(|record| record.machine.as_ref()) {
        vmm::kill_record(machine).await?;
    }
    vmm::kill_named(&name, &folder(context, id)).await?;
    daemon::failpoint("release.killed").map_err(io_error("a failpoint"))?;
    let limits = async {
        let Some(groups) = context.cgroups.clone() else { return Ok(()) };
        blocking(move || groups.remove(&name)).await
    };
    let network = async {
        match (&context.networks, record.and_then(|record| record.slot)) {
            (Some(networks), Some(slot)) => networks.teardown(slot).await,
            _ => Ok(()),
        }
    };
    let (limits, network) = tokio::join!(limits, network);
    limits.map_err(io_error("removing the capsule's limits"))?;
    Ok(network?)
}

/// Frees the number of a network for reuse. No record may still name the number. Otherwise the next
/// capsule that gets it would lose its network to this one.
fn release_slot(context: &AgentContext, slot: Option<u32>) {
    if let (Some(networks), Some(slot)) = (&context.networks, slot) {
        networks.release(slot);
    }
}

/// Ends a capsule's machine, removes its limits and network, and writes a record without them. The
/// capsule's folder stays, without the files of the machine.
pub(crate) async fn release(
    context: &AgentContext,
    record: &mut CapsuleRecord,
) -> Result<(), Error> {
    let dir = folder(context, record.id);
    teardown(context, record.id, Some(record)).await?;
    let slot = record.slot.take();
    record.machine = None;
    save(record, &dir)?;
    release_slot(context, slot);
    let cleared = blocking(move || clear(&dir)).await;
    cleared.map_err(io_error("removing what the machine left"))
}

/// Removes a machine's files from its capsule's folder.
fn clear(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name == vmm::OWN {
            fs::remove_dir_all(entry.path())?;
        } else if name == storage::DISK
            || name == storage::OWN_IMAGE
            || name.as_encoded_bytes().ends_with(b".pages")
        {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Removes all parts of a capsule; succeeds when nothing is left of it.
pub(crate) async fn remove(context: &AgentContext, id: CapsuleId) -> Result<(), Error> {
    let dir = folder(context, id);
    let record = CapsuleRecord::load(&dir);
    teardown(context, id, record.as_ref()).await?;
    daemon::failpoint("unmake.released").map_err(io_error("a failpoint"))?;
    // The folder goes last, since its record is needed to find the rest.
    match tokio::fs::remove_dir_all(&dir).await {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(io_error("removing the capsule's folder")(e));
        }
        _ => {}
    }
    release_slot(context, record.and_then(|record| record.slot));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Networks;
    use crate::network::plan::Plan;
    use crate::snapshot::{Manifest, Staging};
    use crate::vmm::{Driver, Found};
    use futures::FutureExt;
    use futures::future::BoxFuture;
    use std::io::{self, Write};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{OnceLock, Weak};
    use types::Isolation;

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
        let folder = folder(&context, record.id);
        fs::create_dir_all(&folder).unwrap();
        let staging = Staging::begin(&snapshots_dir(&folder).join("1")).unwrap();
        staging.state_file().unwrap().write_all(b"state").unwrap();
        let manifest = Manifest {
            fingerprint: "writing".to_owned(),
            system: record.system.clone(),
            template: String::new(),
            team: None,
            resources: record.resources,
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

    #[tokio::test]
    async fn network_without_a_record_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        // An absolute path in place of an agent's tag puts the namespaces in this folder.
        let plan = Plan::new(dir.path().to_str().unwrap(), "198.18.0.0/30", &[]).unwrap();
        let networks = Networks::for_removal(plan);
        let context = AgentContext {
            networks: Some(Arc::clone(&networks)),
            ..AgentContext::for_tests(dir.path(), Box::new(Writing::default()))
        };
        let own = dir.path().join("own");
        fs::create_dir(&own).unwrap();
        let (namespace, mut record) = (dir.path().join("1"), CapsuleRecord::unknown());
        fs::write(&namespace, []).unwrap();
        record.slot = Some(networks.adopt(1).unwrap().slot);
        // If the record names a network, the undoing of the boot takes the network down.
        record.save(&own).unwrap();
        unwire(&context, &record, &own).await;
        assert!(namespace.exists());
        CapsuleRecord { slot: None, ..record.clone() }.save(&own).unwrap();
        unwire(&context, &record, &own).await;
        assert!(!namespace.exists());
    }

    #[test]
    fn envd_versions_are_compared_by_number_and_empty_is_oldest() {
        assert!(is_newer("0.6.14", "0.6.13") && is_newer("0.10.0", "0.9.9"));
        assert!(!is_newer("0.6.13", "0.6.13") && !is_newer("0.6.9", "0.6.13"));
        assert!(!is_newer("", "0.6.13"), "what was kept before versions were written down");
        assert!(!is_newer(protocol::ENVD_VERSION, protocol::ENVD_VERSION));
    }
}
