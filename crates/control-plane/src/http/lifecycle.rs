//! `…/pause`, `…/resume`, `…/fork`, `…/timeout`, `…/network`, `…/ping`: translates between the wire
//! and the domain.

use super::extract::{Json as Body, Path, capsule_id};
use crate::app::App;
use crate::auth::Caller;
use crate::capsules::{self, ResumeRequest};
use crate::error::{Error, Result};
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use std::sync::Arc;

/// Pauses a capsule: stores its memory, processes and disk, and ends its machine. The server
/// answers when all data is on the disk. After a failure the capsule keeps running.
#[utoipa::path(
    operation_id = "pause_capsule",
    post, path = "/v1/capsules/{id}/pause", tag = "capsules", request_body = api::Pause,
    params(("id" = String, Path, description = "Id or name of the capsule")),
    responses(
        (status = 200, body = api::Capsule),
        (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn pause(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(wanted): Body<api::Pause>,
) -> Result<Json<api::Capsule>> {
    let memory = wanted.memory.unwrap_or(true);
    let capsule = capsules::pause(&app, caller, capsule_id(&id)?, memory).await?;
    Ok(Json(capsules::to_api(capsule)))
}

/// Resumes a paused capsule. The server answers when the guest responds. After a failure the
/// capsule stays paused.
#[utoipa::path(
    operation_id = "resume_capsule",
    post, path = "/v1/capsules/{id}/resume", tag = "capsules", request_body = api::Resume,
    params(("id" = String, Path, description = "Id or name of the capsule")),
    responses(
        (status = 200, body = api::Capsule),
        (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn resume(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(wanted): Body<api::Resume>,
) -> Result<Json<api::Capsule>> {
    if wanted.snapshot == Some(0) {
        return Err(Error::invalid("snapshot", "must be at least 1"));
    }
    let request = ResumeRequest {
        timeout: wanted.lifetime,
        cold: wanted.memory == Some(false),
        snapshot: wanted.snapshot,
        patient: false,
    };
    let capsule = capsules::resume(&app, caller, capsule_id(&id)?, request).await?;
    Ok(Json(capsules::to_api(capsule)))
}

/// Creates capsules that start with the state of a running or paused capsule.
#[utoipa::path(
    operation_id = "fork_capsule",
    post, path = "/v1/capsules/{id}/fork", tag = "capsules", request_body = api::Fork,
    params(("id" = String, Path, description = "Id or name of the capsule")),
    responses(
        (status = 201, body = api::Forked),
        (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn fork(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(wanted): Body<api::Fork>,
) -> Result<(StatusCode, Json<api::Forked>)> {
    let forked = Box::pin(capsules::fork(&app, caller, capsule_id(&id)?, &wanted)).await?;
    Ok((StatusCode::CREATED, Json(forked.into_api(caller))))
}

/// Sets the end of a capsule's lifetime, counted from now, and the action at that end.
#[utoipa::path(
    operation_id = "set_capsule_timeout",
    post, path = "/v1/capsules/{id}/timeout", tag = "capsules", request_body = api::SetTimeout,
    params(("id" = String, Path, description = "Id or name of the capsule")),
    responses((status = 200, body = api::Capsule), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn timeout(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(wanted): Body<api::SetTimeout>,
) -> Result<Json<api::Capsule>> {
    let capsule = capsules::set_lifetime(&app, caller, capsule_id(&id)?, &wanted).await?;
    Ok(Json(capsules::to_api(capsule)))
}

/// Replaces the rules for a capsule's outbound connections. For a running capsule, the rules apply
/// before the server answers, and to open connections too.
#[utoipa::path(
    operation_id = "set_capsule_network",
    put, path = "/v1/capsules/{id}/network", tag = "capsules", request_body = api::Network,
    params(("id" = String, Path, description = "Id or name of the capsule")),
    responses(
        (status = 200, body = api::Capsule),
        (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn network(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(wanted): Body<api::Network>,
) -> Result<Json<api::Capsule>> {
    let capsule = capsules::network::set(&app, caller, capsule_id(&id)?, &wanted).await?;
    Ok(Json(capsules::to_api(capsule)))
}

/// Records activity, so that the capsule is not paused as idle.
#[utoipa::path(
    operation_id = "ping_capsule",
    post, path = "/v1/capsules/{id}/ping", tag = "capsules",
    params(("id" = String, Path, description = "Id or name of the capsule")),
    responses((status = 204), (status = "4XX", body = api::ErrorBody))
)]
pub(crate) async fn ping(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode> {
    capsules::ping(&app, caller, capsule_id(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}
