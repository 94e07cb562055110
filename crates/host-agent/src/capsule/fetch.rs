//! Transfers from the platform's object store to this host: capsules that were paused elsewhere,
//! and snapshots or templates that this host lacks.
//!
//! ```text
//!  unknown, or a stale copy ─▶ evict the copy ─▶ listed as Resuming ─▶ fetch ─▶ RENAME ─▶ Paused
//! ```

use super::create::VersionRef;
use super::destroy::{destroy, wait_gone};
use super::host::Host;
use super::record::CapsuleRecord;
use super::store::{PLATFORM, Stored, place, template_path};
use super::stored_snapshot::StoredSnapshot;
use super::{Error, files, snapshot_error, teardown, until};
use crate::{snapshot, version};
use daemon::blocking;
use std::fs::{self, File};
use tokio_util::sync::CancellationToken;
use types::{CapsuleId, SnapshotId};

/// The command that resumes a capsule, as far as copies of the capsule are concerned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Placed {
    /// Generation of the command.
    pub generation: u64,
    /// Generation of the command that placed the capsule on this host. A copy of an earlier
    /// generation is a leftover: the capsule has run elsewhere since. 0 when unknown.
    pub since: u64,
}

/// Fetches a capsule that was paused on another host, and lists it as paused on this host. The
/// fetch goes on when its caller leaves. So a capsule whose row names this host is not lost.
pub(super) async fn capsule(
    host: &Host,
    team: &str,
    id: CapsuleId,
    tree: &StoredSnapshot,
    placed: Placed,
) -> Result<(), Error> {
    // The folder of an earlier copy may be on its way out.
    wait_gone(host, id).await?;
    let here = CapsuleRecord::load(&files::folder(&host.context, id));
    let is_ours =
        |here: &CapsuleRecord| here.generation >= placed.since && here.last >= tree.number;
    if here.as_ref().is_some_and(is_ours) {
        return Ok(());
    }
    let Some(stored) = host.stored.clone() else {
        return Err(Error::NotFound(format!("capsule {id}, and no object store to fetch it from")));
    };
    let (this, from) = (host.clone(), (team.to_owned(), tree.clone()));
    let fetching = async move { install(&this, &stored, id, here, from, placed).await };
    // A boxed future, since the work of a fetch is large.
    host.detached(Box::pin(fetching)).await
}

/// Replaces this host's copy of a capsule, if any, by the capsule's snapshot in the store.
async fn install(
    host: &Host,
    stored: &Stored,
    id: CapsuleId,
    here: Option<CapsuleRecord>,
    (team, tree): (String, StoredSnapshot),
    placed: Placed,
) -> Result<(), Error> {
    // A copy on this host is a leftover of a capsule that has run elsewhere since.
    if let Some(here) = here {
        evict_stale(host, &here, placed).await?;
    }
    let (fetching, cancel) = Fetching::begin(host, id, placed.generation)?;
    let failed = "cannot install a capsule from the store";
    let fetched = stored.dir.join(format!("capsule-{id}-{}", tree.name()));
    let path = tree.path(id);
    let fetch = stored.fetch(&host.context.room, (&team, &path), &fetched);
    until(&cancel, Box::pin(fetch)).await??;
    let (from, to) = (fetched.clone(), files::folder(&host.context, id));
    let number = tree.number;
    let placing = blocking(move || {
        let mut record = CapsuleRecord::load(&from)
            .filter(|record| record.id == id && record.last == number)
            .ok_or_else(|| snapshot::damaged("the capsule's record in the store is invalid"))?;
        (record.stored, record.tree) = (number, tree.name().to_owned());
        // This copy belongs to the command that it was fetched for.
        record.generation = placed.generation.max(record.generation);
        // An earlier attempt that lost a race may have left this folder.
        let whole = from.with_extension("whole");
        let _ = fs::remove_dir_all(&whole);
        fs::create_dir_all(files::snapshots_dir(&whole))?;
        record.save(&whole)?;
        CapsuleRecord::remove(&from)?;
        fs::rename(&from, files::snapshots_dir(&whole).join(number.to_string()))?;
        File::open(files::snapshots_dir(&whole))?.sync_all()?;
        place(&whole, &to)?;
        Ok(record)
    });
    let record = placing.await;
    let _ = fs::remove_dir_all(&fetched);
    let record = record.map_err(snapshot_error(failed))?;
    tracing::info!(%id, number, "fetched a capsule from the store");
    if fetching.end(&record) {
        return Ok(());
    }
    // A removal took the capsule's entry during the fetch. If it is still under way after the time
    // limit, both remove the folder.
    let _ = wait_gone(host, id).await;
    teardown::remove(&host.context, id).await?;
    Err(Error::Stale)
}

/// Removes the leftovers of a capsule that has run elsewhere since it was here. A copy of
/// `placed`'s own generation, or of a later one, stays.
async fn evict_stale(host: &Host, here: &CapsuleRecord, placed: Placed) -> Result<(), Error> {
    let id = here.id;
    match host.registry.check_evict(id) {
        Err(error) if here.generation >= placed.since => Err(error),
        _ => {
            tracing::info!(%id, "evicting a stale copy of a capsule");
            destroy(host, id, Some(placed.generation.saturating_sub(1))).await?;
            // The new copy takes the folder of the old one.
            wait_gone(host, id).await
        }
    }
}

