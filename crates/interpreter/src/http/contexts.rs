//! Contexts: their creation, list, restart, removal and state.

use super::{App, body};
use crate::context::View;
use crate::error::{Error, Result};
use crate::kernel::Question;
use axum::Json;
use axum::extract::{Path, Request, State};
use serde_json::Value;

/// Body of a creation. SDKs omit absent values, or send null.
#[derive(serde::Deserialize)]
struct Create {
    language: Option<String>,
    cwd: Option<String>,
}

/// Body of a completion.
#[derive(serde::Deserialize)]
struct Complete {
    code: String,
    /// Place in the code, in characters.
    cursor: usize,
}

pub(super) async fn create(State(contexts): App, request: Request) -> Result<Json<View>> {
    let create = body::other::<Create>(request).await?;
    let context = contexts.create(create.language.as_deref(), create.cwd.as_deref()).await?;
    Ok(Json(context.view().await))
}

pub(super) async fn list(State(contexts): App) -> Json<Vec<View>> {
    let views = contexts.list().into_iter().map(|context| async move { context.view().await });
    Json(futures::future::join_all(views).await)
}

pub(super) async fn get(State(contexts): App, Path(id): Path<String>) -> Result<Json<View>> {
    Ok(Json(contexts.get(&id)?.view().await))
}

pub(super) async fn remove(State(contexts): App, Path(id): Path<String>) -> Result<Json<()>> {
    contexts.remove(&id).await?;
    Ok(Json(()))
}

pub(super) async fn restart(State(contexts): App, Path(id): Path<String>) -> Result<Json<()>> {
    contexts.get(&id)?.restart(false).await?;
    Ok(Json(()))
}

/// Interrupts the execution under way, if there is one.
pub(super) async fn interrupt(State(contexts): App, Path(id): Path<String>) -> Result<Json<()>> {
    contexts.get(&id)?.interrupt(None).await?;
    Ok(Json(()))
}

pub(super) async fn complete(
    State(contexts): App,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<Value>> {
    let context = contexts.get(&id)?;
    let Complete { code, cursor } = body::other(request).await?;
    if cursor > code.chars().count() {
        return Err(Error::unprocessable("cursor: it is beyond the end of the code"));
    }
    Ok(Json(context.ask(Question::Complete { code, cursor }).await?))
}

pub(super) async fn variables(State(contexts): App, Path(id): Path<String>) -> Result<Json<Value>> {
    Ok(Json(contexts.get(&id)?.ask(Question::Variables).await?))
}
