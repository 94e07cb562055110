//! `/v1/capsules`: wire to domain and back.

use super::json;
use crate::app::App;
use crate::auth::Caller;
use crate::error::{Error, Result};
use crate::{capsules, db};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use http::StatusCode;
use std::sync::Arc;
use types::CapsuleId;

const PAGE: u32 = 100;

/// An id from a path; anything that is none names nothing.
pub(crate) fn capsule_id(text: &str) -> Result<CapsuleId> {
    text.parse().map_err(|_| Error::NotFound("capsule"))
}

pub(crate) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    body: Bytes,
) -> Result<(StatusCode, Json<api::Capsule>)> {
    let capsule = capsules::create(app, caller, json(&body)?).await?;
    Ok((StatusCode::CREATED, Json(capsules::shown(capsule))))
}

#[derive(serde::Deserialize)]
pub(crate) struct Page {
    before: Option<String>,
    limit: Option<u32>,
}

pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(page): Query<Page>,
) -> Result<Json<api::CapsulePage>> {
    let bad = |_| Error::invalid("before", "is not the id of a capsule");
    let before = page.before.map(|b| b.parse()).transpose().map_err(bad)?;
    let limit = page.limit.unwrap_or(PAGE);
    types::resources::in_range("limit", limit, 1, PAGE)?;
    // One more than asked for tells whether there is a next page.
    let mut rows = db::capsules::list(&app.db, caller.team, before, i64::from(limit) + 1).await?;
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let items: Vec<_> = rows.into_iter().map(capsules::shown).collect();
    let next = items.last().filter(|_| more).map(|last| last.id.clone());
    Ok(Json(api::CapsulePage { items, next }))
}

pub(crate) async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<api::Capsule>> {
    let capsule = capsules::get(&app, caller, capsule_id(&id)?).await?;
    Ok(Json(capsules::shown(capsule)))
}

pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode> {
    capsules::delete(app, caller, capsule_id(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn logs(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Vec<u8>> {
    let capsule = capsules::get(&app, caller, capsule_id(&id)?).await?;
    app.agent.logs(capsule.id()).await
}
