//! Rows of snapshots.

use super::actor::setting;
use super::decode::{Unsigned, signed};
use super::insert::Insert;
use crate::audit::Actor;
use sqlx::{PgConnection, PgExecutor, PgPool};
use time::OffsetDateTime;
use types::{BuildId, CapsuleId, HostId, SnapshotId, SnapshotState, TeamId};

/// Columns of [`Snapshot`].
macro_rules! columns {
    () => {
        "id, team_id, capsule_id, host_id, name, status, template, version_id, vcpus, memory_mib, \
         disk_mib, size_bytes, storage_bytes, stored, created_at"
    };
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Snapshot {
    pub id: SnapshotId,
    pub team_id: TeamId,
    pub capsule_id: Option<CapsuleId>,
    pub host_id: Option<HostId>,
    /// Name of the snapshot. A fork's snapshot has none. A replacement has none until it is
    /// complete.
    pub name: Option<String>,
    #[sqlx(rename = "status")]
    pub state: SnapshotState,
    pub template: String,
    /// Version that the capsule began from; `None` for an operator's template.
    pub version_id: Option<BuildId>,
    #[sqlx(try_from = "i32")]
    pub vcpus: u32,
    #[sqlx(try_from = "i32")]
    pub memory_mib: u32,
    #[sqlx(try_from = "i32")]
    pub disk_mib: u32,
    #[sqlx(try_from = "Unsigned")]
    pub size_bytes: u64,
    /// Bytes on disk that only this snapshot holds, as its host last reported.
    #[sqlx(try_from = "Unsigned")]
    pub storage_bytes: u64,
    /// True if the store has the snapshot.
    pub stored: bool,
    pub created_at: OffsetDateTime,
}

/// Inserts a snapshot as `making`; `false` when the team has one of its name.
pub(crate) async fn insert(db: impl PgExecutor<'_>, row: &Snapshot) -> sqlx::Result<bool> {
    let insert = Insert::into("snapshots")
        .set("id", row.id)
        .set("team_id", row.team_id)
        .set("capsule_id", row.capsule_id)
        .set("host_id", row.host_id)
        .set("name", &row.name)
        .set("template", &row.template)
        .set("version_id", row.version_id)
        .set("vcpus", i64::from(row.vcpus))
        .set("memory_mib", i64::from(row.memory_mib))
        .set("disk_mib", i64::from(row.disk_mib))
        .or_keep("(team_id, name)");
    insert.execute(db).await
}

/// Marks a snapshot as complete, with its sizes. Returns `false` when it is being removed
/// meanwhile, or when another snapshot took its name.
pub(crate) async fn complete(db: impl PgExecutor<'_>, row: &Snapshot) -> sqlx::Result<bool> {
    let sql = "UPDATE snapshots SET status = 'ready', size_bytes = $2, storage_bytes = $3, \
               updated_at = now() \
               WHERE id = $1 AND status = 'making' AND name IS NOT DISTINCT FROM $4";
    let done = sqlx::query(sql).bind(row.id).bind(signed(row.size_bytes));
    let done = done.bind(signed(row.storage_bytes));
    Ok(done.bind(&row.name).execute(db).await?.rows_affected() == 1)
}

/// Reports whether a team has a snapshot of a name.
pub(crate) async fn is_named(
    db: impl PgExecutor<'_>,
    team: TeamId,
    name: &str,
) -> sqlx::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM snapshots WHERE team_id = $1 AND name = $2)";
    sqlx::query_scalar(sql).bind(team).bind(name).fetch_one(db).await
}

/// Stores the sizes of a host's complete snapshots, as the host reported them.
pub(crate) async fn set_storage(
    db: &PgPool,
    host: HostId,
    ids: &[SnapshotId],
    bytes: &[u64],
) -> sqlx::Result<()> {
    let sql = "UPDATE snapshots s SET storage_bytes = v.bytes \
               FROM unnest($2::uuid[], $3::bigint[]) AS v (id, bytes) \
               WHERE s.id = v.id AND s.host_id = $1 AND s.status = 'ready'";
    let bytes: Vec<i64> = bytes.iter().copied().map(signed).collect();
    sqlx::query(sql).bind(host).bind(ids).bind(bytes).execute(db).await.map(|_| ())
}

/// Finds a team's complete snapshot by its name or id.
pub(crate) async fn find(
    db: &PgPool,
    team: TeamId,
    name: &str,
    id: Option<SnapshotId>,
) -> sqlx::Result<Option<Snapshot>> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM snapshots WHERE team_id = $1 AND (name = $2 OR id = $3) \
               AND status = 'ready' AND name IS NOT NULL"
    );
    let find = sqlx::query_as(sql).bind(team).bind(name).bind(id);
    find.fetch_optional(db).await
}

/// Finds the complete snapshot that is a version.
pub(crate) async fn find_version(
    db: &PgPool,
    team: TeamId,
    id: SnapshotId,
) -> sqlx::Result<Option<Snapshot>> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM snapshots WHERE team_id = $1 AND id = $2 AND status = 'ready'"
    );
    sqlx::query_as(sql).bind(team).bind(id).fetch_optional(db).await
}

