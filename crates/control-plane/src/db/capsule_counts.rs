//! Counts of a team's capsules by state. Triggers append a row for each change of a count
//! (migration 0006), and the leader adds the rows up.

use sqlx::PgPool;
use types::{CapsuleState, TeamId};

/// Returns the number of a team's capsules in each state. Capsules of builds do not count.
pub(crate) async fn of(db: &PgPool, team: TeamId) -> sqlx::Result<Vec<(CapsuleState, i64)>> {
    let sql = "SELECT status, sum(delta)::bigint FROM capsule_counts WHERE team_id = $1 \
               GROUP BY status";
    sqlx::query_as(sql).bind(team).fetch_all(db).await
}

/// Rows of a team from which on they are added up. A team has a row for each state at the least.
const ROWS: i64 = 32;

/// Replaces up to `limit` rows of busy teams by their sums. Returns whether there were any. A
/// reader sees either the rows or their sums, since one statement replaces them.
pub(crate) async fn add_up(db: &PgPool, limit: i64) -> sqlx::Result<bool> {
    let sql = "WITH busy AS (SELECT team_id FROM capsule_counts GROUP BY team_id \
               HAVING count(*) > $2 LIMIT 100), \
               old AS (DELETE FROM capsule_counts WHERE ctid = ANY(ARRAY(\
               SELECT ctid FROM capsule_counts WHERE team_id IN (SELECT team_id FROM busy) \
               LIMIT $1)) RETURNING team_id, status, delta), \
               sums AS (INSERT INTO capsule_counts (team_id, status, delta) \
               SELECT team_id, status, sum(delta)::bigint FROM old GROUP BY team_id, status \
               HAVING sum(delta) <> 0 RETURNING status) \
               SELECT count(*) > 0 FROM old";
    sqlx::query_scalar(sql).bind(limit).bind(ROWS).fetch_one(db).await
}
