//! Adoption of databases of earlier builds. Their 14 migrations made the schema that one migration
//! makes now (ADR 36). A database at the last of the 14 is adopted if its schema is the same. Every
//! other state of an earlier build is refused.

use super::catalog;
use anyhow::Context;
use sqlx::migrate::{AppliedMigration, Migrate, Migration, Migrator};
use sqlx::{Connection, PgConnection};

/// Table in which the library records migrations.
const TABLE: &str = "_sqlx_migrations";
/// Former migrations: number, and the first eight bytes of the file's SHA-384.
const FORMER: [(i64, u64); 14] = [
    (1, 0x67ad_55d9_ddaf_a00f),
    (2, 0xc6eb_597f_f77e_78b3),
    (3, 0x0961_6ab6_4dfc_0f23),
    (4, 0x2e29_c694_c1a7_b595),
    (5, 0x2a44_c021_57c6_86e5),
    (6, 0xea06_0833_6ad3_c470),
    (7, 0x97ec_17f6_cb5c_0137),
    (8, 0x1116_c3f4_336b_f530),
    (9, 0x3eea_a892_03ad_6757),
    (10, 0x9f14_a0fd_3ec0_9fdc),
    (11, 0xa801_7e50_29ad_f2b6),
    (13, 0x30fd_cab9_083a_2937),
    (14, 0xafb4_5356_66a5_dd0d),
    (15, 0x5edd_d6ee_f666_7317),
];
/// Context of a failure to read that table.
const READING: &str = "cannot read the database's migrations";
/// Most differences of a schema that a message names.
const NAMED: usize = 3;

/// Origin of a database, by its migrations.
#[derive(Debug, PartialEq, Eq)]
enum Origin {
    /// A database without migrations, or with this program's first one.
    Own,
    /// A database at the last of the former migrations.
    Former,
    /// A database at an earlier one of them.
    Older(i64),
    /// A database with a migration that is unknown or was changed.
    Unknown(i64),
}

/// Adopts a database at the last former migration, in one transaction. Leaves a database of this
/// program alone. The caller holds the lock of the migrations.
///
/// # Errors
/// Fails for every other database of an earlier build. The error names the remedy.
pub(super) async fn adopt_former(
    db: &mut PgConnection,
    migrations: &Migrator,
) -> anyhow::Result<()> {
    let first = migrations.iter().next().context("this wrenn contains no migrations")?;
    if !has_migrations(db).await.context(READING)? {
        return Ok(());
    }
    let applied = Migrate::list_applied_migrations(&mut *db, TABLE).await.context(READING)?;
    let (last, _) = FORMER[FORMER.len() - 1];
    match origin(&applied, first) {
        Origin::Own => Ok(()),
        Origin::Former => adopt(db, first).await,
        Origin::Older(version) => anyhow::bail!(
            "this wrenn cannot migrate a database at migration {version}; start the last build \
             with migration {last} once, then this wrenn"
        ),
        Origin::Unknown(version) => anyhow::bail!(
            "migration {version} of the database is unknown or changed; start the wrenn that \
             created the database, or use a new database"
        ),
    }
}

/// Reports whether the database has a table of migrations. An empty database has none.
async fn has_migrations(db: &mut PgConnection) -> sqlx::Result<bool> {
    let sql = "SELECT to_regclass('_sqlx_migrations') IS NOT NULL";
    sqlx::query_scalar(sql).fetch_one(db).await
}

/// Finds the origin of a database whose applied migrations are given in order.
fn origin(applied: &[AppliedMigration], first: &Migration) -> Origin {
    let is_own = |found: &AppliedMigration| {
        (found.version, &found.checksum) == (first.version, &first.checksum)
    };
    if applied.first().is_none_or(is_own) {
        return Origin::Own;
    }
    let is_former = |(at, found): &(usize, &AppliedMigration)| {
        FORMER.get(*at).is_some_and(|(version, checksum)| {
            found.version == *version && found.checksum.starts_with(&checksum.to_be_bytes())
        })
    };
    let strange = applied.iter().enumerate().find(|found| !is_former(found));
    match (strange, applied.last()) {
        (Some((_, found)), _) => Origin::Unknown(found.version),
        (None, Some(found)) if applied.len() < FORMER.len() => Origin::Older(found.version),
        (None, _) => Origin::Former,
    }
}

