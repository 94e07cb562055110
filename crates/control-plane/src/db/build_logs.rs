//! Lines of builds' logs. `seq` counts from 1 without gaps.

use super::decode::{Unsigned, signed};
use sqlx::PgPool;
use time::OffsetDateTime;
use types::BuildId;

/// Level of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

types::text_enum!(Level, "level", {
    Debug = "debug",
    Info = "info",
    Warn = "warn",
    Error = "error",
});

impl Level {
    /// Lists this level and all higher ones.
    pub(crate) fn and_above(self) -> Vec<Self> {
        Self::ALL.into_iter().filter(|level| *level >= self).collect()
    }
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Line {
    #[sqlx(try_from = "Unsigned")]
    pub seq: u64,
    pub at: OffsetDateTime,
    pub level: Level,
    /// Step of the last stage.
    pub step: Option<i32>,
    pub text: String,
}

/// Returns up to `limit` lines from number `from` on, of a level or above.
pub(crate) async fn from(
    db: &PgPool,
    build: BuildId,
    from: u64,
    level: Level,
    limit: i64,
) -> sqlx::Result<Vec<Line>> {
    let sql = "SELECT seq, at, level, step, text FROM build_logs WHERE build_id = $1 \
               AND seq >= $2 AND level = ANY($3) ORDER BY seq LIMIT $4";
    let list = sqlx::query_as(sql).bind(build).bind(signed(from)).bind(level.and_above());
    list.bind(limit).fetch_all(db).await
}

/// Returns up to `limit` lines of a level or above, without the first `skip` of them.
pub(crate) async fn after(
    db: &PgPool,
    build: BuildId,
    skip: u64,
    level: Level,
    limit: i64,
) -> sqlx::Result<Vec<Line>> {
    if level == Level::Debug {
        return from(db, build, skip.saturating_add(1), level, limit).await;
    }
    let sql = "SELECT seq, at, level, step, text FROM build_logs WHERE build_id = $1 \
               AND level = ANY($2) ORDER BY seq LIMIT $3 OFFSET $4";
    let list = sqlx::query_as(sql).bind(build).bind(level.and_above()).bind(limit);
    list.bind(signed(skip)).fetch_all(db).await
}

/// Returns up to `limit` lines after a time, or before it and newest first.
pub(crate) async fn around(
    db: &PgPool,
    build: BuildId,
    at: Option<OffsetDateTime>,
    backward: bool,
    level: Level,
    limit: i64,
) -> sqlx::Result<Vec<Line>> {
    let sql = match backward {
        false => {
            "SELECT seq, at, level, step, text FROM build_logs WHERE build_id = $1 \
             AND level = ANY($2) AND ($3::timestamptz IS NULL OR at >= $3) ORDER BY seq LIMIT $4"
        }
        true => {
            "SELECT seq, at, level, step, text FROM build_logs WHERE build_id = $1 \
             AND level = ANY($2) AND ($3::timestamptz IS NULL OR at <= $3) \
             ORDER BY seq DESC LIMIT $4"
        }
    };
    let list = sqlx::query_as(sql).bind(build).bind(level.and_above()).bind(at);
    list.bind(limit).fetch_all(db).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_includes_all_higher_levels() {
        assert_eq!(Level::Debug.and_above(), Level::ALL);
        assert_eq!(Level::Warn.and_above(), [Level::Warn, Level::Error]);
    }
}
