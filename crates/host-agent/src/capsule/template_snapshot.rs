//! Template snapshots: a saved machine for each template and size, so that a create is a restore. A
//! machine is saved when its guest first answers, before the guest has an identity. A machine of a
//! version with start or ready commands is saved after them (ADR 42). Its key covers everything that
//! it depends on. So a machine that does not fit this host is never found. The next start of the
//! agent removes it, and `remake.rs` makes started machines again.
//!
//! ```text
//!  find ──▶ Ready ──────────────────────────────────────▶ boot restores it
//!    │ none: lock of the key
//!    └────▶ Pending ──▶ boot from the image ──▶ capture ──▶ write in the background, RENAME
//! ```

use super::lifetime::now_ms;
use super::record::CapsuleRecord;
use super::{Error, chain, files};
use crate::context::AgentContext;
use crate::guest::Guest;
use crate::placeholder;
use crate::room::Claim;
use crate::snapshot::memory::Memory;
use crate::snapshot::{self, Layers, Manifest, Snapshot, Staging, System};
use crate::storage;
use crate::version::{self, Version};
use crate::vmm::Machine;
use daemon::{blocking, lock};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio_util::sync::CancellationToken;
use types::resources::Resources;
use types::{BuildId, hex};

/// Time after which an unused template snapshot is removed.
const UNUSED: Duration = Duration::from_secs(7 * 24 * 3600);
/// Time since its last use within which a started machine is made again.
const WANTED: Duration = Duration::from_secs(24 * 3600);

/// Lock of the boot that makes a template snapshot. Other boots of the same key wait for it.
type KeyLock = Arc<tokio::sync::Mutex<()>>;

/// Locks of this agent's template snapshots, by key.
#[derive(Default)]
pub(super) struct TemplateSnapshots {
    locks: Mutex<HashMap<String, KeyLock>>,
}

/// Template snapshot of a template and size.
pub(super) enum TemplateSnapshot {
    Ready(Snapshot),
    /// The snapshot is still to be made, by the caller's boot.
    Pending(PendingTemplateSnapshot),
}

/// Right to save a booted machine as a template snapshot; holds the lock of the snapshot's key.
pub(super) struct PendingTemplateSnapshot {
    dir: PathBuf,
    template: String,
    version: Option<Version>,
    resources: Resources,
    _lock: tokio::sync::OwnedMutexGuard<()>,
}

impl TemplateSnapshots {
    /// Returns the template snapshot of a template and size, or the right to make it. A call waits
    /// while another call makes the same snapshot.
    pub(super) async fn find(
        &self,
        context: &AgentContext,
        record: &CapsuleRecord,
    ) -> io::Result<TemplateSnapshot> {
        let CapsuleRecord { template, version, resources, .. } = record;
        let key = key(context, template, version.as_ref(), *resources)?;
        if let Ok(snapshot) = open(context, &key) {
            return Ok(TemplateSnapshot::Ready(snapshot));
        }
        let dir = context.config.golden().join(&key);
        let lock = {
            let mut locks = lock(&self.locks);
            Arc::clone(locks.entry(key).or_default())
        };
        let lock = lock.lock_owned().await;
        match Snapshot::open(&dir) {
            Ok(snapshot) => Ok(TemplateSnapshot::Ready(snapshot)),
            Err(error) => {
                if dir.exists() {
                    tracing::warn!(
                        %error, template,
                        "a template snapshot is damaged; creating it again"
                    );
                    snapshot::remove(&dir)?;
                }
                Ok(TemplateSnapshot::Pending(PendingTemplateSnapshot {
                    dir,
                    template: template.clone(),
                    version: version.clone(),
                    resources: *resources,
                    _lock: lock,
                }))
            }
        }
    }
}

/// Started machine in use that does not fit this host any more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outdated {
    pub version: BuildId,
    pub resources: Resources,
    /// Time of the last use.
    pub used: SystemTime,
}

impl Outdated {
    /// Describes a template snapshot. `None` for a snapshot that takes a boot alone, and for a
    /// snapshot without use in the last day.
    fn of(found: &Snapshot) -> Option<Self> {
        let version = found.manifest.version.as_ref()?;
        let used = found.dir.metadata().and_then(|dir| dir.modified()).ok()?;
        let is_recent = used.elapsed().is_ok_and(|unused| unused < WANTED);
        let is_wanted = is_recent && version.has_commands() && !version.start_each;
        let resources = found.manifest.resources;
        is_wanted.then_some(Self { version: version.id, resources, used })
    }
}