/// Replaces the former migrations by the first one of this program, if their schemas are equal.
async fn adopt(db: &mut PgConnection, first: &Migration) -> anyhow::Result<()> {
    let mut transaction = db.begin().await?;
    let differences = differences(&mut transaction, first).await?;
    if !differences.is_empty() {
        let named = differences.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>();
        let more = match differences.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        anyhow::bail!(
            "this wrenn cannot adopt the database, since its schema was changed: {}{more}; undo \
             the changes, or use a new database",
            named.join("; ")
        );
    }
    sqlx::query("DELETE FROM _sqlx_migrations").execute(&mut *transaction).await?;
    Migrate::skip(&mut *transaction, TABLE, first).await?;
    // The floor was a number of a former migration.
    let floor = sqlx::query("UPDATE schema_floor SET version = $1").bind(first.version);
    floor.execute(&mut *transaction).await?;
    transaction.commit().await?;
    tracing::info!("adopted the database of an earlier build");
    Ok(())
}

/// Returns the differences between the database's schema and the one that a migration makes. The
/// migration runs in a schema of its own, which a rollback removes.
async fn differences(db: &mut PgConnection, first: &Migration) -> anyhow::Result<Vec<String>> {
    let sql = "SELECT relnamespace::regnamespace::text FROM pg_class \
               WHERE oid = to_regclass('_sqlx_migrations')";
    let home: String = sqlx::query_scalar(sql).fetch_one(&mut *db).await?;
    let mut scratch = db.begin().await?;
    let made = sqlx::query("CREATE SCHEMA wrenn_adoption").execute(&mut *scratch).await;
    made.context(
        "cannot create a schema for comparison; grant the database user the privilege CREATE on \
         the database",
    )?;
    catalog::enter(&mut scratch, "wrenn_adoption").await?;
    let applied = sqlx::raw_sql(first.sql.clone()).execute(&mut *scratch).await;
    applied.context("cannot fill the schema for comparison")?;
    let wanted = catalog::describe(&mut scratch).await?;
    scratch.rollback().await?;
    catalog::enter(db, &home).await?;
    let found = catalog::describe(db).await?;
    let missing = wanted.difference(&found).map(|part| format!("missing is {part}"));
    let added = found.difference(&wanted).map(|part| format!("unexpected is {part}"));
    // PostgreSQL writes some expressions on several lines, and a message has one.
    Ok(missing.chain(added).map(|part| part.replace('\n', " ")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sqlx::migrate::MigrationType;

    fn own() -> Migration {
        let sql = sqlx::SqlSafeStr::into_sql_str("SELECT 1");
        Migration::new(1, "schema".into(), MigrationType::Simple, sql, false)
    }

    /// Returns the first `count` former migrations as applied ones.
    fn former(count: usize) -> Vec<AppliedMigration> {
        let of = |&(version, checksum): &(i64, u64)| {
            let mut whole = checksum.to_be_bytes().to_vec();
            whole.resize(48, 7);
            AppliedMigration { version, checksum: whole.into() }
        };
        FORMER[..count].iter().map(of).collect()
    }

    #[test]
    fn empty_database_is_own() {
        assert_eq!(origin(&[], &own()), Origin::Own);
    }

    #[test]
    fn database_with_own_first_migration_is_own_whatever_follows() {
        let own = own();
        let checksum = own.checksum.clone();
        let newer = AppliedMigration { version: 9999, checksum: vec![0].into() };
        let applied = [AppliedMigration { version: 1, checksum }, newer];
        assert_eq!(origin(&applied[..1], &own), Origin::Own);
        assert_eq!(origin(&applied, &own), Origin::Own);
    }

    #[test]
    fn only_all_former_migrations_are_former() {
        assert_eq!(origin(&former(14), &own()), Origin::Former);
        assert_eq!(origin(&former(13), &own()), Origin::Older(14));
        assert_eq!(origin(&former(1), &own()), Origin::Older(1));
    }

    #[test]
    fn changed_missing_or_later_migration_is_unknown() {
        let mut changed = former(14);
        changed[6].checksum = vec![0; 48].into();
        assert_eq!(origin(&changed, &own()), Origin::Unknown(7));
        let mut without = former(14);
        without.remove(3);
        assert_eq!(origin(&without, &own()), Origin::Unknown(5));
        let mut later = former(14);
        later.push(AppliedMigration { version: 16, checksum: vec![0; 48].into() });
        assert_eq!(origin(&later, &own()), Origin::Unknown(16));
        let other = [AppliedMigration { version: 1, checksum: vec![0; 48].into() }];
        assert_eq!(origin(&other, &own()), Origin::Unknown(1));
    }
}
