//! The parts of a capsule: made in phases, and removed together. The phases are prepared (disk),
//! wired (network), booted (machine) and ready (the guest answers). An [`Origin`] is the source of
//! the machine: an image, a saved disk, or a whole saved machine. Removal does not depend on the
//! phases that were reached. So it serves a failed boot, a pause, a removal and a dead agent alike.

use super::golden::Golden;
use super::ledger::{Ledger, Phase};
use super::life::{Life, now_ms};
use super::{Error, blocking, io_error, kept_error, unless_cancelled};
use crate::Parts;
use crate::guest::{Guest, Identity, Route};
use crate::network::Network;
use crate::network::egress::Guard;
use crate::network::namespace::Namespace;
use crate::room::Claim;
use crate::snapshot::{Layers, Snapshot};
use crate::storage;
use crate::vmm::{self, Disks, Machine, Metadata, Saved, Spec};
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
    /// The template's image and an empty disk. The booted machine may be saved as a golden machine.
    Image(Option<Golden>),
    /// A saved disk, on which a kernel boots.
    Disk(Snapshot),
    /// A whole saved machine, for the same capsule to continue.
    Same(Snapshot),
    /// A whole saved machine, for another capsule to begin from.
    Other(Snapshot),
}

impl Origin {
    fn snapshot(&self) -> Option<&Snapshot> {
        match self {
            Self::Image(_) => None,
            Self::Disk(snapshot) | Self::Same(snapshot) | Self::Other(snapshot) => Some(snapshot),
        }
    }

