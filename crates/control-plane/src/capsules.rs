//! State changes of capsules. This module is the only writer of a capsule's state in the database.
//!
//! ```text
//!  start          mark_running         begin_pause         the host paused
//!  ────▶ starting ───────────▶ running ──────────▶ pausing ──────────────▶ paused
//!                               ▲   ▲                 │                     │  ▲
//!                               │   └─────────────────┘           resume_on │  │ the host
//!                               │     the host refused                      ▼  │ refused
//!                               └──────────────────────────────────────── resuming
//!                                           the host resumed                 ▲
//!                                                                            │ resume_on
//!  a machine is lost, or its host deleted ──▶ error ─────────────────────────┘
//!
//!  running, pausing, resuming ── the host is unreachable ──▶ missing
//!  missing ── reconcile, once the host answers ──▶ running, paused or error
//!  every state but stopped ── begin_removal ──▶ stopping ── complete_removal ──▶ stopped
//! ```
//! `types::CapsuleState::next` is the table of these moves. A refused resume of a capsule in
//! `error` leads back to `error`. `start` removes a capsule whose start fails.
//!
//! Each change of a capsule runs as a task of its own. A client that disconnects therefore leaves
//! nothing half done. If a process dies in between, `reconcile` completes or undoes the change by
//! these same functions.

mod access;
mod alive;
mod fork;
mod idempotency;
mod lifetime;
mod link;
pub(crate) mod network;
mod ports;
mod query;
mod quota;
mod start;
mod stats;
mod suspend;
mod waiters;

pub(crate) use access::{rotate_links, rotate_token};
pub(crate) use alive::unless_silent;
pub(crate) use fork::fork;
pub(crate) use idempotency::IdempotencyKey;
pub(crate) use lifetime::{extend, ping, set_lifetime};
pub(crate) use link::record_link;
pub(crate) use ports::{Listener, listeners};
pub(crate) use query::{list, search, time_left};
pub(crate) use quota::Quota;
pub(crate) use start::{CreateSpec, start};
pub(crate) use stats::{GuestStats, guest_stats};
pub(crate) use suspend::{
    ResumeRequest, awake, caught_up, classify_failure, detached, may_lag, pause, resume, settled,
};
pub(crate) use waiters::{Waiters, wake};

use crate::app::App;
use crate::audit::{Actor, AuditEvent, Entry};
use crate::auth::Caller;
use crate::db;
use crate::db::capsules::Capsule;
use crate::db::listen::Change;
use crate::error::{Error, Result};
use crate::limits::{METADATA_MAX, PUBLIC_PORTS_MAX};
use crate::policy::{Action, Resource};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use types::resources::{MAX_TIMEOUT_SEC, Resources, in_range};
use types::{
    CapsuleId, CapsuleState, Egress, HostId, Isolation, PLATFORM_TEAM, SnapshotId, TemplateId,
    names,
};

/// Placeholder for the port in a capsule's `Host` header.
pub(crate) const HOST_PORT: &str = "${PORT}";

/// Attempts at a change that another change may outrun. Each lost attempt means that another change
/// was made.
const RACES: u32 = 20;

/// Options of a create that depend on the API it came by.
#[derive(Default)]
pub(crate) struct CreateOptions {
    /// Set if the create came by E2B's API.
    pub e2b: bool,
    /// Idempotency key, by which a create may be repeated.
    pub idempotency_key: Option<IdempotencyKey>,
}

