//! Version of the schema. Migrates up to this program's own version, and refuses a newer schema
//! that this program cannot serve.

use anyhow::Context;
use sqlx::PgConnection;

/// Brings the schema up to this program's version. A newer schema, for example after a rollback of
/// the program, is left as it is.
///
/// # Errors
/// Fails when the schema needs a newer program, or cannot be changed.
pub(crate) async fn migrate(db: &mut PgConnection) -> anyhow::Result<()> {
    let mut migrations = sqlx::migrate!("./migrations");
    migrations.set_ignore_missing(true);
    let own = migrations.iter().map(|migration| migration.version).max().unwrap_or(0);
    check_floor(db, own).await?;
    migrations.run(&mut *db).await.context("migrating the database")?;
    // A newer program may have migrated while this one waited for the lock.
    check_floor(db, own).await
}

/// Refuses a schema that needs a migration which this program does not know.
async fn check_floor(db: &mut PgConnection, own: i64) -> anyhow::Result<()> {
    let floor = floor(db).await.context("reading the version that the database needs")?;
    anyhow::ensure!(
        floor <= own,
        "this wrenn is too old for its database: the database needs a wrenn that knows migration \
         {floor}, and this one knows none after {own}; start a newer wrenn"
    );
    Ok(())
}

/// Returns the oldest migration that a program must know; 0 before the schema says so.
async fn floor(db: &mut PgConnection) -> sqlx::Result<i64> {
    let known = sqlx::query_scalar("SELECT to_regclass('schema_floor') IS NOT NULL");
    if !known.fetch_one(&mut *db).await? {
        return Ok(0);
    }
    let floor: Option<i64> =
        sqlx::query_scalar("SELECT max(version) FROM schema_floor").fetch_one(db).await?;
    Ok(floor.unwrap_or(0))
}
