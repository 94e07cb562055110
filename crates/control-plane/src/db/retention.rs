//! Removal of old rows, a bounded number at a time.

use super::pool::UNHURRIED;
use sqlx::{Executor, PgPool};

/// Tables with the column of a row's age, the condition on rows to remove, and the days that they
/// stay.
const OLD: [(&str, &str, &str, i32); 13] = [
    ("sessions", "expires_at", "true", 0),
    ("user_tokens", "expires_at", "true", 0),
    ("sign_ins", "expires_at", "true", 0),
    ("sign_in_failures", "last_at", "true", 1),
    ("invitations", "expires_at", "true", 0),
    ("deliveries", "created_at", "status <> 'waiting'", 30),
    ("events", "created_at", "true", 30),
    ("idempotency_keys", "created_at", "true", 1),
    ("build_keys", "created_at", "true", 1),
    ("build_logs", "at", "true", 30),
    ("capsules", "updated_at", "status = 'stopped'", 30),
    ("builds", "ended_at", "status = 'error'", 90),
    ("template_tags", "deleted_at", "true", 90),
];

/// Removes up to `limit` old rows from each table. Entries of the audit log stay for `audit_days`
/// days, or for ever without a number. Returns whether more rows may remain.
pub(crate) async fn forget(db: &PgPool, audit_days: Option<i32>, limit: i64) -> sqlx::Result<bool> {
    let audit = audit_days.map(|days| ("audit_logs", "created_at", "true", days));
    let mut more = false;
    for (table, age, which, days) in OLD.into_iter().chain(audit) {
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
