//! The parts of a capsule that a boot makes: disk, saved memory, network, control group, and the
//! client for its guest.

use crate::capsule::record::CapsuleRecord;
use crate::capsule::{Error, io_error, snapshot_error, unless_cancelled};
use crate::context::AgentContext;
use crate::guest::{Guest, Identity, Route};
use crate::network::Network;
use crate::network::egress::Guard;
use crate::network::namespace::Namespace;
use crate::room::Claim;
use crate::snapshot::{Layers, Snapshot};
use crate::storage;
use crate::vmm::{Disks, Machine, Metadata, Saved, Spec};
use daemon::blocking;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use types::Egress;

/// First user id of VMMs. A VMM's user id is this number plus the network's number.
const FIRST_UID: u32 = 2_000_000;

/// Returns the parts of a machine but disks, tap and namespace. Makes its control group.
pub(super) fn spec(
    context: &AgentContext,
    record: &CapsuleRecord,
    dir: PathBuf,
) -> Result<Spec, Error> {
    let name = record.id.to_string();
    let cgroups = match &context.cgroups {
        None => Vec::new(),
        Some(groups) => groups
            .create(&name, &record.resources)
            .map_err(io_error("cannot limit the capsule's machine"))?,
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
pub(in crate::capsule) fn uid(record: &CapsuleRecord) -> u32 {
    FIRST_UID + record.slot.unwrap_or(0)
}

/// Returns the metadata that a capsule's guest reads about itself.
pub(in crate::capsule) fn metadata(record: &CapsuleRecord) -> Metadata {
    Metadata { capsule: record.id.to_string(), template: record.template.clone() }
}

/// Makes a capsule's network, if the driver needs networks.
pub(super) async fn wire(
    context: &AgentContext,
    egress: &Egress,
) -> Result<Option<Network>, Error> {
    match &context.networks {
        None => Ok(None),
        Some(networks) => Ok(Some(networks.create(egress).await?)),
    }
}

/// Takes a capsule's network down unless the written record names the network. Whoever undoes the
/// boot finds only a network that is written down.
pub(super) async fn unwire(context: &AgentContext, record: &CapsuleRecord, dir: &Path) {
    let written = CapsuleRecord::load(dir).and_then(|written| written.slot);
    if let (Some(networks), Some(slot)) = (&context.networks, record.slot)
        && written != Some(slot)
    {
        networks.discard(slot).await;
    }
}

/// Returns the guard that enforces in a namespace the rules for outgoing connections.
pub(in crate::capsule) async fn guard(
    context: &AgentContext,
    namespace: Option<&Namespace>,
    egress: &Egress,
) -> Result<Option<Arc<Guard>>, Error> {
    match (&context.networks, namespace) {
        (Some(networks), Some(namespace)) => Ok(Some(networks.guard(namespace, egress).await?)),
        _ => Ok(None),
    }
}

/// Makes a capsule's disk, and links its image.
pub(super) async fn disks(
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
    let own = own.await.map_err(snapshot_error("cannot create the capsule's disk"));
    let placeholders = record.placeholders;
    Ok(Disks { image, own: unless_cancelled(cancel, own)?, placeholders })
}

/// A saved machine to restore, with the claim for the bytes that its driver writes meanwhile.
pub(super) struct ClaimedSave {
    pub saved: Saved,
    pub claim: Claim,
}

/// Opens the parts of a saved machine, and links its layers into the capsule's folder for the next
/// pause. The claim covers all writes from here until the driver has restored the machine.
pub(super) async fn saved(
    context: &AgentContext,
    team: &str,
    snapshot: &Snapshot,
    layers: &Layers,
    dir: &Path,
) -> Result<ClaimedSave, Error> {
    if !context.driver.reads(&snapshot.manifest.fingerprint) {
        let taken = snapshot.manifest.fingerprint.clone();
        let here = context.driver.fingerprint();
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
    let wrong = "cannot open the machine's snapshot";
    let (shared, above, state) = open().map_err(snapshot_error(wrong))?;
    let image =
        context.images.get(team, layers, shared, bytes).await.map_err(snapshot_error(wrong))?;
    let saved = Saved { image, above: Arc::new(above), state };
    Ok(ClaimedSave { saved, claim })
}

/// Reports whether `version` comes after `than`. A text that is no version is never newer.
fn is_newer(version: &str, than: &str) -> bool {
    let numbers = |text: &str| -> Option<Vec<u32>> {
        text.split('.').map(|part| part.parse().ok()).collect()
    };
    numbers(version).zip(numbers(than)).is_some_and(|(version, than)| version > than)
}

/// Returns a client for the guest at the end of a route.
pub(in crate::capsule) fn guest(
    context: &AgentContext,
    record: &CapsuleRecord,
    route: Route,
) -> Guest {
    Guest::new(route, &record.envd_token, context.config.connections, context.tasks.clone())
}

/// Returns the route to a machine's guest.
pub(in crate::capsule) fn route(
    machine: &dyn Machine,
    ns: Option<Namespace>,
) -> Result<Route, Error> {
    if let Some(at) = machine.loopback(protocol::ENVD_PORT) {
        return Ok(Route::Loopback(at));
    }
    let none = || io_error("cannot find the guest's address")(std::io::ErrorKind::NotFound.into());
    Ok(Route::Namespace(ns.ok_or_else(none)?))
}

/// Returns the identity that a capsule's guest is given.
pub(in crate::capsule) fn identity(context: &AgentContext, record: &CapsuleRecord) -> Identity {
    Identity {
        hostname: "capsule".to_owned(),
        token: record.envd_token.clone(),
        old_token: None,
        envs: record.envs.clone(),
        user: context.driver.boots_images().then_some("user"),
        fresh: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Networks;
    use crate::network::plan::Plan;
    use crate::vmm::null::NullDriver;
    use std::fs;

    #[tokio::test]
    async fn network_without_a_record_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        // An absolute path in place of an agent's tag puts the namespaces in this folder.
        let plan = Plan::new(dir.path().to_str().unwrap(), "198.18.0.0/30", &[]).unwrap();
        let networks = Networks::for_removal(plan);
        let context = AgentContext {
            networks: Some(Arc::clone(&networks)),
            ..AgentContext::for_tests(dir.path(), Box::new(NullDriver { port: 1 }))
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
