//! Sandboxes: creation, description, removal and connection.

use super::request::{SandboxRequest, known};
use super::wire::{Connect, Detail, NewSandbox, Sandbox};
use super::{concurrent, names};
use crate::app::App;
use crate::auth::Caller;
use crate::capsules::{self, CreateOptions, ResumeRequest};
use crate::db::capsules::Capsule;
use crate::error::{Error, Result};
use crate::http::extract::{Json as Body, Sent, idempotency_key};
use axum::Json;
use axum::extract::State;
use http::{HeaderMap, StatusCode};
use std::sync::Arc;
use types::{CapsuleState, OnTimeout};

/// Default lifetime of a sandbox in seconds, in the first API and in the second.
const TIMEOUT_V1: u32 = 15;
const TIMEOUT: u32 = 300;

pub(super) async fn create_v1(
    State(app): State<Arc<App>>,
    caller: Caller,
    Body(wanted): Body<NewSandbox>,
) -> Result<(StatusCode, Json<Sandbox>)> {
    make(&app, caller, wanted, TIMEOUT_V1, CreateOptions { e2b: true, idempotency_key: None }).await
}

pub(super) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    Sent(wanted, body): Sent<NewSandbox>,
) -> Result<(StatusCode, Json<Sandbox>)> {
    let options = CreateOptions { e2b: true, idempotency_key: idempotency_key(&headers, &body)? };
    make(&app, caller, wanted, TIMEOUT, options).await
}

async fn make(
    app: &App,
    caller: Caller,
    wanted: NewSandbox,
    timeout: u32,
    options: CreateOptions,
) -> Result<(StatusCode, Json<Sandbox>)> {
    let made = capsules::create(app, caller, read(wanted, timeout)?, options).await;
    let capsule = made.map_err(concurrent)?;
    Ok((StatusCode::CREATED, Json(to_wire(app, caller, capsule))))
}

/// Converts a row for a client that made or resumed the sandbox.
pub(super) fn to_wire(app: &App, caller: Caller, row: Capsule) -> Sandbox {
    Sandbox::new(row, app.public.authority(), caller)
}

/// Converts a request to this system's own form.
fn read(wanted: NewSandbox, timeout: u32) -> Result<api::CreateCapsule> {
    let network = wanted.network.unwrap_or_default();
    if let Some(what) = network.unsupported() {
        return Err(Error::invalid(what, "is not supported"));
    }
    if wanted.volume_mounts.is_some_and(|mounts| !mounts.is_empty()) {
        return Err(Error::invalid("volumeMounts", "is not supported"));
    }
    if wanted.iam.is_some_and(|iam| !iam.is_null()) {
        return Err(Error::invalid("iam", "is not supported"));
    }
    let on_timeout = match (wanted.auto_pause, wanted.auto_pause_memory) {
        (false, _) => OnTimeout::Kill,
        (true, Some(false)) => OnTimeout::PauseDisk,
        (true, _) => OnTimeout::Pause,
    };
    Ok(api::CreateCapsule {
        template: wanted.template_id.map(|name| names::template(&name)),
        lifetime: Some(wanted.timeout.unwrap_or(timeout)),
        on_timeout: Some(on_timeout.to_string()),
        auto_resume: wanted.auto_resume.is_some_and(|auto| auto.enabled),
        public_traffic: network.allow_public_traffic.unwrap_or(true),
        host_header: network.mask_request_host.clone(),
        network: network.egress(wanted.allow_internet_access),
        envs: wanted.env_vars.unwrap_or_default(),
        metadata: wanted.metadata.unwrap_or_default(),
        ..Default::default()
    })
}

pub(super) async fn get(request: SandboxRequest) -> Result<Json<Detail>> {
    let capsule = request.present().await?;
    Ok(Json(Detail::new(capsule, request.app.public.authority(), request.caller)))
}

pub(super) async fn kill(request: SandboxRequest) -> Result<StatusCode> {
    let capsule = request.present().await?;
    capsules::delete(&request.app, request.caller, capsule.id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Answers when the sandbox runs. The lifetime of a running sandbox is only extended, never
/// shortened. Its host may have begun to pause it at the end of its lifetime. The extension then
/// waits for the pause, and the sandbox is resumed.
pub(super) async fn connect(
    request: SandboxRequest,
    Body(wanted): Body<Connect>,
) -> Result<(StatusCode, Json<Sandbox>)> {
    let (app, caller) = (&request.app, request.caller);
    let mut capsule = request.settled().await?;
    if capsule.state == CapsuleState::Running {
        let timeout = wanted.timeout.unwrap_or(TIMEOUT);
        let lags = capsules::may_lag(&capsule);
        let extended = capsules::extend(app, caller, capsule.clone(), timeout).await;
        if lags {
            capsule = known(capsules::caught_up(app, caller, capsule).await?)?;
        }
        if capsule.state == CapsuleState::Running {
            let capsule = extended?;
            return Ok((StatusCode::OK, Json(to_wire(app, caller, capsule))));
        }
    }
    resume_sandbox(&request, &capsule, &wanted, TIMEOUT).await
}

/// Resumes a sandbox, for `timeout` seconds unless the request names a lifetime.
pub(super) async fn resume_sandbox(
    SandboxRequest { app, caller, .. }: &SandboxRequest,
    capsule: &Capsule,
    wanted: &Connect,
    timeout: u32,
) -> Result<(StatusCode, Json<Sandbox>)> {
    let timeout = Some(wanted.timeout.unwrap_or(timeout));
    let cold = wanted.memory == Some(false);
    let resume = ResumeRequest { timeout, cold, patient: true, ..ResumeRequest::default() };
    let resumed = capsules::resume(app, *caller, capsule.id, resume).await;
    let capsule = resumed.map_err(concurrent)?;
    Ok((StatusCode::CREATED, Json(to_wire(app, *caller, capsule))))
}
