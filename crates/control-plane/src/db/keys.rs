//! Teams and API keys.

use crate::auth::Caller;
use sqlx::PgPool;
use types::{ApiKeyId, PLATFORM_TEAM, TeamId};
use uuid::Uuid;

pub(crate) async fn any(db: &PgPool) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM api_keys)").fetch_one(db).await
}

pub(crate) async fn insert_team(db: &PgPool, id: TeamId, name: &str) -> sqlx::Result<()> {
    let slug = types::ids::encode(id.0);
    let insert = sqlx::query("INSERT INTO teams (id, name, slug) VALUES ($1, $2, $3)");
    insert.bind(id.0).bind(name).bind(slug).execute(db).await.map(|_| ())
}

pub(crate) async fn first_team(db: &PgPool) -> sqlx::Result<Option<TeamId>> {
    let sql =
        "SELECT id FROM teams WHERE id <> $1 AND deleted_at IS NULL ORDER BY created_at LIMIT 1";
    let id: Option<Uuid> = sqlx::query_scalar(sql).bind(PLATFORM_TEAM.0).fetch_optional(db).await?;
    Ok(id.map(TeamId))
}

pub(crate) async fn is_team(db: &PgPool, id: TeamId) -> sqlx::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM teams WHERE id = $1 AND deleted_at IS NULL)";
    sqlx::query_scalar(sql).bind(id.0).fetch_one(db).await
}

/// Keeps an operator's key.
pub(crate) async fn insert(db: &PgPool, team: TeamId, name: &str, key: &str) -> sqlx::Result<()> {
    let sql = "INSERT INTO api_keys (id, team_id, name, key_hash, key_prefix, operator) \
               VALUES ($1, $2, $3, $4, $5, true)";
    let prefix: String = key.chars().take(10).collect();
    let insert = sqlx::query(sql).bind(ApiKeyId::new().0).bind(team.0).bind(name);
    insert.bind(crate::auth::hash(key).as_slice()).bind(prefix).execute(db).await.map(|_| ())
}

/// Whose a valid key is; its use is noted once a minute at most.
pub(crate) async fn caller(db: &PgPool, hash: &[u8]) -> sqlx::Result<Option<Caller>> {
    let sql = "SELECT id, team_id, operator, last_used_at IS NULL OR last_used_at < now() - interval '1 minute' \
               FROM api_keys WHERE key_hash = $1 AND revoked_at IS NULL \
               AND (expires_at IS NULL OR expires_at > now())";
    let found: Option<(Uuid, Uuid, bool, bool)> =
        sqlx::query_as(sql).bind(hash).fetch_optional(db).await?;
    let Some((id, team, operator, stale)) = found else { return Ok(None) };
    if stale {
        let note = sqlx::query("UPDATE api_keys SET last_used_at = now() WHERE id = $1");
        note.bind(id).execute(db).await?;
    }
    Ok(Some(Caller { team: TeamId(team), operator }))
}