/// Removes template snapshots that no longer fit this host, and incomplete ones. Returns started
/// machines among the former.
pub(super) fn sweep(context: &AgentContext) -> Vec<Outdated> {
    let root = context.config.golden();
    let mut outdated = Vec::new();
    for name in snapshot::sweep(&root) {
        let dir = root.join(&name);
        let found = Snapshot::open(&dir).ok();
        let fits = found.as_ref().is_some_and(|found| {
            let Manifest { template, version, resources, .. } = &found.manifest;
            let wanted = key(context, template, version.as_ref(), *resources);
            wanted.is_ok_and(|wanted| wanted == name)
        });
        if fits {
            continue;
        }
        outdated.extend(found.as_ref().and_then(Outdated::of));
        if let Err(error) = snapshot::remove(&dir) {
            tracing::warn!(%error, name, "cannot remove an outdated template snapshot");
        }
    }
    outdated
}

/// Records the use of a template snapshot as the modification time of its folder.
fn note_use(dir: &Path) {
    let _ = File::open(dir).and_then(|dir| dir.set_modified(SystemTime::now()));
}

/// Removes template snapshots that were unused for long, since some sizes are asked for only once.
pub(super) fn retire(context: &AgentContext) {
    for entry in std::fs::read_dir(context.config.golden()).into_iter().flatten().flatten() {
        let used = entry.metadata().and_then(|found| found.modified());
        let old = used.is_ok_and(|used| used.elapsed().is_ok_and(|unused| unused > UNUSED));
        if old && let Err(error) = snapshot::remove(&entry.path()) {
            tracing::warn!(%error, "cannot remove an unused template snapshot");
        }
    }
}

/// Removes the template snapshots of a version that was removed.
pub(super) fn forget(context: &AgentContext, version: BuildId) {
    for entry in std::fs::read_dir(context.config.golden()).into_iter().flatten().flatten() {
        let found = Snapshot::open(&entry.path()).ok().and_then(|found| found.manifest.version);
        let is_gone = found.is_some_and(|found| found.id == version);
        if is_gone && let Err(error) = snapshot::remove(&entry.path()) {
            tracing::warn!(%error, %version, "cannot remove a version's template snapshot");
        }
    }
}

/// Opens the template snapshot with a key, and records its use.
///
/// # Errors
/// Fails while nobody has made the snapshot, and when it is damaged.
pub(super) fn open(context: &AgentContext, key: &str) -> io::Result<Snapshot> {
    let dir = context.config.golden().join(key);
    Snapshot::open(&dir).inspect(|_| note_use(&dir))
}

/// Returns a hash of everything that a template snapshot depends on. A version's name in the key is
/// its id, since its template may have another name later.
///
/// # Errors
/// Fails when this host lacks a file of the template.
pub(super) fn key(
    context: &AgentContext,
    template: &str,
    version: Option<&Version>,
    resources: Resources,
) -> io::Result<String> {
    let config = &context.config;
    let template = version.map_or_else(|| template.to_owned(), |version| version.id.to_string());
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    add(context.driver.fingerprint().as_bytes());
    let Resources { vcpus, memory_mib, disk_mib } = resources;
    add(format!("{template} {vcpus} {memory_mib} {disk_mib} {:?}", config.dns).as_bytes());
    add(storage::MKFS_OPTIONS.join(" ").as_bytes());
    add(placeholder::layout().as_bytes());
    let mut files = vec![config.kernel(), config.initramfs(), storage::image(config, &template)];
    if let Some(version) = version {
        let dir = version::folder(config, version.id);
        files.extend((1..=version.layers.len()).map(|number| version::layer(&dir, number)));
        add(&std::fs::read(dir.join(version::FILE))?);
    }
    for file in files {
        // Images are never changed in place, only replaced.
        let (path, found) = (file.canonicalize()?, file.metadata()?);
        add(path.as_os_str().as_encoded_bytes());
        add(&found.len().to_le_bytes());
        add(format!("{:?}", found.modified()?).as_bytes());
    }
    Ok(hex::encode(&hash.finalize()[..16]))
}

