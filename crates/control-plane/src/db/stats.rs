//! Metrics of capsules, teams and hosts over time. `stats/partitions.rs` makes and drops the days of
//! the tables.

pub(crate) mod partitions;

use super::capsules::{Capsule, columns};
use serde::Serialize;
use sqlx::PgPool;
use sqlx::types::Json;
use std::future::Future;
use time::OffsetDateTime;
use types::{CapsuleId, HostId, TeamId};
use uuid::Uuid;

/// SQLSTATEs of a statement whose plan names a partition that was dropped meanwhile.
const DROPPED: [&str; 2] = ["42P01", "XX000"];

/// The samples of one minute of a capsule. `0008_stats.sql` explains the columns.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub(crate) struct FineRow {
    #[sqlx(default)]
    pub capsule_id: Option<Uuid>,
    /// Beginning of the minute, in seconds since 1970.
    pub at: i64,
    pub slots: i16,
    pub begins: i16,
    pub from_host: bool,
    pub cpu: Vec<f32>,
    pub memory_kib: Vec<i32>,
    pub guest_memory_kib: Vec<Option<i32>>,
    pub cache_kib: Option<i32>,
    pub disk_kib: Option<i32>,
    pub received: Option<i64>,
    pub sent: Option<i64>,
    pub oom_kills: i32,
    pub guest_oom_kills: i32,
}

/// Metrics of 5 minutes of a capsule.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub(crate) struct CoarseRow {
    /// Beginning of the 5 minutes, in seconds since 1970.
    pub at: i64,
    pub samples: i32,
    pub cpu_mean: f32,
    pub cpu_max: f32,
    pub memory_kib: i32,
    pub guest_memory_kib: Option<i32>,
    pub cache_kib: Option<i32>,
    pub disk_kib: Option<i32>,
    pub received: Option<i64>,
    pub sent: Option<i64>,
    pub oom_kills: i32,
    pub guest_oom_kills: i32,
    pub from_host: bool,
    pub begins: bool,
}

/// Stores minutes that a host reported, and returns the earliest of those that are new. Rows of
/// capsules on other hosts are left out. Rows outside of `from` and `to` have no partition, and are
/// left out too.
pub(crate) async fn insert(
    db: &PgPool,
    host: HostId,
    rows: &[FineRow],
    (from, to): (OffsetDateTime, OffsetDateTime),
) -> sqlx::Result<Option<OffsetDateTime>> {
    let sql = "WITH given AS (SELECT * FROM jsonb_to_recordset($1) AS r(capsule_id uuid, \
               at bigint, slots smallint, begins smallint, from_host boolean, cpu real[], \
               memory_kib integer[], guest_memory_kib integer[], cache_kib integer, \
               disk_kib integer, received bigint, sent bigint, oom_kills integer, \
               guest_oom_kills integer)), \
               new AS (INSERT INTO stats_fine (capsule_id, at, slots, begins, from_host, cpu, \
               memory_kib, guest_memory_kib, cache_kib, disk_kib, received, sent, oom_kills, \
               guest_oom_kills) \
               SELECT g.capsule_id, to_timestamp(g.at), g.slots, g.begins, g.from_host, g.cpu, \
               g.memory_kib, g.guest_memory_kib, g.cache_kib, g.disk_kib, g.received, g.sent, \
               g.oom_kills, g.guest_oom_kills \
               FROM given g JOIN capsules c ON c.id = g.capsule_id AND c.host_id = $2 \
               AND c.build_id IS NULL \
               WHERE to_timestamp(g.at) >= $3 AND to_timestamp(g.at) < $4 \
               ON CONFLICT (capsule_id, at) DO NOTHING RETURNING at) SELECT min(at) FROM new";
    let insert = sqlx::query_scalar(sql).bind(Json(rows)).bind(host).bind(from).bind(to);
    insert.fetch_one(db).await
}

