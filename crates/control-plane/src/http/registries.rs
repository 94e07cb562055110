//! `/v1/registries`: the team's logins to registries of images. No answer has a secret.

use super::extract::{Json as Body, Path};
use crate::app::App;
use crate::auth::Caller;
use crate::error::Result;
use crate::registries;
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use std::sync::Arc;

/// Lists the team's logins to registries, without their secrets.
#[utoipa::path(
    operation_id = "list_registry_logins",
    get, path = "/v1/registries", tag = "registries",
    responses((status = 200, body = api::RegistryLogins), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<api::RegistryLogins>> {
    let rows = registries::list(&app, caller).await?;
    Ok(Json(api::RegistryLogins { items: rows.into_iter().map(registries::to_api).collect() }))
}

/// Stores a login to a registry, in place of an earlier one. Builds of the team use it for images of
/// that registry.
#[utoipa::path(
    operation_id = "set_registry_login",
    put, path = "/v1/registries/{host}", tag = "registries", request_body = api::PutRegistryLogin,
    params(("host" = String, Path, description = "Host of the registry, such as `ghcr.io` or `localhost:5000`")),
    responses((status = 200, body = api::RegistryLogin), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn set(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(host): Path<String>,
    Body(login): Body<api::PutRegistryLogin>,
) -> Result<Json<api::RegistryLogin>> {
    let row = registries::set(&app, caller, &host, login).await?;
    Ok(Json(registries::to_api(row)))
}

/// Removes the team's login to a registry.
#[utoipa::path(
    operation_id = "delete_registry_login",
    delete, path = "/v1/registries/{host}", tag = "registries",
    params(("host" = String, Path, description = "Host of the registry")),
    responses((status = 204), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(host): Path<String>,
) -> Result<StatusCode> {
    registries::delete(&app, caller, &host).await?;
    Ok(StatusCode::NO_CONTENT)
}