impl PendingTemplateSnapshot {
    /// Saves a machine whose guest answers and has no identity yet, or a provisional one with the
    /// token `token`. A failure is only logged. The machine continues, and a later boot makes the
    /// template snapshot.
    pub(super) async fn capture(
        self,
        context: &AgentContext,
        machine: &Arc<dyn Machine>,
        guest: &Guest,
        dir: &Path,
        token: Option<String>,
    ) {
        let bytes = u64::from(self.resources.memory_mib) << 20;
        let most = files::most_saved(&**machine, bytes) + files::disk_bytes(dir);
        let Ok(claim) = context.room.claim(most) else {
            tracing::warn!("the disk has no room for a template snapshot");
            return;
        };
        if let Err(error) = guest.warm(token.as_deref().unwrap_or_default()).await {
            tracing::warn!(%error, "cannot warm a template snapshot");
        }
        // No connection of the agent may be open in the saved guest.
        guest.pool().clear();
        let manifest = self.manifest(context.driver.fingerprint(), context.config.system(), token);
        let captured = self.freeze_and_copy(claim, machine, manifest, dir.to_owned()).await;
        let thawed = machine.thaw().await;
        match (captured, thawed) {
            // The capsule does not wait for the hashing and writing of the template snapshot.
            (Ok(captured), Ok(())) => context.tasks.spawn(async move {
                if let Err(error) = blocking(move || captured.write()).await {
                    tracing::warn!(%error, "cannot save a template snapshot");
                }
            }),
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(error = chain(&error), "cannot save a template snapshot");
            }
        }
    }

    /// Returns the manifest of the machine, without any data yet.
    fn manifest(&self, fingerprint: String, system: System, token: Option<String>) -> Manifest {
        Manifest {
            fingerprint,
            system,
            template: self.template.clone(),
            version: self.version.clone(),
            team: None,
            resources: self.resources,
            placeholders: placeholder::COUNT,
            taken_at_ms: now_ms(),
            memory: None,
            state: None,
            disk: None,
            envd_token: token,
        }
    }

    /// Freezes a machine and copies its parts. The boot may be abandoned at any point. So the
    /// thread that copies owns the claim and the right to make the template snapshot.
    async fn freeze_and_copy(
        self,
        claim: Claim,
        machine: &Arc<dyn Machine>,
        manifest: Manifest,
        own: PathBuf,
    ) -> Result<CapturedMachine, crate::vmm::Error> {
        let fail = |e| crate::vmm::Error::new("cannot save a template snapshot", e);
        let given_up = CancellationToken::new();
        let staging = Staging::begin(&self.dir).map_err(fail)?.until(&given_up);
        let guard = given_up.clone().drop_guard();
        machine.freeze().await?;
        let state = staging.state_file().map_err(fail)?;
        let memory = machine.save(state, u64::from(self.resources.memory_mib) << 20).await?;
        let memory = memory.map(|memory| memory.until(given_up));
        let copy = move || {
            let mut captured =
                CapturedMachine { staging, memory, manifest, _claim: claim, _pending: self };
            captured.memory = captured.memory.as_ref().map(Memory::copy).transpose()?;
            captured.manifest.disk = Some(captured.staging.copy_disk(&own)?);
            Ok(captured)
        };
        let copied = blocking(copy).await.map_err(fail);
        guard.disarm();
        copied
    }
}

/// Copy of a machine, which is not committed yet. Fields are dropped in order: the staging folder
/// first, the right to make another template snapshot last.
struct CapturedMachine {
    staging: Staging,
    memory: Option<Memory>,
    manifest: Manifest,
    _claim: Claim,
    _pending: PendingTemplateSnapshot,
}

impl CapturedMachine {
    fn write(self) -> io::Result<()> {
        // Locals are dropped in reverse order, so the right is given up last.
        let Self { _pending, _claim, staging, memory, mut manifest } = self;
        let (base, dir) = (Layers::default(), staging.path().to_owned());
        manifest.memory = memory.map(|m| staging.write_memory(&m, &base, &dir)).transpose()?;
        manifest.state = Some(staging.seal_state()?);
        staging.sync_disk()?;
        staging.commit(manifest).map(drop)
    }
}

