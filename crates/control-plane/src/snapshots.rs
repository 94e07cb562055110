//! Snapshots of capsules: taken, listed, removed. The host has the files, and the row says which
//! files must exist. `reconcile` compares the two. `capsules::snapshot` serves a request for one.

use crate::agent::HostSnapshots;
use crate::app::App;
use crate::audit::{Actor, Entry};
use crate::auth::Caller;
use crate::db;
use crate::db::capsules::Capsule;
use crate::db::snapshots::Snapshot;
use crate::error::{Error, Result};
use crate::policy::{Action, Confinement, Resource};
use crate::quota::Quota;
use serde_json::json;
use std::time::Duration;
use time::OffsetDateTime;
use types::{CapsuleId, HostId, SnapshotId, SnapshotState};

/// Age at which an unfinished or unnamed snapshot counts as left by a control plane that died.
/// Forks and overwrites leave snapshots without a name.
const LEFT: Duration = Duration::from_secs(30 * 60);

/// Checks that a caller may make, replace and remove snapshots. Snapshots belong to the whole team,
/// so a key that is confined to one capsule or template may not.
pub(crate) fn check_may(caller: Caller) -> Result<()> {
    match caller.confinement == Confinement::default() {
        true => caller.may(Action::CapsulesAdmin, Resource::Team),
        false => Err(Error::Confined),
    }
}

/// Takes a snapshot, with or without memory. A snapshot without a name is for a fork alone. An
/// empty name is made from the id.
///
/// With `overwrite`, a snapshot whose name is in use has no name until it is complete. It does not
/// count as one more. An interrupted overwrite leaves a snapshot without a name, which the
/// reconciler removes.
pub(crate) async fn take(
    app: &App,
    caller: Caller,
    capsule: &Capsule,
    name: Option<String>,
    memory: bool,
    overwrite: bool,
) -> Result<Snapshot> {
    let (id, now) = (SnapshotId::new(), OffsetDateTime::now_utc());
    let name = name.map(|name| if name.is_empty() { id.to_string() } else { name });
    let mut row = Snapshot {
        id,
        team_id: caller.team,
        capsule_id: Some(capsule.id),
        host_id: capsule.host_id,
        name,
        state: SnapshotState::Making,
        template: capsule.template.clone(),
        version_id: capsule.version_id,
        vcpus: capsule.vcpus,
        memory_mib: capsule.memory_mib,
        disk_mib: capsule.disk_mib,
        size_bytes: 0,
        storage_bytes: 0,
        stored: false,
        created_at: now,
    };
    let quota = Quota::of(app, caller).await?;
    Box::pin(enter(app, caller, &quota, &row, overwrite)).await?;
    let entered = row.clone();
    let taken = match app.agent_of(capsule)?.snapshot(capsule.id, id, memory).await {
        Ok((size, storage)) => {
            (row.size_bytes, row.storage_bytes) = (size, storage);
            Box::pin(complete(app, &quota, row, overwrite)).await
        }
        Err(error) => Err(error),
    };
    if taken.is_err()
        && let Err(undo) = remove(app, &entered, Actor::SYSTEM).await
    {
        tracing::warn!(%id, error = %undo, "cannot undo a failed snapshot");
    }
    taken
}

