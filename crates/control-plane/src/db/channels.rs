//! Channels of teams, and the deliveries of events to them.

use super::actor::setting;
use super::insert::Insert;
use super::makers::Maker;
use crate::audit::Actor;
use serde_json::Value;
use sqlx::{PgExecutor, PgPool};
use time::OffsetDateTime;
use types::{ChannelId, DeliveryId, TeamId};

/// Columns of [`Channel`].
macro_rules! columns {
    () => {
        "id, team_id, name, url, events, enabled, version, created_at, updated_at"
    };
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Channel {
    pub id: ChannelId,
    pub team_id: TeamId,
    pub name: String,
    pub url: String,
    pub events: Vec<String>,
    pub enabled: bool,
    pub version: i32,
    pub created_at: OffsetDateTime,
    pub updated_at: OffsetDateTime,
}

/// Inserts a channel; `false` when the team has a channel of this name.
pub(crate) async fn insert(
    db: impl PgExecutor<'_>,
    row: &Channel,
    maker: Maker,
) -> sqlx::Result<bool> {
    let insert = Insert::into("channels")
        .set("id", row.id)
        .set("team_id", row.team_id)
        .set("name", &row.name)
        .set("url", &row.url)
        .set("events", &row.events)
        .set("created_by", maker.user)
        .set("made_by_key", maker.key)
        .or_keep("(team_id, name)");
    insert.execute(db).await
}

pub(crate) async fn find(
    db: impl PgExecutor<'_>,
    team: TeamId,
    id: ChannelId,
) -> sqlx::Result<Option<Channel>> {
    let sql = concat!("SELECT ", columns!(), " FROM channels WHERE id = $1 AND team_id = $2");
    sqlx::query_as(sql).bind(id).bind(team).fetch_optional(db).await
}

/// Reads a channel and locks it, so that only this transaction may change it until its end.
pub(crate) async fn lock(
    db: impl PgExecutor<'_>,
    team: TeamId,
    id: ChannelId,
) -> sqlx::Result<Option<Channel>> {
    let sql =
        concat!("SELECT ", columns!(), " FROM channels WHERE id = $1 AND team_id = $2 FOR UPDATE");
    sqlx::query_as(sql).bind(id).bind(team).fetch_optional(db).await
}

pub(crate) async fn list(db: &PgPool, team: TeamId) -> sqlx::Result<Vec<Channel>> {
    let sql =
        concat!("SELECT ", columns!(), " FROM channels WHERE team_id = $1 ORDER BY created_at, id");
    sqlx::query_as(sql).bind(team).fetch_all(db).await
}

pub(crate) async fn count(db: impl PgExecutor<'_>, team: TeamId) -> sqlx::Result<i64> {
    let sql = "SELECT count(*) FROM channels WHERE team_id = $1";
    sqlx::query_scalar(sql).bind(team).fetch_one(db).await
}

/// Stores a channel that the caller has locked. The channel then belongs to whoever changed it.
pub(crate) async fn update(
    db: impl PgExecutor<'_>,
    row: &Channel,
    maker: Maker,
) -> sqlx::Result<()> {
    let sql = "UPDATE channels SET name = $2, url = $3, events = $4, enabled = $5, version = $6, \
               created_by = $7, made_by_key = $8, updated_at = now() WHERE id = $1";
    let update = sqlx::query(sql).bind(row.id).bind(&row.name).bind(&row.url).bind(&row.events);
    let update = update.bind(row.enabled).bind(row.version).bind(maker.user).bind(maker.key);
    update.execute(db).await.map(|_| ())
}

pub(crate) async fn remove(
    db: impl PgExecutor<'_>,
    team: TeamId,
    id: ChannelId,
) -> sqlx::Result<bool> {
    let sql = "DELETE FROM channels WHERE id = $1 AND team_id = $2";
    Ok(sqlx::query(sql).bind(id).bind(team).execute(db).await?.rows_affected() == 1)
}

/// Enqueues a delivery to one channel alone; `None` when the channel is gone.
pub(crate) async fn send(
    db: impl PgExecutor<'_>,
    id: ChannelId,
    kind: &str,
    body: Value,
) -> sqlx::Result<Option<DeliveryId>> {
    let sql = "INSERT INTO deliveries (channel_id, kind, body) \
               SELECT id, $2, $3 FROM channels WHERE id = $1 FOR KEY SHARE RETURNING id";
    let sent = sqlx::query_scalar(sql).bind(id).bind(kind).bind(body);
    sent.fetch_optional(db).await
}

/// Disables the channels whose maker's key has expired. Returns them with their teams.
pub(crate) async fn disable_expired(
    db: impl PgExecutor<'_>,
    by: &Actor,
) -> sqlx::Result<Vec<(ChannelId, TeamId)>> {
    let sql = "UPDATE channels SET enabled = false, updated_at = now() WHERE enabled \
               AND made_by_key IS NOT NULL AND NOT key_stands(made_by_key) \
               AND set_config('wrenn.actor', $1, true) IS NOT NULL RETURNING id, team_id";
    sqlx::query_as(sql).bind(setting(by)).fetch_all(db).await
}

/// State of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeliveryState {
    /// An attempt is due now or later.
    Waiting,
    /// The receiver accepted the event.
    Done,
    /// No further attempt is made.
    Failed,
}

