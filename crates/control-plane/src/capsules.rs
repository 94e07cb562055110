//! The life of a capsule: the only writer of its state in the database.
//!
//! What changes a capsule runs as a task of its own, so that a client who leaves stops
//! nothing half-way. Whatever dies in between, `reconcile` completes or undoes by these same
//! functions.

use crate::app::App;
use crate::auth::{Caller, random_hex};
use crate::db;
use crate::db::capsules::Capsule;
use crate::error::{Error, Result};
use protocol::host::CreateCapsuleRequest;
use sqlx::types::Json;
use std::sync::Arc;
use time::OffsetDateTime;
use types::resources::{MAX_TIMEOUT_SEC, Resources, in_range};
use types::{CapsuleId, CapsuleState, names};

/// Most metadata that a capsule may carry, in bytes.
const METADATA_MAX: usize = 16 * 1024;

/// Makes a capsule and answers when its guest does.
pub(crate) async fn create(
    app: Arc<App>,
    caller: Caller,
    wanted: api::CreateCapsule,
) -> Result<Capsule> {
    let name = wanted.template.clone().unwrap_or_else(|| "base".to_owned());
    names::check_name("template", &name)?;
    names::check_envs("envs", &wanted.envs)?;
    let metadata: usize = wanted.metadata.iter().map(|(k, v)| k.len() + v.len()).sum();
    if metadata > METADATA_MAX {
        return Err(Error::invalid("metadata", "must be at most 16 KiB in all"));
    }
    let timeout = wanted.timeout_sec.unwrap_or(0);
    in_range("timeout_sec", timeout, 0, MAX_TIMEOUT_SEC)?;
    let template = db::templates::find(&app.db, caller.team, &name).await?;
    let template = template.ok_or(Error::NotFound("template"))?;
    let or = |asked: Option<u32>, default: i32| asked.unwrap_or(default.unsigned_abs());
    let size = Resources {
        vcpus: or(wanted.vcpus, template.vcpus),
        memory_mib: or(wanted.memory_mb, template.memory_mib),
        disk_mib: or(wanted.disk_mb, template.disk_mib),
    };
    size.check()?;
    let now = OffsetDateTime::now_utc();
    let int = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    let row = Capsule {
        id: CapsuleId::new().0,
        host_id: Some(app.host.0),
        template: name,
        status: CapsuleState::Starting.as_str().to_owned(),
        generation: 1,
        vcpus: int(size.vcpus),
        memory_mib: int(size.memory_mib),
        disk_mib: int(size.disk_mib),
        timeout_sec: int(timeout),
        envd_token: random_hex(32),
        error: None,
        metadata: Json(wanted.metadata),
        created_at: now,
        started_at: None,
        updated_at: now,
    };
    let request = CreateCapsuleRequest {
        capsule_id: row.id().to_string(),
        template: row.template.clone(),
        vcpus: size.vcpus,
        memory_mib: size.memory_mib,
        disk_mib: size.disk_mib,
        envd_token: row.envd_token.clone(),
        envs: wanted.envs.into_iter().collect(),
        generation: 1,
        ..Default::default()
    };
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let at = Arc::clone(&app);
    app.tasks.spawn(async move {
        let _ = sender.send(boot(&at, caller, template.id, row, request).await);
    });
    receiver.await.unwrap_or(Err(Error::HostUnavailable))
}

async fn boot(
    app: &App,
    caller: Caller,
    template: uuid::Uuid,
    row: Capsule,
    request: CreateCapsuleRequest,
) -> Result<Capsule> {
    let id = row.id();
    db::capsules::insert(&app.db, caller.team, app.host, template, &row).await?;
    let started = std::time::Instant::now();
    if let Err(error) = app.agent.create(request).await {
        metrics::counter!("wrenn_capsule_creates_failed_total").increment(1);
        // What cannot be removed now, the reconciler removes.
        if let Err(undo) = remove(app, &row).await {
            tracing::warn!(%id, error = %undo, "undoing a create");
        }
        return Err(error);
    }
    metrics::histogram!("wrenn_capsule_create_seconds").record(started.elapsed().as_secs_f64());
    let moved = db::capsules::transition(&app.db, id, 1, CapsuleState::Running, None).await?;
    let found = get(app, caller, id).await;
    // Where the move was refused, the reconciler was faster, or someone deletes it: then whoever
    // does that removes the machine too.
    match found {
        Ok(row) if moved.is_some() || row.state() == CapsuleState::Running => Ok(row),
        Ok(_) | Err(Error::NotFound(_)) => {
            Err(Error::Conflict("the capsule was deleted while it started".to_owned()))
        }
        Err(error) => Err(error),
    }
}

/// A capsule of the caller's team.
pub(crate) async fn get(app: &App, caller: Caller, id: CapsuleId) -> Result<Capsule> {
    let found = db::capsules::find(&app.db, caller.team, id).await?;
    found.ok_or(Error::NotFound("capsule"))
}

/// A capsule of the caller's team whose guest can be asked.
pub(crate) async fn running(app: &App, caller: Caller, id: CapsuleId) -> Result<Capsule> {
    let capsule = get(app, caller, id).await?;
    if capsule.state() == CapsuleState::Running {
        return Ok(capsule);
    }
    Err(Error::Conflict(format!("the capsule is {}, not running", capsule.status)))
}

/// Removes a capsule with all it had.
pub(crate) async fn delete(app: Arc<App>, caller: Caller, id: CapsuleId) -> Result<()> {
    let capsule = get(&app, caller, id).await?;
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let at = Arc::clone(&app);
    app.tasks.spawn(async move {
        let _ = sender.send(remove(&at, &capsule).await);
    });
    receiver.await.unwrap_or(Err(Error::HostUnavailable))
}

/// Brings a capsule to its end from whatever state it was seen in.
pub(crate) async fn remove(app: &App, seen: &Capsule) -> Result<()> {
    let (id, mut generation) = (seen.id(), seen.generation);
    if seen.state() != CapsuleState::Stopping {
        let moved =
            db::capsules::transition(&app.db, id, generation, CapsuleState::Stopping, None).await?;
        let busy = || Error::Conflict("the capsule is changing; try again".to_owned());
        generation = moved.ok_or_else(busy)?;
    }
    app.agent.destroy(id).await?;
    db::capsules::transition(&app.db, id, generation, CapsuleState::Stopped, None).await?;
    Ok(())
}

/// The wire's shape.
pub(crate) fn shown(row: Capsule) -> api::Capsule {
    api::Capsule {
        id: row.id().to_string(),
        status: row.status,
        template: row.template,
        vcpus: row.vcpus,
        memory_mb: row.memory_mib,
        disk_mb: row.disk_mib,
        timeout_sec: row.timeout_sec,
        host_id: row.host_id.map(|id| types::HostId(id).to_string()),
        error: row.error,
        metadata: row.metadata.0,
        created_at: row.created_at,
        started_at: row.started_at,
        last_updated: row.updated_at,
    }
}
