//! Rows of snapshots.

use sqlx::{PgConnection, PgExecutor, PgPool};
use time::OffsetDateTime;
use types::{HostId, SnapshotId, TeamId};
use uuid::Uuid;

/// Columns of [`Snapshot`].
macro_rules! columns {
    () => {
        "id, team_id, capsule_id, host_id, name, status, template, vcpus, memory_mib, disk_mib, \
         size_bytes, storage_bytes, stored, created_at"
    };
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Snapshot {
    pub id: Uuid,
    pub team_id: Uuid,
    pub capsule_id: Option<Uuid>,
    pub host_id: Option<Uuid>,
    /// Name of the snapshot. A fork's snapshot has none. A replacement has none until it is
    /// complete.
    pub name: Option<String>,
    pub status: String,
    pub template: String,
    pub vcpus: i32,
    pub memory_mib: i32,
    pub disk_mib: i32,
    pub size_bytes: i64,
    /// Bytes on disk that only this snapshot holds, as its host last reported.
    pub storage_bytes: i64,
    /// True if the store has the snapshot.
    pub stored: bool,
    pub created_at: OffsetDateTime,
}

impl Snapshot {
    pub(crate) fn id(&self) -> SnapshotId {
        SnapshotId(self.id)
    }
}

/// Inserts a snapshot as `making`; `false` when the team has one of its name.
pub(crate) async fn insert(db: impl PgExecutor<'_>, row: &Snapshot) -> sqlx::Result<bool> {
    let sql = "INSERT INTO snapshots (id, team_id, capsule_id, host_id, name, template, vcpus, \
               memory_mib, disk_mib) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
               ON CONFLICT (team_id, name) DO NOTHING";
    let insert = sqlx::query(sql).bind(row.id).bind(row.team_id).bind(row.capsule_id);
    let insert = insert.bind(row.host_id).bind(&row.name).bind(&row.template).bind(row.vcpus);
    let insert = insert.bind(row.memory_mib).bind(row.disk_mib);
    Ok(insert.execute(db).await?.rows_affected() == 1)
}

/// Marks a snapshot as complete, with its sizes. Returns `false` when it is being removed
/// meanwhile, or when another snapshot took its name.
pub(crate) async fn complete(db: impl PgExecutor<'_>, row: &Snapshot) -> sqlx::Result<bool> {
    let sql = "UPDATE snapshots SET status = 'ready', size_bytes = $2, storage_bytes = $3, \
               updated_at = now() \
               WHERE id = $1 AND status = 'making' AND name IS NOT DISTINCT FROM $4";
    let done = sqlx::query(sql).bind(row.id).bind(row.size_bytes).bind(row.storage_bytes);
    Ok(done.bind(&row.name).execute(db).await?.rows_affected() == 1)
}

/// Reports whether a team has a snapshot of a name.
pub(crate) async fn is_named(
    db: impl PgExecutor<'_>,
    team: TeamId,
    name: &str,
) -> sqlx::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM snapshots WHERE team_id = $1 AND name = $2)";
    sqlx::query_scalar(sql).bind(team.0).bind(name).fetch_one(db).await
}

/// Stores the sizes of a host's complete snapshots, as the host reported them.
pub(crate) async fn set_storage(
    db: &PgPool,
    host: HostId,
    ids: &[Uuid],
    bytes: &[i64],
) -> sqlx::Result<()> {
    let sql = "UPDATE snapshots s SET storage_bytes = v.bytes \
               FROM unnest($2::uuid[], $3::bigint[]) AS v (id, bytes) \
               WHERE s.id = v.id AND s.host_id = $1 AND s.status = 'ready'";
    sqlx::query(sql).bind(host.0).bind(ids).bind(bytes).execute(db).await.map(|_| ())
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
    let find = sqlx::query_as(sql).bind(team.0).bind(name).bind(id.map(|id| id.0));
    find.fetch_optional(db).await
}

/// Returns a page of a team's complete snapshots, newest first. `capsule` restricts the page to one
/// capsule.
pub(crate) async fn list(
    db: &PgPool,
    team: TeamId,
    capsule: Option<Uuid>,
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
    let list = sqlx::query_as(sql).bind(team.0).bind(capsule).bind(before.map(|b| b.0));
    list.bind(limit).fetch_all(db).await
}

/// Lists all snapshots of a host.
pub(crate) async fn list_by_host(db: &PgPool, host: HostId) -> sqlx::Result<Vec<Snapshot>> {
    sqlx::query_as(concat!("SELECT ", columns!(), " FROM snapshots WHERE host_id = $1"))
        .bind(host.0)
        .fetch_all(db)
        .await
}

/// Lists a host's snapshots that nobody completes or uses any more. Such snapshots are being
/// removed, or have lacked an end or a name for `seconds` by the database's clock.
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
               AND updated_at < now() - make_interval(secs => $2))"
    );
    sqlx::query_as(sql).bind(host.0).bind(seconds).fetch_all(db).await
}

/// Records which of a host's snapshots the store has.
pub(crate) async fn set_stored(db: &PgPool, host: HostId, ids: &[Uuid]) -> sqlx::Result<()> {
    let sql = "UPDATE snapshots SET stored = true \
               WHERE host_id = $1 AND id = ANY($2) AND NOT stored";
    sqlx::query(sql).bind(host.0).bind(ids).execute(db).await.map(|_| ())
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
    Ok(old.filter(|old| old.status == "removing"))
}

/// Marks a snapshot as being removed, so that no capsule starts from it any more. Returns `false`
/// when it is marked already.
pub(crate) async fn removing(db: impl PgExecutor<'_>, id: SnapshotId) -> sqlx::Result<bool> {
    let sql = "UPDATE snapshots SET status = 'removing', name = NULL, updated_at = now() \
               WHERE id = $1 AND status <> 'removing'";
    Ok(sqlx::query(sql).bind(id.0).execute(db).await?.rows_affected() == 1)
}

/// Deletes the row of a snapshot that its host does not have.
pub(crate) async fn remove(db: &PgPool, id: SnapshotId) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM snapshots WHERE id = $1").bind(id.0).execute(db).await.map(|_| ())
}

/// Reports whether a host should have a snapshot, or may have fetched it from the store.
pub(crate) async fn is_wanted(db: &PgPool, id: SnapshotId, host: HostId) -> sqlx::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM snapshots WHERE id = $1 AND (host_id = $2 OR stored))";
    sqlx::query_scalar(sql).bind(id.0).bind(host.0).fetch_one(db).await
}