types::text_enum!(DeliveryState, "status", {
    Waiting = "waiting",
    Done = "done",
    Failed = "failed",
});

/// A delivery that is due, with its destination.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct Due {
    pub id: DeliveryId,
    pub channel_id: ChannelId,
    pub kind: String,
    pub body: Value,
    pub attempts: i32,
    pub url: String,
    pub version: i32,
}

/// Claims deliveries that are due, for the given seconds. If the process dies meanwhile, another
/// takes them after that time. Deliveries wait while their channel is disabled or its maker's key
/// has ended.
pub(crate) async fn take_due(db: &PgPool, seconds: f64, limit: i64) -> sqlx::Result<Vec<Due>> {
    let sql = "WITH due AS (SELECT d.id FROM deliveries d JOIN channels c ON c.id = d.channel_id \
               WHERE d.status = 'waiting' AND d.next_at <= now() AND c.enabled \
               AND (c.made_by_key IS NULL OR key_stands(c.made_by_key)) \
               ORDER BY d.next_at LIMIT $2 FOR UPDATE OF d SKIP LOCKED) \
               UPDATE deliveries d SET next_at = now() + make_interval(secs => $1), \
               attempts = attempts + 1 FROM due, channels c \
               WHERE d.id = due.id AND c.id = d.channel_id \
               RETURNING d.id, d.channel_id, d.kind, d.body, d.attempts, c.url, c.version";
    sqlx::query_as(sql).bind(seconds).bind(limit).fetch_all(db).await
}

/// Stores the outcome of an attempt: done, waiting for another attempt in `again` seconds, or
/// failed.
pub(crate) async fn settle(
    db: &PgPool,
    id: DeliveryId,
    state: DeliveryState,
    again: f64,
    answer: Option<i32>,
    error: Option<&str>,
) -> sqlx::Result<()> {
    let sql = "UPDATE deliveries SET status = $2, next_at = now() + make_interval(secs => $3), \
               answer = $4, error = $5, done_at = CASE WHEN $2 = 'waiting' THEN NULL ELSE now() \
               END WHERE id = $1";
    let settle = sqlx::query(sql).bind(id).bind(state).bind(again).bind(answer).bind(error);
    settle.execute(db).await.map(|_| ())
}

/// Delays a channel's other waiting deliveries by at least the given seconds. A receiver that does
/// not answer one delivery would not answer the others either, and would hold up other channels.
pub(crate) async fn put_off(db: &PgPool, channel: ChannelId, seconds: f64) -> sqlx::Result<()> {
    let sql = "UPDATE deliveries SET next_at = now() + make_interval(secs => $2) \
               WHERE channel_id = $1 AND status = 'waiting' \
               AND next_at < now() + make_interval(secs => $2)";
    sqlx::query(sql).bind(channel).bind(seconds).execute(db).await.map(|_| ())
}

#[derive(Debug, sqlx::FromRow)]
pub(crate) struct Delivery {
    pub id: DeliveryId,
    pub kind: String,
    #[sqlx(rename = "status")]
    pub state: DeliveryState,
    pub attempts: i32,
    pub answer: Option<i32>,
    pub error: Option<String>,
    pub created_at: OffsetDateTime,
    pub next_at: OffsetDateTime,
}

/// Returns a page of a channel's deliveries, newest first.
pub(crate) async fn deliveries(
    db: &PgPool,
    id: ChannelId,
    before: Option<DeliveryId>,
    limit: i64,
) -> sqlx::Result<Vec<Delivery>> {
    let sql = "SELECT id, kind, status, attempts, answer, error, created_at, next_at \
               FROM deliveries WHERE channel_id = $1 \
               AND ($2::uuid IS NULL OR (created_at, id) < \
                    (SELECT created_at, id FROM deliveries WHERE id = $2)) \
               ORDER BY created_at DESC, id DESC LIMIT $3";
    sqlx::query_as(sql).bind(id).bind(before).bind(limit).fetch_all(db).await
}