    /// Returns the layers of the saved memory; none when a kernel is booted.
    fn layers(&self) -> Option<Layers> {
        match self {
            Self::Image(_) | Self::Disk(_) => None,
            Self::Same(snapshot) => snapshot.manifest.memory.clone(),
            Self::Other(snapshot) => {
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
    pub life: Life,
}

/// Returns the folder of a capsule.
pub(crate) fn folder(parts: &Parts, id: CapsuleId) -> PathBuf {
    parts.config.capsules().join(id.to_string())
}

/// Returns the folder of a capsule's own snapshots, which are named by their numbers.
pub(crate) fn kept(dir: &Path) -> PathBuf {
    dir.join("kept")
}

/// Lists the capsules that have a folder or a control group on this machine.
pub(crate) fn existing(parts: &Parts) -> Vec<CapsuleId> {
    let folders = fs::read_dir(parts.config.capsules()).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        folders.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.extend(parts.cgroups.iter().flat_map(|groups| groups.existing()));
    names.sort();
    names.dedup();
    names.iter().filter_map(|name| name.parse().ok()).collect()
}

/// Makes all parts of a capsule. On failure, or when `cancel` is cancelled, the caller removes
/// them.
pub(crate) async fn boot(
    parts: &Parts,
    ledger: &mut Ledger,
    origin: Origin,
    cancel: &CancellationToken,
) -> Result<Booted, Error> {
    let dir = folder(parts, ledger.id);
    let mut stages = Vec::new();
    let mut since = Instant::now();
    let mut lap = |name, stages: &mut Vec<_>| {
        stages.push((name, since.elapsed()));
        since = Instant::now();
    };
    save(ledger, &dir)?;
    daemon::failpoint("boot.begun").map_err(io_error("a failpoint"))?;
    let layers = origin.layers();
    ledger.began = layers.clone().unwrap_or_default();
    ledger.system = match (origin.snapshot(), &layers) {
        (Some(snapshot), Some(_)) => snapshot.manifest.system.clone(),
        _ => parts.config.system(),
    };
    // Both run side by side. Both end before a failure of either is returned, so no part is
    // forgotten.
    let preparing = async {
        let disks = match parts.driver.boots_images() {
            true => Some(disks(parts, ledger, &dir, origin.snapshot(), cancel).await?),
            false => None,
        };
        let saved = match (origin.snapshot(), &layers) {
            (Some(snapshot), Some(layers)) => {
                Some(saved(parts, &ledger.team, snapshot, layers, &dir).await?)
            }
            _ => None,
        };
        Ok::<_, Error>((disks, saved))
    };
    let (prepared, wired) = tokio::join!(preparing, wire(parts, &ledger.egress));
    let network = wired?;
    ledger.slot = network.as_ref().map(|network| network.slot);
    // The ledger is written before a failure is returned, since the undoing goes by the ledger.
    if let Err(error) = save(ledger, &dir) {
        // An open tap would hold the network.
        drop(network);
        unwire(parts, ledger, &dir).await;
        return Err(error);
    }
    let (disks, saved) = prepared?;
    daemon::failpoint("boot.wired").map_err(io_error("a failpoint"))?;
    lap("prepared", &mut stages);
    let (tap, namespace) = network.map_or((None, None), |n| (n.tap, Some(n.namespace)));
    let guard = guard(parts, namespace.as_ref(), &ledger.egress).await?;
    let at = namespace.clone();
    let spec = Spec { disks, tap, namespace: at, ..spec(parts, ledger, dir.clone())? };
    let restored = saved.is_some();
    let machine: Arc<dyn Machine> = Arc::from(match saved {
        // The driver writes too, so the claim lives until the driver is done.
        Some((saved, _claim)) => parts.driver.restore(spec, saved).await?,
        None => parts.driver.boot(spec).await?,
    });
    ledger.machine = Some(machine.record());
    save(ledger, &dir)?;
    daemon::failpoint("boot.machine").map_err(io_error("a failpoint"))?;
    lap(if restored { "restored" } else { "booted" }, &mut stages);
    let guest = guest(parts, ledger, route(&*machine, namespace)?).guarded(guard);
    let mut identity = identity(parts, ledger);
    if let (true, Some(snapshot)) = (restored, origin.snapshot()) {
        identity.old_token.clone_from(&snapshot.manifest.envd_token);
        machine.thaw().await?;
    }
    identity.fresh = !matches!(origin, Origin::Same(_));
    tokio::select! {
        ready = ready(parts, &machine, (&guest, &dir), &identity, origin) => ready?,
        () = cancel.cancelled() => return Err(Error::Stopping),
    }
    ledger.phase = Phase::Running;
    ledger.life.begin(now_ms());
    save(ledger, &dir)?;
    daemon::failpoint("boot.ready").map_err(io_error("a failpoint"))?;
    lap("ready", &mut stages);
    Ok(Booted { machine, guest, stages, life: ledger.life.clone() })
}

fn spec(parts: &Parts, ledger: &Ledger, dir: PathBuf) -> Result<Spec, Error> {
    let name = ledger.id.to_string();
    let cgroups = match &parts.cgroups {
        None => Vec::new(),
        Some(groups) => groups
            .create(&name, &ledger.resources)
            .map_err(io_error("limiting the capsule's machine"))?,
    };
    Ok(Spec {
        name,
        resources: ledger.resources,
        dir,
        disks: None,
        tap: None,
        namespace: None,
        uid: uid(ledger),
        cgroups,
        metadata: metadata(ledger),
    })
}

/// Returns the user id of a capsule's VMM.
pub(crate) fn uid(ledger: &Ledger) -> u32 {
    FIRST_UID + ledger.slot.unwrap_or(0)
}

/// Returns the metadata that a capsule's guest reads about itself.
pub(crate) fn metadata(ledger: &Ledger) -> Metadata {
    Metadata { capsule: ledger.id.to_string(), template: ledger.template.clone() }
}

async fn wire(parts: &Parts, egress: &Egress) -> Result<Option<Network>, Error> {
    match &parts.networks {
        None => Ok(None),
        Some(networks) => Ok(Some(networks.create(egress).await?)),
    }
}

/// Takes a capsule's network down unless the written ledger names the network. Whoever undoes the
/// boot finds only a network that is written down.
async fn unwire(parts: &Parts, ledger: &Ledger, dir: &Path) {
    let written = Ledger::load(dir).and_then(|written| written.slot);
    if let (Some(networks), Some(slot)) = (&parts.networks, ledger.slot)
        && written != Some(slot)
    {
        networks.give_up(slot).await;
    }
}

/// Returns the guard that enforces in a namespace the rules for outgoing connections.
pub(crate) async fn guard(
    parts: &Parts,
    namespace: Option<&Namespace>,
    egress: &Egress,
) -> Result<Option<Arc<Guard>>, Error> {
    match (&parts.networks, namespace) {
        (Some(networks), Some(namespace)) => Ok(Some(networks.guard(namespace, egress).await?)),
        _ => Ok(None),
    }
}

async fn disks(
    parts: &Parts,
    ledger: &Ledger,
    dir: &Path,
    from: Option<&Snapshot>,
    cancel: &CancellationToken,
) -> Result<Disks, Error> {
    let image = match from {
        None => storage::image(&parts.config, &ledger.template),
        Some(snapshot) => snapshot.dir.join(storage::OWN_IMAGE),
    };
    let none = |_| Error::NoTemplate(ledger.template.clone());
    let copied = from.map_or(0, Snapshot::disk_bytes) + storage::copied_image(&image, dir);
    let _claim = parts.room.claim(copied)?;
    let image = storage::link_image(&image, dir).map_err(none)?;
    let (at, mib, from) = (dir.to_owned(), ledger.resources.disk_mib, from.cloned());
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
    let own = own.await.map_err(kept_error("making the capsule's disk"));
    Ok(Disks { image, own: unless_cancelled(cancel, own)? })
}

/// Opens the parts of a saved machine, and links its layers into the capsule's folder for the next
/// pause. The claim covers all writes from here until the driver has restored the machine.
async fn saved(
    parts: &Parts,
    team: &str,
    snapshot: &Snapshot,
    layers: &Layers,
    dir: &Path,
) -> Result<(Saved, Claim), Error> {
    let here = parts.driver.fingerprint();
    if snapshot.manifest.fingerprint != here {
        let kept = snapshot.manifest.fingerprint.clone();
        return Err(Error::Incompatible { kept, here });
    }
    if is_newer(&snapshot.manifest.system.envd, protocol::ENVD_VERSION) {
        let kept = format!("envd {}", snapshot.manifest.system.envd);
        let here = format!("envd {}", protocol::ENVD_VERSION);
        return Err(Error::Incompatible { kept, here });
    }
    let bytes = u64::from(snapshot.manifest.resources.memory_mib) << 20;
    let open = || {
        layers.link(&snapshot.dir, dir)?;
        let mut shared = layers.open(&snapshot.dir)?;
        let above = shared.split_off(layers.shared);
        Ok((shared, above, snapshot.state()?))
    };
    let above = layers.all.len() > layers.shared;
    let claim = parts.room.claim(parts.driver.most_restored(bytes, above))?;
    let wrong = "opening what was kept of the machine";
    let (shared, above, state) = open().map_err(kept_error(wrong))?;
    let image = parts.images.get(team, layers, shared, bytes).await.map_err(kept_error(wrong))?;
    Ok((Saved { image, above: Arc::new(above), state }, claim))
}

/// Reports whether `version` comes after `than`. A text that is no version is never newer.
fn is_newer(version: &str, than: &str) -> bool {
    let numbers = |text: &str| -> Option<Vec<u32>> {
        text.split('.').map(|part| part.parse().ok()).collect()
    };
    numbers(version).zip(numbers(than)).is_some_and(|(version, than)| version > than)
}

fn save(ledger: &Ledger, dir: &Path) -> Result<(), Error> {
    ledger.save(dir).map_err(io_error("writing the capsule's ledger"))
}

/// Returns a client for the guest at the end of a route.
pub(crate) fn guest(parts: &Parts, ledger: &Ledger, route: Route) -> Guest {
    Guest::new(route, &ledger.envd_token, parts.config.connections, parts.tasks.clone())
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
pub(crate) fn identity(parts: &Parts, ledger: &Ledger) -> Identity {
    Identity {
        hostname: "capsule".to_owned(),
        token: ledger.envd_token.clone(),
        old_token: None,
        envs: ledger.envs.clone(),
        user: parts.driver.boots_images().then_some("user"),
        fresh: true,
    }
}

/// Waits until the guest answers and has its identity. Requests may be let in only after that.
async fn ready(
    parts: &Parts,
    machine: &Arc<dyn Machine>,
    (guest, dir): (&Guest, &Path),
    identity: &Identity,
    origin: Origin,
) -> Result<(), Error> {
    // A restored guest answered before it was saved.
    let answers = parts.driver.boots_images() && origin.layers().is_some();
    let limit = if answers { READY_AGAIN } else { READY };
    let begin = async {
        if !answers {
            guest.wait_healthy().await;
        }
        if let Origin::Image(Some(golden)) = origin {
            golden.keep(parts, machine, guest, dir).await;
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
async fn take_down(parts: &Parts, id: CapsuleId, ledger: Option<&Ledger>) -> Result<(), Error> {
    let name = id.to_string();
    if let Some(record) = ledger.and_then(|l| l.machine.as_ref()) {
        vmm::kill_record(record).await?;
    }
    vmm::kill_named(&name, &folder(parts, id)).await?;
    daemon::failpoint("release.killed").map_err(io_error("a failpoint"))?;
    let limits = async {
        let Some(groups) = parts.cgroups.clone() else { return Ok(()) };
        blocking(move || groups.remove(&name)).await
    };
    let network = async {
        match (&parts.networks, ledger.and_then(|l| l.slot)) {
            (Some(networks), Some(slot)) => networks.take_down(slot).await,
            _ => Ok(()),
        }
    };
    let (limits, network) = tokio::join!(limits, network);
    limits.map_err(io_error("removing the capsule's limits"))?;
    Ok(network?)
}

/// Frees the number of a network for reuse. No ledger may still name the number. Otherwise the next
/// capsule that gets it would lose its network to this one.
fn release_slot(parts: &Parts, slot: Option<u32>) {
    if let (Some(networks), Some(slot)) = (&parts.networks, slot) {
        networks.release(slot);
    }
}

/// Ends a capsule's machine, removes its limits and network, and writes a ledger without them. The
/// capsule's folder stays, without the files of the machine.
pub(crate) async fn release(parts: &Parts, ledger: &mut Ledger) -> Result<(), Error> {
    let dir = folder(parts, ledger.id);
    take_down(parts, ledger.id, Some(ledger)).await?;
    let slot = ledger.slot.take();
    ledger.machine = None;
    save(ledger, &dir)?;
    release_slot(parts, slot);
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
pub(crate) async fn unmake(parts: &Parts, id: CapsuleId) -> Result<(), Error> {
    let dir = folder(parts, id);
    let ledger = Ledger::load(&dir);
    take_down(parts, id, ledger.as_ref()).await?;
    daemon::failpoint("unmake.released").map_err(io_error("a failpoint"))?;
    // The folder goes last, since its ledger is needed to find the rest.
    match tokio::fs::remove_dir_all(&dir).await {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(io_error("removing the capsule's folder")(e));
        }
        _ => {}
    }
    release_slot(parts, ledger.and_then(|ledger| ledger.slot));
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
        parts: Arc<OnceLock<Weak<Parts>>>,
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
            let parts = self.parts.get().and_then(Weak::upgrade).unwrap();
            self.claimed.store(parts.room.claimed(), Ordering::Release);
            refused()
        }

        fn adopt(&self, _: Found<'_>) -> Option<Box<dyn Machine>> {
            None
        }
    }

    #[tokio::test]
    async fn room_stays_claimed_while_the_driver_restores_a_machine() {
        let dir = tempfile::tempdir().unwrap();
        let driver = Writing::default();
        let parts = Arc::new(Parts::of_tests(dir.path(), Box::new(driver.clone())));
        driver.parts.set(Arc::downgrade(&parts)).unwrap();
        if parts.room.claim(WRITTEN).is_err() {
            return;
        }
        let mut ledger = Ledger { id: CapsuleId::new(), ..Ledger::unknown() };
        let folder = folder(&parts, ledger.id);
        fs::create_dir_all(&folder).unwrap();
        let staging = Staging::begin(&kept(&folder).join("1")).unwrap();
        staging.state_file().unwrap().write_all(b"state").unwrap();
        let manifest = Manifest {
            fingerprint: "writing".to_owned(),
            system: ledger.system.clone(),
            template: String::new(),
            team: None,
            resources: ledger.resources,
            taken_at_ms: 0,
            memory: Some(Layers::default()),
            state: Some(staging.seal_state().unwrap()),
            disk: None,
            envd_token: None,
        };
        let origin = Origin::Same(staging.commit(manifest).unwrap());
        let cancel = CancellationToken::new();
        let booted = boot(&parts, &mut ledger, origin, &cancel).await;
        assert!(matches!(booted, Err(Error::Vmm(_))));
        assert_eq!(driver.claimed.load(Ordering::Acquire), WRITTEN);
        assert_eq!(parts.room.claimed(), 0);
    }

    #[tokio::test]
    async fn network_that_no_ledger_names_is_taken_down() {
        let dir = tempfile::tempdir().unwrap();
        // An absolute path in place of an agent's tag puts the namespaces in this folder.
        let plan = Plan::new(dir.path().to_str().unwrap(), "198.18.0.0/30", &[]).unwrap();
        let networks = Networks::for_removal(plan);
        let parts = Parts {
            networks: Some(Arc::clone(&networks)),
            ..Parts::of_tests(dir.path(), Box::new(Writing::default()))
        };
        let own = dir.path().join("own");
        fs::create_dir(&own).unwrap();
        let (namespace, mut ledger) = (dir.path().join("1"), Ledger::unknown());
        fs::write(&namespace, []).unwrap();
        ledger.slot = Some(networks.adopt(1).unwrap().slot);
        // If the ledger names a network, the undoing of the boot takes the network down.
        ledger.save(&own).unwrap();
        unwire(&parts, &ledger, &own).await;
        assert!(namespace.exists());
        Ledger { slot: None, ..ledger.clone() }.save(&own).unwrap();
        unwire(&parts, &ledger, &own).await;
        assert!(!namespace.exists());
    }

    #[test]
    fn a_newer_envd_is_told_by_its_numbers_and_one_of_before_has_none() {
        assert!(is_newer("0.6.14", "0.6.13") && is_newer("0.10.0", "0.9.9"));
        assert!(!is_newer("0.6.13", "0.6.13") && !is_newer("0.6.9", "0.6.13"));
        assert!(!is_newer("", "0.6.13"), "what was kept before versions were written down");
        assert!(!is_newer(protocol::ENVD_VERSION, protocol::ENVD_VERSION));
    }
}
