//! Adoption of the capsules that an earlier agent left, the first work of an agent. For each
//! capsule, the record, the processes and the complete snapshots tell how far the earlier agent
//! got. Adoption then completes the work or undoes it. It removes nothing that ran or was kept in a
//! snapshot.
//!
//! ```text
//!  record:  none ─▶ remove        Starting ─▶ remove          Expired ─▶ release, Expired
//!           unreadable ─▶ Dead    Paused, Resuming ─▶ settle, Paused
//!           Running ─┬ a newer complete snapshot ─▶ settle, Paused
//!                    ├ its machine lives ─────────▶ Running, a thaw owed
//!                    └ neither ───────────────────▶ Dead
//! ```

use super::boot::{Ready, parts};
use super::host::Host;
use super::record::{CapsuleRecord, Phase};
use super::registry::{Capsule, Running};
use super::settle::settle;
use super::{Error, State, chain, files, io_error, liveness, logs, teardown};
use crate::network::egress::Guard;
use crate::network::namespace::Namespace;
use crate::room::Level;
use crate::snapshot;
use crate::vmm::{Found, Machine};
use std::sync::Arc;
use types::CapsuleId;

/// Adopted machine of a capsule.
struct Adopted {
    ready: Ready,
    /// True when its guest waits for room on the disk.
    waits: bool,
}

/// Finds every capsule that an earlier agent left.
pub(super) async fn adopt_all(host: &Host) -> Result<(), Error> {
    let mut failed = false;
    for id in files::existing(&host.context) {
        let dir = files::folder(&host.context, id);
        let found = match CapsuleRecord::load(&dir) {
            Some(record) => adopt(host, id, record).await,
            // A record is always replaced as a whole. If this one cannot be read, another
            // version wrote it, so its capsule is not touched.
            None if CapsuleRecord::exists(&dir) => {
                Err(Error::Invalid("the capsule's record has an unknown format".to_owned()))
            }
            None => teardown::remove(&host.context, id).await,
        };
        if let Err(error) = found {
            // The capsule stays listed, so that the control plane asks for its removal again.
            failed = true;
            let reason = chain(&error);
            tracing::error!(
                %id, error = reason,
                "cannot adopt or remove a capsule of an earlier agent"
            );
            let known = CapsuleRecord::load(&dir)
                .map(|record| Capsule::new(&record, State::Dead(reason.clone())));
            let unknown = || Capsule::unknown(State::Dead(reason.clone()));
            host.registry.insert(id, known.unwrap_or_else(unknown));
        }
    }
    match &host.context.networks {
        // Any unknown network may belong to a capsule that was not adopted.
        Some(networks) if failed => networks.reserve_orphans(),
        Some(networks) => networks.remove_orphans().await?,
        None => {}
    }
    Ok(())
}

async fn adopt(host: &Host, id: CapsuleId, mut record: CapsuleRecord) -> Result<(), Error> {
    let context = &host.context;
    // A network of this number belongs to this capsule as long as the record names the number. The
    // capsule's later removal would take the network of another one.
    if let (Some(networks), Some(slot)) = (&context.networks, record.slot) {
        networks.claim(slot);
    }
    let dir = files::folder(context, id);
    let newest = files::newest(&snapshot::sweep(&files::snapshots_dir(&dir)));
    let state = match record.phase {
        Phase::Starting => {
            tracing::info!(%id, "removing an incomplete capsule of an earlier agent");
            return teardown::remove(context, id).await;
        }
        // The pause was complete, but the earlier agent did not update the record.
        Phase::Running if newest > record.last => {
            settle(context, &mut record, newest).await?;
            State::Paused
        }
        Phase::Running => match find_running(host, &record).await {
            Some(Adopted { ready, waits }) => {
                tracing::info!(%id, waits, "adopted a running capsule");
                host.registry.insert(id, Capsule::new(&record, State::Running));
                liveness::run(host, id, ready);
                logs::follow(host, &record, None);
                // An earlier agent may have died before it let the guest go on.
                host.registry.change(id, |capsule| {
                    (capsule.usage.waits, capsule.usage.thaw_owed) = (waits, true);
                });
                return Ok(());
            }
            None => State::Dead("the machine ended while no host agent was running".to_owned()),
        },
        // Nobody was let in, so the last snapshot still holds everything.
        Phase::Paused | Phase::Resuming => {
            let last = record.last;
            settle(context, &mut record, last).await?;
            State::Paused
        }
        Phase::Expired => {
            teardown::release(context, &mut record).await?;
            State::Expired
        }
    };
    tracing::info!(%id, %state, "found a capsule");
    host.registry.insert(id, Capsule::new(&record, state));
    Ok(())
}

