//! Version of the schema. Migrates up to this program's own version, adopts the database of an
//! earlier build, and refuses a newer schema that this program cannot serve.

mod adoption;
mod catalog;

use anyhow::Context;
use sqlx::PgConnection;
use sqlx::migrate::{Migrate, Migrator};

/// Brings the schema up to this program's version. A newer schema, for example after a rollback of
/// the program, is left as it is.
///
/// # Errors
/// Fails when the schema needs a newer program, cannot be changed, or is that of an unknown build.
pub(crate) async fn migrate(db: &mut PgConnection) -> anyhow::Result<()> {
    let mut migrations = sqlx::migrate!("./migrations");
    migrations.set_ignore_missing(true);
    // The adoption needs the same lock, so this function takes the lock for both.
    migrations.set_locking(false);
    Migrate::lock(&mut *db).await.context("cannot lock the database for migrations")?;
    // After a failure, the end of the connection releases the lock.
    under_lock(db, &migrations).await?;
    Migrate::unlock(db).await.context("cannot unlock the database after migrations")
}

async fn under_lock(db: &mut PgConnection, migrations: &Migrator) -> anyhow::Result<()> {
    adoption::adopt_former(db, migrations).await?;
    let own = migrations.iter().map(|migration| migration.version).max().unwrap_or(0);
    check_floor(db, own).await?;
    migrations.run(&mut *db).await.context("cannot migrate the database")
}

/// Refuses a schema that needs a migration which this program does not know.
async fn check_floor(db: &mut PgConnection, own: i64) -> anyhow::Result<()> {
    let floor =
        floor(db).await.context("cannot read the oldest migration that the database needs")?;
    anyhow::ensure!(
        floor <= own,
        "this wrenn is too old: the database needs migration {floor}, but this wrenn ends at \
         {own}; start a newer wrenn"
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
