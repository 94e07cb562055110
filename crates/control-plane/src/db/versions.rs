//! Versions, which are ready builds, with the hosts that have them.

use super::builds::{Build, Reason};
use super::decode::signed;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{PgConnection, PgExecutor, PgPool, Row};
use std::time::Duration;
use types::resources::Resources;
use types::{BuildId, HostId, SnapshotId, TeamId, TemplateId};

/// A version that a host reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HostVersion {
    pub id: BuildId,
    /// Team whose part of the store has the version.
    pub team: TeamId,
    /// Bytes on the host's disk that no other version shares.
    pub bytes: u64,
    /// Set if the store has the whole version.
    pub stored: bool,
}

/// An uploaded archive that a host reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostFiles {
    pub team: TeamId,
    pub hash: String,
    pub bytes: u64,
}

/// A version, with the facts that a create needs.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Version {
    pub id: BuildId,
    pub team_id: TeamId,
    #[sqlx(try_from = "i32")]
    pub vcpus: u32,
    #[sqlx(try_from = "i32")]
    pub memory_mib: u32,
    #[sqlx(try_from = "i32")]
    pub disk_mib: u32,
    /// Snapshot that is the version.
    pub snapshot_id: Option<SnapshotId>,
    ready_within_sec: i32,
    /// Hosts that have the version.
    pub hosts: Vec<HostId>,
    /// True if the store has the version.
    pub stored: bool,
}

impl Version {
    /// Returns the default size of the version's capsules.
    pub(crate) fn size(&self) -> Resources {
        Resources { vcpus: self.vcpus, memory_mib: self.memory_mib, disk_mib: self.disk_mib }
    }

    /// Returns the time that start and ready commands may take.
    pub(crate) fn ready_within(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.ready_within_sec).unwrap_or_default())
    }
}

/// Columns of a [`Version`] `b`, with a prefix that tells them from those of another row. The
/// parameter `$default` is [`ready_within_default`].
macro_rules! version_columns {
    ($default:literal) => {
        concat!(
            "b.id AS version_id, b.team_id AS version_team_id, b.vcpus AS version_vcpus, \
             b.memory_mib AS version_memory_mib, b.disk_mib AS version_disk_mib, \
             b.snapshot_id AS version_snapshot_id, \
             coalesce((b.spec ->> 'ready_within_sec')::int, ",
            $default,
            ") AS version_ready_within_sec, \
             ARRAY(SELECT h.host_id FROM host_versions h WHERE h.build_id = b.id) \
             AS version_hosts, b.stored AS version_stored"
        )
    };
}
pub(super) use version_columns;

/// Returns the default of a version's `ready_within_sec`.
pub(super) fn ready_within_default() -> i32 {
    i32::try_from(recipe::start::READY_WITHIN.as_secs()).unwrap_or(i32::MAX)
}

impl Version {
    /// Decodes the columns of [`version_columns`], which are all `NULL` without a version.
    pub(super) fn beside(row: &PgRow) -> sqlx::Result<Option<Self>> {
        let Some(id) = row.try_get("version_id")? else { return Ok(None) };
        let size = |column: &'static str| -> sqlx::Result<u32> {
            let size: i32 = row.try_get(column)?;
            u32::try_from(size).map_err(|error| sqlx::Error::ColumnDecode {
                index: column.to_owned(),
                source: error.into(),
            })
        };
        Ok(Some(Self {
            id,
            team_id: row.try_get("version_team_id")?,
            vcpus: size("version_vcpus")?,
            memory_mib: size("version_memory_mib")?,
            disk_mib: size("version_disk_mib")?,
            snapshot_id: row.try_get("version_snapshot_id")?,
            ready_within_sec: row.try_get("version_ready_within_sec")?,
            hosts: row.try_get("version_hosts")?,
            stored: row.try_get("version_stored")?,
        }))
    }
}

/// Finds a version, whatever its team.
pub(crate) async fn find(db: impl PgExecutor<'_>, id: BuildId) -> sqlx::Result<Option<Version>> {
    let sql = "SELECT b.id, b.team_id, b.vcpus, b.memory_mib, b.disk_mib, b.snapshot_id, \
               coalesce((b.spec ->> 'ready_within_sec')::int, $2) AS ready_within_sec, \
               ARRAY(SELECT h.host_id FROM host_versions h WHERE h.build_id = b.id) AS hosts, \
               b.stored FROM builds b WHERE b.id = $1 AND b.status = 'ready'";
    sqlx::query_as(sql).bind(id).bind(ready_within_default()).fetch_optional(db).await
}

