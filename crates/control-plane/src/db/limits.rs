//! Limits of teams and keys, and their present use.

use super::actor;
use super::decode::{Nullable, signed};
use super::insert::Insert;
use crate::audit::Actor;
use crate::limits::{Held, Limits, Stored};
use sqlx::{PgConnection, PgExecutor, PgPool};
use std::num::{NonZeroU32, NonZeroU64};
use types::{ApiKeyId, Isolation, LogPolicy, PLATFORM_TEAM, TeamId};

/// Limits of a team: its own, else the platform's default. `None` where neither is set, and 0 for
/// no limit.
#[derive(Debug, Clone, Default, sqlx::FromRow)]
pub(crate) struct Row {
    #[sqlx(try_from = "Nullable<i32>")]
    pub capsules: Option<u32>,
    #[sqlx(try_from = "Nullable<i32>")]
    pub vcpus: Option<u32>,
    #[sqlx(try_from = "Nullable<i64>")]
    pub memory_mib: Option<u64>,
    #[sqlx(try_from = "Nullable<i32>")]
    pub creates_per_sec: Option<u32>,
    #[sqlx(try_from = "Nullable<i32>")]
    pub requests_per_sec: Option<u32>,
    #[sqlx(try_from = "Nullable<i32>")]
    pub snapshots: Option<u32>,
    #[sqlx(try_from = "Nullable<i64>")]
    pub storage_mib: Option<u64>,
    #[sqlx(try_from = "Nullable<i32>")]
    pub templates: Option<u32>,
    #[sqlx(try_from = "Nullable<i32>")]
    pub builds: Option<u32>,
    #[sqlx(try_from = "Nullable<i64>")]
    pub template_mib: Option<u64>,
    /// Lowest isolation tier, from the team's own row.
    #[sqlx(default)]
    pub isolation: Option<Isolation>,
    /// Output that the logs of new capsules keep, from the team's own row.
    #[sqlx(default)]
    pub logs: Option<LogPolicy>,
}

impl Row {
    /// Returns the limits. A limit that is not set takes the value of `Limits::DEFAULT`.
    pub(crate) fn limits(self) -> Limits {
        let default = Limits::DEFAULT;
        Limits {
            capsules: self.capsules.map_or(default.capsules, NonZeroU32::new),
            vcpus: self.vcpus.map_or(default.vcpus, NonZeroU32::new),
            memory_mib: self.memory_mib.map_or(default.memory_mib, NonZeroU64::new),
            snapshots: self.snapshots.map_or(default.snapshots, NonZeroU32::new),
            storage_mib: self.storage_mib.map_or(default.storage_mib, NonZeroU64::new),
            templates: self.templates.map_or(default.templates, NonZeroU32::new),
            builds: self.builds.map_or(default.builds, NonZeroU32::new),
            template_mib: self.template_mib.map_or(default.template_mib, NonZeroU64::new),
            creates_per_sec: self.creates_per_sec.map_or(default.creates_per_sec, NonZeroU32::new),
            requests_per_sec: self
                .requests_per_sec
                .map_or(default.requests_per_sec, NonZeroU32::new),
            isolation: self.isolation.unwrap_or_default(),
            logs: self.logs.unwrap_or_default(),
        }
    }
}

pub(crate) async fn of(db: &PgPool, team: TeamId) -> sqlx::Result<Row> {
    let sql = "SELECT coalesce(t.capsules, p.capsules) AS capsules, \
               coalesce(t.vcpus, p.vcpus) AS vcpus, \
               coalesce(t.memory_mib, p.memory_mib) AS memory_mib, \
               coalesce(t.creates_per_sec, p.creates_per_sec) AS creates_per_sec, \
               coalesce(t.requests_per_sec, p.requests_per_sec) AS requests_per_sec, \
               coalesce(t.snapshots, p.snapshots) AS snapshots, \
               coalesce(t.storage_mib, p.storage_mib) AS storage_mib, \
               coalesce(t.templates, p.templates) AS templates, \
               coalesce(t.builds, p.builds) AS builds, \
               coalesce(t.template_mib, p.template_mib) AS template_mib, \
               (SELECT isolation FROM teams WHERE id = $1) AS isolation, \
               (SELECT logs FROM teams WHERE id = $1) AS logs \
               FROM (SELECT 1) AS always LEFT JOIN team_limits t ON t.team_id = $1 \
               LEFT JOIN team_limits p ON p.team_id = $2";
    sqlx::query_as(sql).bind(team).bind(PLATFORM_TEAM).fetch_one(db).await
}

