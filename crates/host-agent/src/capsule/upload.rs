//! Transfers from this host to the platform's object store. This host sends the last snapshot of
//! each paused capsule, snapshots that belong to no capsule, templates and versions. So another host can
//! take over.
//!
//! A pause does not wait for the store. Files to send are linked into another folder first. So the
//! capsule may be resumed or removed meanwhile.
//!
//! ```text
//!  paused ──▶ link aside (under the lock) ──▶ put ──▶ same generation? ──▶ record names it
//!                                                          └── no ──▶ remove it from the store
//! ```
//! Files are sent or swept only after the platform has just confirmed that this host is a member.
//! An older snapshot is removed when the control plane asks for it, after the row names the new
//! one.

use super::host::Host;
use super::record::{CapsuleRecord, Phase};
use super::registry::Capsule;
use super::store::{PLATFORM, Stored, failure, link_aside, template_path};
use super::stored_snapshot::{self, StoredSnapshot};
use super::{Error, chain, files, io_error, versions};
use crate::snapshot::{Layers, Snapshot};
use daemon::blocking;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use types::{CapsuleId, SnapshotId};

/// Period of the checks for files to send; a pause triggers a check earlier.
const LOOK: Duration = Duration::from_secs(20);
/// Number of capsules that are sent at once.
const AT_ONCE: usize = 2;
/// Period of the sweeps of the store.
const SWEEP: Duration = Duration::from_secs(24 * 3600);

/// Spawns the tasks that upload what the store lacks, and that sweep the store. Both run until
/// the process ends.
pub(super) fn spawn_uploads(host: &Host) {
    let Some(stored) = host.stored.clone() else { return };
    let (this, tasks) = (host.clone(), host.context.tasks.clone());
    host.context.tasks.spawn(async move {
        let mut stop = tasks.stop_signal().wait();
        loop {
            tokio::select! {
                () = Box::pin(send_all(&this, &stored)) => {}
                () = &mut stop => return,
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = stored.work.notified() => {}
                () = &mut stop => return,
            }
        }
    });
    let (stored, tasks) = (host.stored.clone(), host.context.tasks.clone());
    let standing = Arc::clone(&host.context.standing);
    host.context.tasks.spawn(async move {
        let Some(stored) = stored else { return };
        let mut stop = tasks.stop_signal().wait();
        // The first wait is random, so that hosts that start together do not sweep together.
        let mut wait = SWEEP.mul_f64(f64::from(rand::random::<f32>()));
        loop {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = &mut stop => return,
            }
            wait = SWEEP;
            if !standing.confirm().await {
                continue;
            }
            match stored.store.sweep().await {
                Ok(0) => {}
                Ok(removed) => tracing::info!(removed, "removed unused data from the store"),
                Err(error) => tracing::warn!(%error, "cannot remove unused data from the store"),
            }
        }
    });
}

/// Sends everything that the store lacks, unless the platform no longer counts this host as a
/// member.
async fn send_all(host: &Host, stored: &Stored) {
    use futures::StreamExt;
    // A linked copy takes a little room, and keeps files on the disk that are removed
    // meanwhile.
    if let Err(error) = host.context.room.claim(0) {
        tracing::warn!(
            error = chain(&error),
            "not uploading to the store: the disk has too little room"
        );
        return;
    }
    let due = host.registry.filter(Capsule::is_to_send);
    let mut snapshots = files::snapshots(&host.context);
    let mut templates = host.context.templates_here();
    snapshots.retain(|id| !stored.snapshots().contains(id));
    templates.retain(|name| !stored.templates().contains(name));
    let versions = versions::unsent(host, stored);
    let waiting = due.len() + snapshots.len() + templates.len() + versions.len();
    let gauge = metrics::gauge!("wrenn_host_uploads_waiting");
    gauge.set(f64::from(u32::try_from(waiting).unwrap_or(u32::MAX)));
    if waiting == 0 {
        return;
    }
    let refused = !host.context.standing.confirm().await;
    if stored.refused.swap(refused, Ordering::Relaxed) != refused && refused {
        tracing::warn!("not uploading to the store: the platform does not confirm this host");
    }
    if refused {
        return;
    }
    let sending = due.into_iter().map(|id| async move {
        if let Err(error) = send_capsule(host, stored, id).await {
            tracing::warn!(%id, error = chain(&error), "cannot upload a capsule to the store");
        }
    });
    futures::stream::iter(sending).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    for id in snapshots {
        if let Err(error) = send_snapshot(host, stored, id).await {
            tracing::warn!(%id, error = chain(&error), "cannot upload a snapshot to the store");
        }
    }
    for name in templates {
        if let Err(error) = send_template(host, stored, &name).await {
            tracing::warn!(name, error = chain(&error), "cannot upload a template to the store");
        }
    }
    for id in versions {
        if let Err(error) = versions::send(host, stored, id).await {
            tracing::warn!(%id, error = chain(&error), "cannot upload a version to the store");
        }
    }
}

