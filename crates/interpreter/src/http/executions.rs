//! Executions by their ids: streams of later clients, and interrupts.

use super::{App, answer};
use crate::error::{Error, Result};
use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::Response;

#[derive(serde::Deserialize)]
pub(super) struct Attach {
    /// Lines that the caller has already, without keepalives.
    #[serde(default)]
    after: u64,
}

/// Streams the lines of an execution that the caller lacks.
pub(super) async fn attach(
    State(contexts): App,
    Path(id): Path<String>,
    Query(attach): Query<Attach>,
) -> Result<Response> {
    let executions = &contexts.services.executions;
    let execution = executions.find(&id).ok_or_else(|| Error::no_execution(&id))?;
    Ok(answer::lines(executions.attach(&execution, attach.after)?))
}

pub(super) async fn interrupt(State(contexts): App, Path(id): Path<String>) -> Result<Json<()>> {
    contexts.interrupt(&id).await?;
    Ok(Json(()))
}
