//! `/v1/api-keys`: translates between the wire and the domain.

use super::extract::{Json as Body, Path, Query};
use super::paging::{Page, paged};
use crate::app::App;
use crate::auth::Caller;
use crate::error::{Error, Result};
use crate::keys;
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use std::sync::Arc;

/// Creates an API key. Only this answer contains the key. A key that another key creates has at
/// most the creator's scopes, limits and expiry, and shares the creator's limits.
#[utoipa::path(
    operation_id = "create_api_key",
    post, path = "/v1/api-keys", tag = "keys", request_body = api::NewKey,
    responses((status = 201, body = api::ApiKey), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Body(wanted): Body<api::NewKey>,
) -> Result<(StatusCode, Json<api::ApiKey>)> {
    Ok((StatusCode::CREATED, Json(keys::create(&app, caller, wanted).await?)))
}

/// Lists the team's keys that are not revoked, newest first.
#[utoipa::path(
    operation_id = "list_api_keys",
    get, path = "/v1/api-keys", tag = "keys", params(Page),
    responses((status = 200, body = api::ApiKeyPage), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(page): Query<Page>,
) -> Result<Json<api::ApiKeyPage>> {
    let (before, limit) = page.read("a key")?;
    let rows = keys::list(&app, caller, before, limit + 1).await?;
    let (items, next) = paged(rows, limit, keys::to_api, |key| key.id.clone());
    Ok(Json(api::ApiKeyPage { items, next }))
}

/// Revokes a key immediately. Callers may revoke their own keys; team admins may revoke any. Keys
/// and invitations that the key created end too, and channels that the key set are disabled.
#[utoipa::path(
    operation_id = "revoke_api_key",
    delete, path = "/v1/api-keys/{id}", tag = "keys",
    params(("id" = String, Path, description = "Id of the key")),
    responses((status = 204), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn revoke(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode> {
    let id = id.parse().map_err(|_| Error::NotFound("key"))?;
    keys::revoke(&app, caller, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