/// Turns a failure to find or make a template snapshot into a capsule's error.
pub(super) fn error(source: io::Error) -> Error {
    super::io_error("cannot find the template snapshot")(source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::room::Room;
    use crate::vmm::null::NullDriver;
    use crate::vmm::{Driver, Found, Metadata, VmmRecord};
    use rustix::fs::{CWD, FileType, Mode};

    #[test]
    fn key_of_a_version_covers_its_description_and_disks() {
        let dir = tempfile::tempdir().unwrap();
        let context = AgentContext::for_tests(dir.path(), Box::new(NullDriver { port: 1 }));
        let config = &context.config;
        let boot = dir.path().join("images/boot");
        let example = version::example(BuildId::new());
        let at = version::folder(config, example.id);
        for folder in [&boot, &at, &config.templates().join("base"), &config.golden()] {
            std::fs::create_dir_all(folder).unwrap();
        }
        let write = |path: PathBuf, text: &str| std::fs::write(path, text).unwrap();
        for name in ["vmlinux", "initramfs"] {
            write(boot.join(name), name);
        }
        write(config.templates().join("base/rootfs.ext4"), "image");
        write(at.join("rootfs.erofs"), "image");
        write(version::layer(&at, 1), "layer");
        let describe = |version: &Version| {
            write(at.join(version::FILE), &serde_json::to_string(version).unwrap());
        };
        describe(&example);
        let resources = Resources { vcpus: 1, memory_mib: 128, disk_mib: 64 };
        let of = |template: &str, version: Option<&Version>| {
            key(&context, template, version, resources).unwrap()
        };
        let mut keys = vec![of("base", None), of("web", Some(&example))];
        assert_eq!(of("renamed", Some(&example)), keys[1]);
        let changed = Version { start_each: true, ..example.clone() };
        describe(&changed);
        keys.push(of("web", Some(&changed)));
        write(version::layer(&at, 1), "another");
        keys.push(of("web", Some(&changed)));
        assert_eq!(keys.iter().collect::<std::collections::HashSet<_>>().len(), 4);
        let missing = version::example(BuildId::new());
        assert!(key(&context, "web", Some(&missing), resources).is_err());
        // A sweep retains the machine that fits, and a removal of its version ends it.
        let record = CapsuleRecord {
            template: "web".to_owned(),
            version: Some(changed.clone()),
            resources,
            ..CapsuleRecord::unknown()
        };
        let manifest =
            Manifest { team: None, ..super::super::capture::manifest(&context, &record) };
        let started = recipe::Command::Shell("serve".to_owned());
        let started = Version { start: Some(started), ..example.clone() };
        let started = Manifest { version: Some(started), ..manifest.clone() };
        for (name, manifest) in
            [(keys[3].as_str(), &manifest), ("outdated", &manifest), ("started", &started)]
        {
            let staging = Staging::begin(&config.golden().join(name)).unwrap();
            staging.commit(manifest.clone()).unwrap();
        }
        let left = || snapshot::sweep(&config.golden());
        let outdated = sweep(&context);
        assert_eq!(outdated.iter().map(|one| one.version).collect::<Vec<_>>(), [example.id]);
        assert_eq!(outdated[0].resources, resources);
        assert_eq!(left(), [keys[3].clone()]);
        forget(&context, example.id);
        assert_eq!(left(), Vec::<String>::new());
    }

    /// A named pipe in place of the disk holds the thread that copies.
    #[tokio::test]
    async fn disk_space_stays_claimed_while_copy_of_abandoned_boot_runs() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join(storage::DISK);
        rustix::fs::mknodat(CWD, &disk, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let room = Room::new(dir.path(), false);
        let Ok(claim) = room.claim(1) else { return };
        let lock = KeyLock::default();
        let pending = PendingTemplateSnapshot {
            dir: dir.path().join("golden"),
            template: "base".to_owned(),
            version: None,
            resources: Resources { vcpus: 1, memory_mib: 128, disk_mib: 64 },
            _lock: Arc::clone(&lock).lock_owned().await,
        };
        let found = Found {
            record: &VmmRecord { pid: 0, started: 0, boot: String::new(), port: None },
            name: "",
            dir: dir.path(),
            uid: 0,
            namespace: None,
            metadata: Metadata { capsule: String::new(), template: String::new() },
        };
        let machine: Arc<dyn Machine> = Arc::from(NullDriver { port: 1 }.adopt(found).unwrap());
        let manifest = pending.manifest(String::new(), System::default(), None);
        let taking = pending.freeze_and_copy(claim, &machine, manifest, dir.path().to_owned());
        let given_up = tokio::time::timeout(Duration::from_millis(50), taking).await.is_err();
        let held = (room.claimed(), lock.try_lock().is_err());
        // The thread continues once the pipe has a writer.
        let writer = blocking(move || File::options().write(true).open(disk)).await;
        assert!(given_up && writer.is_ok());
        assert_eq!(held, (1, true));
        let _lock = lock.lock().await;
        assert_eq!(room.claimed(), 0);
    }
}
