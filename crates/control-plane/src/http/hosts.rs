//! `/v1/hosts`: the machines that run capsules. All but listing one's own is an operator's, and
//! what hosts do for themselves goes by credentials of theirs.

use super::extract::{Json as Body, Path, Query};
use crate::app::App;
use crate::auth::{Caller, HostCaller, Operator, Stranger};
use crate::db;
use crate::error::{Error, Result};
use crate::hosts::{enrol, life};
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

/// List the hosts, each with its driver and isolation tier: all, to an operator; else the team's
/// own, and of those that anyone's capsules go to nothing but what kind they are.
#[utoipa::path(
    operation_id = "list_hosts",
    get, path = "/v1/hosts", tag = "hosts",
    responses((status = 200, body = api::HostList), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<api::HostList>> {
    let rows = db::hosts::list(&app.db).await?;
    let seen = |row: db::hosts::Host| match row.team_id {
        _ if caller.operator => Some(life::shown(row)),
        Some(team) if team == caller.team.0 => Some(life::shown(row)),
        None => Some(life::outlined(row)),
        Some(_) => None,
    };
    Ok(Json(api::HostList { items: rows.into_iter().filter_map(seen).collect() }))
}

/// Add a host: the answer's token is what it registers with.
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

/// Get a token by which a host that is known registers anew; what it was given before ends when
/// it does.
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

/// Get a host.
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
    Ok(Json(life::get(&app, host_id(&id)?).await?))
}

/// Drain a host: it takes no more capsules, and those that run there are paused. Or open it again.
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
    Ok(Json(life::drain(&app, host_id(&id)?, wanted.drain, by).await?))
}

/// Read a host's figures, as Prometheus' text.
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
    life::get(&app, id).await?;
    app.agent(id).metrics().await
}

/// Replace a host's tags.
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
    Ok(Json(life::set_tags(&app, host_id(&id)?, &wanted.tags, by).await?))
}

/// See what would be lost if a host were deleted by force.
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
    Ok(Json(life::loss(&app, host_id(&id)?).await?))
}

/// How to delete a host.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Delete {
    /// Also when it has capsules or snapshots, which are lost with it.
    #[serde(default)]
    force: bool,
}

/// Delete a host that has nothing, or by force.
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
    life::delete(&app, host_id(&id)?, wanted.force, by).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Register as a host, with a registration token.
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
    Stranger(by): Stranger,
    Body(wanted): Body<api::RegisterHost>,
) -> Result<(StatusCode, Json<api::HostCredentials>)> {
    Ok((StatusCode::CREATED, Json(enrol::register(&app, by, wanted).await?)))
}

/// Renew a host's credentials, with its refresh token.
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
    Stranger(by): Stranger,
    Body(wanted): Body<api::RefreshHost>,
) -> Result<Json<api::HostCredentials>> {
    Ok(Json(enrol::refresh(&app, by, wanted).await?))
}

/// Say, as a host, that it is there and how it is.
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
    Ok(Json(api::HeartbeatAnswer { renew: life::heartbeat(&app, who, &said).await? }))
}