/// Creates a capsule. Returns it when its guest answers.
pub(crate) async fn create(
    app: &App,
    caller: Caller,
    wanted: api::CreateCapsule,
    options: CreateOptions,
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
    let idle_sec = wanted.idle_timeout.unwrap_or(0);
    in_range("idle_timeout", idle_sec, 0, MAX_TIMEOUT_SEC)?;
    lifetime::check_timeout(wanted.lifetime)?;
    lifetime::check_on_timeout(wanted.on_timeout.as_deref())?;
    let host_header = wanted.host_header.as_deref();
    host_header.map_or(Ok(()), check_host_header)?;
    let egress = network::read(&wanted.network)?;
    if let Some(key) = &options.idempotency_key
        && let Some(capsule) = idempotency::find_previous(app, caller, key).await?
    {
        return Ok(capsule);
    }
    let from = source(app, caller, &name, &wanted).await?;
    let wanted = CreateSpec {
        idle_sec,
        timeout: wanted.lifetime,
        on_timeout: wanted.on_timeout.unwrap_or_else(|| "pause".to_owned()),
        auto_resume: wanted.auto_resume,
        public_ports: ports.into_iter().map(i32::from).collect(),
        public_traffic: wanted.public_traffic,
        host_header: wanted.host_header,
        egress,
        options,
        envs: wanted.envs,
        metadata: wanted.metadata,
        host_tags: wanted.host_tags,
        ..from
    };
    let at = app.clone();
    Box::pin(detached(app, async move { start(&at, caller, wanted).await })).await
}

/// Resolves a name to a template or, failing that, to a snapshot. A snapshot's sizes are fixed.
async fn source(
    app: &App,
    caller: Caller,
    name: &str,
    wanted: &api::CreateCapsule,
) -> Result<CreateSpec> {
    let none = CreateSpec {
        template_id: None,
        template: String::new(),
        snapshot: None,
        size: Resources::default(),
        isolation: Isolation::None,
        preferred: None,
        stored: false,
        host_tags: Vec::new(),
        idle_sec: 0,
        timeout: None,
        on_timeout: String::new(),
        auto_resume: false,
        public_ports: Vec::new(),
        public_traffic: false,
        host_header: None,
        egress: Egress::default(),
        options: CreateOptions::default(),
        envs: BTreeMap::new(),
        metadata: BTreeMap::new(),
    };
    let or = |asked: Option<u32>, default: i32| asked.unwrap_or(default.unsigned_abs());
    if let Some(template) = db::templates::find(&app.db, caller.team, name).await? {
        let size = Resources {
            vcpus: or(wanted.vcpus, template.vcpus),
            memory_mib: or(wanted.memory_mib, template.memory_mib),
            disk_mib: or(wanted.disk_mib, template.disk_mib),
        };
        size.check()?;
        let template_id = TemplateId(template.id);
        caller.may(Action::CapsulesAdmin, Resource::Template(template_id))?;
        let isolation = template.isolation();
        let (template_id, template) = (Some(template.id), template.name);
        return Ok(CreateSpec { template_id, template, size, isolation, ..none });
    }
    let found = db::snapshots::find(&app.db, caller.team, name, name.parse().ok()).await?;
    let found = found.filter(|_| caller.may(Action::CapsulesAdmin, Resource::Team).is_ok());
    let snapshot = found.ok_or(Error::NotFound("template"))?;
    let size = Resources {
        vcpus: snapshot.vcpus.unsigned_abs(),
        memory_mib: snapshot.memory_mib.unsigned_abs(),
        disk_mib: snapshot.disk_mib.unsigned_abs(),
    };
    for (field, asked, is) in [
        ("vcpus", wanted.vcpus, size.vcpus),
        ("memory_mib", wanted.memory_mib, size.memory_mib),
        ("disk_mib", wanted.disk_mib, size.disk_mib),
    ] {
        if asked.is_some_and(|asked| asked != is) {
            return Err(Error::invalid(field, format!("of this snapshot is {is}")));
        }
    }
    let (id, preferred) = (Some(snapshot.id()), snapshot.host_id.map(HostId));
    let stored = snapshot.stored;
    Ok(CreateSpec { template: snapshot.template, snapshot: id, size, preferred, stored, ..none })
}

/// Returns the audit log's name for a move to a state. Moves that only complete an operation have
/// no entry. Pure.
fn action(to: CapsuleState) -> Option<&'static str> {
    match to {
        CapsuleState::Pausing => Some("capsule.pause"),
        CapsuleState::Resuming => Some("capsule.resume"),
        CapsuleState::Stopping => Some("capsule.delete"),
        CapsuleState::Error => Some("capsule.error"),
        CapsuleState::Missing => Some("capsule.missing"),
        CapsuleState::Starting
        | CapsuleState::Running
        | CapsuleState::Paused
        | CapsuleState::Stopped => None,
    }
}