/// Fetches a snapshot that another host took, if this host lacks it.
pub(super) async fn snapshot(host: &Host, team: &str, id: SnapshotId) -> Result<(), Error> {
    let to = files::snapshot_dir(&host.context, id);
    match &host.stored {
        Some(stored) if !to.exists() => {
            let name = format!("snapshots/{id}");
            stored.fetch(&host.context.room, (team, &name), &to).await
        }
        _ => Ok(()),
    }
}

/// Fetches a template that another host made, if this host lacks it.
pub(super) async fn template(host: &Host, name: &str) -> Result<(), Error> {
    let Some(stored) = &host.stored else { return Ok(()) };
    if host.context.templates().iter().any(|known| known == name) {
        return Ok(());
    }
    let to = host.context.config.templates().join(name);
    let path = template_path(name);
    match stored.fetch(&host.context.room, (PLATFORM, &path), &to).await {
        Err(Error::NotFound(_)) => Err(Error::NoTemplate(name.to_owned())),
        fetched => fetched,
    }
}

/// Fetches a version of a template that another host built, if this host lacks it. The part of the
/// store is its owner's.
pub(super) async fn version(host: &Host, wanted: &VersionRef) -> Result<(), Error> {
    let Some(stored) = &host.stored else { return Ok(()) };
    let to = version::folder(&host.context.config, wanted.id);
    if to.exists() {
        return Ok(());
    }
    let folder = wanted.id.to_string();
    let path = template_path(&folder);
    match stored.fetch(&host.context.room, (&wanted.team, &path), &to).await {
        Err(Error::NotFound(_)) => Err(Error::NoTemplate(folder)),
        fetched => fetched.inspect(|()| {
            // The tree came from the store, so the next sweep need not send it.
            stored.versions().insert(wanted.id);
        }),
    }
}

/// A capsule that is being fetched. The host lists it as `Resuming` meanwhile, so that the platform
/// does not take it for lost. Dropping it before the end, as at a failure, removes the capsule's
/// entry.
struct Fetching<'a> {
    host: &'a Host,
    id: CapsuleId,
    generation: u64,
}

impl<'a> Fetching<'a> {
    /// Lists the capsule. Returns the token by which a removal cancels the fetch, too.
    fn begin(
        host: &'a Host,
        id: CapsuleId,
        generation: u64,
    ) -> Result<(Self, CancellationToken), Error> {
        let cancel = host.registry.begin_fetch(id, generation)?;
        Ok((Self { host, id, generation }, cancel))
    }

    /// Marks the capsule as paused on this host; false when it was removed meanwhile.
    fn end(&self, record: &CapsuleRecord) -> bool {
        self.host.registry.end_fetch(record, self.generation)
    }
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        self.host.registry.abandon_fetch(self.id, self.generation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capsule::State;
    use crate::context::AgentContext;
    use crate::vmm::null::NullDriver;
    use std::sync::Arc;
    use std::time::Duration;

    /// Waits for a condition.
    async fn wait_until(condition: impl Fn() -> bool) {
        let waiting = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap();
    }

    #[tokio::test]
    async fn fetch_of_capsule_outlives_its_caller_and_ends_at_a_removal() {
        let dir = tempfile::tempdir().unwrap();
        let context = AgentContext::for_tests(dir.path(), Box::new(NullDriver { port: 1 }));
        let [kept, sending] = ["kept", "sending"].map(|name| dir.path().join(name));
        let store = store::Store::open(kept.to_str().unwrap(), None, std::iter::empty()).unwrap();
        let stored = Arc::new(Stored::new(store, sending).unwrap());
        let host = Host::new(Arc::new(context), Some(Arc::clone(&stored)));
        let (id, tree) = (CapsuleId::new(), StoredSnapshot::fresh(1));
        let lock = stored.fetch_lock(&tree.path(id));
        let _held = lock.lock().await;
        let placed = Placed { generation: 7, since: 7 };
        let is_listed = || host.registry.state(id) == Some(State::Resuming);
        tokio::select! {
            ended = capsule(&host, "team", id, &tree, placed) => panic!("{ended:?}"),
            () = wait_until(is_listed) => {}
        }
        assert!(is_listed(), "its caller has left");
        destroy(&host, id, None).await.unwrap();
        assert_eq!(host.registry.state(id), None);
        // The test and the store have the lock, and the fetch no more.
        wait_until(|| Arc::strong_count(&lock) == 2).await;
    }

    #[tokio::test]
    async fn capsule_is_listed_during_its_fetch() {
        let dir = tempfile::tempdir().unwrap();
        let context = AgentContext::for_tests(dir.path(), Box::new(NullDriver { port: 1 }));
        let host = Host::new(Arc::new(context), None);
        let id = CapsuleId::new();
        let state = || host.registry.state(id);
        let (fetching, _) = Fetching::begin(&host, id, 7).unwrap();
        assert_eq!(state(), Some(State::Resuming));
        drop(fetching);
        assert_eq!(state(), None, "the fetch failed");
        let (fetching, _) = Fetching::begin(&host, id, 7).unwrap();
        let record = CapsuleRecord { id, generation: 7, ..CapsuleRecord::unknown() };
        assert!(fetching.end(&record));
        drop(fetching);
        assert_eq!(state(), Some(State::Paused));
        host.registry.remove(id);
        let (fetching, _) = Fetching::begin(&host, id, 8).unwrap();
        host.registry.remove(id);
        assert!(!fetching.end(&record), "it was removed meanwhile");
    }
}