/// Gives a template the sizes and the user of a version that becomes ready, unless a newer version
/// has set them.
pub(crate) async fn improve_template(
    db: &mut PgConnection,
    build: &Build,
    user: Option<&str>,
) -> sqlx::Result<()> {
    let sql = "UPDATE templates t SET updated_at = now() WHERE id = $1";
    sqlx::query(sql).bind(build.template_id).execute(&mut *db).await?;
    let sql = "UPDATE templates t SET vcpus = $3, memory_mib = $4, disk_mib = $5, \
               default_user = coalesce($6, 'root') WHERE id = $1 AND NOT EXISTS \
               (SELECT 1 FROM builds b WHERE b.template_id = t.id AND b.status = 'ready' \
                AND (b.created_at, b.id) > (SELECT created_at, id FROM builds WHERE id = $2))";
    let size = build.size();
    let update = sqlx::query(sql).bind(build.template_id).bind(build.id);
    let update = update.bind(i64::from(size.vcpus)).bind(i64::from(size.memory_mib));
    update.bind(i64::from(size.disk_mib)).bind(user).execute(db).await.map(|_| ())
}

/// Tables and condition of the versions `b` that only host `$1` has.
macro_rules! only_there {
    () => {
        "FROM host_versions v JOIN builds b ON b.id = v.build_id AND b.status = 'ready' \
         WHERE v.host_id = $1 AND NOT b.stored AND NOT EXISTS (SELECT 1 FROM host_versions o \
         WHERE o.build_id = v.build_id AND o.host_id <> $1)"
    };
}

/// Counts the versions that neither another host nor the store has.
pub(crate) async fn count_only_there(db: impl PgExecutor<'_>, host: HostId) -> sqlx::Result<i64> {
    let sql = concat!("SELECT count(*) ", only_there!());
    sqlx::query_scalar(sql).bind(host).fetch_one(db).await
}

/// Ends the versions that only this host has, since the host is deleted. Versions whose snapshot was
/// lost with a host have no steps and no snapshot. Tags then stand for earlier versions, as after a
/// build that failed.
pub(super) async fn lose(db: &mut PgConnection, host: HostId) -> sqlx::Result<()> {
    let sql = concat!(
        "UPDATE builds SET status = 'error', reason = $2, bytes = 0, generation = generation + 1 \
         WHERE id IN (SELECT b.id ",
        only_there!(),
        ") OR status = 'ready' AND spec IS NULL AND snapshot_id IS NULL"
    );
    let message = "the host that alone had the version was deleted".to_owned();
    let reason = Reason { message, ..Reason::default() };
    sqlx::query(sql).bind(host).bind(Json(reason)).execute(db).await.map(|_| ())
}

/// A version of a template, with its team and a place that has it: a host, or `None` for the store
/// alone.
pub(crate) type Place = (BuildId, TeamId, Option<HostId>);

/// Lists all places that have versions of a template.
pub(crate) async fn places(
    db: impl PgExecutor<'_>,
    template: TemplateId,
) -> sqlx::Result<Vec<Place>> {
    let sql = "SELECT b.id, b.team_id, h.host_id FROM builds b \
               LEFT JOIN host_versions h ON h.build_id = b.id \
               WHERE b.template_id = $1 AND (h.host_id IS NOT NULL OR b.stored) ORDER BY b.id";
    sqlx::query_as(sql).bind(template).fetch_all(db).await
}

/// Lists the versions that a host has, as far as the database knows.
pub(crate) async fn list_by_host(db: &PgPool, host: HostId) -> sqlx::Result<Vec<BuildId>> {
    let sql = "SELECT build_id FROM host_versions WHERE host_id = $1";
    sqlx::query_scalar(sql).bind(host).fetch_all(db).await
}

