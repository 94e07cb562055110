//! The life of a capsule: the only writer of its state in the database.
//!
//! What changes a capsule runs as a task of its own, so that a client who leaves stops
//! nothing half-way. Whatever dies in between, `reconcile` completes or undoes by these same
//! functions.

mod fork;
mod keep;
mod life;

pub(crate) use fork::fork;
pub(crate) use keep::{Wanted, awake, detached, pause, resume, settled, why};
pub(crate) use life::{end, ping, set as set_life};

use crate::app::App;
use crate::auth::{Caller, random_hex};
use crate::db;
use crate::db::capsules::Capsule;
use crate::error::{Error, Result};
use protocol::host::CreateCapsuleRequest;
use sqlx::types::Json;
use std::collections::{BTreeMap, BTreeSet};
use time::OffsetDateTime;
use types::resources::{MAX_TIMEOUT_SEC, Resources, in_range};
use types::{CapsuleId, CapsuleState, SnapshotId, names};

/// Most metadata that a capsule may carry, in bytes.
const METADATA_MAX: usize = 16 * 1024;
/// Most ports of a capsule that may be public.
const PUBLIC_PORTS_MAX: usize = 64;

/// A capsule that is to begin.
pub(crate) struct Begin {
    pub template_id: Option<uuid::Uuid>,
    pub template: String,
    /// What it begins from; the template when none.
    pub snapshot: Option<SnapshotId>,
    pub size: Resources,
    pub idle_sec: u32,
    /// Seconds from when it runs until its time is over.
    pub timeout: Option<u32>,
    pub on_timeout: String,
    pub auto_resume: bool,
    pub public_ports: Vec<i32>,
    pub envs: BTreeMap<String, String>,
    pub metadata: BTreeMap<String, String>,
}

/// Makes a capsule and answers when its guest does.
pub(crate) async fn create(
    app: &App,
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
    let idle_sec = wanted.timeout_sec.unwrap_or(0);
    in_range("timeout_sec", idle_sec, 0, MAX_TIMEOUT_SEC)?;
    life::check_timeout(wanted.timeout)?;
    life::check_on_timeout(wanted.on_timeout.as_deref())?;
    let from = source(app, caller, &name, &wanted).await?;
    let wanted = Begin {
        idle_sec,
        timeout: wanted.timeout,
        on_timeout: wanted.on_timeout.unwrap_or_else(|| "pause".to_owned()),
        auto_resume: wanted.auto_resume,
        public_ports: ports.into_iter().map(i32::from).collect(),
        envs: wanted.envs,
        metadata: wanted.metadata,
        ..from
    };
    let at = app.clone();
    detached(app, async move { begin(&at, caller, wanted).await }).await
}

/// What a name stands for: a template, else a snapshot, whose sizes are what they are.
async fn source(
    app: &App,
    caller: Caller,
    name: &str,
    wanted: &api::CreateCapsule,
) -> Result<Begin> {
    let none = Begin {
        template_id: None,
        template: String::new(),
        snapshot: None,
        size: Resources::default(),
        idle_sec: 0,
        timeout: None,
        on_timeout: String::new(),
        auto_resume: false,
        public_ports: Vec::new(),
        envs: BTreeMap::new(),
        metadata: BTreeMap::new(),
    };
    let or = |asked: Option<u32>, default: i32| asked.unwrap_or(default.unsigned_abs());
    if let Some(template) = db::templates::find(&app.db, caller.team, name).await? {
        let size = Resources {
            vcpus: or(wanted.vcpus, template.vcpus),
            memory_mib: or(wanted.memory_mb, template.memory_mib),
            disk_mib: or(wanted.disk_mb, template.disk_mib),
        };
        size.check()?;
        return Ok(Begin { template_id: Some(template.id), template: template.name, size, ..none });
    }
    let found = db::snapshots::find(&app.db, caller.team, name, name.parse().ok()).await?;
    let snapshot = found.ok_or(Error::NotFound("template"))?;
    let size = Resources {
        vcpus: snapshot.vcpus.unsigned_abs(),
        memory_mib: snapshot.memory_mib.unsigned_abs(),
        disk_mib: snapshot.disk_mib.unsigned_abs(),
    };
    for (field, asked, is) in [
        ("vcpus", wanted.vcpus, size.vcpus),
        ("memory_mb", wanted.memory_mb, size.memory_mib),
        ("disk_mb", wanted.disk_mb, size.disk_mib),
    ] {
        if asked.is_some_and(|asked| asked != is) {
            return Err(Error::invalid(field, format!("of this snapshot is {is}")));
        }
    }
    let id = Some(snapshot.id());
    Ok(Begin { template: snapshot.template, snapshot: id, size, ..none })
}

