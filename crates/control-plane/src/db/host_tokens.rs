//! Tokens of hosts: one for registration, then a chain of tokens for renewals.

use super::insert::Insert;
use super::makers::Maker;
use sqlx::{PgConnection, PgPool};
use types::{HostId, HostTokenId};

#[derive(Debug, sqlx::FromRow)]
pub(crate) struct Token {
    pub id: HostTokenId,
    pub host_id: HostId,
    /// Hash of the first request that used the token. The token is invalid with another.
    pub bound_to: Option<Vec<u8>>,
    /// True if the token was used before.
    pub used: bool,
    /// True if a token that was issued for this one has been used.
    pub superseded: bool,
}

/// Purpose of a token.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Registration,
    Refresh,
}

types::text_enum!(Kind, "kind", { Registration = "registration", Refresh = "refresh" });

/// Stores the hash of a new token, which expires after `seconds`.
pub(crate) async fn insert(
    db: &mut PgConnection,
    host: HostId,
    kind: Kind,
    hash: &[u8],
    parent: Option<HostTokenId>,
    seconds: f64,
) -> sqlx::Result<()> {
    let insert = Insert::into("host_tokens")
        .set("id", HostTokenId::new())
        .set("host_id", host)
        .set("kind", kind)
        .set("token_hash", hash)
        .set("parent_id", parent)
        .set_after("expires_at", seconds);
    insert.execute(db).await.map(|_| ())
}

/// Records the maker of a token. The token is valid only while its maker may still make one.
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

/// Finds a token as `find` does, within a transaction.
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
    sqlx::query_as(sql).bind(hash).bind(kind).fetch_optional(db).await
}

/// Records that a token was used, and with what it was used.
pub(crate) async fn used(db: &mut PgConnection, token: &Token, with: &[u8]) -> sqlx::Result<()> {
    let sql = "UPDATE host_tokens SET used_at = now(), bound_to = $2 \
               WHERE id = $1 AND used_at IS NULL";
    sqlx::query(sql).bind(token.id).bind(with).execute(&mut *db).await?;
    // Tokens that were issued for it earlier never reached the host.
    let sql = "DELETE FROM host_tokens WHERE parent_id = $1 AND used_at IS NULL";
    sqlx::query(sql).bind(token.id).execute(db).await.map(|_| ())
}

/// Removes a host's tokens of one kind.
pub(crate) async fn remove(db: &mut PgConnection, host: HostId, kind: Kind) -> sqlx::Result<()> {
    let sql = "DELETE FROM host_tokens WHERE host_id = $1 AND kind = $2";
    sqlx::query(sql).bind(host).bind(kind).execute(db).await.map(|_| ())
}

/// Removes expired tokens.
pub(crate) async fn prune(db: &PgPool) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM host_tokens WHERE expires_at < now()").execute(db).await.map(|_| ())
}
