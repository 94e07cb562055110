//! Every route of the API in one list.

mod capsules;
mod exec;
mod files;

use crate::app::App;
use crate::auth::Caller;
use crate::db;
use crate::error::{Error, Result};
use axum::extract::{DefaultBodyLimit, State};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use std::sync::Arc;
use types::{PLATFORM_TEAM, TemplateId};

/// Largest JSON body.
const JSON_MAX: usize = 20 << 20;

pub(crate) fn router(app: Arc<App>) -> Router {
    let files = Router::new()
        .route("/v1/capsules/{id}/files", get(files::read).put(files::write))
        .layer(DefaultBodyLimit::disable());
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/v1/capsules", get(capsules::list).post(capsules::create))
        .route("/v1/capsules/{id}", get(capsules::get).delete(capsules::delete))
        .route("/v1/capsules/{id}/logs", get(capsules::logs))
        .route("/v1/capsules/{id}/exec", post(exec::exec))
        .route("/v1/capsules/{id}/processes", get(exec::list))
        .route("/v1/capsules/{id}/processes/{selector}", axum::routing::delete(exec::kill))
        .route("/v1/capsules/{id}/files/list", post(files::list))
        .route("/v1/capsules/{id}/files/stat", post(files::stat))
        .route("/v1/capsules/{id}/files/mkdir", post(files::mkdir))
        .route("/v1/capsules/{id}/files/move", post(files::rename))
        .route("/v1/capsules/{id}/files/remove", post(files::remove))
        .route("/v1/templates", get(templates))
        .route("/v1/hosts", get(hosts))
        .layer(DefaultBodyLimit::max(JSON_MAX))
        .merge(files)
        .fallback(|| async { Error::NotFound("route") })
        .with_state(app)
}

async fn health(State(app): State<Arc<App>>) -> impl IntoResponse {
    let up = sqlx::query("SELECT 1").execute(&app.db).await.is_ok();
    let status = if up { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = if up { "ok" } else { "the database does not answer" };
    let version = env!("CARGO_PKG_VERSION").to_owned();
    (status, Json(api::Health { status: word.to_owned(), version }))
}

async fn metrics(State(app): State<Arc<App>>, _caller: Caller) -> String {
    app.metrics.run_upkeep();
    app.metrics.render()
}

async fn templates(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<api::TemplateList>> {
    let shown = |t: db::templates::Template| api::Template {
        id: TemplateId(t.id).to_string(),
        name: t.name,
        vcpus: t.vcpus,
        memory_mb: t.memory_mib,
        disk_mb: t.disk_mib,
        shared: t.team_id == PLATFORM_TEAM.0,
        created_at: t.created_at,
    };
    let items = db::templates::list(&app.db, caller.team).await?;
    Ok(Json(api::TemplateList { items: items.into_iter().map(shown).collect() }))
}

async fn hosts(State(app): State<Arc<App>>, _caller: Caller) -> Result<Json<api::HostList>> {
    Ok(Json(api::HostList { items: db::hosts::list(&app.db).await? }))
}

/// A JSON body whose errors are ours.
pub(crate) fn json<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T> {
    let body = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|e| Error::invalid("body:", e.to_string()))
}
