//! Health, version and metrics of the platform.

use crate::app::App;
use crate::auth::Operator;
use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use http::StatusCode;
use std::sync::Arc;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Reports the platform's health: 200, or 503 with the reason.
#[utoipa::path(
    operation_id = "get_health",
    get, path = "/health", tag = "platform", security(()),
    responses((status = 200, body = api::Health), (status = 503, body = api::Health))
)]
pub(crate) async fn health(State(app): State<Arc<App>>) -> impl IntoResponse {
    let up = app.healthy().await;
    let status = if up { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = if up { "ok" } else { "the database does not answer" };
    (status, Json(api::Health { status: word.to_owned(), version: VERSION.to_owned() }))
}

/// Returns the running version.
#[utoipa::path(
    operation_id = "get_version",
    get, path = "/version", tag = "platform", security(()),
    responses((status = 200, body = api::Version))
)]
pub(crate) async fn version() -> Json<api::Version> {
    Json(api::Version { version: VERSION.to_owned() })
}

/// Returns the platform's metrics in Prometheus' text format.
#[utoipa::path(
    operation_id = "get_metrics",
    get, path = "/metrics", tag = "platform",
    responses((status = 200, body = String), (status = 401, body = api::ErrorBody))
)]
pub(crate) async fn metrics(State(app): State<Arc<App>>, _operator: Operator) -> String {
    app.metrics.render()
}