/// Moves a capsule to a state, as `db::capsules::transition` does. Drops the capsule from the
/// proxy's cache before the caller learns of the result.
pub(crate) async fn transition(
    app: &App,
    id: CapsuleId,
    seen: i64,
    to: CapsuleState,
    error: Option<&str>,
    by: Actor,
) -> Result<Option<i64>> {
    // The statement takes the team from the capsule's row.
    let entry = action(to).map(|action| {
        let why = error.map_or_else(|| json!({}), |error| json!({ "error": error }));
        Entry::new(PLATFORM_TEAM, by, action, id).with(why)
    });
    let moved = db::capsules::transition(&app.db, id, seen, to, error, entry.as_ref()).await;
    app.routes.forget(id);
    Ok(moved?)
}

/// Returns a capsule of the caller's team, if they may see it. A request for another capsule is
/// noted in the audit log.
pub(crate) async fn get(app: &App, caller: Caller, id: CapsuleId) -> Result<Capsule> {
    let found = db::capsules::find(&app.db, caller.team, id).await?;
    if let Some(capsule) = found.filter(|capsule| caller.sees(capsule)) {
        return Ok(capsule);
    }
    if db::capsules::exists(&app.db, id).await? {
        app.audit_buffer.note(AuditEvent {
            team: caller.team,
            by: caller.by,
            action: "capsule.refused",
            resource: id.to_string(),
            refused: true,
            code: "not_found",
        });
    }
    Err(Error::NotFound("capsule"))
}

/// Checks the value of the `Host` header that programs in the capsule get.
fn check_host_header(name: &str) -> Result<()> {
    let filled = name.replace(HOST_PORT, "80");
    match filled.parse::<http::uri::Authority>() {
        Ok(host) if !filled.contains('@') && !host.host().is_empty() && name.len() <= 300 => Ok(()),
        _ => Err(Error::invalid("host_header", "must be a host's name, with a port or without")),
    }
}

fn too_many_public() -> String {
    format!("must be at most {PUBLIC_PORTS_MAX}")
}

/// Checks that a port may be public, linked to or connected to. The port of envd may not, since
/// envd runs commands.
pub(crate) fn check_exposed(field: &str, port: u16) -> Result<()> {
    match port {
        0 => Err(Error::invalid(field, "must be 1 to 65535")),
        protocol::ENVD_PORT => Err(Error::invalid(field, "may not be envd's own")),
        _ => Ok(()),
    }
}

/// Makes a port of a capsule public or private. Anybody may reach a public port.
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
    let mut tx = app.db.begin().await?;
    let set = db::capsules::set_public(&mut *tx, caller.team, id, port, public, most).await?;
    let what = json!({ "port": port, "public": public });
    let entry = Entry::new(caller.team, caller.by, "capsule.set_port", id).with(what);
    if set.is_some() {
        db::audit::write(&mut *tx, &entry).await?;
    }
    tx.commit().await?;
    app.changed(&Change::Capsule(id));
    set.ok_or_else(|| Error::invalid("public_ports", too_many_public()))
}

/// Removes a capsule and everything it had, from any state. Joins a removal that is under way.
pub(crate) async fn delete(app: &App, caller: Caller, id: CapsuleId) -> Result<()> {
    let mut seen = get(app, caller, id).await?;
    let at = app.clone();
    detached(app, async move {
        for _ in 0..RACES {
            if let Some(generation) = begin_removal(&at, &seen, caller.by).await? {
                return complete_removal(&at, &seen, generation, caller.by).await;
            }
            // Another change was faster. A removal may have been, and may be complete.
            match db::capsules::find(&at.db, caller.team, id).await? {
                Some(capsule) => seen = capsule,
                None => return Ok(()),
            }
        }
        Err(suspend::busy())
    })
    .await
}