/// Finds the machine of a capsule; none when it has ended.
async fn find_running(host: &Host, record: &CapsuleRecord) -> Option<Adopted> {
    let dir = files::folder(&host.context, record.id);
    let network = match (&host.context.networks, record.slot) {
        (Some(networks), Some(slot)) => Some(networks.adopt(slot).ok()?),
        _ => None,
    };
    let name = record.name();
    let machine: Arc<dyn Machine> = Arc::from(host.context.driver.adopt(Found {
        record: record.machine.as_ref()?,
        name: &name,
        dir: &dir,
        uid: parts::uid(record),
        namespace: network.as_ref().map(|network| &network.namespace),
        metadata: parts::metadata(record),
    })?);
    let namespace = network.map(|network| network.namespace);
    let guarded = guard(host, namespace.as_ref(), record).await;
    // Without a guard, the capsule's rules for host names let nothing through.
    let warn = |error: &Error| {
        tracing::error!(
            id = %record.id, error = chain(error),
            "cannot apply a capsule's network rules"
        );
    };
    let guard = guarded.inspect_err(warn).ok().flatten();
    let route = parts::route(&*machine, namespace).ok()?;
    let guest = parts::guest(&host.context, record, route).guarded(guard);
    // A stopped guest takes no room, so it stays stopped until the disk has room again.
    let scarce = matches!(host.context.room.look(), Level::Scarce | Level::Low);
    let waits = scarce && machine.is_stopped().await.unwrap_or(false);
    let life = record.life.clone();
    let ready = Ready { running: Running { machine, guest }, kind: None, life };
    Some(Adopted { ready, waits })
}

/// Returns the guard of a running machine's network, with the rules of the record in force. The
/// earlier agent may have written them down without applying them.
async fn guard(
    host: &Host,
    namespace: Option<&Namespace>,
    record: &CapsuleRecord,
) -> Result<Option<Arc<Guard>>, Error> {
    let guard = parts::guard(&host.context, namespace, &record.egress).await?;
    if let Some(guard) = &guard {
        let applied = guard.reapply().await;
        applied.map_err(io_error("cannot apply the capsule's network rules"))?;
    }
    Ok(guard)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capsule::destroy::{destroy, wait_gone};
    use crate::context::AgentContext;
    use crate::network::Networks;
    use crate::network::plan::Plan;
    use crate::vmm::null::NullDriver;
    use std::fs;

    #[tokio::test]
    async fn network_number_of_dead_capsule_stays_taken_until_the_capsule_is_removed() {
        let [dir, namespaces] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        // An absolute path in place of an agent's tag puts the namespaces in this folder. There is
        // none, as after a crash between the removals of network and folder.
        let tag = namespaces.path().to_str().unwrap();
        let networks = Networks::for_removal(Plan::new(tag, "198.18.0.0/30", &[]).unwrap());
        let context = AgentContext {
            networks: Some(Arc::clone(&networks)),
            ..AgentContext::for_tests(dir.path(), Box::new(NullDriver { port: 1 }))
        };
        let id = CapsuleId::new();
        let record =
            CapsuleRecord { phase: Phase::Running, slot: Some(1), ..CapsuleRecord::new(id) };
        let folder = files::folder(&context, id);
        fs::create_dir_all(&folder).unwrap();
        record.save(&folder).unwrap();
        let host = Host::new(Arc::new(context), None);
        adopt_all(&host).await.unwrap();
        assert!(matches!(host.registry.state(id), Some(State::Dead(_))));
        assert!(networks.is_used(1), "the removal would take the network of another capsule");
        destroy(&host, id, None).await.unwrap();
        wait_gone(&host, id).await.unwrap();
        assert!(!networks.is_used(1) && !folder.exists());
    }
}