/// Enters a capsule and has its host make it.
pub(crate) async fn begin(app: &App, caller: Caller, wanted: Begin) -> Result<Capsule> {
    let now = OffsetDateTime::now_utc();
    let int = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    let row = Capsule {
        id: CapsuleId::new().0,
        host_id: Some(app.host.0),
        template_id: wanted.template_id,
        template: wanted.template,
        snapshot_id: wanted.snapshot.map(|id| id.0),
        status: CapsuleState::Starting.as_str().to_owned(),
        generation: 1,
        vcpus: int(wanted.size.vcpus),
        memory_mib: int(wanted.size.memory_mib),
        disk_mib: int(wanted.size.disk_mib),
        timeout_sec: int(wanted.idle_sec),
        ends_at: None,
        on_timeout: wanted.on_timeout,
        auto_resume: wanted.auto_resume,
        envd_token: random_hex(32),
        traffic_token: random_hex(32),
        public_ports: wanted.public_ports,
        booted: false,
        error: None,
        metadata: Json(wanted.metadata),
        created_at: now,
        started_at: None,
        updated_at: now,
    };
    let request = CreateCapsuleRequest {
        capsule_id: row.id().to_string(),
        template: row.template.clone(),
        vcpus: wanted.size.vcpus,
        memory_mib: wanted.size.memory_mib,
        disk_mib: wanted.size.disk_mib,
        envd_token: row.envd_token.clone(),
        envs: wanted.envs.into_iter().collect(),
        generation: 1,
        snapshot_id: wanted.snapshot.map(|id| id.to_string()).unwrap_or_default(),
        life: life::wire(&row, wanted.timeout).into(),
        team_id: caller.team.to_string(),
        ..Default::default()
    };
    boot(app, caller, row, request).await
}

async fn boot(
    app: &App,
    caller: Caller,
    row: Capsule,
    request: CreateCapsuleRequest,
) -> Result<Capsule> {
    let id = row.id();
    db::capsules::insert(&app.db, caller.team, app.host, &row).await?;
    daemon::step("control.starting").map_err(|e| Error::Internal(e.into()))?;
    let started = std::time::Instant::now();
    let begun = match app.agent.create(request).await {
        Ok(begun) => begun,
        Err(error) => {
            metrics::counter!("wrenn_capsule_creates_failed_total").increment(1);
            // What cannot be removed now, the reconciler removes.
            if let Err(undo) = remove(app, &row).await {
                tracing::warn!(%id, error = %undo, "undoing a create");
            }
            return Err(error);
        }
    };
    metrics::histogram!("wrenn_capsule_create_seconds").record(started.elapsed().as_secs_f64());
    if begun.ends_at.is_some() {
        db::capsules::set_end(&app.db, id, begun.ends_at).await?;
    }
    let moved = transition(app, id, 1, CapsuleState::Running, None).await?;
    let found = get(app, caller, id).await;
    // Where the move was refused, the reconciler was faster, or someone deletes it: then whoever
    // does that removes the machine too.
    match found {
        Ok(row) if moved.is_some() || row.state() == CapsuleState::Running => {
            Ok(Capsule { booted: begun.booted, ..row })
        }
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
pub(crate) async fn delete(app: &App, caller: Caller, id: CapsuleId) -> Result<()> {
    let capsule = get(app, caller, id).await?;
    let at = app.clone();
    detached(app, async move { remove(&at, &capsule).await }).await
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
        snapshot: row.snapshot_id.map(|id| SnapshotId(id).to_string()),
        timeout_sec: row.timeout_sec,
        ends_at: row.ends_at,
        on_timeout: row.on_timeout,
        auto_resume: row.auto_resume,
        booted: row.booted,
        host_id: row.host_id.map(|id| types::HostId(id).to_string()),
        error: row.error,
        public_ports: row.public_ports,
        metadata: row.metadata.0,
        created_at: row.created_at,
        started_at: row.started_at,
        last_updated: row.updated_at,
    }
}