/// Removes a capsule from the state it was seen in.
pub(crate) async fn remove(app: &App, seen: &Capsule, by: Actor) -> Result<()> {
    let generation = begin_removal(app, seen, by).await?.ok_or_else(suspend::busy)?;
    complete_removal(app, seen, generation, by).await
}

/// Marks a capsule as being removed. Returns the generation of the removal, or `None` when another
/// change was faster.
async fn begin_removal(app: &App, seen: &Capsule, by: Actor) -> Result<Option<i64>> {
    match seen.state() {
        CapsuleState::Stopping => Ok(Some(seen.generation)),
        CapsuleState::Starting
        | CapsuleState::Running
        | CapsuleState::Pausing
        | CapsuleState::Paused
        | CapsuleState::Resuming
        | CapsuleState::Missing
        | CapsuleState::Error
        | CapsuleState::Stopped => {
            transition(app, seen.id(), seen.generation, CapsuleState::Stopping, None, by).await
        }
    }
}

/// Has the host remove a capsule. Several callers may do so at once; each answers when it is done.
async fn complete_removal(app: &App, seen: &Capsule, generation: i64, by: Actor) -> Result<()> {
    let id = seen.id();
    // A capsule whose host was deleted is only in the store. Any host with the store can remove it
    // there.
    let host = seen.host_id.map(HostId).or_else(|| app.fleet.with_store());
    if let Some(host) = host {
        app.agent(host).destroy(id, generation.unsigned_abs(), Some(seen.team())).await?;
    }
    transition(app, id, generation, CapsuleState::Stopped, None, by).await?;
    Ok(())
}

/// Gives up a capsule whose host is about to be forgotten. `why` becomes the capsule's error. A
/// capsule that is completely in the store only loses its host.
pub(crate) async fn abandon(app: &App, seen: &Capsule, why: &str, by: Actor) -> Result<()> {
    let (id, generation) = (seen.id(), seen.generation);
    let stopping = seen.state() == CapsuleState::Stopping;
    if let (true, Some(other)) = (stopping, app.fleet.with_store()) {
        app.agent(other).destroy(id, generation.unsigned_abs(), Some(seen.team())).await?;
    }
    let to = if stopping { CapsuleState::Stopped } else { CapsuleState::Error };
    if seen.state() != to && !seen.is_safe() {
        let moved = transition(app, id, generation, to, Some(why), by).await?;
        moved.ok_or_else(|| Error::Conflict("the capsule is changing; try again".to_owned()))?;
    }
    Ok(db::capsules::unplace(&app.db, seen).await?)
}

/// Converts a row to the API's form for the capsule's maker. It has the traffic token if the maker
/// may run commands there.
pub(crate) fn to_api_for_maker(row: Capsule, caller: Caller) -> api::Capsule {
    let traffic_token = caller.executes(&row).then(|| row.traffic_token.clone());
    api::Capsule { traffic_token, ..to_api(row) }
}

/// Converts a row to the API's form.
pub(crate) fn to_api(row: Capsule) -> api::Capsule {
    api::Capsule {
        id: row.id().to_string(),
        status: row.status,
        template: row.template,
        vcpus: row.vcpus,
        memory_mib: row.memory_mib,
        disk_mib: row.disk_mib,
        snapshot: row.snapshot_id.map(|id| SnapshotId(id).to_string()),
        idle_timeout: row.timeout_sec,
        ends_at: row.ends_at,
        on_timeout: row.on_timeout,
        auto_resume: row.auto_resume,
        booted: row.booted,
        stored: row.stored_newest,
        host_id: row.host_id.map(|id| types::HostId(id).to_string()),
        disk_full: row.disk_full,
        error: row.error,
        public_ports: row.public_ports,
        public_traffic: row.public_traffic,
        traffic_token: None,
        host_header: row.host_header,
        network: network::to_api(&row.egress.0),
        metadata: row.metadata.0,
        created_at: row.created_at,
        started_at: row.started_at,
        last_updated: row.updated_at,
    }
}