/// Returns a page of a team's complete snapshots, newest first. `capsule` restricts the page to one
/// capsule.
pub(crate) async fn list(
    db: &PgPool,
    team: TeamId,
    capsule: Option<CapsuleId>,
    before: Option<SnapshotId>,
    limit: i64,
) -> sqlx::Result<Vec<Snapshot>> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM snapshots WHERE team_id = $1 AND status = 'ready' \
               AND name IS NOT NULL AND ($2::uuid IS NULL OR capsule_id = $2) \
               AND ($3::uuid IS NULL OR (created_at, id) < \
                    (SELECT created_at, id FROM snapshots WHERE id = $3 AND team_id = $1)) \
               ORDER BY created_at DESC, id DESC LIMIT $4"
    );
    let list = sqlx::query_as(sql).bind(team).bind(capsule).bind(before);
    list.bind(limit).fetch_all(db).await
}

/// Lists all snapshots of a host.
pub(crate) async fn list_by_host(db: &PgPool, host: HostId) -> sqlx::Result<Vec<Snapshot>> {
    sqlx::query_as(concat!("SELECT ", columns!(), " FROM snapshots WHERE host_id = $1"))
        .bind(host)
        .fetch_all(db)
        .await
}

/// Lists a host's snapshots that nobody completes or uses any more. Such snapshots are being
/// removed, or have lacked an end or a name for `seconds` by the database's clock. A snapshot that
/// is a version needs no name.
pub(crate) async fn list_left(
    db: &PgPool,
    host: HostId,
    seconds: f64,
) -> sqlx::Result<Vec<Snapshot>> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM snapshots WHERE host_id = $1 AND (status = 'removing' \
               OR (status = 'making' OR name IS NULL) \
               AND NOT EXISTS (SELECT 1 FROM builds b WHERE b.snapshot_id = snapshots.id) \
               AND updated_at < now() - make_interval(secs => $2))"
    );
    sqlx::query_as(sql).bind(host).bind(seconds).fetch_all(db).await
}

/// Records which of a host's snapshots the store has.
pub(crate) async fn set_stored(db: &PgPool, host: HostId, ids: &[SnapshotId]) -> sqlx::Result<()> {
    let sql = "UPDATE snapshots SET stored = true \
               WHERE host_id = $1 AND id = ANY($2) AND NOT stored";
    sqlx::query(sql).bind(host).bind(ids).execute(db).await.map(|_| ())
}

/// Gives a name to a snapshot in progress, under the lock of `limits::hold`. The snapshot that has
/// the name loses it. Returns that snapshot when it was complete, and is being removed now.
pub(crate) async fn take_name(
    tx: &mut PgConnection,
    row: &Snapshot,
    name: &str,
) -> sqlx::Result<Option<Snapshot>> {
    // A snapshot in progress goes on without a name, and its maker decides on its end.
    let sql = concat!(
        "UPDATE snapshots SET name = NULL, updated_at = now(), \
               status = CASE status WHEN 'ready' THEN 'removing' ELSE status END \
               WHERE team_id = $1 AND name = $2 AND id <> $3 RETURNING ",
        columns!()
    );
    let old = sqlx::query_as(sql).bind(row.team_id).bind(name).bind(row.id);
    let old: Option<Snapshot> = old.fetch_optional(&mut *tx).await?;
    let sql = "UPDATE snapshots SET name = $2 WHERE id = $1 AND status = 'making'";
    sqlx::query(sql).bind(row.id).bind(name).execute(&mut *tx).await?;
    Ok(old.filter(|old| old.state == SnapshotState::Removing))
}

/// Marks a snapshot as being removed, so that no capsule starts from it any more. Returns `false`
/// when it is marked already.
pub(crate) async fn removing(
    db: impl PgExecutor<'_>,
    id: SnapshotId,
    by: &Actor,
) -> sqlx::Result<bool> {
    let sql = "UPDATE snapshots SET status = 'removing', name = NULL, updated_at = now() \
               WHERE id = $1 AND status <> 'removing' \
               AND set_config('wrenn.actor', $2, true) IS NOT NULL";
    let update = sqlx::query(sql).bind(id).bind(setting(by));
    Ok(update.execute(db).await?.rows_affected() == 1)
}

/// Deletes the row of a snapshot that its host does not have.
pub(crate) async fn remove(db: &PgPool, id: SnapshotId) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM snapshots WHERE id = $1").bind(id).execute(db).await.map(|_| ())
}

/// Reports whether a host should have a snapshot, or may have fetched it from the store.
pub(crate) async fn is_wanted(db: &PgPool, id: SnapshotId, host: HostId) -> sqlx::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM snapshots WHERE id = $1 AND (host_id = $2 OR stored))";
    sqlx::query_scalar(sql).bind(id).bind(host).fetch_one(db).await
}
