//! Changes of a sandbox: its lifetime, pauses, forks and network.

use super::sandboxes::resume_sandbox;
use super::wire::Error as Told;
use super::wire::{Connect, Fork, Forked, Network, Pause, Sandbox, Timeout};
use super::{concurrent, seen, settled};
use crate::app::App;
use crate::auth::Caller;
use crate::error::{Error, Result};
use crate::http::extract::{Json as Body, Path};
use crate::{capsules, db};
use axum::Json;
use axum::extract::State;
use http::StatusCode;
use std::sync::Arc;
use types::CapsuleState;

/// Seconds that `…/refreshes` adds by default. A resume over the first API has the same lifetime.
const REFRESH: u32 = 15;

pub(super) async fn timeout(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(wanted): Body<Timeout>,
) -> Result<StatusCode> {
    let capsule = settled(&app, caller, &id).await?;
    let timeout = wanted.timeout.ok_or_else(|| Error::invalid("timeout", "is missing"))?;
    let timeout = api::SetTimeout { timeout: Some(timeout), ..Default::default() };
    capsules::set_lifetime(&app, caller, capsule.id(), &timeout).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn refresh(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(wanted): Body<Timeout>,
) -> Result<StatusCode> {
    let capsule = settled(&app, caller, &id).await?;
    capsules::extend(&app, caller, capsule, wanted.duration.unwrap_or(REFRESH)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Pauses a sandbox. A paused sandbox is refused with 409, which clients take for no failure. A
/// pause that is under way is joined.
pub(super) async fn pause(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(wanted): Body<Pause>,
) -> Result<StatusCode> {
    let mut capsule = seen(&app, caller, &id).await?;
    if capsule.state() != CapsuleState::Pausing {
        capsule = settled(&app, caller, &id).await?;
    }
    if capsule.state() == CapsuleState::Paused {
        return Err(Error::Conflict("the sandbox is paused already".to_owned()));
    }
    capsules::pause(&app, caller, capsule.id(), wanted.memory.unwrap_or(true)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Resumes a sandbox for clients of the first API. Such clients expect 409 for a running sandbox.
pub(super) async fn resume(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(wanted): Body<Connect>,
) -> Result<(StatusCode, Json<Sandbox>)> {
    let capsule = settled(&app, caller, &id).await?;
    if capsule.state() == CapsuleState::Running {
        return Err(Error::Conflict("the sandbox runs already".to_owned()));
    }
    resume_sandbox(&app, caller, &capsule, &wanted, REFRESH).await
}

pub(super) async fn fork(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(wanted): Body<Fork>,
) -> Result<(StatusCode, Json<Vec<Forked>>)> {
    let source = settled(&app, caller, &id).await?;
    if source.state() == CapsuleState::Paused {
        return Err(Error::NotRunning(CapsuleState::Paused));
    }
    let left = match source.ends_at {
        Some(_) => db::capsules::left(&app.db, source.id()).await?,
        None => None,
    };
    let left = left.map(|left| u32::try_from(left.as_secs()).unwrap_or(u32::MAX).max(1));
    let wanted = api::Fork { count: wanted.count, timeout: wanted.timeout.or(left) };
    let forked = capsules::fork(&app, caller, source.id(), &wanted).await.map_err(concurrent)?;
    let made = |row| Forked::Sandbox(Box::new(Sandbox::new(row, app.public.authority(), caller)));
    let render = |error: Error| {
        let code = error.status().as_u16();
        Forked::Error(Told { code, message: concurrent(error).to_string() })
    };
    let all = forked.items.into_iter().map(made);
    let all = all.chain(forked.errors.into_iter().map(render)).collect();
    Ok((StatusCode::CREATED, Json(all)))
}

pub(super) async fn network(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(wanted): Body<Network>,
) -> Result<StatusCode> {
    if let Some(what) = wanted.unsupported() {
        return Err(Error::invalid(what, "is not supported"));
    }
    let capsule = settled(&app, caller, &id).await?;
    capsules::network::set(&app, caller, capsule.id(), &wanted.egress(None)).await?;
    Ok(StatusCode::NO_CONTENT)
}
