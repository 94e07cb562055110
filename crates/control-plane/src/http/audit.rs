//! `/v1/audit-logs`: the audit log of a team.

use super::extract::Query;
use super::paging::{cursor, paged};
use crate::app::App;
use crate::audit::log;
use crate::auth::{Caller, Operator};
use crate::db::audit::{Filter, Row};
use crate::error::{Error, Result};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use std::sync::Arc;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use types::AuditLogId;
use utoipa::IntoParams;

/// Rows of one step of an export.
const STEP: i64 = 1000;

/// Filters and page of a list of entries.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct AuditQuery {
    /// Value of `next` from the previous page.
    before: Option<String>,
    /// Number of entries, 1 to 100. The default is 100.
    limit: Option<u32>,
    /// Id of the actor.
    actor: Option<String>,
    /// Id of the resource.
    resource: Option<String>,
    /// Type of the resource, such as `capsule`, `api_key` or `member`.
    resource_type: Option<String>,
    /// Action, such as `capsule.pause`.
    action: Option<String>,
    /// Outcome: `ok` or `refused`.
    status: Option<String>,
    /// Earliest time of an entry (RFC 3339).
    from: Option<String>,
    /// Time before which entries must lie (RFC 3339).
    to: Option<String>,
}

impl AuditQuery {
    /// Returns the position and the size of the page.
    fn page(&self) -> Result<(Option<AuditLogId>, i64)> {
        cursor(self.before.as_deref(), self.limit, "an entry")
    }

    fn filter(&self) -> Result<Filter> {
        let time = |field: &str, text: &Option<String>| {
            let wrong = |_| Error::invalid(field, "must be a time such as 2026-11-26T12:00:00Z");
            let parsed = text.as_deref().map(|text| OffsetDateTime::parse(text, &Rfc3339));
            parsed.transpose().map_err(wrong)
        };
        Ok(Filter {
            actor: self.actor.clone(),
            resource: self.resource.clone(),
            resource_type: self.resource_type.clone(),
            action: self.action.clone(),
            status: self.status.clone(),
            from: time("from", &self.from)?,
            to: time("to", &self.to)?,
        })
    }
}

fn to_api(row: Row) -> api::AuditLog {
    api::AuditLog {
        id: row.id.to_string(),
        team_id: row.team_id.to_string(),
        actor_type: row.actor_type.to_string(),
        actor_id: row.actor_id,
        address: row.address,
        resource_type: row.resource_type,
        resource_id: row.resource_id,
        action: row.action,
        status: row.outcome.to_string(),
        metadata: row.metadata,
        created_at: row.created_at,
    }
}

fn page(rows: Vec<Row>, limit: i64) -> Json<api::AuditLogPage> {
    let (items, next) = paged(rows, limit, to_api, |entry| entry.id.clone());
    Json(api::AuditLogPage { items, next })
}

/// Lists the team's actions and refused requests, newest first.
#[utoipa::path(
    operation_id = "list_audit_logs",
    get, path = "/v1/audit-logs", tag = "audit", params(AuditQuery),
    responses((status = 200, body = api::AuditLogPage), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(wanted): Query<AuditQuery>,
) -> Result<Json<api::AuditLogPage>> {
    let (before, limit) = wanted.page()?;
    let rows = log::of_team(&app, caller, &wanted.filter()?, before, limit + 1).await?;
    Ok(page(rows, limit))
}

/// Lists actions and refused requests of the whole platform, newest first.
#[utoipa::path(
    operation_id = "list_all_audit_logs",
    get, path = "/v1/admin/audit-logs", tag = "admin", params(AuditQuery),
    responses((status = 200, body = api::AuditLogPage), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn list_all(
    State(app): State<Arc<App>>,
    operator: Operator,
    Query(wanted): Query<AuditQuery>,
) -> Result<Json<api::AuditLogPage>> {
    let (before, limit) = wanted.page()?;
    let rows = log::of_platform(&app, operator, &wanted.filter()?, before, limit + 1).await?;
    Ok(page(rows, limit))
}

/// Exports the team's audit log as JSON lines, newest first. The filters of the list apply, except
/// `limit`.
#[utoipa::path(
    operation_id = "export_audit_logs",
    get, path = "/v1/audit-logs/export", tag = "audit", params(AuditQuery),
    responses(
        (status = 200, description = "Audit entries as JSON lines", content_type = "application/x-ndjson"),
        (status = "4XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn export(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(wanted): Query<AuditQuery>,
) -> Result<Response> {
    let (before, _) = wanted.page()?;
    let filter = wanted.filter()?;
    let steps = futures::stream::try_unfold(Some(before), move |at| {
        let (app, filter) = (Arc::clone(&app), filter.clone());
        async move {
            let Some(before) = at else { return Ok(None) };
            let rows = log::of_team(&app, caller, &filter, before, STEP).await;
            let rows = rows.map_err(std::io::Error::other)?;
            let last = rows.last().map(|row| row.id);
            // An incomplete step is the last.
            let next = last.filter(|_| rows.len() >= usize::try_from(STEP).unwrap_or(0)).map(Some);
            let mut lines = Vec::new();
            for row in rows {
                serde_json::to_writer(&mut lines, &to_api(row))?;
                lines.push(b'\n');
            }
            Ok::<_, std::io::Error>(Some((Bytes::from(lines), next)))
        }
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(steps)).into_response())
}
