//! Makes the parts of a capsule in phases, and unmakes all of them: prepared (disk), wired
//! (network), booted (machine), ready (the guest answers). Unmaking takes no notice of which
//! phases were reached, so that it serves a failed boot, a removal and a dead agent alike.

use super::ledger::Ledger;
use super::{Error, io_error};
use crate::Parts;
use crate::guest::{Guest, Identity, Route};
use crate::storage;
use crate::vmm::{self, Disks, Machine, Spec};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use types::CapsuleId;

/// How long a guest may take to answer; emulated ones on a busy machine take a while.
const READY: Duration = Duration::from_secs(90);
/// User ids of VMMs: this and the network's number.
const FIRST_UID: u32 = 2_000_000;

/// A capsule whose guest answers.
pub(crate) struct Booted {
    pub machine: Arc<dyn Machine>,
    pub guest: Guest,
    pub stages: Vec<(&'static str, Duration)>,
}

/// The folder of a capsule.
pub(crate) fn folder(parts: &Parts, id: CapsuleId) -> PathBuf {
    parts.config.capsules().join(id.to_string())
}

/// Capsules that this machine has anything of.
pub(crate) fn existing(parts: &Parts) -> Vec<CapsuleId> {
    let folders = std::fs::read_dir(parts.config.capsules()).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        folders.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.extend(parts.cgroups.iter().flat_map(|groups| groups.existing()));
    names.sort();
    names.dedup();
    names.iter().filter_map(|name| name.parse().ok()).collect()
}

/// Makes everything; on failure, or when `cancel` says so, the caller unmakes it.
pub(crate) async fn boot(
    parts: &Parts,
    ledger: &mut Ledger,
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
    let disks = match parts.driver.boots_images() {
        true => Some(disks(parts, ledger, &dir).await?),
        false => None,
    };
    lap("prepared", &mut stages);
    let network = match &parts.networks {
        None => None,
        Some(networks) => {
            let network = networks.create().await?;
            ledger.slot = Some(network.slot);
            save(ledger, &dir)?;
            Some(network)
        }
    };
    lap("wired", &mut stages);
    let (tap, namespace) = network.map_or((None, None), |n| (n.tap, Some(n.namespace)));
    let name = ledger.id.to_string();
    let cgroups = match &parts.cgroups {
        None => Vec::new(),
        Some(groups) => groups
            .create(&name, &ledger.resources)
            .map_err(io_error("limiting the capsule's machine"))?,
    };
    let uid = FIRST_UID + ledger.slot.unwrap_or(0);
    let resources = ledger.resources;
    let spec = Spec { name, resources, dir: dir.clone(), disks, tap, uid, cgroups };
    let machine: Arc<dyn Machine> = Arc::from(parts.driver.boot(spec).await?);
    ledger.machine = Some(machine.record());
    save(ledger, &dir)?;
    lap("booted", &mut stages);
    let guest = guest(parts, route(&*machine, namespace)?);
    tokio::select! {
        ready = wait_ready(parts, &*machine, &guest, ledger) => ready?,
        () = cancel.cancelled() => return Err(Error::Stopping),
    }
    ledger.ready = true;
    save(ledger, &dir)?;
    lap("ready", &mut stages);
    Ok(Booted { machine, guest, stages })
}

async fn disks(parts: &Parts, ledger: &Ledger, dir: &Path) -> Result<Disks, Error> {
    let image = storage::open_image(&parts.config, &ledger.template)
        .map_err(|_| Error::NoTemplate(ledger.template.clone()))?;
    let (at, mib) = (dir.to_owned(), ledger.resources.disk_mib);
    let own = tokio::task::spawn_blocking(move || storage::make_disk(&at, mib)).await;
    let own = own.unwrap_or_else(|e| Err(std::io::Error::other(e)));
    Ok(Disks { image, own: own.map_err(io_error("making the capsule's disk"))? })
}

fn save(ledger: &Ledger, dir: &Path) -> Result<(), Error> {
    ledger.save(dir).map_err(io_error("writing the capsule's ledger"))
}

/// The guest at the end of a way.
pub(crate) fn guest(parts: &Parts, route: Route) -> Guest {
    Guest::new(route, parts.config.connections, parts.tasks.clone())
}

/// The way to a machine's guest.
pub(crate) fn route(machine: &dyn Machine, ns: Option<std::fs::File>) -> Result<Route, Error> {
    if let Some(at) = machine.loopback(protocol::ENVD_PORT) {
        return Ok(Route::Loopback(at));
    }
    let none = || io_error("finding the guest")(std::io::ErrorKind::NotFound.into());
    Ok(Route::Namespace(Arc::new(ns.ok_or_else(none)?)))
}

async fn wait_ready(
    parts: &Parts,
    machine: &dyn Machine,
    guest: &Guest,
    ledger: &Ledger,
) -> Result<(), Error> {
    let limit = tokio::time::sleep(READY);
    tokio::select! {
        () = guest.wait_healthy() => {}
        reason = machine.ended() => {
            return Err(Error::Died { reason, console: last_words(machine).await });
        }
        () = limit => {
            let console = last_words(machine).await;
            return Err(Error::GuestSilent { seconds: READY.as_secs(), console });
        }
    }
    let identity = Identity {
        hostname: "capsule".to_owned(),
        token: ledger.envd_token.clone(),
        envs: ledger.envs.clone(),
        user: parts.driver.boots_images().then_some("user"),
    };
    guest.initialize(&identity).await.map_err(io_error("giving the guest its identity"))
}

async fn last_words(machine: &dyn Machine) -> String {
    let console = machine.console().await;
    let from = console.len().saturating_sub(600);
    String::from_utf8_lossy(&console[from..]).trim().to_owned()
}

/// Unmakes whatever there is of a capsule; with nothing left of it, success.
pub(crate) async fn unmake(parts: &Parts, id: CapsuleId) -> Result<(), Error> {
    let dir = folder(parts, id);
    let ledger = Ledger::load(&dir);
    let name = id.to_string();
    if let Some(record) = ledger.as_ref().and_then(|l| l.machine.as_ref()) {
        vmm::kill_record(record).await?;
    }
    vmm::kill_named(&name).await?;
    if let Some(groups) = parts.cgroups.clone() {
        let removed = tokio::task::spawn_blocking(move || groups.remove(&name)).await;
        let removed = removed.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        removed.map_err(io_error("removing the capsule's limits"))?;
    }
    if let (Some(networks), Some(slot)) = (&parts.networks, ledger.and_then(|l| l.slot)) {
        networks.remove(slot).await?;
    }
    // Last, since the ledger in it is what finds the rest.
    match tokio::fs::remove_dir_all(&dir).await {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(io_error("removing the capsule's folder")(e))
        }
        _ => Ok(()),
    }
}
