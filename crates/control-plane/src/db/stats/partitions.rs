//! The days of the tables of stats. No lock here blocks requests. A day is attached, and detached
//! concurrently, under locks that readers and writers share. Each step may be interrupted, and the
//! next call completes it.

use sqlx::{AssertSqlSafe, PgPool};
use time::macros::format_description;
use time::{Date, Duration};

/// A table with a partition for each day, and the time that its rows stay.
pub(crate) struct Kept {
    pub table: &'static str,
    /// Days before the present one. `None` keeps no day at all.
    pub days: Option<i64>,
}

/// A partition in the catalog.
#[derive(sqlx::FromRow)]
struct Partition {
    name: String,
    /// True in the middle of a detachment; `None` for a table that is detached.
    detaching: Option<bool>,
}

/// Makes a table's missing days from `first` to the day after `today`, and drops days that are too
/// old.
pub(crate) async fn keep(db: &PgPool, kept: &Kept, first: Date, today: Date) -> sqlx::Result<()> {
    let oldest = kept.days.map(|days| today - Duration::days(days));
    let is_old = |day: Date| oldest.is_none_or(|oldest| day < oldest);
    let (old, found): (Vec<_>, Vec<_>) = list(db, kept.table)
        .await?
        .into_iter()
        .filter_map(|partition| Some((day_of(kept.table, &partition.name)?, partition)))
        // A day that was being dropped goes, even if days are kept for longer now.
        .partition(|(day, partition)| is_old(*day) || partition.detaching != Some(false));
    let mut day = first;
    while kept.days.is_some() && day <= today + Duration::DAY {
        let is_there = |(known, _): &(Date, Partition)| *known == day;
        if !found.iter().chain(&old).any(is_there) {
            make(db, kept.table, &name(kept.table, day), day).await?;
        }
        day += Duration::DAY;
    }
    for (_, partition) in old {
        drop_partition(db, kept.table, &partition).await?;
    }
    Ok(())
}

/// Lists the days of a table, attached or not.
async fn list(db: &PgPool, table: &str) -> sqlx::Result<Vec<Partition>> {
    let sql = "SELECT c.relname::text AS name, i.inhdetachpending AS detaching \
               FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid \
               WHERE c.relkind = 'r' AND c.relnamespace = \
               (SELECT relnamespace FROM pg_class WHERE oid = to_regclass($1)) \
               AND starts_with(c.relname::text, $1 || '_') ORDER BY 1";
    sqlx::query_as(sql).bind(table).fetch_all(db).await
}

async fn make(db: &PgPool, table: &str, name: &str, day: Date) -> sqlx::Result<()> {
    let next = day + Duration::DAY;
    let sql = format!(
        "CREATE TABLE {name} (LIKE {table} INCLUDING ALL); \
         ALTER TABLE {table} ATTACH PARTITION {name} \
         FOR VALUES FROM ('{day} 00:00:00+00') TO ('{next} 00:00:00+00')"
    );
    let mut tx = db.begin().await?;
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *tx).await?;
    tx.commit().await
}

async fn drop_partition(db: &PgPool, table: &str, partition: &Partition) -> sqlx::Result<()> {
    let name = &partition.name;
    let how = match partition.detaching {
        None => None,
        Some(false) => Some("CONCURRENTLY"),
        Some(true) => Some("FINALIZE"),
    };
    if let Some(how) = how {
        let sql = format!("ALTER TABLE {table} DETACH PARTITION {name} {how}");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(db).await?;
    }
    let sql = format!("DROP TABLE {name}");
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(db).await?;
    tracing::info!(name, "dropped a day of stats");
    Ok(())
}

fn name(table: &str, day: Date) -> String {
    let (year, month, day) = (day.year(), u8::from(day.month()), day.day());
    format!("{table}_{year:04}{month:02}{day:02}")
}

/// Returns the day of a partition; `None` for a name that is no partition's.
fn day_of(table: &str, name: &str) -> Option<Date> {
    let day = name.strip_prefix(table)?.strip_prefix('_')?;
    Date::parse(day, format_description!("[year][month][day]")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::date;

    #[test]
    fn name_of_a_partition_tells_its_day() {
        let named = name("stats_fine", date!(2026 - 03 - 09));
        assert_eq!(named, "stats_fine_20260309");
        assert_eq!(day_of("stats_fine", &named), Some(date!(2026 - 03 - 09)));
        for other in ["stats_fine", "stats_fine_x", "stats_coarse_20260309", "stats_fine_20261399"]
        {
            assert_eq!(day_of("stats_fine", other), None, "{other}");
        }
    }
}
