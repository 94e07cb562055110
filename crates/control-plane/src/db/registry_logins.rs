//! Rows of a team's logins to registries. The secret part is encrypted by `seal`.

use super::insert::Insert;
use sqlx::{PgExecutor, PgPool};
use time::OffsetDateTime;
use types::TeamId;

/// Form of a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoginKind {
    Basic,
    Aws,
    Gcp,
}

types::text_enum!(LoginKind, "kind", { Basic = "basic", Aws = "aws", Gcp = "gcp" });

#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Login {
    pub registry: String,
    pub kind: LoginKind,
    /// User name, access key or account.
    pub username: String,
    pub updated_at: OffsetDateTime,
}

/// Stores a login in place of an earlier one of the same registry.
pub(crate) async fn set(
    db: impl PgExecutor<'_>,
    team: TeamId,
    login: &Login,
    sealed: &[u8],
) -> sqlx::Result<()> {
    let insert = Insert::into("registry_logins")
        .set("team_id", team)
        .set("registry", &login.registry)
        .set("kind", login.kind)
        .set("username", &login.username)
        .set("sealed", sealed)
        .set("updated_at", login.updated_at)
        .or_replace(&["team_id", "registry"]);
    insert.execute(db).await.map(|_| ())
}

/// Lists a team's logins, by registry.
pub(crate) async fn list(db: &PgPool, team: TeamId) -> sqlx::Result<Vec<Login>> {
    let sql = "SELECT registry, kind, username, updated_at FROM registry_logins \
               WHERE team_id = $1 ORDER BY registry";
    sqlx::query_as(sql).bind(team).fetch_all(db).await
}

/// Counts a team's logins to other registries.
pub(crate) async fn count_others(
    db: impl PgExecutor<'_>,
    team: TeamId,
    registry: &str,
) -> sqlx::Result<i64> {
    let sql = "SELECT count(*) FROM registry_logins WHERE team_id = $1 AND registry <> $2";
    sqlx::query_scalar(sql).bind(team).bind(registry).fetch_one(db).await
}

/// Returns the encrypted logins of some registries.
pub(crate) async fn sealed(
    db: &PgPool,
    team: TeamId,
    registries: &[String],
) -> sqlx::Result<Vec<(String, Vec<u8>)>> {
    let sql = "SELECT registry, sealed FROM registry_logins \
               WHERE team_id = $1 AND registry = ANY($2)";
    sqlx::query_as(sql).bind(team).bind(registries).fetch_all(db).await
}

/// Removes a login; `false` when there is none.
pub(crate) async fn delete(
    db: impl PgExecutor<'_>,
    team: TeamId,
    registry: &str,
) -> sqlx::Result<bool> {
    let sql = "DELETE FROM registry_logins WHERE team_id = $1 AND registry = $2";
    Ok(sqlx::query(sql).bind(team).bind(registry).execute(db).await?.rows_affected() == 1)
}
