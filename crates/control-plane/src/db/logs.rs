//! Logs of capsules and of ended teams that are to be erased.

use super::capsules::{Capsule, columns};
use sqlx::{PgExecutor, PgPool};
use time::OffsetDateTime;
use types::{CapsuleId, TeamId};

/// A capsule whose log is to be erased, and the mark of the erasure.
#[derive(sqlx::FromRow)]
pub(crate) struct Marked {
    #[sqlx(flatten)]
    pub capsule: Capsule,
    pub erase_logs_since: OffsetDateTime,
}

/// Marks the log of a team's capsule as to be erased. Returns the mark; `None` if there is no row.
pub(crate) async fn mark(
    db: impl PgExecutor<'_>,
    team: TeamId,
    id: CapsuleId,
) -> sqlx::Result<Option<OffsetDateTime>> {
    let sql = "UPDATE capsules SET erase_logs_since = clock_timestamp() \
               WHERE id = $1 AND team_id = $2 RETURNING erase_logs_since";
    sqlx::query_scalar(sql).bind(id).bind(team).fetch_optional(db).await
}

/// Removes the mark of an erasure that is done. The mark of a later request stays.
pub(crate) async fn unmark(
    db: &PgPool,
    team: TeamId,
    id: CapsuleId,
    mark: OffsetDateTime,
) -> sqlx::Result<()> {
    let sql = "UPDATE capsules SET erase_logs_since = NULL \
               WHERE id = $1 AND team_id = $2 AND erase_logs_since = $3";
    sqlx::query(sql).bind(id).bind(team).bind(mark).execute(db).await.map(|_| ())
}

/// Lists up to `limit` teams that have ended and whose logs are not erased yet.
pub(crate) async fn list_ended_teams(db: &PgPool, limit: i64) -> sqlx::Result<Vec<TeamId>> {
    let sql = "SELECT id FROM teams WHERE deleted_at IS NOT NULL AND NOT logs_erased \
               ORDER BY deleted_at LIMIT $1";
    sqlx::query_scalar(sql).bind(limit).fetch_all(db).await
}

/// Records that the logs of a team that has ended are erased.
pub(crate) async fn set_team_erased(db: &PgPool, team: TeamId) -> sqlx::Result<()> {
    let sql = "UPDATE teams SET logs_erased = true WHERE id = $1 AND deleted_at IS NOT NULL";
    sqlx::query(sql).bind(team).execute(db).await.map(|_| ())
}

/// Lists capsules whose logs are to be erased, in the order of their ids.
pub(crate) async fn list_marked(
    db: &PgPool,
    after: Option<CapsuleId>,
    limit: i64,
) -> sqlx::Result<Vec<Marked>> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        ", erase_logs_since FROM capsules WHERE erase_logs_since IS NOT NULL \
         AND ($1::uuid IS NULL OR id > $1) ORDER BY id LIMIT $2"
    );
    sqlx::query_as(sql).bind(after).bind(limit).fetch_all(db).await
}
