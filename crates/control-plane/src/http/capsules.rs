//! `/v1/capsules`: translates between the wire and the domain. `capsule_list` has the lists.

use super::extract::{Json as Body, Path, Query, Sent, capsule_id, idempotency_key};
use crate::app::App;
use crate::auth::Caller;
use crate::capsules::{self, CreateOptions};
use crate::error::Result;
use axum::Json;
use axum::extract::State;
use http::{HeaderMap, StatusCode};
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

#[derive(serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Ever {
    /// True to return a capsule that ended in the last 30 days, too. Its status is `stopped`.
    #[serde(default)]
    ended: bool,
}

/// Returns one capsule.
#[utoipa::path(
    operation_id = "get_capsule",
    get, path = "/v1/capsules/{id}", tag = "capsules",
    params(("id" = String, Path, description = "Id or name of the capsule"), Ever),
    responses((status = 200, body = api::Capsule), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Query(ever): Query<Ever>,
) -> Result<Json<api::Capsule>> {
    let id = capsule_id(&id)?;
    let capsule = match ever.ended {
        true => capsules::get_ever(&app, caller, id).await?,
        false => capsules::get(&app, caller, id).await?,
    };
    Ok(Json(capsules::to_api(capsule)))
}

/// Changes a capsule's name, metadata, wake-up, log or idle time. Absent fields stay.
#[utoipa::path(
    operation_id = "change_capsule",
    patch, path = "/v1/capsules/{id}", tag = "capsules", request_body = api::ChangeCapsule,
    params(("id" = String, Path, description = "Id or name of the capsule")),
    responses(
        (status = 200, body = api::Capsule),
        (status = 409, description = "Another living capsule of the team has the name", body = api::ErrorBody),
        (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn change(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(wanted): Body<api::ChangeCapsule>,
) -> Result<Json<api::Capsule>> {
    let capsule = Box::pin(capsules::change(&app, caller, capsule_id(&id)?, wanted)).await?;
    Ok(Json(capsules::to_api(capsule)))
}

/// Returns the origins, copies and snapshots of a living or ended capsule.
#[utoipa::path(
    operation_id = "get_capsule_lineage",
    get, path = "/v1/capsules/{id}/lineage", tag = "capsules",
    params(("id" = String, Path, description = "Id or name of the capsule")),
    responses((status = 200, body = api::Lineage), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn lineage(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<api::Lineage>> {
    Ok(Json(capsules::lineage(&app, caller, capsule_id(&id)?).await?))
}

/// Ends a capsule and removes all of its data.
#[utoipa::path(
    operation_id = "delete_capsule",
    delete, path = "/v1/capsules/{id}", tag = "capsules",
    params(("id" = String, Path, description = "Id or name of the capsule")),
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