/// Inserts a snapshot's row as `making`, if its team may have one more.
async fn enter(
    app: &App,
    caller: Caller,
    quota: &Quota,
    row: &Snapshot,
    overwrite: bool,
) -> Result<()> {
    let mut tx = app.db.begin().await?;
    // The name is looked up under the lock, or others could take its place in the count.
    quota.hold_storage(&mut tx).await?;
    let waits = match &row.name {
        Some(name) if overwrite => db::snapshots::is_named(&mut *tx, caller.team, name).await?,
        Some(_) | None => false,
    };
    let first = Snapshot { name: row.name.clone().filter(|_| !waits), ..row.clone() };
    quota.admit_snapshot(&mut tx, i64::from(first.name.is_some())).await?;
    if !db::snapshots::insert(&mut *tx, &first).await? {
        return Err(Error::Conflict("a snapshot with this name exists".to_owned()));
    }
    if row.name.is_some() {
        let capsule = row.capsule_id.map(|id| id.to_string());
        let what = json!({ "name": row.name, "capsule": capsule });
        let entry = Entry::new(caller.team, caller.by, "snapshot.create", row.id).with(what);
        db::audit::write(&mut *tx, &entry).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Marks a snapshot as complete, if its team may have the storage that the snapshot takes. With
/// `overwrite`, its name moves to it in the same transaction, from whichever snapshot has the name.
async fn complete(app: &App, quota: &Quota, row: Snapshot, overwrite: bool) -> Result<Snapshot> {
    daemon::failpoint("control.snapshot").map_err(|e| Error::Internal(e.into()))?;
    let mut tx = app.db.begin().await?;
    quota.hold_storage(&mut tx).await?;
    let old = match &row.name {
        Some(name) if overwrite => {
            // The snapshot to replace may be gone, and another one may have its place in the count.
            let team = row.team_id;
            let more = i64::from(!db::snapshots::is_named(&mut *tx, team, name).await?);
            quota.admit_snapshot(&mut tx, more).await?;
            db::snapshots::take_name(&mut tx, &row, name).await?
        }
        Some(_) | None => None,
    };
    if !db::snapshots::complete(&mut *tx, &row).await? {
        let message = "the snapshot was deleted, or its name was taken, during its creation";
        return Err(Error::Conflict(message.to_owned()));
    }
    quota.check_storage(&mut tx).await?;
    tx.commit().await?;
    if let Some(old) = old {
        clear(app, &old).await;
    }
    Ok(row)
}

/// Removes a snapshot that another one replaced. On failure the reconciler removes it.
async fn clear(app: &App, old: &Snapshot) {
    let removed = match daemon::failpoint("control.replaced") {
        Ok(()) => remove(app, old, Actor::SYSTEM).await,
        Err(error) => Err(Error::Internal(error.into())),
    };
    if let Err(error) = removed {
        tracing::warn!(id = %old.id, %error, "cannot remove a replaced snapshot");
    }
}

/// Returns a page of the complete snapshots of the caller's team, newest first. `capsule` restricts
/// the page to the snapshots of one capsule.
pub(crate) async fn list(
    app: &App,
    caller: Caller,
    capsule: Option<CapsuleId>,
    before: Option<SnapshotId>,
    limit: i64,
) -> Result<Vec<Snapshot>> {
    Ok(db::snapshots::list(&app.db, caller.team, capsule, before, limit).await?)
}

/// Finds a snapshot of the caller's team, by its name or its id.
pub(crate) async fn find(app: &App, caller: Caller, name: &str) -> Result<Option<Snapshot>> {
    Ok(db::snapshots::find(&app.db, caller.team, name, name.parse().ok()).await?)
}

/// Returns a snapshot of the caller's team, by its name or its id.
pub(crate) async fn get(app: &App, caller: Caller, name: &str) -> Result<Snapshot> {
    find(app, caller, name).await?.ok_or(Error::NotFound("snapshot"))
}

/// Removes a snapshot for a caller, by its name or its id.
pub(crate) async fn delete(app: &App, caller: Caller, name: &str) -> Result<()> {
    check_may(caller)?;
    let snapshot = get(app, caller, name).await?;
    remove(app, &snapshot, caller.by).await
}

/// Removes a snapshot. Capsules that began from it keep the data they need.
pub(crate) async fn remove(app: &App, row: &Snapshot, by: Actor) -> Result<()> {
    let id = row.id;
    let mut tx = app.db.begin().await?;
    let first = db::snapshots::removing(&mut *tx, id, &by).await?;
    if let (true, Some(name)) = (first, &row.name) {
        let entry = Entry::new(row.team_id, by, "snapshot.delete", id);
        db::audit::write(&mut *tx, &entry.with(json!({ "name": name }))).await?;
    }
    tx.commit().await?;
    // A snapshot whose host was deleted is only in the store. Any host with the store can remove it
    // there.
    let host = row.host_id.or_else(|| app.fleet.with_store());
    if let Some(host) = host {
        app.agent(host).remove_snapshot(id, Some(row.team_id)).await?;
    }
    Ok(db::snapshots::remove(&app.db, id).await?)
}

/// Compares a host's snapshots with the rows, in both directions, and removes orphans.
pub(crate) async fn reconcile(app: &App, host: HostId) -> Result<()> {
    // The host is read first. A row is written before its files, so files without a row belong to
    // nobody.
    let HostSnapshots { ids: on_host, stored, storage } = app.agent(host).snapshots().await?;
    if !stored.is_empty() {
        db::snapshots::set_stored(&app.db, host, &stored).await?;
    }
    let rows = db::snapshots::list_by_host(&app.db, host).await?;
    let changed = rows.iter().filter_map(|row| {
        let bytes = *storage.get(&row.id)?;
        (row.state == SnapshotState::Ready && bytes != row.storage_bytes).then_some((row.id, bytes))
    });
    let (ids, bytes): (Vec<_>, Vec<_>) = changed.unzip();
    if !ids.is_empty() {
        db::snapshots::set_storage(&app.db, host, &ids, &bytes).await?;
    }
    for row in db::snapshots::list_left(&app.db, host, LEFT.as_secs_f64()).await? {
        remove(app, &row, Actor::SYSTEM).await?;
    }
    for id in on_host {
        if !db::snapshots::is_wanted(&app.db, id, host).await? {
            tracing::info!(%id, "removing an orphaned snapshot");
            app.agent(host).remove_snapshot(id, None).await?;
        }
    }
    Ok(())
}

/// Converts a row to the API's form.
pub(crate) fn to_api(row: Snapshot) -> api::Snapshot {
    let id = row.id.to_string();
    api::Snapshot {
        name: row.name.unwrap_or_else(|| id.clone()),
        id,
        capsule_id: row.capsule_id.map(|id| id.to_string()),
        template: row.template,
        vcpus: row.vcpus.cast_signed(),
        memory_mib: row.memory_mib.cast_signed(),
        disk_mib: row.disk_mib.cast_signed(),
        size_bytes: row.size_bytes.cast_signed(),
        created_at: row.created_at,
    }
}
