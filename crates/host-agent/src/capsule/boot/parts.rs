//! The parts of a capsule that a boot makes: disk, saved memory, network, control group, and the
//! client for its guest.

use super::disk::PendingDisk;
use crate::builders::BuilderDisks;
use crate::capsule::record::CapsuleRecord;
use crate::capsule::{Error, files, io_error, snapshot_error, unless_cancelled};
use crate::context::AgentContext;
use crate::guest::{Guest, Identity, Route};
use crate::log::LogMode;
use crate::network::Network;
use crate::network::egress::Guard;
use crate::network::namespace::Namespace;
use crate::room::Claim;
use crate::snapshot::{DiskCopy, Layers, Snapshot};
use crate::storage;
use crate::version::{self, Version};
use crate::vmm::{Disks, Machine, Metadata, Saved, Spec};
use daemon::blocking;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use types::Egress;

/// First user id of VMMs. A VMM's user id is this number plus the network's number.
const FIRST_UID: u32 = 2_000_000;
/// Longest value of `PATH` that envd takes for login shells, in bytes.
const PATH_MAX: usize = 4096;

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
        kernel_args: kernel_args(record),
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

/// Makes a capsule's network, if the driver needs networks. On return, the record in the capsule's
/// folder names the network.
pub(super) async fn wire(
    context: &AgentContext,
    egress: &Egress,
    record: &CapsuleRecord,
    dir: &Path,
) -> Result<Option<Network>, Error> {
    let Some(networks) = &context.networks else { return Ok(None) };
    let network = networks.create(egress).await?;
    let record = CapsuleRecord { slot: Some(network.slot), ..record.clone() };
    if let Err(error) = files::note(&record, dir).await {
        // An open tap would hold the network.
        drop(network);
        unwire(context, &record, dir).await;
        return Err(error);
    }
    Ok(Some(network))
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

/// Read-only disks of a capsule, where they are before they are linked into the capsule's folder.
struct Below {
    image: PathBuf,
    layers: Vec<PathBuf>,
}

impl Below {
    /// Returns the disks of a snapshot, a version, or a template of the operator's.
    fn of(context: &AgentContext, record: &CapsuleRecord, from: Option<&Snapshot>) -> Self {
        if let Some(snapshot) = from {
            let layer = |number| snapshot.dir.join(storage::layer_name(number));
            let layers = (1..=snapshot.manifest.layers()).map(layer).collect();
            return Self { image: snapshot.dir.join(storage::OWN_IMAGE), layers };
        }
        let image = storage::image(&context.config, &record.template_folder());
        let layers = record.version.iter().flat_map(|version| {
            let dir = version::folder(&context.config, version.id);
            (1..=version.layers.len()).map(move |number| version::layer(&dir, number))
        });
        Self { image, layers: layers.collect() }
    }

    /// Returns the bytes that linking the disks into a folder writes.
    fn copied(&self, dir: &Path) -> u64 {
        let all = self.layers.iter().chain([&self.image]);
        all.map(|disk| storage::copied(disk, dir)).sum()
    }
}

/// Makes a capsule's disk, and links the read-only disks below it. A builder's disks come from its
/// build. A copy of a saved disk goes on after the return.
pub(super) async fn disks(
    context: &AgentContext,
    record: &CapsuleRecord,
    dir: &Path,
    from: Option<&Snapshot>,
    builder: Option<&BuilderDisks>,
    cancel: &CancellationToken,
) -> Result<(Disks, Option<PendingDisk>), Error> {
    let below = match builder.cloned() {
        Some(BuilderDisks { image, read_only }) => Below { image, layers: read_only },
        None => Below::of(context, record, from),
    };
    let none = |_| Error::NoTemplate(record.template.clone());
    let copied = from.map_or(0, Snapshot::disk_bytes) + below.copied(dir);
    let claim = context.room.claim(copied)?;
    let image = storage::link_image(&below.image, dir).map_err(none)?;
    let read_only = storage::link_layers(&below.layers, dir).map_err(none)?;
    let (own, pending) = match from {
        None => (new_disk(dir, record.resources.disk_mib, cancel).await?, None),
        Some(snapshot) => {
            let (own, copy) = begin_copy(dir, snapshot.clone()).await?;
            (own, Some(PendingDisk::begin(copy, claim, cancel)))
        }
    };
    let placeholders = record.placeholders;
    Ok((Disks { image, own, read_only, placeholders }, pending))
}

/// Makes an empty disk.
async fn new_disk(dir: &Path, mib: u32, cancel: &CancellationToken) -> Result<File, Error> {
    let at = dir.to_owned();
    let made = blocking(move || storage::make_disk(&at, mib)).await;
    unless_cancelled(cancel, made.map_err(snapshot_error("cannot create the capsule's disk")))
}

/// Makes the file of a saved disk's copy, with its size. Returns the file for the machine too.
async fn begin_copy(dir: &Path, snapshot: Snapshot) -> Result<(File, DiskCopy), Error> {
    let at = dir.join(storage::DISK);
    let begin = move || {
        let none = || io::Error::from(io::ErrorKind::NotFound);
        let copy = snapshot.begin_disk(&at)?.ok_or_else(none)?;
        Ok((copy.file()?, copy))
    };
    blocking(begin).await.map_err(snapshot_error("cannot create the capsule's disk"))
}

/// Returns the words of a machine's kernel command line that other machines lack.
pub(super) fn kernel_args(record: &CapsuleRecord) -> Vec<String> {
    let lower = record.version.as_ref().map(|version| version.lower().to_string());
    let lower = lower.filter(|lower| !lower.is_empty());
    let lower = lower.map(|lower| format!("{}{lower}", protocol::lower::LOWER));
    let build = record.builds.map(|_| protocol::lower::BUILD.to_owned());
    lower.into_iter().chain(build).collect()
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
    let version = record.version.as_ref();
    let mut envs = version.map(Version::envs).unwrap_or_default();
    envs.extend(record.envs.clone());
    let identity = Identity {
        hostname: "capsule".to_owned(),
        token: record.envd_token.clone(),
        old_token: None,
        envs,
        user: None,
        workdir: None,
        path: None,
        metadata: Some(metadata(record).json()),
        logs: log_mode(context, record),
        fresh: true,
    };
    // A guest without an image of its own lacks the version's users and folders.
    if !context.driver.boots_images() {
        return identity;
    }
    let user = match (version, record.builds) {
        (Some(version), _) => version.config.user.clone().unwrap_or_else(|| "root".to_owned()),
        (None, Some(_)) => "root".to_owned(),
        (None, None) => "user".to_owned(),
    };
    let workdir = version.and_then(|version| version.config.workdir.clone());
    let path = version.and_then(|version| version.envs().remove("PATH")).filter(|path| fits(path));
    Identity { user: Some(user), workdir, path, ..identity }
}

/// Returns the output that a capsule's log has. A builder has no log.
fn log_mode(context: &AgentContext, record: &CapsuleRecord) -> LogMode {
    match record.builds.is_none() && context.logs.is_on() {
        true => record.logs,
        false => LogMode::None,
    }
}

/// Reports whether envd takes a value of `PATH` for login shells.
fn fits(path: &str) -> bool {
    (1..=PATH_MAX).contains(&path.len()) && !path.contains(char::is_control)
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

    /// A null driver that has disks, as far as identities are concerned.
    fn images(dir: &Path) -> AgentContext {
        AgentContext::for_tests(dir, Box::new(crate::vmm::null::ImageDriver))
    }

    #[test]
    fn guest_of_a_version_gets_its_settings_below_those_of_the_create() {
        let dir = tempfile::tempdir().unwrap();
        let context = images(dir.path());
        let mut version = version::example(types::BuildId::new());
        version.config.env.insert("PATH".to_owned(), "/opt/x:/bin".to_owned());
        let mut record = CapsuleRecord { version: Some(version), ..CapsuleRecord::unknown() };
        let envs = [("A", "create"), ("C", "create")];
        record.envs = envs.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let told = identity(&context, &record);
        assert_eq!((told.user.as_deref(), told.workdir.as_deref()), (Some("app"), Some("/srv")));
        assert_eq!(told.path.as_deref(), Some("/opt/x:/bin"));
        assert_eq!((told.envs["A"].as_str(), told.envs["C"].as_str()), ("create", "create"));
        assert!(!told.envs.contains_key("B"), "the build's variables are the build's alone");
        let about = serde_json::json!({ "instanceID": record.id.to_string(), "envID": "" });
        assert_eq!(told.metadata, Some(about));
        record.version = None;
        let told = identity(&context, &record);
        assert_eq!((told.user.as_deref(), told.path), (Some("user"), None));
        record.builds = Some(types::BuildId::new());
        assert_eq!(identity(&context, &record).user.as_deref(), Some("root"));
    }

    #[test]
    fn kernel_learns_of_folders_and_builds_only_where_there_are_some() {
        let mut record = CapsuleRecord::unknown();
        assert_eq!(kernel_args(&record), Vec::<String>::new());
        let version = version::example(types::BuildId::new());
        record.version = Some(Version { layers: Vec::new(), ..version.clone() });
        assert_eq!(kernel_args(&record), Vec::<String>::new());
        record.version = Some(version);
        assert_eq!(kernel_args(&record), ["wrenn.lower=1/1-2"]);
        let builder =
            CapsuleRecord { builds: Some(types::BuildId::new()), ..CapsuleRecord::unknown() };
        assert_eq!(kernel_args(&builder), ["wrenn.build"]);
    }

    #[tokio::test]
    async fn disks_of_a_version_its_snapshot_and_a_builder_are_linked_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let context = images(dir.path());
        let version = version::example(types::BuildId::new());
        let at = version::folder(&context.config, version.id);
        fs::create_dir_all(&at).unwrap();
        fs::write(at.join("rootfs.erofs"), "image").unwrap();
        fs::write(version::layer(&at, 1), "layer").unwrap();
        let record = CapsuleRecord { version: Some(version), ..CapsuleRecord::unknown() };
        let below = Below::of(&context, &record, None);
        assert_eq!(below.image, at.join("rootfs.erofs"));
        assert_eq!(below.layers, [version::layer(&at, 1)]);
        assert_eq!(below.copied(dir.path()), 0);
        let snapshot = Snapshot {
            dir: "/s".into(),
            manifest: crate::capsule::capture::manifest(&context, &record),
        };
        let below = Below::of(&context, &record, Some(&snapshot));
        assert_eq!(below.layers, [PathBuf::from("/s/layer-1.ext4")]);
        let own = dir.path().join("own");
        fs::create_dir(&own).unwrap();
        let builder = BuilderDisks {
            image: at.join("rootfs.erofs"),
            read_only: vec![version::layer(&at, 1), at.join("rootfs.erofs")],
        };
        let mut record = CapsuleRecord::unknown();
        record.resources.disk_mib = 16;
        // The program that makes file systems is not in each environment of unit tests.
        let cancel = CancellationToken::new();
        let made = disks(&context, &record, &own, None, Some(&builder), &cancel).await;
        if let Ok((made, pending)) = made {
            assert_eq!(made.read_only.len(), 2);
            assert!(pending.is_none());
        }
        assert_eq!(fs::read(own.join("layer-2.ext4")).unwrap(), b"image");
    }

    #[test]
    fn envd_versions_are_compared_by_number_and_empty_is_oldest() {
        assert!(is_newer("0.6.14", "0.6.13") && is_newer("0.10.0", "0.9.9"));
        assert!(!is_newer("0.6.13", "0.6.13") && !is_newer("0.6.9", "0.6.13"));
        assert!(!is_newer("", "0.6.13"), "what was kept before versions were written down");
        assert!(!is_newer(protocol::ENVD_VERSION, protocol::ENVD_VERSION));
    }
}
