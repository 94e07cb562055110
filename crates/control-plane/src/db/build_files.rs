//! Rows of uploaded files. The client chooses the hash, so it counts only within its team.

use super::decode::{Unsigned, signed};
use sqlx::{PgExecutor, PgPool};
use types::{HostId, TeamId};

/// Records that a host has a team's archive.
pub(crate) async fn insert(
    db: impl PgExecutor<'_>,
    team: TeamId,
    hash: &str,
    host: HostId,
    bytes: u64,
) -> sqlx::Result<()> {
    let sql = "INSERT INTO build_files (team_id, hash, host_id, bytes) VALUES ($1, $2, $3, $4) \
               ON CONFLICT (team_id, hash, host_id) DO UPDATE SET bytes = excluded.bytes, \
               used_at = now()";
    let insert = sqlx::query(sql).bind(team).bind(hash).bind(host).bind(signed(bytes));
    insert.execute(db).await.map(|_| ())
}

/// Returns the hosts that have a team's archive, and its size. The host that had it last is first.
pub(crate) async fn hosts(
    db: &PgPool,
    team: TeamId,
    hash: &str,
) -> sqlx::Result<Vec<(HostId, u64)>> {
    let sql = "SELECT host_id, bytes FROM build_files WHERE team_id = $1 AND hash = $2 \
               ORDER BY used_at DESC";
    let rows: Vec<(HostId, Unsigned)> =
        sqlx::query_as(sql).bind(team).bind(hash).fetch_all(db).await?;
    Ok(rows.into_iter().map(|(host, bytes)| (host, bytes.into())).collect())
}

/// Returns the pairs of host and hash that exist of a team's archives.
pub(crate) async fn of_many(
    db: &PgPool,
    team: TeamId,
    hashes: &[String],
) -> sqlx::Result<Vec<(HostId, String)>> {
    let sql = "SELECT host_id, hash FROM build_files WHERE team_id = $1 AND hash = ANY($2) \
               ORDER BY used_at DESC";
    sqlx::query_as(sql).bind(team).bind(hashes).fetch_all(db).await
}

/// Returns the host that a team's last archive was sent to.
pub(crate) async fn last_host(db: &PgPool, team: TeamId) -> sqlx::Result<Option<HostId>> {
    let sql = "SELECT host_id FROM build_files WHERE team_id = $1 ORDER BY used_at DESC LIMIT 1";
    sqlx::query_scalar(sql).bind(team).fetch_optional(db).await
}

/// Sums the bytes of a team's archives on a host.
pub(crate) async fn held(db: &PgPool, team: TeamId, host: HostId) -> sqlx::Result<u64> {
    let sql = "SELECT coalesce(sum(bytes), 0)::bigint FROM build_files \
               WHERE team_id = $1 AND host_id = $2";
    let bytes: Unsigned = sqlx::query_scalar(sql).bind(team).bind(host).fetch_one(db).await?;
    Ok(bytes.into())
}

/// Records that a build uses a team's archives.
pub(crate) async fn touch(
    db: impl PgExecutor<'_>,
    team: TeamId,
    hashes: &[String],
) -> sqlx::Result<()> {
    let sql = "UPDATE build_files SET used_at = now() WHERE team_id = $1 AND hash = ANY($2)";
    sqlx::query(sql).bind(team).bind(hashes).execute(db).await.map(|_| ())
}
