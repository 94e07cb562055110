//! Tokens of hosts: one to register with, then one after the other to renew by.

use super::makers::Maker;
use sqlx::{PgConnection, PgPool};
use types::HostId;
use uuid::Uuid;

#[derive(Debug, sqlx::FromRow)]
pub(crate) struct Token {
    pub id: Uuid,
    pub host_id: Uuid,
    /// What it was first used with: of no use with another.
    pub bound_to: Option<Vec<u8>>,
    /// Whether it was used before.
    pub used: bool,
    /// Whether one that was given for it has been used.
    pub superseded: bool,
}

impl Token {
    pub(crate) fn host(&self) -> HostId {
        HostId(self.host_id)
    }
}

/// What a token is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Registration,
    Refresh,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Registration => "registration",
            Self::Refresh => "refresh",
        }
    }
}

/// Keeps a new token's hash, for `seconds`.
pub(crate) async fn insert(
    db: &mut PgConnection,
    host: HostId,
    kind: Kind,
    hash: &[u8],
    parent: Option<Uuid>,
    seconds: f64,
) -> sqlx::Result<()> {
    let sql = "INSERT INTO host_tokens (id, host_id, kind, token_hash, parent_id, expires_at) \
               VALUES ($1, $2, $3, $4, $5, now() + make_interval(secs => $6))";
    let insert = sqlx::query(sql).bind(Uuid::new_v4()).bind(host.0).bind(kind.as_str());
    insert.bind(hash).bind(parent).bind(seconds).execute(db).await.map(|_| ())
}

/// Notes the maker of a token. The token is good only while its maker may still make one.
pub(crate) async fn set_maker(
    db: &mut PgConnection,
    hash: &[u8],
    maker: Maker,
) -> sqlx::Result<()> {
    let sql = "UPDATE host_tokens SET created_by = $2, made_by_key = $3 WHERE token_hash = $1";
    sqlx::query(sql).bind(hash).bind(maker.user).bind(maker.key).execute(db).await.map(|_| ())
}

/// Finds a token by its hash. The token must not have expired, and its maker must still be allowed
/// to make one.
pub(crate) async fn find(db: &PgPool, kind: Kind, hash: &[u8]) -> sqlx::Result<Option<Token>> {
    let mut connection = db.acquire().await?;
    find_in(&mut connection, kind, hash).await
}

/// The same, in a transaction.
pub(crate) async fn find_in(
    db: &mut PgConnection,
    kind: Kind,
    hash: &[u8],
) -> sqlx::Result<Option<Token>> {
    let sql = "SELECT t.id, t.host_id, t.bound_to, t.used_at IS NOT NULL AS used, \
               EXISTS (SELECT 1 FROM host_tokens c WHERE c.parent_id = t.id \
               AND c.used_at IS NOT NULL) AS superseded \
               FROM host_tokens t WHERE t.token_hash = $1 AND t.kind = $2 \
               AND t.expires_at > now() AND operator_stands(t.created_by, t.made_by_key)";
    sqlx::query_as(sql).bind(hash).bind(kind.as_str()).fetch_optional(db).await
}

/// Notes that a token was used, and with what.
pub(crate) async fn used(db: &mut PgConnection, token: &Token, with: &[u8]) -> sqlx::Result<()> {
    let sql = "UPDATE host_tokens SET used_at = now(), bound_to = $2 \
               WHERE id = $1 AND used_at IS NULL";
    sqlx::query(sql).bind(token.id).bind(with).execute(&mut *db).await?;
    // Those given for it before never arrived.
    let sql = "DELETE FROM host_tokens WHERE parent_id = $1 AND used_at IS NULL";
    sqlx::query(sql).bind(token.id).execute(db).await.map(|_| ())
}

/// Forgets a host's tokens of a kind.
pub(crate) async fn remove(db: &mut PgConnection, host: HostId, kind: Kind) -> sqlx::Result<()> {
    let sql = "DELETE FROM host_tokens WHERE host_id = $1 AND kind = $2";
    sqlx::query(sql).bind(host.0).bind(kind.as_str()).execute(db).await.map(|_| ())
}

/// Forgets tokens that have expired.
pub(crate) async fn prune(db: &PgPool) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM host_tokens WHERE expires_at < now()").execute(db).await.map(|_| ())
}