/// Makes the coarse rows of the time between `from` and `to`, which are multiples of 5 minutes. A
/// coarse row of as many samples stays as it is.
pub(crate) async fn roll(
    db: &PgPool,
    from: OffsetDateTime,
    to: OffsetDateTime,
) -> sqlx::Result<()> {
    let sql = "INSERT INTO stats_coarse AS c (capsule_id, at, samples, cpu_mean, cpu_max, \
               memory_kib, guest_memory_kib, cache_kib, disk_kib, received, sent, oom_kills, \
               guest_oom_kills, from_host, begins) \
               SELECT f.capsule_id, date_bin('5 minutes', f.at, 'epoch'::timestamptz), \
               sum(cardinality(f.cpu))::integer, \
               (sum(p.total) / greatest(sum(cardinality(f.cpu)), 1))::real, \
               coalesce(max(p.most), 0), coalesce(max(m.most), 0), max(g.most), \
               max(f.cache_kib), max(f.disk_kib), sum(f.received)::bigint, sum(f.sent)::bigint, \
               sum(f.oom_kills)::integer, sum(f.guest_oom_kills)::integer, bool_and(f.from_host), \
               bool_or(f.begins <> 0) FROM stats_fine f \
               CROSS JOIN LATERAL (SELECT coalesce(sum(v), 0)::float8 AS total, max(v) AS most \
               FROM unnest(f.cpu) v) p \
               CROSS JOIN LATERAL (SELECT max(v) AS most FROM unnest(f.memory_kib) v) m \
               CROSS JOIN LATERAL (SELECT max(v) AS most FROM unnest(f.guest_memory_kib) v) g \
               WHERE f.at >= $1 AND f.at < $2 GROUP BY 1, 2 \
               ON CONFLICT (capsule_id, at) DO UPDATE SET samples = excluded.samples, \
               cpu_mean = excluded.cpu_mean, cpu_max = excluded.cpu_max, \
               memory_kib = excluded.memory_kib, guest_memory_kib = excluded.guest_memory_kib, \
               cache_kib = excluded.cache_kib, disk_kib = excluded.disk_kib, \
               received = excluded.received, sent = excluded.sent, \
               oom_kills = excluded.oom_kills, guest_oom_kills = excluded.guest_oom_kills, \
               from_host = excluded.from_host, begins = excluded.begins \
               WHERE c.samples < excluded.samples";
    sqlx::query(sql).bind(from).bind(to).execute(db).await.map(|_| ())
}

/// Returns the running ones of a team's capsules.
pub(crate) async fn running(
    db: &PgPool,
    team: TeamId,
    ids: &[CapsuleId],
) -> sqlx::Result<Vec<Capsule>> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM capsules WHERE id = ANY($1) AND team_id = $2 AND build_id IS NULL \
         AND status = 'running'"
    );
    let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    sqlx::query_as(sql).bind(ids).bind(team).fetch_all(db).await
}

/// Returns a capsule's minutes from `from` to `to`, in order. The caller has checked the capsule's
/// team.
pub(crate) async fn fine(
    db: &PgPool,
    id: CapsuleId,
    from: OffsetDateTime,
    to: OffsetDateTime,
) -> sqlx::Result<Vec<FineRow>> {
    let sql = "SELECT extract(epoch FROM at)::bigint AS at, slots, begins, from_host, cpu, \
               memory_kib, guest_memory_kib, cache_kib, disk_kib, received, sent, oom_kills, \
               guest_oom_kills FROM stats_fine \
               WHERE capsule_id = $1 AND at >= $2 AND at <= $3 ORDER BY at";
    again(|| sqlx::query_as(sql).bind(id).bind(from).bind(to).fetch_all(db)).await
}

/// Returns a capsule's coarse rows from `from` to `to`, in order. The caller has checked the
/// capsule's team.
pub(crate) async fn coarse(
    db: &PgPool,
    id: CapsuleId,
    from: OffsetDateTime,
    to: OffsetDateTime,
) -> sqlx::Result<Vec<CoarseRow>> {
    let sql = "SELECT extract(epoch FROM at)::bigint AS at, samples, cpu_mean, cpu_max, \
               memory_kib, guest_memory_kib, cache_kib, disk_kib, received, sent, oom_kills, \
               guest_oom_kills, from_host, begins FROM stats_coarse \
               WHERE capsule_id = $1 AND at >= $2 AND at <= $3 ORDER BY at";
    again(|| sqlx::query_as(sql).bind(id).bind(from).bind(to).fetch_all(db)).await
}

/// Returns the times of a capsule's first and last rows; `None` when it has none.
pub(crate) async fn bounds(
    db: &PgPool,
    id: CapsuleId,
) -> sqlx::Result<Option<(OffsetDateTime, OffsetDateTime)>> {
    let sql = "SELECT min(at), max(at) FROM (\
               SELECT min(at) AS at FROM stats_fine WHERE capsule_id = $1 \
               UNION ALL SELECT max(at) FROM stats_fine WHERE capsule_id = $1 \
               UNION ALL SELECT min(at) FROM stats_coarse WHERE capsule_id = $1) b";
    type Bounds = (Option<OffsetDateTime>, Option<OffsetDateTime>);
    let (first, last): Bounds = again(|| sqlx::query_as(sql).bind(id).fetch_one(db)).await?;
    Ok(first.zip(last))
}

/// Moves of a team's running capsules within one step of a series.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub(crate) struct TeamMoves {
    /// Number of the step since the beginning of the series.
    pub step: i64,
    /// Most capsules that ran after a move in the step.
    pub most: i64,
    /// Capsules that ran after the last move in the step.
    pub last: i64,
    /// Machines that began in the step.
    pub starts: i64,
}