pub(crate) async fn set(db: impl PgExecutor<'_>, team: TeamId, row: &Row) -> sqlx::Result<()> {
    let insert = Insert::into("team_limits")
        .set("team_id", team)
        .set("capsules", row.capsules.map(i64::from))
        .set("vcpus", row.vcpus.map(i64::from))
        .set("memory_mib", row.memory_mib.map(signed))
        .set("creates_per_sec", row.creates_per_sec.map(i64::from))
        .set("requests_per_sec", row.requests_per_sec.map(i64::from))
        .set("snapshots", row.snapshots.map(i64::from))
        .set("storage_mib", row.storage_mib.map(signed))
        .or_replace(&["team_id"]);
    // Clients of earlier versions do not know these limits, so an absent one stays as it is.
    let set = |insert: Insert, column, value: Option<i64>| match value {
        Some(value) => insert.set(column, value),
        None => insert,
    };
    let insert = set(insert, "templates", row.templates.map(i64::from));
    let insert = set(insert, "builds", row.builds.map(i64::from));
    let insert = set(insert, "template_mib", row.template_mib.map(signed));
    insert.execute(db).await.map(|_| ())
}

/// Locks the count of a team's capsules until this transaction ends. Other callers of `hold` wait.
/// The transaction's events name the actor.
pub(crate) async fn hold(db: &mut PgConnection, team: TeamId, by: &Actor) -> sqlx::Result<()> {
    let sql = "SELECT pg_advisory_xact_lock(hashtextextended($1::text, 6)), \
               set_config('wrenn.actor', $2, true)";
    let hold = sqlx::query(sql).bind(team.0.to_string()).bind(actor::setting(by));
    hold.execute(db).await.map(|_| ())
}

/// Keeps a team from being ended until this transaction ends. With `counted`, takes the lock of
/// [`hold`], and then counts the team's capsules. Returns `None` if the team has ended.
pub(crate) async fn admit(
    db: &mut PgConnection,
    team: TeamId,
    counted: bool,
) -> sqlx::Result<Option<Held>> {
    let sql = "SELECT capsules, vcpus, memory_mib FROM admit_capsule($1, $2)";
    sqlx::query_as(sql).bind(team).bind(counted).fetch_optional(db).await
}

/// Counts live capsules, and sums the resources of those that have a machine. The caller appends
/// further conditions to the `WHERE` clause.
const HELD: &str = "SELECT count(*) AS capsules, \
    coalesce(sum(vcpus) FILTER (WHERE status NOT IN ('paused', 'error')), 0) AS vcpus, \
    coalesce(sum(memory_mib) FILTER (WHERE status NOT IN ('paused', 'error')), 0) AS memory_mib \
    FROM capsules WHERE status <> 'stopped'";

/// Counts a team's capsules and their resources.
pub(crate) async fn held(db: impl PgExecutor<'_>, team: TeamId) -> sqlx::Result<Held> {
    let sql = sqlx::AssertSqlSafe(format!("{HELD} AND team_id = $1"));
    sqlx::query_as(sql).bind(team).fetch_one(db).await
}

/// Counts a team's named snapshots, complete or in progress, and the storage of all its snapshots
/// and capsules.
pub(crate) async fn stored(db: impl PgExecutor<'_>, team: TeamId) -> sqlx::Result<Stored> {
    let sql = "SELECT s.snapshots, (s.bytes + c.bytes)::bigint AS storage_bytes FROM \
               (SELECT count(*) FILTER (WHERE name IS NOT NULL AND status <> 'removing') \
                AS snapshots, coalesce(sum(storage_bytes), 0) AS bytes \
                FROM snapshots WHERE team_id = $1) s, \
               (SELECT coalesce(sum(storage_bytes), 0) AS bytes FROM capsules \
                WHERE team_id = $1 AND status <> 'stopped') c";
    sqlx::query_as(sql).bind(team).fetch_one(db).await
}

/// Limits of one key, and the capsules of that key and of the keys that came from it.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct OfKey {
    #[sqlx(flatten)]
    pub limits: super::keys::KeyLimits,
    #[sqlx(flatten)]
    pub held: Held,
}

/// Returns the limits that bind a key: its own, and the limits of each key that it came from.
pub(crate) async fn of_key(db: impl PgExecutor<'_>, key: ApiKeyId) -> sqlx::Result<Vec<OfKey>> {
    let sql = format!(
        "WITH RECURSIVE line AS (SELECT k.* FROM api_keys k WHERE k.id = $1 UNION ALL \
         SELECT k.* FROM api_keys k JOIN line l ON k.id = l.made_by_key) \
         SELECT l.max_capsules, l.max_vcpus, l.max_memory_mib, l.creates_per_sec, \
         l.requests_per_sec, h.* FROM line l, LATERAL (\
         WITH RECURSIVE family (id) AS (SELECT l.id UNION ALL \
         SELECT k.id FROM api_keys k JOIN family f ON k.made_by_key = f.id) \
         {HELD} AND created_by_key IN (SELECT id FROM family)) h \
         WHERE coalesce(l.max_capsules, l.max_vcpus, l.max_memory_mib) IS NOT NULL"
    );
    sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(key).fetch_all(db).await
}