/// Records the versions that a host reports. `gone` are the versions that the host no longer has.
/// Versions without a ready build are left out.
pub(crate) async fn follow(
    db: &PgPool,
    host: HostId,
    found: &[HostVersion],
    gone: &[BuildId],
) -> sqlx::Result<()> {
    let ids: Vec<BuildId> = found.iter().map(|version| version.id).collect();
    let bytes: Vec<i64> = found.iter().map(|version| signed(version.bytes)).collect();
    let stored: Vec<bool> = found.iter().map(|version| version.stored).collect();
    let mut tx = db.begin().await?;
    let sql = "DELETE FROM host_versions WHERE host_id = $1 AND build_id = ANY($2)";
    sqlx::query(sql).bind(host).bind(gone).execute(&mut *tx).await?;
    // The rows are locked in one order, so that two hosts' rounds cannot wait for each other.
    let sql = "INSERT INTO host_versions AS h (host_id, build_id, bytes, stored) \
               SELECT $1, b.id, v.bytes, v.stored \
               FROM unnest($2::uuid[], $3::bigint[], $4::bool[]) AS v (id, bytes, stored) \
               JOIN builds b ON b.id = v.id AND b.status = 'ready' ORDER BY b.id \
               ON CONFLICT (host_id, build_id) DO UPDATE \
               SET bytes = excluded.bytes, stored = excluded.stored \
               WHERE (h.bytes, h.stored) IS DISTINCT FROM (excluded.bytes, excluded.stored)";
    let insert = sqlx::query(sql).bind(host).bind(&ids).bind(&bytes).bind(&stored);
    insert.execute(&mut *tx).await?;
    let sql = "UPDATE builds b SET bytes = m.bytes, stored = b.stored OR m.stored \
               FROM (SELECT build_id, max(bytes) AS bytes, bool_or(stored) AS stored \
               FROM host_versions WHERE build_id = ANY($1) GROUP BY build_id ORDER BY build_id) m \
               WHERE b.id = m.build_id AND (b.bytes <> m.bytes OR m.stored AND NOT b.stored)";
    sqlx::query(sql).bind(&ids).execute(&mut *tx).await?;
    tx.commit().await
}

/// Reports which of these ids are builds that are under way or ready.
pub(crate) async fn wanted(db: &PgPool, ids: &[BuildId]) -> sqlx::Result<Vec<BuildId>> {
    let sql = "SELECT id FROM builds WHERE id = ANY($1) AND status <> 'error'";
    sqlx::query_scalar(sql).bind(ids).fetch_all(db).await
}

/// Reports which of these ids are builds that run on a host.
pub(crate) async fn running_on(
    db: &PgPool,
    host: HostId,
    ids: &[BuildId],
) -> sqlx::Result<Vec<BuildId>> {
    let sql = "SELECT id FROM builds WHERE id = ANY($2) AND host_id = $1 AND status = 'building'";
    sqlx::query_scalar(sql).bind(host).bind(ids).fetch_all(db).await
}

/// Lists the archives that a host has, as far as the database knows.
pub(crate) async fn files_of_host(
    db: &PgPool,
    host: HostId,
) -> sqlx::Result<Vec<(TeamId, String)>> {
    let sql = "SELECT team_id, hash FROM build_files WHERE host_id = $1";
    sqlx::query_as(sql).bind(host).fetch_all(db).await
}

/// Records the archives that a host reports. `gone` are archives that the host no longer has.
pub(crate) async fn follow_files(
    db: &PgPool,
    host: HostId,
    found: &[HostFiles],
    gone: &[(TeamId, String)],
) -> sqlx::Result<()> {
    let split =
        |all: &[(TeamId, String)]| -> (Vec<TeamId>, Vec<String>) { all.iter().cloned().unzip() };
    let (teams, hashes) = split(gone);
    let sql = "DELETE FROM build_files f USING unnest($2::uuid[], $3::text[]) AS g (team, hash) \
               WHERE f.host_id = $1 AND f.team_id = g.team AND f.hash = g.hash";
    sqlx::query(sql).bind(host).bind(&teams).bind(&hashes).execute(db).await?;
    let keys: Vec<(TeamId, String)> = found.iter().map(|f| (f.team, f.hash.clone())).collect();
    let (teams, hashes) = split(&keys);
    let bytes: Vec<i64> = found.iter().map(|files| signed(files.bytes)).collect();
    let sql = "INSERT INTO build_files (team_id, hash, host_id, bytes) \
               SELECT v.team, v.hash, $1, v.bytes \
               FROM unnest($2::uuid[], $3::text[], $4::bigint[]) AS v (team, hash, bytes) \
               JOIN teams t ON t.id = v.team ON CONFLICT DO NOTHING";
    let insert = sqlx::query(sql).bind(host).bind(&teams).bind(&hashes).bind(&bytes);
    insert.execute(db).await.map(|_| ())
}