/// Returns the steps of a team's series in which a machine began or ended, in order. The first one
/// includes the machines that ran before `from`.
pub(crate) async fn team_moves(
    db: &PgPool,
    team: TeamId,
    (from, to): (OffsetDateTime, OffsetDateTime),
    step_sec: i64,
) -> sqlx::Result<Vec<TeamMoves>> {
    let sql = "WITH spans AS (SELECT greatest(began_at, $2) AS began, ended_at AS ended, \
               (began_at >= $2)::integer AS starts FROM usage_spans \
               WHERE team_id = $1 AND vcpus > 0 AND began_at < $3 \
               AND (ended_at IS NULL OR ended_at > $2)), \
               moves AS (SELECT began AS at, 1 AS change, starts FROM spans \
               UNION ALL SELECT ended, -1, 0 FROM spans WHERE ended < $3), \
               sums AS (SELECT at, sum(starts) AS starts, \
               sum(sum(change)) OVER (ORDER BY at) AS running FROM moves GROUP BY at), \
               steps AS (SELECT floor(extract(epoch FROM at - $2) / $4)::bigint AS step, at, \
               starts, running FROM sums) \
               SELECT step, max(running)::bigint AS most, \
               (array_agg(running ORDER BY at DESC))[1]::bigint AS last, \
               sum(starts)::bigint AS starts FROM steps GROUP BY step ORDER BY step";
    sqlx::query_as(sql).bind(team).bind(from).bind(to).bind(step_sec).fetch_all(db).await
}

/// Stores the present metrics of all hosts that are online, once for each 5 minutes.
pub(crate) async fn note_hosts(db: &PgPool) -> sqlx::Result<()> {
    let sql = "INSERT INTO stats_hosts (host_id, at, cpu_load_percent, free_memory_mib, \
               free_disk_mib, capsules, used_vcpus, used_memory_mib) \
               SELECT h.id, date_bin('5 minutes', now(), 'epoch'::timestamptz), \
               least(coalesce((h.load ->> 'cpu_load_percent')::bigint, 0), 2147483647)::integer, \
               coalesce((h.load ->> 'free_memory_mib')::bigint, 0), \
               coalesce((h.load ->> 'free_disk_mib')::bigint, 0), \
               count(c.id)::integer, coalesce(sum(c.vcpus), 0)::integer, \
               coalesce(sum(c.memory_mib), 0)::bigint \
               FROM hosts h LEFT JOIN capsules c ON c.host_id = h.id \
               AND c.status IN ('starting', 'running', 'pausing', 'resuming') \
               WHERE h.status = 'online' GROUP BY h.id \
               ON CONFLICT (host_id, at) DO NOTHING";
    sqlx::query(sql).execute(db).await.map(|_| ())
}

/// Metrics of a host in one step of a series. Used amounts are maxima, and free amounts are minima.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub(crate) struct HostRow {
    /// Beginning of the step, in seconds since 1970.
    pub at: i64,
    pub cpu_load_percent: i32,
    pub free_memory_mib: i64,
    pub free_disk_mib: i64,
    pub capsules: i32,
    pub used_vcpus: i32,
    pub used_memory_mib: i64,
}

/// Returns a host's series in steps of `step_sec` seconds, a multiple of 300.
pub(crate) async fn host_series(
    db: &PgPool,
    host: HostId,
    (from, to): (OffsetDateTime, OffsetDateTime),
    step_sec: i64,
) -> sqlx::Result<Vec<HostRow>> {
    let sql = "SELECT (extract(epoch FROM at)::bigint / $4) * $4 AS at, \
               max(cpu_load_percent) AS cpu_load_percent, min(free_memory_mib) AS free_memory_mib, \
               min(free_disk_mib) AS free_disk_mib, max(capsules) AS capsules, \
               max(used_vcpus) AS used_vcpus, max(used_memory_mib) AS used_memory_mib \
               FROM stats_hosts WHERE host_id = $1 AND stats_hosts.at >= $2 \
               AND stats_hosts.at <= $3 GROUP BY 1 ORDER BY 1";
    again(|| sqlx::query_as(sql).bind(host).bind(from).bind(to).bind(step_sec).fetch_all(db)).await
}

/// Runs a read, and once more if a partition was dropped under it.
async fn again<T, F>(mut read: impl FnMut() -> F) -> sqlx::Result<T>
where
    F: Future<Output = sqlx::Result<T>>,
{
    match read().await {
        Err(sqlx::Error::Database(error))
            if error.code().is_some_and(|code| DROPPED.contains(&&*code)) =>
        {
            read().await
        }
        done => done,
    }
}
