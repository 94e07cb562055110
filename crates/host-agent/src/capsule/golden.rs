//! Golden machines: a saved machine for each template and size, so that a create is a restore. A
//! machine is saved when its guest first answers, before the guest has an identity. Its key covers
//! everything that it depends on. So a machine that does not fit this host is never found. The next
//! start of the agent removes it.

use super::life::now_ms;
use super::{Error, blocking, pause};
use crate::Parts;
use crate::guest::Guest;
use crate::room::Claim;
use crate::snapshot::memory::Memory;
use crate::snapshot::{self, Layers, Manifest, Snapshot, Staging, System};
use crate::storage;
use crate::vmm::Machine;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio_util::sync::CancellationToken;
use types::resources::Resources;

/// Time after which an unused golden machine is removed.
const UNUSED: Duration = Duration::from_secs(7 * 24 * 3600);

/// Lock of the boot that makes a golden machine. Other boots of the same key wait for it.
type Turn = Arc<tokio::sync::Mutex<()>>;

/// Locks of this agent's golden machines, by key.
#[derive(Default)]
pub(crate) struct Goldens {
    turns: Mutex<HashMap<String, Turn>>,
}

/// Right to save a machine as a golden machine.
pub(crate) struct Golden {
    dir: PathBuf,
    template: String,
    resources: Resources,
    _turn: tokio::sync::OwnedMutexGuard<()>,
}

impl Goldens {
    /// Returns the golden machine of a template and size, or the right to make it. A call waits
    /// while another makes the same machine.
    pub(crate) async fn find(
        &self,
        parts: &Parts,
        template: &str,
        resources: Resources,
    ) -> io::Result<Result<Snapshot, Golden>> {
        let key = key(parts, template, resources)?;
        let dir = parts.config.golden().join(&key);
        if let Ok(snapshot) = Snapshot::open(&dir) {
            note_use(&dir);
            return Ok(Ok(snapshot));
        }
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(turns.entry(key).or_default())
        };
        let turn = turn.lock_owned().await;
        match Snapshot::open(&dir) {
            Ok(snapshot) => Ok(Ok(snapshot)),
            Err(error) => {
                if dir.exists() {
                    tracing::warn!(%error, template, "a golden machine is damaged; making it anew");
                    snapshot::remove(&dir)?;
                }
                Ok(Err(Golden { dir, template: template.to_owned(), resources, _turn: turn }))
            }
        }
    }
}

/// Removes golden machines that no longer fit this host, and incomplete ones.
pub(crate) fn sweep(parts: &Parts) {
    let root = parts.config.golden();
    for name in snapshot::sweep(&root) {
        let dir = root.join(&name);
        let fits = Snapshot::open(&dir).ok().is_some_and(|found| {
            let wanted = key(parts, &found.manifest.template, found.manifest.resources);
            wanted.is_ok_and(|wanted| wanted == name)
        });
        if !fits && let Err(error) = snapshot::remove(&dir) {
            tracing::warn!(%error, name, "removing a golden machine that is out of date");
        }
    }
}

/// Records the use of a golden machine as the modification time of its folder.
fn note_use(dir: &Path) {
    let _ = File::open(dir).and_then(|dir| dir.set_modified(SystemTime::now()));
}

/// Removes golden machines that were unused for long, since some sizes are asked for only once.
pub(crate) fn retire(parts: &Parts) {
    for entry in std::fs::read_dir(parts.config.golden()).into_iter().flatten().flatten() {
        let used = entry.metadata().and_then(|found| found.modified());
        let old = used.is_ok_and(|used| used.elapsed().is_ok_and(|unused| unused > UNUSED));
        if old && let Err(error) = snapshot::remove(&entry.path()) {
            tracing::warn!(%error, "removing a golden machine that is not used");
        }
    }
}

/// Returns a hash of everything that a golden machine depends on.
fn key(parts: &Parts, template: &str, resources: Resources) -> io::Result<String> {
    let config = &parts.config;
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    add(parts.driver.fingerprint().as_bytes());
    let Resources { vcpus, memory_mib, disk_mib } = resources;
    add(format!("{template} {vcpus} {memory_mib} {disk_mib} {:?}", config.dns).as_bytes());
    for file in [config.kernel(), config.initramfs(), storage::image(config, template)] {
        // Images are never changed in place, only replaced.
        let (path, found) = (file.canonicalize()?, file.metadata()?);
        add(path.as_os_str().as_encoded_bytes());
        add(&found.len().to_le_bytes());
        add(format!("{:?}", found.modified()?).as_bytes());
    }
    Ok(hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect())
}

