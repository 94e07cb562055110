//! Changes of a sandbox: its lifetime, pauses, forks and network.

use super::concurrent;
use super::request::SandboxRequest;
use super::sandboxes::{resume_sandbox, to_wire};
use super::wire::Error as Told;
use super::wire::{Connect, Fork, Forked, Network, Pause, Sandbox, Timeout};
use crate::capsules;
use crate::error::{Error, Result};
use crate::http::extract::Json as Body;
use axum::Json;
use http::StatusCode;
use types::CapsuleState;

/// Seconds that `…/refreshes` adds by default. A resume over the first API has the same lifetime.
const REFRESH: u32 = 15;

pub(super) async fn timeout(
    request: SandboxRequest,
    Body(wanted): Body<Timeout>,
) -> Result<StatusCode> {
    let capsule = request.settled().await?;
    let timeout = wanted.timeout.ok_or_else(|| Error::invalid("timeout", "is required"))?;
    let timeout = api::SetTimeout { lifetime: Some(timeout), ..Default::default() };
    capsules::set_lifetime(&request.app, request.caller, capsule.id, &timeout).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn refresh(
    request: SandboxRequest,
    Body(wanted): Body<Timeout>,
) -> Result<StatusCode> {
    let capsule = request.settled().await?;
    let seconds = wanted.duration.unwrap_or(REFRESH);
    capsules::extend(&request.app, request.caller, capsule, seconds).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Pauses a sandbox. A paused sandbox is refused with 409, which clients take for no failure. A
/// pause that is under way is joined.
pub(super) async fn pause(
    request: SandboxRequest,
    Body(wanted): Body<Pause>,
) -> Result<StatusCode> {
    let mut capsule = request.present().await?;
    if capsule.state != CapsuleState::Pausing {
        capsule = request.settled().await?;
    }
    if capsule.state == CapsuleState::Paused {
        return Err(Error::Conflict("the sandbox is already paused".to_owned()));
    }
    let memory = wanted.memory.unwrap_or(true);
    capsules::pause(&request.app, request.caller, capsule.id, memory).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Resumes a sandbox for clients of the first API. Such clients expect 409 for a running sandbox.
pub(super) async fn resume(
    request: SandboxRequest,
    Body(wanted): Body<Connect>,
) -> Result<(StatusCode, Json<Sandbox>)> {
    let capsule = request.settled().await?;
    if capsule.state == CapsuleState::Running {
        return Err(Error::Conflict("the sandbox is already running".to_owned()));
    }
    resume_sandbox(&request, &capsule, &wanted, REFRESH).await
}

pub(super) async fn fork(
    request: SandboxRequest,
    Body(wanted): Body<Fork>,
) -> Result<(StatusCode, Json<Vec<Forked>>)> {
    let source = request.settled().await?;
    if source.state == CapsuleState::Paused {
        return Err(Error::NotRunning(CapsuleState::Paused));
    }
    let SandboxRequest { app, caller, .. } = request;
    let left = capsules::time_left(&app, &source).await?;
    let left = left.map(|left| u32::try_from(left.as_secs()).unwrap_or(u32::MAX).max(1));
    let wanted = api::Fork { count: wanted.count, name: None, lifetime: wanted.timeout.or(left) };
    let forked =
        Box::pin(capsules::fork(&app, caller, source.id, &wanted)).await.map_err(concurrent)?;
    let made = |row| Forked::Sandbox(Box::new(to_wire(&app, caller, row)));
    let render = |error: Error| {
        let code = error.status().as_u16();
        Forked::Error(Told { code, message: concurrent(error).to_string() })
    };
    let all = forked.items.into_iter().map(made);
    let all = all.chain(forked.errors.into_iter().map(render)).collect();
    Ok((StatusCode::CREATED, Json(all)))
}

pub(super) async fn network(
    request: SandboxRequest,
    Body(wanted): Body<Network>,
) -> Result<StatusCode> {
    if let Some(what) = wanted.unsupported() {
        return Err(Error::invalid(what, "is not supported"));
    }
    let capsule = request.settled().await?;
    let network = wanted.egress(None);
    capsules::network::set(&request.app, request.caller, capsule.id, &network).await?;
    Ok(StatusCode::NO_CONTENT)
}
