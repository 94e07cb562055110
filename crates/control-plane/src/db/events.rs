//! Events in their order and their history, and the usage of each team.

use super::pool::UNHURRIED;
use serde_json::Value;
use sqlx::{Executor, PgConnection, PgPool, Postgres, QueryBuilder};
use std::str::FromStr;
use time::{Date, OffsetDateTime};
use types::{TeamId, UserId};
use uuid::Uuid;

/// Position among events: the transaction, and the number of the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Cursor(pub i64, pub i64);

impl Cursor {
    /// Position after every event.
    pub(crate) const END: Self = Self(i64::MAX, i64::MAX);
}

/// Parses the `id` of an event.
impl FromStr for Cursor {
    type Err = InvalidCursor;

    fn from_str(id: &str) -> Result<Self, InvalidCursor> {
        let parse = || {
            let (tx, seq) = id.split_once('-')?;
            Some(Self(tx.parse().ok()?, seq.parse().ok()?))
        };
        parse().filter(|cursor| cursor.0 >= 0 && cursor.1 >= 0).ok_or(InvalidCursor)
    }
}

/// A text that is not the `id` of an event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InvalidCursor;

/// Kind of the resource that an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResourceType {
    Capsule,
    Snapshot,
    Host,
    Channel,
    Template,
    ApiKey,
    Member,
    Invitation,
    Team,
}

types::text_enum!(ResourceType, "resource_type", {
    Capsule = "capsule",
    Snapshot = "snapshot",
    Host = "host",
    Channel = "channel",
    Template = "template",
    ApiKey = "api_key",
    Member = "member",
    Invitation = "invitation",
    Team = "team",
});

