//! `/v1/capsules`: translates between the wire and the domain.

use super::extract::{Path, Query, Sent, capsule_id, idempotency_key};
use super::paging::{Page, paged};
use crate::app::App;
use crate::auth::Caller;
use crate::capsules::{self, CreateOptions};
use crate::error::Result;
use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use http::{HeaderMap, StatusCode, header};
use std::sync::Arc;

/// Creates a capsule. The server answers when the guest responds.
#[utoipa::path(
    operation_id = "create_capsule",
    post, path = "/v1/capsules", tag = "capsules", request_body = api::CreateCapsule,
    params(("Idempotency-Key" = Option<String>, Header, description = "Key of 1 to 255 \
        lower-case letters, digits and hyphens. For a day, repeated requests with the key get the \
        first result")),
    responses(
        (status = 201, body = api::Capsule),
        (status = 503, description = "No host has room; the message names the reason", body = api::ErrorBody),
        (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    Sent(wanted, body): Sent<api::CreateCapsule>,
) -> Result<(StatusCode, Json<api::Capsule>)> {
    let options = CreateOptions { e2b: false, idempotency_key: idempotency_key(&headers, &body)? };
    let capsule = capsules::create(&app, caller, wanted, options).await?;
    Ok((StatusCode::CREATED, Json(capsules::to_api_for_maker(capsule, caller))))
}

/// Lists the capsules that have not been removed, newest first.
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
    let (before, limit) = page.read("a capsule")?;
    let listed = capsules::list(&app, caller, before, limit + 1).await?;
    let (items, next) = paged(listed, limit, capsules::to_api, |c| c.id.clone());
    Ok(Json(api::CapsulePage { items, next }))
}

/// Returns one capsule.
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
    Ok(Json(capsules::to_api(capsule)))
}

/// Ends a capsule and removes all of its data.
#[utoipa::path(
    operation_id = "delete_capsule",
    delete, path = "/v1/capsules/{id}", tag = "capsules",
    params(("id" = String, Path, description = "Id of the capsule")),
    responses(
        (status = 204), (status = "4XX", body = api::ErrorBody),
        (status = 503, description = "The host does not answer; the capsule is removed later", body = api::ErrorBody),
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

/// Returns the last 64 KiB that the guest wrote to its console.
#[utoipa::path(
    operation_id = "get_capsule_logs",
    get, path = "/v1/capsules/{id}/logs", tag = "capsules",
    params(("id" = String, Path, description = "Id of the capsule")),
    responses(
        (status = 200, description = "Raw console output of the guest", content_type = "application/octet-stream"),
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
    Ok((octets, app.agent_of(&capsule)?.logs(capsule.id).await?))
}
