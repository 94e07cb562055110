//! What is forgotten in time, a bounded number of rows at once.

use super::pool::UNHURRIED;
use sqlx::{Executor, PgPool};

/// Tables with what tells a row's age, which of the rows, and how many days they are kept.
const OLD: [(&str, &str, &str, i32); 9] = [
    ("sessions", "expires_at", "true", 0),
    ("user_tokens", "expires_at", "true", 0),
    ("sign_ins", "expires_at", "true", 0),
    ("sign_in_failures", "last_at", "true", 1),
    ("invitations", "expires_at", "true", 0),
    ("deliveries", "created_at", "status <> 'waiting'", 30),
    ("events", "created_at", "true", 30),
    ("idempotency_keys", "created_at", "true", 1),
    ("capsules", "updated_at", "status = 'stopped'", 30),
];

/// Forgets up to so many rows of each table that are older than their time, the audit log's after
/// so many days, of which 0 is never. Returns whether there may be more.
pub(crate) async fn forget(db: &PgPool, audit_days: i32, limit: i64) -> sqlx::Result<bool> {
    let audit = ("audit_logs", "created_at", "true", audit_days);
    let mut more = false;
    for (table, age, which, days) in OLD.into_iter().chain((audit_days > 0).then_some(audit)) {
        let sql = format!(
            "DELETE FROM {table} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {table} \
             WHERE {age} < now() - make_interval(days => $1) AND {which} LIMIT $2))"
        );
        let remove = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(days).bind(limit);
        let mut tx = db.begin().await?;
        tx.execute(UNHURRIED).await?;
        let removed = remove.execute(&mut *tx).await?.rows_affected();
        tx.commit().await?;
        more |= i64::try_from(removed).unwrap_or(limit) >= limit;
    }
    Ok(more)
}
