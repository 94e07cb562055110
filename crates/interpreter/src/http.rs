//! The HTTP of port 49999: E2B's calls, and those of the platform's own API.

mod answer;
mod body;
mod contexts;
mod execute;
mod executions;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod listener;

pub(crate) use listener::serve;

use crate::contexts::Contexts;
use crate::error::{Error, Result};
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use std::sync::Arc;
use tower_http::cors::CorsLayer;

/// State of all handlers.
type App = State<Arc<Contexts>>;

/// Makes the router of all routes.
fn router(contexts: Arc<Contexts>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/execute", post(execute::execute))
        .route("/contexts", get(contexts::list).post(contexts::create))
        .route("/contexts/{id}", get(contexts::get).delete(contexts::remove))
        .route("/contexts/{id}/restart", post(contexts::restart))
        .route("/contexts/{id}/interrupt", post(contexts::interrupt))
        .route("/contexts/{id}/complete", post(contexts::complete))
        .route("/contexts/{id}/variables", get(contexts::variables))
        .route("/executions/{id}", get(executions::attach))
        .route("/executions/{id}/interrupt", post(executions::interrupt))
        .fallback(no_route)
        .layer(CorsLayer::permissive())
        .with_state(contexts)
}

/// Answers once the contexts of the start are up.
async fn health(State(contexts): App) -> Result<Json<&'static str>> {
    match contexts.is_ready() {
        true => Ok(Json("OK")),
        false => Err(Error::new(StatusCode::SERVICE_UNAVAILABLE, "the kernels are starting")),
    }
}

async fn no_route() -> Error {
    Error::new(StatusCode::NOT_FOUND, "there is no such route")
}

#[cfg(test)]
mod tests;