impl Golden {
    /// Saves a machine whose guest answers and has no identity yet. A failure is only logged. The
    /// machine continues, and a later boot makes the golden machine.
    pub(crate) async fn keep(
        self,
        parts: &Parts,
        machine: &Arc<dyn Machine>,
        guest: &Guest,
        dir: &Path,
    ) {
        let bytes = u64::from(self.resources.memory_mib) << 20;
        let disk = dir.join(storage::DISK).metadata().map_or(0, |found| found.blocks() * 512);
        let Ok(claim) = parts.room.claim(pause::most(&**machine, bytes) + disk) else {
            tracing::warn!("there is no room to keep a golden machine");
            return;
        };
        if let Err(error) = guest.warm().await {
            tracing::warn!(%error, "warming a golden machine");
        }
        // No connection of the agent may be open in the saved guest.
        guest.pool().clear();
        let fingerprint = parts.driver.fingerprint();
        let system = parts.config.system();
        let taken = self.take(claim, machine, (fingerprint, system), dir.to_owned()).await;
        let thawed = machine.thaw().await;
        match (taken, thawed) {
            // The capsule does not wait for the hashing and writing of the golden machine.
            (Ok(taken), Ok(())) => parts.tasks.spawn(async move {
                if let Err(error) = blocking(move || taken.write()).await {
                    tracing::warn!(%error, "keeping a golden machine");
                }
            }),
            (Err(error), _) | (_, Err(error)) => {
                let error = super::manager::chain(&error);
                tracing::warn!(error, "keeping a golden machine");
            }
        }
    }

    /// Freezes a machine and copies its parts. The boot may be abandoned at any point. So the
    /// thread that copies owns the claim and the right to make the golden machine.
    async fn take(
        self,
        claim: Claim,
        machine: &Arc<dyn Machine>,
        (fingerprint, system): (String, System),
        own: PathBuf,
    ) -> Result<Taken, crate::vmm::Error> {
        let fail = |e| crate::vmm::Error::new("keeping a golden machine", e);
        let given_up = CancellationToken::new();
        let staging = Staging::begin(&self.dir).map_err(fail)?.until(&given_up);
        let guard = given_up.clone().drop_guard();
        machine.freeze().await?;
        let state = staging.state_file().map_err(fail)?;
        let memory = machine.save(state, u64::from(self.resources.memory_mib) << 20).await?;
        let memory = memory.map(|memory| memory.until(given_up));
        let manifest = Manifest {
            fingerprint,
            system,
            template: self.template.clone(),
            team: None,
            resources: self.resources,
            taken_at_ms: now_ms(),
            memory: None,
            state: None,
            disk: None,
            envd_token: None,
        };
        let copy = move || {
            let mut taken = Taken { staging, memory, manifest, _claim: claim, _golden: self };
            taken.memory = taken.memory.as_ref().map(Memory::copy).transpose()?;
            taken.manifest.disk = Some(taken.staging.copy_disk(&own)?);
            Ok(taken)
        };
        let copied = blocking(copy).await.map_err(fail);
        guard.disarm();
        copied
    }
}

/// Copy of a machine, which is not committed yet. Fields are dropped in order: the staging folder
/// first, the right to make another golden machine last.
struct Taken {
    staging: Staging,
    memory: Option<Memory>,
    manifest: Manifest,
    _claim: Claim,
    _golden: Golden,
}

impl Taken {
    fn write(self) -> io::Result<()> {
        // Locals are dropped in reverse order, so the right is given up last.
        let Self { _golden, _claim, staging, memory, mut manifest } = self;
        let (began, dir) = (Layers::default(), staging.path().to_owned());
        manifest.memory = memory.map(|m| staging.write_memory(&m, &began, &dir)).transpose()?;
        manifest.state = Some(staging.seal_state()?);
        staging.sync_disk()?;
        staging.commit(manifest).map(drop)
    }
}

/// Turns a failure to find or make a golden machine into a capsule's error.
pub(crate) fn error(source: io::Error) -> Error {
    super::io_error("looking for the template's golden machine")(source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::room::Room;
    use crate::vmm::hollow::Hollow;
    use crate::vmm::{Driver, Found, Metadata, Record};
    use rustix::fs::{CWD, FileType, Mode};

    /// A named pipe in place of the disk holds the thread that copies.
    #[tokio::test]
    async fn room_stays_claimed_while_the_copy_of_a_boot_that_is_given_up_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join(storage::DISK);
        rustix::fs::mknodat(CWD, &disk, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let room = Room::new(dir.path(), false);
        let Ok(claim) = room.claim(1) else { return };
        let turn = Turn::default();
        let golden = Golden {
            dir: dir.path().join("golden"),
            template: "base".to_owned(),
            resources: Resources { vcpus: 1, memory_mib: 128, disk_mib: 64 },
            _turn: Arc::clone(&turn).lock_owned().await,
        };
        let found = Found {
            record: &Record { pid: 0, started: 0, boot: String::new(), port: None },
            name: "",
            dir: dir.path(),
            uid: 0,
            namespace: None,
            metadata: Metadata { capsule: String::new(), template: String::new() },
        };
        let machine: Arc<dyn Machine> = Arc::from(Hollow { port: 1 }.adopt(found).unwrap());
        let about = (String::new(), System::default());
        let taking = golden.take(claim, &machine, about, dir.path().to_owned());
        let given_up = tokio::time::timeout(Duration::from_millis(50), taking).await.is_err();
        let held = (room.claimed(), turn.try_lock().is_err());
        // The thread continues once the pipe has a writer.
        let writer = blocking(move || File::options().write(true).open(disk)).await;
        assert!(given_up && writer.is_ok());
        assert_eq!(held, (1, true));
        let _turn = turn.lock().await;
        assert_eq!(room.claimed(), 0);
    }
}
