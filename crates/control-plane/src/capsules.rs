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
use std::collections::BTreeSet;
use std::sync::Arc;
use time::OffsetDateTime;
use types::resources::{MAX_TIMEOUT_SEC, Resources, in_range};
use types::{CapsuleId, CapsuleState, names};

/// Most metadata that a capsule may carry, in bytes.
const METADATA_MAX: usize = 16 * 1024;
/// Most ports of a capsule that may be public.
const PUBLIC_PORTS_MAX: usize = 64;

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
    let ports = wanted.public_ports.iter().copied().collect::<BTreeSet<u16>>();
    ports.iter().try_for_each(|port| check_exposed("public_ports", *port))?;
    if ports.len() > PUBLIC_PORTS_MAX {
        return Err(Error::invalid("public_ports", too_many_public()));
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
        traffic_token: random_hex(32),
        public_ports: ports.into_iter().map(i32::from).collect(),
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
    let moved = transition(app, id, 1, CapsuleState::Running, None).await?;
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

/// Moves a capsule to a state, as `db::capsules::transition` does; what the proxy knew of it is
/// dropped before anyone is told.
pub(crate) async fn transition(
    app: &App,
    id: CapsuleId,
    seen: i64,
    to: CapsuleState,
    error: Option<&str>,
) -> Result<Option<i64>> {
    let moved = db::capsules::transition(&app.db, id, seen, to, error).await;
    app.routes.forget(id);
    Ok(moved?)
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
    Err(Error::NotRunning(capsule.state()))
}

fn too_many_public() -> String {
    format!("must be at most {PUBLIC_PORTS_MAX}")
}

/// Checks that a port may be public, linked to or connected to: envd's, which runs commands, may
/// not.
pub(crate) fn check_exposed(field: &str, port: u16) -> Result<()> {
    match port {
        0 => Err(Error::invalid(field, "must be 1 to 65535")),
        protocol::ENVD_PORT => Err(Error::invalid(field, "may not be envd's own")),
        _ => Ok(()),
    }
}

/// Lets anyone reach a port of a capsule, or only those who are admitted.
pub(crate) async fn set_public(
    app: &App,
    caller: Caller,
    id: CapsuleId,
    port: u16,
    public: bool,
) -> Result<Capsule> {
    get(app, caller, id).await?;
    if public {
        check_exposed("port", port)?;
    }
    let most = i32::try_from(PUBLIC_PORTS_MAX).unwrap_or(i32::MAX);
    let set = db::capsules::set_public(&app.db, caller.team, id, port, public, most).await?;
    app.routes.forget(id);
    set.ok_or_else(|| Error::invalid("public_ports", too_many_public()))
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
        let moved = transition(app, id, generation, CapsuleState::Stopping, None).await?;
        let busy = || Error::Conflict("the capsule is changing; try again".to_owned());
        generation = moved.ok_or_else(busy)?;
    }
    app.agent.destroy(id).await?;
    transition(app, id, generation, CapsuleState::Stopped, None).await?;
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
        public_ports: row.public_ports,
        metadata: row.metadata.0,
        created_at: row.created_at,
        started_at: row.started_at,
        last_updated: row.updated_at,
    }
}
