//! Started machines of versions, which the agent makes again after an upgrade. A saved machine does
//! not fit another kernel, initramfs or VMM. Without this work, the first create after the upgrade
//! boots and runs the version's commands.
//!
//! ```text
//!  sweep ─▶ outdated, last used first ─▶ boot from the image ─▶ commands ─▶ save ─▶ remove
//!                    ▲                              │ a capsule needs the memory
//!                    └──── one at a time            └───────────────────────▶ remove, and stop
//! ```
//! No list shows such a machine, and no request reaches it. After a crash, the next agent removes it
//! like an incomplete capsule. A machine that fails is left to the next create.

use super::boot::{self, Origin};
use super::host::Host;
use super::record::CapsuleRecord;
use super::template_snapshot::{self, Outdated, TemplateSnapshot};
use super::{Error, chain, files, io_error, teardown, until};
use crate::builders::NoLog;
use crate::version::Version;
use std::cmp::Reverse;
use std::fs;
use tokio_util::sync::CancellationToken;
use types::{CapsuleId, hex};

/// Most machines that one start of the agent makes again.
const MOST: usize = 16;

/// Begins to make outdated machines again, the last used first.
pub(super) fn spawn(host: &Host, mut outdated: Vec<Outdated>) {
    if outdated.is_empty() {
        return;
    }
    outdated.sort_by_key(|machine| Reverse(machine.used));
    outdated.truncate(MOST);
    let this = host.clone();
    host.context.tasks.spawn(async move {
        for machine in outdated {
            let version = machine.version;
            match Box::pin(remake(&this, &machine)).await {
                Ok(()) => {}
                Err(Error::Stopping) => return,
                Err(error) => tracing::warn!(
                    %version, error = chain(&error),
                    "cannot make a started machine again; the next create tries it"
                ),
            }
        }
    });
}

/// Makes a machine again, unless its version is gone. Leaves no part but the saved machine.
///
/// # Errors
/// [`Error::NoCapacity`] without room for this machine and another one of its size.
/// [`Error::Stopping`] when a capsule needs the memory, or the agent stops.
async fn remake(host: &Host, outdated: &Outdated) -> Result<(), Error> {
    let Outdated { version, resources, .. } = *outdated;
    let Ok(version) = Version::find(&host.context.config, version) else { return Ok(()) };
    let wanted = u64::from(resources.memory_mib);
    let lease = host.begin_spare(wanted)?;
    let mut record = CapsuleRecord {
        team: version.team.clone(),
        template: version.template.clone(),
        version: Some(version),
        resources,
        envd_token: hex::encode(&rand::random::<[u8; 32]>()),
        ..CapsuleRecord::new(CapsuleId::new())
    };
    let id = record.id;
    let made = host.in_background(&lease, Box::pin(make(host, &mut record, lease.token()))).await;
    let removed = teardown::remove(&host.context, id).await;
    drop(lease);
    if let Err(undo) = &removed {
        tracing::error!(%id, error = chain(undo), "cannot remove a machine that was made again");
    }
    made.and(removed)
}

/// Boots a machine and saves it after the version's commands. A saved machine that fits is success.
async fn make(
    host: &Host,
    record: &mut CapsuleRecord,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let context = &*host.context;
    let found = until(cancel, host.template_snapshots.find(context, record)).await?;
    let pending = match found.map_err(template_snapshot::error)? {
        // A create was first.
        TemplateSnapshot::Ready(_) => return Ok(()),
        TemplateSnapshot::Pending(pending) => pending,
    };
    let made = fs::create_dir_all(files::folder(context, record.id));
    made.map_err(io_error("cannot create the machine's folder"))?;
    let origin = Origin::Image(Some(pending));
    let ready = Box::pin(boot::boot(context, record, origin, cancel, &NoLog)).await?;
    ready.running.guest.close();
    tracing::info!(template = record.template, "made a started machine again");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::AgentContext;
    use crate::guest::stub;
    use crate::version;
    use crate::vmm::null::NullDriver;
    use recipe::Command;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};
    use types::BuildId;
    use types::resources::Resources;

    /// Makes a host with a version whose start command goes on for ever. Returns the version's
    /// outdated machine, too.
    async fn outdated(dir: &Path, ready: &str) -> (Host, Arc<stub::Seen>, Outdated) {
        let (at, seen) = stub::start().await;
        let context = AgentContext::for_tests(dir, Box::new(NullDriver { port: at.port() }));
        let [start, ready] = ["serve", ready].map(|text| Some(Command::Shell(text.to_owned())));
        let example = version::example(BuildId::new());
        let example = Version { start, ready, layers: Vec::new(), ..example };
        let (config, boot) = (&context.config, dir.join("images/boot"));
        let folder = version::folder(config, example.id);
        for made in [&boot, &folder, &config.golden(), &config.capsules()] {
            fs::create_dir_all(made).unwrap();
        }
        for file in [config.kernel(), config.initramfs(), folder.join("rootfs.erofs")] {
            fs::write(file, "file").unwrap();
        }
        fs::write(folder.join(version::FILE), serde_json::to_vec(&example).unwrap()).unwrap();
        let resources = Resources { vcpus: 1, memory_mib: 128, disk_mib: 64 };
        let outdated = Outdated { version: example.id, resources, used: SystemTime::now() };
        (Host::new(Arc::new(context), None), seen, outdated)
    }

    fn folders(host: &Host) -> usize {
        fs::read_dir(host.context.config.capsules()).unwrap().count()
    }

    #[tokio::test]
    async fn outdated_machine_runs_its_commands_again_and_leaves_no_capsule() {
        let dir = tempfile::tempdir().unwrap();
        let (host, seen, machine) = outdated(dir.path(), "after 0").await;
        if host.context.room.claim(0).is_err() {
            return;
        }
        remake(&host, &machine).await.unwrap();
        assert_eq!(seen.commands(), ["serve", "after 0"]);
        assert_eq!((folders(&host), host.registry.list().len()), (0, 0));
        // A version that is gone needs no machine.
        version::remove(&host.context.config, machine.version).unwrap();
        remake(&host, &machine).await.unwrap();
        assert_eq!(seen.commands().len(), 2);
    }

    #[tokio::test]
    async fn machine_in_the_background_gives_way_to_a_capsule() {
        let dir = tempfile::tempdir().unwrap();
        let (host, seen, machine) = outdated(dir.path(), "serve").await;
        if host.context.room.claim(0).is_err() {
            return;
        }
        // No second machine of this size fits.
        let resources = Resources { memory_mib: 600, ..machine.resources };
        let refused = remake(&host, &Outdated { resources, ..machine }).await;
        assert!(matches!(refused, Err(Error::NoCapacity(_))), "{refused:?}");
        let work = tokio::time::timeout(Duration::from_secs(30), remake(&host, &machine));
        let capsule = async {
            while seen.commands().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            // A capsule that leaves room disturbs nothing. A larger one needs the memory.
            host.check_room(0, 512).unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(folders(&host), 1);
            host.check_room(0, 1024).unwrap();
        };
        let (ended, ()) = tokio::join!(work, capsule);
        assert!(matches!(ended, Ok(Err(Error::Stopping))), "{ended:?}");
        assert_eq!((folders(&host), host.registry.list().len()), (0, 0));
    }
}
