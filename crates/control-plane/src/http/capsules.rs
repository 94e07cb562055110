//! `/v1/capsules`: wire to domain and back.

use super::extract::{Json as Body, Path, Query, capsule_id};
use crate::app::App;
use crate::auth::Caller;
use crate::error::{Error, Result};
use crate::{capsules, db};
use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use http::{StatusCode, header};
use std::sync::Arc;

const PAGE: u32 = 100;

/// Start a capsule; answers when its guest does.
#[utoipa::path(
    operation_id = "create_capsule",
    post, path = "/v1/capsules", tag = "capsules", request_body = api::CreateCapsule,
    responses(
        (status = 201, body = api::Capsule),
        (status = 503, description = "no capacity, with the reason", body = api::ErrorBody),
        (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Body(wanted): Body<api::CreateCapsule>,
) -> Result<(StatusCode, Json<api::Capsule>)> {
    let capsule = capsules::create(&app, caller, wanted).await?;
    Ok((StatusCode::CREATED, Json(capsules::shown(capsule))))
}

#[derive(serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Page {
    /// `next` of the page before.
    before: Option<String>,
    /// 1 to 100; 100 when left out.
    limit: Option<u32>,
}

/// List the capsules that are not gone, newest first.
#[utoipa::path(
    operation_id = "list_capsules",
    get, path = "/v1/capsules", tag = "capsules", params(Page),
    responses((status = 200, body = api::CapsulePage), (status = "4XX", body = api::ErrorBody))
)]
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

/// Show one capsule.
#[utoipa::path(
    operation_id = "get_capsule",
    get, path = "/v1/capsules/{id}", tag = "capsules",
    params(("id" = String, Path, description = "Id of the capsule")),
    responses((status = 200, body = api::Capsule), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<api::Capsule>> {
    let capsule = capsules::get(&app, caller, capsule_id(&id)?).await?;
    Ok(Json(capsules::shown(capsule)))
}

/// End a capsule and remove all it had.
#[utoipa::path(
    operation_id = "delete_capsule",
    delete, path = "/v1/capsules/{id}", tag = "capsules",
    params(("id" = String, Path, description = "Id of the capsule")),
    responses(
        (status = 204), (status = "4XX", body = api::ErrorBody),
        (status = 503, description = "the host does not answer; it is removed later", body = api::ErrorBody),
    )
)]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode> {
    capsules::delete(&app, caller, capsule_id(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What the guest wrote to its console: its last 64 KiB.
#[utoipa::path(
    operation_id = "get_capsule_logs",
    get, path = "/v1/capsules/{id}/logs", tag = "capsules",
    params(("id" = String, Path, description = "Id of the capsule")),
    responses(
        (status = 200, description = "as the guest wrote it", content_type = "application/octet-stream"),
        (status = "4XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn logs(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<impl IntoResponse> {
    let capsule = capsules::get(&app, caller, capsule_id(&id)?).await?;
    let octets = [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    Ok((octets, app.agent_of(&capsule)?.logs(capsule.id()).await?))
}
