//! `/v1/hosts`: the machines that run capsules. Only operators may manage hosts; other callers may
//! list them. A host identifies itself by its own credentials.

use super::extract::{Json as Body, Path, Query};
use crate::app::App;
use crate::auth::{Anonymous, Caller, HostCaller, Operator};
use crate::error::{Error, Result};
use crate::hosts::{enrol, lifecycle};
use axum::Json;
use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use serde::Deserialize;
use std::sync::Arc;
use types::HostId;
use utoipa::IntoParams;

fn host_id(text: &str) -> Result<HostId> {
    text.parse().map_err(|_| Error::NotFound("host"))
}

/// Lists the hosts, each with its driver and isolation tier. An operator sees all hosts. Other
/// callers see their team's own hosts, and an outline of the hosts that serve every team.
#[utoipa::path(
    operation_id = "list_hosts",
    get, path = "/v1/hosts", tag = "hosts",
    responses((status = 200, body = api::HostList), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<api::HostList>> {
    Ok(Json(api::HostList { items: lifecycle::list(&app, caller).await? }))
}

/// Adds a host. The answer contains its registration token.
#[utoipa::path(
    operation_id = "add_host",
    post, path = "/v1/hosts", tag = "hosts", request_body = api::NewHost,
    responses(
        (status = 201, body = api::HostToken), (status = "4XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn add(
    State(app): State<Arc<App>>,
    Operator(by): Operator,
    Body(wanted): Body<api::NewHost>,
) -> Result<(StatusCode, Json<api::HostToken>)> {
    Ok((StatusCode::CREATED, Json(enrol::invite(&app, wanted, by).await?)))
}

/// Creates a token with which a known host registers again. The host's present credentials end at
/// that registration.
#[utoipa::path(
    operation_id = "reenrol_host",
    post, path = "/v1/hosts/{id}/token", tag = "hosts",
    params(("id" = String, Path, description = "Id of the host")),
    responses(
        (status = 201, body = api::HostToken), (status = "4XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn token(
    State(app): State<Arc<App>>,
    Operator(by): Operator,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<api::HostToken>)> {
    Ok((StatusCode::CREATED, Json(enrol::invite_again(&app, host_id(&id)?, by).await?)))
}

/// Returns a host.
#[utoipa::path(
    operation_id = "get_host",
    get, path = "/v1/hosts/{id}", tag = "hosts",
    params(("id" = String, Path, description = "Id of the host")),
    responses((status = 200, body = api::Host), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    _operator: Operator,
    Path(id): Path<String>,
) -> Result<Json<api::Host>> {
    Ok(Json(lifecycle::get(&app, host_id(&id)?).await?))
}

/// Drains a host, or opens it again. A drained host accepts no capsules, and its running capsules
/// are paused.
#[utoipa::path(
    operation_id = "drain_host",
    post, path = "/v1/hosts/{id}/drain", tag = "hosts", request_body = api::DrainHost,
    params(("id" = String, Path, description = "Id of the host")),
    responses((status = 200, body = api::Host), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn drain(
    State(app): State<Arc<App>>,
    Operator(by): Operator,
    Path(id): Path<String>,
    Body(wanted): Body<api::DrainHost>,
) -> Result<Json<api::Host>> {
    Ok(Json(lifecycle::drain(&app, host_id(&id)?, wanted.drain, by).await?))
}

/// Returns a host's metrics in Prometheus' text format.
#[utoipa::path(
    operation_id = "get_host_metrics",
    get, path = "/v1/hosts/{id}/metrics", tag = "hosts",
    params(("id" = String, Path, description = "Id of the host")),
    responses(
        (status = 200, body = String, content_type = "text/plain"),
        (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn metrics(
    State(app): State<Arc<App>>,
    _operator: Operator,
    Path(id): Path<String>,
) -> Result<Response> {
    let id = host_id(&id)?;
    lifecycle::get(&app, id).await?;
    app.agent(id).metrics().await
}

/// Replaces a host's tags.
#[utoipa::path(
    operation_id = "tag_host",
    put, path = "/v1/hosts/{id}/tags", tag = "hosts", request_body = api::HostTags,
    params(("id" = String, Path, description = "Id of the host")),
    responses((status = 200, body = api::Host), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn tags(
    State(app): State<Arc<App>>,
    Operator(by): Operator,
    Path(id): Path<String>,
    Body(wanted): Body<api::HostTags>,
) -> Result<Json<api::Host>> {
    Ok(Json(lifecycle::set_tags(&app, host_id(&id)?, &wanted.tags, by).await?))
}

/// Returns the capsules and snapshots that a forced deletion of a host would lose.
#[utoipa::path(
    operation_id = "preview_host_deletion",
    get, path = "/v1/hosts/{id}/delete-preview", tag = "hosts",
    params(("id" = String, Path, description = "Id of the host")),
    responses((status = 200, body = api::HostLoss), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn preview(
    State(app): State<Arc<App>>,
    _operator: Operator,
    Path(id): Path<String>,
) -> Result<Json<api::HostLoss>> {
    Ok(Json(lifecycle::loss(&app, host_id(&id)?).await?))
}

/// Options for deleting a host.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Delete {
    /// True to delete a host whose capsules or snapshots are not in the store. Such data is then
    /// lost.
    #[serde(default)]
    force: bool,
}

/// Deletes a host whose capsules and snapshots are all in the store, or any host with `force`.
#[utoipa::path(
    operation_id = "delete_host",
    delete, path = "/v1/hosts/{id}", tag = "hosts",
    params(("id" = String, Path, description = "Id of the host"), Delete),
    responses(
        (status = 204), (status = 409, body = api::ErrorBody),
        (status = "4XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Operator(by): Operator,
    Path(id): Path<String>,
    Query(wanted): Query<Delete>,
) -> Result<StatusCode> {
    lifecycle::delete(&app, host_id(&id)?, wanted.force, by).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Registers a host with its registration token.
#[utoipa::path(
    operation_id = "register_host",
    post, path = "/v1/hosts/register", tag = "hosts", request_body = api::RegisterHost,
    security(()),
    responses(
        (status = 201, body = api::HostCredentials), (status = "4XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn register(
    State(app): State<Arc<App>>,
    Anonymous(by): Anonymous,
    Body(wanted): Body<api::RegisterHost>,
) -> Result<(StatusCode, Json<api::HostCredentials>)> {
    Ok((StatusCode::CREATED, Json(enrol::register(&app, by, wanted).await?)))
}

/// Renews a host's credentials with its refresh token.
#[utoipa::path(
    operation_id = "refresh_host",
    post, path = "/v1/hosts/refresh", tag = "hosts", request_body = api::RefreshHost,
    security(()),
    responses(
        (status = 200, body = api::HostCredentials), (status = "4XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn refresh(
    State(app): State<Arc<App>>,
    Anonymous(by): Anonymous,
    Body(wanted): Body<api::RefreshHost>,
) -> Result<Json<api::HostCredentials>> {
    Ok(Json(enrol::refresh(&app, by, wanted).await?))
}

/// Reports a host's state and load.
#[utoipa::path(
    operation_id = "host_heartbeat",
    post, path = "/v1/hosts/{id}/heartbeat", tag = "hosts", request_body = api::Heartbeat,
    params(("id" = String, Path, description = "Id of the host")),
    security(("host" = [])),
    responses(
        (status = 200, body = api::HeartbeatAnswer), (status = "4XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn heartbeat(
    State(app): State<Arc<App>>,
    HostCaller(who): HostCaller,
    Path(id): Path<String>,
    Body(said): Body<api::Heartbeat>,
) -> Result<Json<api::HeartbeatAnswer>> {
    if host_id(&id)? != who.host {
        return Err(Error::NotFound("host"));
    }
    Ok(Json(api::HeartbeatAnswer { renew: lifecycle::heartbeat(&app, who, &said).await? }))
}