/// Columns of [`Event`].
macro_rules! columns {
    () => {
        "seq, transaction::text::bigint AS tx, team_id, kind, resource_type, resource_id, data, \
         actor_type, actor_id, actor_label, generation, created_at"
    };
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Event {
    pub seq: i64,
    pub tx: i64,
    pub team_id: TeamId,
    pub kind: String,
    pub resource_type: ResourceType,
    pub resource_id: Uuid,
    pub data: Value,
    /// Actor; `None` in events of earlier versions.
    pub actor_type: Option<String>,
    pub actor_id: Option<String>,
    pub actor_label: Option<String>,
    /// Generation of the capsule or build; `None` for other resources.
    pub generation: Option<i64>,
    pub created_at: OffsetDateTime,
}

impl Event {
    pub(crate) fn cursor(&self) -> Cursor {
        Cursor(self.tx, self.seq)
    }
}

/// Returns the position after every event that is certain. Events of a transaction that is still
/// open may come later.
pub(crate) async fn now(db: &PgPool) -> sqlx::Result<Cursor> {
    let sql = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint";
    Ok(Cursor(sqlx::query_scalar(sql).fetch_one(db).await?, 0))
}

/// Condition of events before the oldest open transaction. No event can appear among them later.
const CERTAIN: &str = "transaction < pg_snapshot_xmin(pg_current_snapshot())";

/// Lists a team's events after a position, in order, of all resources or one. Stops before the
/// oldest open transaction, so that no event can appear in between later.
pub(crate) async fn after(
    db: &PgPool,
    team: TeamId,
    resource: Option<Uuid>,
    cursor: Cursor,
    limit: i64,
) -> sqlx::Result<Vec<Event>> {
    let mut sql = select(team);
    if let Some(resource) = resource {
        sql.push(" AND resource_id = ").push_bind(resource);
    }
    sql.push(" AND (transaction, seq) > (").push_bind(cursor.0.to_string());
    sql.push("::text::xid8, ").push_bind(cursor.1).push(") ORDER BY transaction, seq LIMIT ");
    sql.push_bind(limit).build_query_as().fetch_all(db).await
}

/// Begins a query for a team's events that are certain.
fn select(team: TeamId) -> QueryBuilder<Postgres> {
    let mut sql =
        QueryBuilder::<Postgres>::new(concat!("SELECT ", columns!(), " FROM events WHERE "));
    sql.push(CERTAIN).push(" AND team_id = ").push_bind(team);
    sql
}

/// Reports whether events after a position may be missing. Either their age had them removed, or
/// the position is none of this database.
pub(crate) async fn is_expired(db: &PgPool, team: TeamId, cursor: Cursor) -> sqlx::Result<bool> {
    let sql = "SELECT $2::text::xid8 > pg_snapshot_xmax(pg_current_snapshot()) \
               OR EXISTS (SELECT 1 FROM event_floors WHERE team_id = $1 \
               AND (transaction, seq) > ($2::text::xid8, $3))";
    let check = sqlx::query_scalar(sql).bind(team).bind(cursor.0.to_string()).bind(cursor.1);
    check.fetch_one(db).await
}

/// Selection of a team's past events.
#[derive(Debug, Default, Clone)]
pub(crate) struct Filter {
    pub resource: Option<Uuid>,
    /// Kinds of events; empty for all kinds.
    pub kinds: Vec<&'static str>,
}

/// Returns a page of a team's events before a position, newest first.
pub(crate) async fn history(
    db: &PgPool,
    team: TeamId,
    filter: &Filter,
    before: Cursor,
    limit: i64,
) -> sqlx::Result<Vec<Event>> {
    let mut sql = match (filter.resource, filter.kinds.as_slice()) {
        (None, []) => select(team),
        (Some(resource), kinds) => {
            let mut sql = select(team);
            sql.push(" AND resource_id = ").push_bind(resource);
            if !kinds.is_empty() {
                sql.push(" AND kind = ANY(").push_bind(kinds.to_vec()).push(")");
            }
            sql
        }
        (None, kinds) => return of_kinds(db, team, kinds, before, limit).await,
    };
    page(&mut sql, before, limit);
    sql.build_query_as().fetch_all(db).await
}

/// Ends a query with a page before a position, newest first.
fn page(sql: &mut QueryBuilder<Postgres>, before: Cursor, limit: i64) {
    sql.push(" AND (transaction, seq) < (").push_bind(before.0.to_string());
    sql.push("::text::xid8, ").push_bind(before.1);
    sql.push(") ORDER BY transaction DESC, seq DESC LIMIT ").push_bind(limit);
}

/// Returns a page of events of some kinds. Each kind has a page of its own, by the index. A rare
/// kind therefore costs no scan of all other events.
async fn of_kinds(
    db: &PgPool,
    team: TeamId,
    kinds: &[&'static str],
    before: Cursor,
    limit: i64,
) -> sqlx::Result<Vec<Event>> {
    let mut sql = QueryBuilder::<Postgres>::new("SELECT e.* FROM unnest(");
    sql.push_bind(kinds.to_vec()).push(") AS k (kind), LATERAL (SELECT ").push(columns!());
    sql.push(" FROM events WHERE ").push(CERTAIN).push(" AND team_id = ").push_bind(team);
    sql.push(" AND events.kind = k.kind");
    page(&mut sql, before, limit);
    sql.push(") e ORDER BY e.tx DESC, e.seq DESC LIMIT ").push_bind(limit);
    sql.build_query_as().fetch_all(db).await
}

/// Removes a user's identity from all events and deliveries, which may take long.
pub(crate) async fn anonymise(db: &mut PgConnection, user: UserId) -> sqlx::Result<()> {
    sqlx::query(UNHURRIED).execute(&mut *db).await?;
    let id = user.to_string();
    let sql = "UPDATE events SET actor_id = 'erased', actor_label = NULL \
               WHERE actor_type = 'user' AND actor_id = $1";
    sqlx::query(sql).bind(&id).execute(&mut *db).await?;
    let nil = Uuid::nil();
    let sql = "UPDATE events SET resource_id = $2 WHERE resource_type = 'member' \
               AND resource_id = $1";
    sqlx::query(sql).bind(user).bind(nil).execute(&mut *db).await?;
    let sql = "UPDATE deliveries SET body = body || CASE WHEN body ->> 'actor_id' = $1 \
               THEN '{\"actor_id\": \"erased\", \"actor_label\": null}' ELSE '{}'::jsonb END \
               || CASE WHEN body ->> 'resource_id' = $2::uuid::text \
               THEN jsonb_build_object('resource_id', $3::uuid) ELSE '{}' END \
               WHERE body ->> 'actor_id' = $1 \
               OR body ->> 'resource_type' = 'member' AND body ->> 'resource_id' = $2::uuid::text";
    let update = sqlx::query(sql).bind(id).bind(user).bind(nil);
    update.execute(db).await.map(|_| ())
}

#[derive(Debug, sqlx::FromRow)]
pub(crate) struct Day {
    pub day: Date,
    pub vcpu_seconds: f64,
    pub memory_mib_seconds: f64,
    pub storage_mib_seconds: f64,
}

/// Returns a team's usage by day in UTC, from daily sums and from usage intervals that are not yet
/// summed.
pub(crate) async fn usage(
    db: &PgPool,
    team: TeamId,
    from: Date,
    to: Date,
) -> sqlx::Result<Vec<Day>> {
    let sql = "WITH days AS (SELECT d::date AS day, d::timestamp AT TIME ZONE 'UTC' AS lo, \
               (d + interval '1 day')::timestamp AT TIME ZONE 'UTC' AS hi \
               FROM generate_series($2::date::timestamp, $3::date::timestamp, '1 day') d), \
               spans AS (SELECT * FROM usage_spans WHERE team_id = $1 \
               AND began_at < ($3::date + 1)::timestamp AT TIME ZONE 'UTC' \
               AND (ended_at IS NULL OR ended_at > $2::date::timestamp AT TIME ZONE 'UTC')), \
               parts AS (SELECT d.day, s.vcpus, s.memory_mib, s.storage_mib, \
               extract(epoch FROM least(coalesce(s.ended_at, now()), d.hi) \
               - greatest(s.began_at, d.lo))::float8 AS seconds \
               FROM days d JOIN spans s ON s.began_at < d.hi \
               AND coalesce(s.ended_at, now()) > d.lo) \
               SELECT d.day, \
               coalesce(u.vcpu_seconds, 0) + coalesce(sum(p.vcpus * p.seconds), 0) \
               AS vcpu_seconds, \
               coalesce(u.memory_mib_seconds, 0) + coalesce(sum(p.memory_mib * p.seconds), 0) \
               AS memory_mib_seconds, \
               coalesce(u.storage_mib_seconds, 0) + coalesce(sum(p.storage_mib * p.seconds), 0) \
               AS storage_mib_seconds \
               FROM days d LEFT JOIN parts p ON p.day = d.day \
               LEFT JOIN daily_usage u ON u.team_id = $1 AND u.day = d.day \
               GROUP BY d.day, u.vcpu_seconds, u.memory_mib_seconds, u.storage_mib_seconds \
               ORDER BY d.day";
    sqlx::query_as(sql).bind(team).bind(from).bind(to).fetch_all(db).await
}

/// Number and size of a team's running capsules at one time.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct Point {
    pub at: OffsetDateTime,
    pub running: i64,
    pub vcpus: i64,
    pub memory_mib: i64,
}

/// Samples a team's running capsules at `points` times over the last `seconds`. The last sample is
/// now.
pub(crate) async fn series(
    db: &PgPool,
    team: TeamId,
    seconds: i32,
    points: i32,
) -> sqlx::Result<Vec<Point>> {
    let sql = "SELECT now() - make_interval(secs => n * $2::float8 / $3) AS at, \
               count(s.id) AS running, coalesce(sum(s.vcpus), 0) AS vcpus, \
               coalesce(sum(s.memory_mib), 0) AS memory_mib \
               FROM generate_series($3 - 1, 0, -1) n LEFT JOIN usage_spans s ON s.team_id = $1 \
               AND s.vcpus > 0 AND s.began_at <= now() - make_interval(secs => n * $2::float8 / $3) \
               AND (s.ended_at IS NULL \
                    OR s.ended_at > now() - make_interval(secs => n * $2::float8 / $3)) \
               GROUP BY n ORDER BY n DESC";
    sqlx::query_as(sql).bind(team).bind(seconds).bind(points).fetch_all(db).await
}

/// Adds usage intervals that ended more than `days` days ago to the daily sums, and removes them.
/// Both happen in one statement. Returns the number of intervals removed.
pub(crate) async fn add_up(db: &PgPool, days: i32, limit: i64) -> sqlx::Result<u64> {
    let sql = "WITH gone AS (DELETE FROM usage_spans WHERE id IN (SELECT id FROM usage_spans \
               WHERE ended_at < now() - make_interval(days => $1) LIMIT $2) RETURNING *), \
               parts AS (SELECT g.team_id, d::date AS day, g.vcpus, g.memory_mib, g.storage_mib, \
               extract(epoch FROM least(g.ended_at, (d + interval '1 day') AT TIME ZONE 'UTC') \
               - greatest(g.began_at, d AT TIME ZONE 'UTC'))::float8 AS seconds \
               FROM gone g, generate_series(date_trunc('day', g.began_at AT TIME ZONE 'UTC'), \
               g.ended_at AT TIME ZONE 'UTC', interval '1 day') d), \
               summed AS (SELECT team_id, day, sum(vcpus * seconds) AS vcpu_seconds, \
               sum(memory_mib * seconds) AS memory_mib_seconds, \
               sum(storage_mib * seconds) AS storage_mib_seconds FROM parts \
               GROUP BY team_id, day) \
               INSERT INTO daily_usage AS u (team_id, day, vcpu_seconds, memory_mib_seconds, \
               storage_mib_seconds) SELECT team_id, day, vcpu_seconds, memory_mib_seconds, \
               storage_mib_seconds FROM summed \
               ON CONFLICT (team_id, day) DO UPDATE SET \
               vcpu_seconds = u.vcpu_seconds + excluded.vcpu_seconds, \
               memory_mib_seconds = u.memory_mib_seconds + excluded.memory_mib_seconds, \
               storage_mib_seconds = u.storage_mib_seconds + excluded.storage_mib_seconds";
    let mut tx = db.begin().await?;
    tx.execute(UNHURRIED).await?;
    let gone = sqlx::query(sql).bind(days).bind(limit).execute(&mut *tx).await?.rows_affected();
    tx.commit().await?;
    Ok(gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_cursor_is_parsed_and_garbage_is_refused() {
        assert_eq!("12-7".parse(), Ok(Cursor(12, 7)));
        for bad in ["", "12", "-", "a-1", "1--1", "1-2-3"] {
            assert_eq!(bad.parse::<Cursor>(), Err(InvalidCursor), "{bad}");
        }
    }
}
