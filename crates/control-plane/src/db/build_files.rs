//! Rows of uploaded files. The client chooses the hash, so it counts only within its team.

use super::decode::{Unsigned, signed};
use recipe::steps::ARCHIVE;
use sqlx::{PgConnection, PgExecutor, PgPool};
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

/// An archive that is to come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub team: TeamId,
    pub hash: &'a str,
    pub host: HostId,
    pub bytes: u64,
}

/// Room of a team's archives on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Room {
    /// Bytes of the archives that builds under way need.
    pub used: u64,
    /// Archives whose rows made room.
    pub evicted: Vec<String>,
}

/// Removes the rows of a team's archives that were not used for the longest time, until one more
/// archive fits into `most` bytes. Rows that builds under way need stay. If the archive cannot fit
/// beside these, all rows stay.
///
/// The caller holds the team's limits (`limits::hold`), as does a build that begins.
pub(crate) async fn make_room(
    db: &mut PgConnection,
    wanted: Wanted<'_>,
    most: u64,
) -> sqlx::Result<Room> {
    let sql = "WITH named AS (SELECT v #>> '{}' AS name FROM builds b, LATERAL ( \
               SELECT jsonb_path_query(b.spec, '$.recipe.stages[*].steps[*].copy.files') \
               UNION ALL \
               SELECT jsonb_path_query(b.spec, '$.recipe.stages[*].steps[*].copy.from.image') \
               UNION ALL SELECT jsonb_path_query(b.spec, '$.recipe.stages[*].source.image') \
               ) AS q (v) WHERE b.team_id = $1 AND b.status = 'building'), \
               needed AS (SELECT CASE WHEN starts_with(name, $6::text) \
               THEN substr(name, length($6::text) + 1) ELSE name END AS hash FROM named), \
               here AS (SELECT hash, bytes, used_at, \
               hash IN (SELECT hash FROM needed WHERE hash IS NOT NULL) AS used \
               FROM build_files WHERE team_id = $1 AND host_id = $2 AND hash <> $3), \
               ranked AS (SELECT hash, used, sum(bytes) OVER (ORDER BY used DESC, used_at DESC, \
               hash ROWS UNBOUNDED PRECEDING) AS total FROM here), \
               held AS (SELECT coalesce(sum(bytes) FILTER (WHERE used), 0)::bigint AS bytes \
               FROM here), \
               evicted AS (DELETE FROM build_files f USING ranked r, held h \
               WHERE f.team_id = $1 AND f.host_id = $2 AND f.hash = r.hash AND NOT r.used \
               AND r.total + $4 > $5 AND h.bytes + $4 <= $5 RETURNING f.hash) \
               SELECT h.bytes, coalesce((SELECT array_agg(hash) FROM evicted), '{}') FROM held h";
    let query = sqlx::query_as(sql).bind(wanted.team).bind(wanted.host).bind(wanted.hash);
    let query = query.bind(signed(wanted.bytes)).bind(signed(most)).bind(ARCHIVE);
    let (used, evicted): (Unsigned, Vec<String>) = query.fetch_one(db).await?;
    Ok(Room { used: used.into(), evicted })
}

/// Records that a build uses a team's archives. Returns those of them that the host has.
pub(crate) async fn touch(
    db: impl PgExecutor<'_>,
    team: TeamId,
    host: HostId,
    hashes: &[String],
) -> sqlx::Result<Vec<String>> {
    let sql = "UPDATE build_files SET used_at = now() \
               WHERE team_id = $1 AND host_id = $2 AND hash = ANY($3) RETURNING hash";
    sqlx::query_scalar(sql).bind(team).bind(host).bind(hashes).fetch_all(db).await
}