/// Sends a paused capsule's last snapshot to the store, beside earlier ones.
async fn send_capsule(host: &Host, stored: &Stored, id: CapsuleId) -> Result<(), Error> {
    let dir = files::folder(&host.context, id);
    let lock = host.registry.capsule_lock(id)?;
    let aside = stored.dir.join(format!("sent-{id}"));
    let sent = {
        let _guard = lock.lock().await;
        let known = listed_record(host, id, &dir).filter(|l| l.phase == Phase::Paused);
        let Some(record) = known else { return Ok(()) };
        let (from, to, told) = (
            files::snapshots_dir(&dir).join(record.last.to_string()),
            aside.clone(),
            record.clone(),
        );
        let set_aside = move || {
            link_aside(&from, &to)?;
            // The stored record leaves out the parts that exist only on this host.
            CapsuleRecord { slot: None, machine: None, base_layers: Layers::default(), ..told }
                .save(&to)
        };
        blocking(set_aside)
            .await
            .map_err(io_error("cannot set a snapshot aside for its upload"))?;
        record
    };
    let (team, tree) = (&sent.team, StoredSnapshot::fresh(sent.last));
    let put = stored.put(team, &tree.path(id), &aside).await;
    let _ = fs::remove_dir_all(&aside);
    let bytes = put.map_err(failure)?;
    daemon::failpoint("store.sent").map_err(io_error("a failpoint failed"))?;
    metrics::counter!("wrenn_stored_bytes_total").increment(bytes);
    let _guard = lock.lock().await;
    // Each command since then has a later generation: a resume, or another copy after a
    // removal.
    match listed_record(host, id, &dir).filter(|record| record.generation == sent.generation) {
        Some(mut record) => {
            (record.stored, record.tree) = (tree.number, tree.name().to_owned());
            files::save(&record, &dir)?;
            host.registry.change(id, |capsule| capsule.stored = Some(tree));
            host.changes.note();
            Ok(())
        }
        // The row never named this upload, so no later command could use or remove it.
        None => stored.store.remove(team, &tree.path(id)).await.map_err(failure),
    }
}

/// Reads the record of a capsule in its folder; `None` when the capsule was removed. The caller has
/// the capsule's lock. The record of a removed capsule may be there for a while.
fn listed_record(host: &Host, id: CapsuleId, dir: &Path) -> Option<CapsuleRecord> {
    host.registry.state(id)?;
    CapsuleRecord::load(dir)
}

/// Removes a capsule's snapshots from the store: all of them or, with `stays`, the other ones
/// with no higher number.
pub(super) async fn prune_stored(
    host: &Host,
    team: &str,
    id: CapsuleId,
    stays: Option<&StoredSnapshot>,
) -> Result<(), Error> {
    let Some(stored) = &host.stored else { return Ok(()) };
    for name in stored.store.names(team, &stored_snapshot::folder(id)).await.map_err(failure)? {
        let found = name.rsplit('/').next().and_then(StoredSnapshot::parse);
        let goes = match (stays, found) {
            (None, _) => true,
            (Some(stays), Some(found)) => found.number <= stays.number && found != *stays,
            (Some(_), None) => false,
        };
        if goes {
            stored.store.remove(team, &name).await.map_err(failure)?;
        }
    }
    Ok(())
}

async fn send_snapshot(host: &Host, stored: &Stored, id: SnapshotId) -> Result<(), Error> {
    let from = files::snapshot_dir(&host.context, id);
    let Ok(found) = Snapshot::open(&from) else { return Ok(()) };
    let Some(team) = found.manifest.team else { return Ok(()) };
    let name = format!("snapshots/{id}");
    if !stored.store.has(&team, &name).await.map_err(failure)? {
        let aside = stored.dir.join(format!("sent-{id}"));
        let to = aside.clone();
        let set_aside = blocking(move || link_aside(&from, &to)).await;
        set_aside.map_err(io_error("cannot set a snapshot aside for its upload"))?;
        let sent = stored.put(&team, &name, &aside).await;
        let _ = fs::remove_dir_all(&aside);
        sent.map_err(failure)?;
    }
    if files::snapshot_dir(&host.context, id).exists() {
        stored.snapshots().insert(id);
        host.changes.note();
        return Ok(());
    }
    // The snapshot was removed while it was sent.
    stored.store.remove(&team, &name).await.map_err(failure)
}

/// Lists the snapshots of this host that the store has too.
pub(super) fn stored_snapshots(host: &Host) -> Vec<SnapshotId> {
    let stored = host.stored.as_ref();
    stored.map(|stored| stored.snapshots().iter().copied().collect()).unwrap_or_default()
}

/// Removes a snapshot from the store.
pub(super) async fn forget_snapshot(host: &Host, team: &str, id: SnapshotId) -> Result<(), Error> {
    let Some(stored) = &host.stored else { return Ok(()) };
    stored.snapshots().remove(&id);
    stored.store.remove(team, &format!("snapshots/{id}")).await.map_err(failure)
}

async fn send_template(host: &Host, stored: &Stored, name: &str) -> Result<(), Error> {
    let path = template_path(name);
    if !stored.store.has(PLATFORM, &path).await.map_err(failure)? {
        let from = host.context.config.templates().join(name);
        stored.put(PLATFORM, &path, &from).await.map_err(failure)?;
        tracing::info!(name, "uploaded a template to the store");
    }
    stored.templates().insert(name.to_owned());
    Ok(())
}
