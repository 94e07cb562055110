//! Rows of the keys that make a create repeatable.

use super::capsules::{Capsule, columns};
use sqlx::{FromRow, PgPool, Row};
use types::{CapsuleId, TeamId};

/// Returns the hash of the request that a team's key was used for, and the capsule that it created.
/// The capsule may have been removed since.
pub(crate) async fn find(
    db: &PgPool,
    team: TeamId,
    key: &str,
) -> sqlx::Result<Option<(Vec<u8>, Capsule)>> {
    let sql = concat!(
        "SELECT k.request_hash, c.* FROM idempotency_keys k JOIN (SELECT ",
        columns!(),
        " \
               FROM capsules) c ON c.id = k.capsule_id WHERE k.team_id = $1 AND k.key = $2"
    );
    let row = sqlx::query(sql).bind(team).bind(key).fetch_optional(db).await?;
    row.map(|row| Ok((row.try_get("request_hash")?, Capsule::from_row(&row)?))).transpose()
}

/// Removes a key, if the key created this capsule.
pub(crate) async fn forget(
    db: &PgPool,
    team: TeamId,
    key: &str,
    capsule: CapsuleId,
) -> sqlx::Result<()> {
    let sql = "DELETE FROM idempotency_keys WHERE team_id = $1 AND key = $2 AND capsule_id = $3";
    sqlx::query(sql).bind(team).bind(key).bind(capsule).execute(db).await.map(|_| ())
}
