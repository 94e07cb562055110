//! Secrets that the replicas share.

use sqlx::PgPool;

/// Returns the secret of a name. The first caller creates it.
pub(crate) async fn load(db: &PgPool, name: &str) -> sqlx::Result<Vec<u8>> {
    let fresh: [u8; 32] = rand::random();
    let sql = "INSERT INTO secrets (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    sqlx::query(sql).bind(name).bind(fresh.as_slice()).execute(db).await?;
    let sql = "SELECT value FROM secrets WHERE name = $1";
    sqlx::query_scalar(sql).bind(name).fetch_one(db).await
}
