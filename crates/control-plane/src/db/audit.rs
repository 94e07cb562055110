//! Rows of the audit log.

use super::insert::Insert;
use crate::audit::{ActorKind, Entry};
use serde_json::Value;
use sqlx::{PgExecutor, PgPool, Postgres, QueryBuilder};
use time::OffsetDateTime;
use types::{AuditLogId, TeamId};

/// Name of the table.
pub(super) const TABLE: &str = "audit_logs";

/// Outcome of a request that the log has an entry for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ok,
    Refused,
}

types::text_enum!(Outcome, "status", { Ok = "ok", Refused = "refused" });

#[derive(sqlx::FromRow)]
pub(crate) struct Row {
    pub id: AuditLogId,
    pub team_id: TeamId,
    pub actor_type: ActorKind,
    pub actor_id: String,
    pub address: Option<String>,
    pub resource_type: String,
    pub resource_id: String,
    pub action: String,
    #[sqlx(rename = "status")]
    pub outcome: Outcome,
    pub metadata: Value,
    pub created_at: OffsetDateTime,
}

/// Writes an entry. The caller passes the transaction of the change that the entry describes.
pub(crate) async fn write(db: impl PgExecutor<'_>, entry: &Entry) -> sqlx::Result<()> {
    fill(Insert::into(TABLE), entry).execute(db).await.map(|_| ())
}

/// Sets the columns of an entry in an insert into [`TABLE`].
pub(super) fn fill(insert: Insert, entry: &Entry) -> Insert {
    let outcome = if entry.refused { Outcome::Refused } else { Outcome::Ok };
    insert
        .set("id", AuditLogId::new())
        .set("team_id", entry.team)
        .set("actor_type", entry.by.principal.kind())
        .set("actor_id", entry.by.principal.id())
        .set("address", entry.by.from.map(|ip| ip.to_string()))
        .set("resource_type", entry.resource_type())
        .set("resource_id", &entry.resource)
        .set("action", entry.action)
        .set("status", outcome)
        .set("metadata", &entry.metadata)
}

/// Conditions on the entries to list. A field that is `None` sets no condition.
#[derive(Debug, Default, Clone)]
pub(crate) struct Filter {
    pub actor: Option<String>,
    pub resource: Option<String>,
    pub resource_type: Option<String>,
    pub action: Option<String>,
    pub status: Option<String>,
    pub from: Option<OffsetDateTime>,
    pub to: Option<OffsetDateTime>,
}

/// Returns a page of a team's entries, newest first. `None` selects the entries of all teams.
pub(crate) async fn list(
    db: &PgPool,
    team: Option<TeamId>,
    filter: &Filter,
    before: Option<AuditLogId>,
    limit: i64,
) -> sqlx::Result<Vec<Row>> {
    let mut sql = QueryBuilder::<Postgres>::new(
        "SELECT id, team_id, actor_type, actor_id, address, resource_type, \
         resource_id, action, status, metadata, created_at FROM audit_logs WHERE true",
    );
    if let Some(team) = team {
        sql.push(" AND team_id = ").push_bind(team);
    }
    let texts = [
        (" AND actor_id = ", &filter.actor),
        (" AND resource_id = ", &filter.resource),
        (" AND resource_type = ", &filter.resource_type),
        (" AND action = ", &filter.action),
        (" AND status = ", &filter.status),
    ];
    for (condition, value) in texts {
        if let Some(value) = value {
            sql.push(condition).push_bind(value.clone());
        }
    }
    if let Some(from) = filter.from {
        sql.push(" AND created_at >= ").push_bind(from);
    }
    if let Some(to) = filter.to {
        sql.push(" AND created_at < ").push_bind(to);
    }
    if let Some(before) = before {
        sql.push(" AND (created_at, id) < (SELECT created_at, id FROM audit_logs WHERE id = ");
        sql.push_bind(before).push(")");
    }
    sql.push(" ORDER BY created_at DESC, id DESC LIMIT ").push_bind(limit);
    sql.build_query_as().fetch_all(db).await
}

/// Removes a user's identity from all entries that name the user or the user's e-mail.
pub(crate) async fn anonymise(
    db: impl PgExecutor<'_>,
    user: &str,
    email: &str,
) -> sqlx::Result<()> {
    let sql = "UPDATE audit_logs SET \
               actor_id = CASE WHEN actor_id = $1 THEN 'erased' ELSE actor_id END, \
               resource_id = CASE WHEN resource_id = $1 THEN 'erased' ELSE resource_id END, \
               address = CASE WHEN actor_id = $1 THEN NULL ELSE address END, \
               metadata = metadata - 'email' - 'name' - 'user' \
               WHERE actor_id = $1 OR resource_id = $1 OR metadata ->> 'user' = $1 \
               OR metadata ->> 'email' = $2";
    sqlx::query(sql).bind(user).bind(email).execute(db).await.map(|_| ())
}
