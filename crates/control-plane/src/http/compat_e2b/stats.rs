//! Metrics and logs of sandboxes, in E2B's shapes. The platform stores neither: metrics are the
//! guest's present ones, and logs are empty.

use super::request::SandboxRequest;
use super::sandbox_id;
use super::wire::{Logs, LogsV1, Metric, Metrics};
use crate::app::App;
use crate::auth::Caller;
use crate::capsules;
use crate::error::{Error, Result};
use crate::http::extract::Query;
use axum::Json;
use axum::extract::State;
use futures::StreamExt;
use std::sync::Arc;
use time::OffsetDateTime;

/// Most sandboxes whose metrics one request may ask for, as in E2B's service.
const SANDBOXES_MAX: usize = 100;
/// Guests that one request asks at a time.
const AT_ONCE: usize = 8;

/// A time window, in seconds since 1970.
#[derive(serde::Deserialize)]
pub(super) struct Window {
    start: Option<i64>,
    end: Option<i64>,
}

/// Answers with the present metrics when the window contains now, and with none otherwise.
pub(super) async fn of_one(
    request: SandboxRequest,
    Query(window): Query<Window>,
) -> Result<Json<Vec<Metric>>> {
    let capsule = request.present().await?;
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let contains_now = window.start.is_none_or(|start| start <= now)
        && window.end.is_none_or(|end| end >= now - 1);
    if !contains_now {
        return Ok(Json(Vec::new()));
    }
    let stats = capsules::guest_stats(&request.app, &capsule).await?;
    Ok(Json(stats.and_then(Metric::new).into_iter().collect()))
}

#[derive(serde::Deserialize)]
pub(super) struct Sandboxes {
    sandbox_ids: Option<String>,
}

/// Answers with the metrics of the running sandboxes among those asked for. The others are left
/// out.
pub(super) async fn of_many(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(asked): Query<Sandboxes>,
) -> Result<Json<Metrics>> {
    let ids = asked.sandbox_ids.ok_or_else(|| Error::invalid("sandbox_ids", "is required"))?;
    let ids: Vec<&str> = ids.split(',').filter(|id| !id.is_empty()).collect();
    if ids.len() > SANDBOXES_MAX {
        let message = format!("must name at most {SANDBOXES_MAX} sandboxes");
        return Err(Error::invalid("sandbox_ids", message));
    }
    let of = async |id: &str| -> Option<(String, Metric)> {
        let id = sandbox_id(id).ok()?;
        let capsule = capsules::get(&app, caller, id).await.ok()?;
        let stats = capsules::guest_stats(&app, &capsule).await.ok()??;
        Some((id.to_string(), Metric::new(stats)?))
    };
    let metrics = futures::stream::iter(ids).map(of).buffer_unordered(AT_ONCE);
    let sandboxes = metrics.filter_map(std::future::ready).collect().await;
    Ok(Json(Metrics { sandboxes }))
}

/// Answers with no lines for a sandbox that exists.
pub(super) async fn logs(request: SandboxRequest) -> Result<Json<LogsV1>> {
    request.present().await?;
    Ok(Json(LogsV1::default()))
}

/// Answers with no lines for a sandbox that exists, in the second API's shape.
pub(super) async fn logs_v2(request: SandboxRequest) -> Result<Json<Logs>> {
    request.present().await?;
    Ok(Json(Logs::default()))
}
