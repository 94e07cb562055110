//! Starts a capsule: its row, a host for it, and the machine there. If a host has no room or does
//! not answer, another one is tried.

use super::delete::remove;
use super::join::RACES;
use super::spec::{BuildWork, CreateSpec};
use super::transition::set_running;
use super::{idempotency, named, network, timeouts};
use crate::agent::Started;
use crate::app::App;
use crate::audit::Entry;
use crate::auth::Caller;
use crate::db;
use crate::db::capsule_names::NewName;
use crate::db::capsules::Capsule;
use crate::db::new_capsule::{Inserted, NewCapsule};
use crate::error::{Error, Result};
use crate::quota::Quota;
use crate::scheduler::PlacementRequest;
use crate::secret::{new_envd_token, random_hex};
use daemon::stage;
use protocol::host::CreateCapsuleRequest;
use serde_json::json;
use sqlx::types::Json;
use std::time::Duration;
use time::OffsetDateTime;
use types::{CapsuleId, CapsuleState, LogPolicy};

/// Most hosts that are tried for one create.
const HOSTS_MAX: usize = 3;
/// Histogram of a create's stages.
pub(super) const STAGES: &str = "wrenn_capsule_create_stage_seconds";

/// Inserts a capsule's row and has a host make its machine.
pub(super) async fn start(app: &App, caller: Caller, wanted: CreateSpec) -> Result<Capsule> {
    let work = Box::pin(place_and_make(app, caller, wanted));
    daemon::operation("wrenn_capsule_create_seconds", "create", work).await
}

async fn place_and_make(app: &App, caller: Caller, wanted: CreateSpec) -> Result<Capsule> {
    let quota = Quota::of(app, caller).await?;
    let row = row(caller, &wanted, quota.logs());
    let request = request(&row, &wanted);
    let origin = &wanted.source.origin;
    let placement = PlacementRequest {
        team: caller.team,
        size: row.size(),
        origin: origin.holders(&wanted.source.template),
        tags: &wanted.host_tags,
        isolation: origin.isolation().max(quota.isolation()),
        excluded: &[],
    };
    // The number of builds under way has a limit of its own.
    if wanted.work.is_none() {
        quota.rate(app)?;
    }
    let ready_within = origin.version().map_or(Duration::ZERO, |version| version.ready_within);
    let host = stage(STAGES, "placed", app.fleet.place(&placement)).await?;
    let mut row = Capsule { host_id: Some(host), ..row };
    let inserting = Box::pin(insert_named(app, caller, &quota, &row, &wanted));
    stage(STAGES, "inserted", inserting).await?;
    daemon::failpoint("control.starting").map_err(|e| Error::Internal(e.into()))?;
    match make(app, &mut row, request, &placement, ready_within).await {
        Ok(started) => {
            let marking = Box::pin(mark_running(app, caller, &row, started));
            stage(STAGES, "committed", marking).await
        }
        Err(error) => {
            metrics::counter!("wrenn_capsule_creates_failed_total").increment(1);
            // If the removal fails, the reconciler repeats it.
            if let Err(undo) = remove(app, &row, caller.by).await {
                tracing::warn!(id = %row.id, error = %undo, "cannot undo a failed create");
            }
            Err(error)
        }
    }
}

/// Inserts the row. Another capsule may take the free name of a copy meanwhile. The next free name
/// is tried then.
async fn insert_named(
    app: &App,
    caller: Caller,
    quota: &Quota,
    row: &Capsule,
    wanted: &CreateSpec,
) -> Result<()> {
    let mut tries = if matches!(wanted.name, NewName::CopyOf(_)) { RACES } else { 1 };
    loop {
        tries -= 1;
        match insert(app, caller, quota, row, wanted).await {
            Err(Error::NameTaken(_)) if tries > 0 => {}
            done => return done,
        }
    }
}

/// Inserts the row with its audit entry and idempotency key, if the quota admits one more capsule.
async fn insert(
    app: &App,
    caller: Caller,
    quota: &Quota,
    row: &Capsule,
    wanted: &CreateSpec,
) -> Result<()> {
    let snapshot = wanted.source.origin.snapshot();
    let what = json!({ "template": row.template, "vcpus": row.vcpus, "memory_mib": row.memory_mib,
        "memory_mb": row.memory_mib, "snapshot": snapshot.map(|id| id.to_string()) });
    let entry = Entry::new(caller.team, caller.by, "capsule.create", row.id).with(what);
    let key = wanted.options.idempotency_key.as_ref();
    let new = NewCapsule {
        row,
        name: &wanted.name,
        by: caller.by.principal,
        entry: wanted.work.is_none().then_some(&entry),
        key: key.map(|key| (key.key.as_str(), &key.request)),
        most: quota.most(row),
    };
    let inserted = match (wanted.work, quota.bound_key()) {
        (None, None) => {
            let inserted = db::new_capsule::insert(&app.db, &new).await;
            inserted.map_err(|error| not_inserted(error, new.name))?
        }
        // The checks count what the statement would count again.
        (work, _) => insert_checked(app, quota, &NewCapsule { most: None, ..new }, work).await?,
    };
    match inserted {
        Inserted::Done => {
            // The insert announces no event, so the readers of this replica hear of it here.
            app.streams.wake(Some(row.team_id));
            Ok(())
        }
        Inserted::NoTeam => Err(Error::NotFound("team")),
        Inserted::NoRoom(held) => Err(quota.exceeded(held, row)),
        Inserted::KeyInUse => Err(idempotency::in_flight()),
    }
}

/// Inserts a capsule that works for a build, or whose key has limits of its own. Their checks are
/// statements before the insert, in its transaction.
async fn insert_checked(
    app: &App,
    quota: &Quota,
    new: &NewCapsule<'_>,
    work: Option<BuildWork>,
) -> Result<Inserted> {
    let mut tx = app.db.begin().await?;
    match work {
        None => quota.admit(&mut tx, new.row).await?,
        Some(work) => {
            quota.admit_for_build(&mut tx, new.row).await?;
            // A build that was cancelled, or moved on, gets no more capsules.
            if !db::build_runs::holds_capsule(&mut tx, work.build, new.row.id).await? {
                return Err(Error::Conflict("the build has ended or moved on".to_owned()));
            }
        }
    }
    let inserted = db::new_capsule::insert(&mut *tx, new).await;
    let inserted = inserted.map_err(|error| not_inserted(error, new.name))?;
    tx.commit().await?;
    Ok(inserted)
}

/// Converts the error of an insert. Another capsule may have the name. The template or its version
/// may have been deleted since the request resolved them.
fn not_inserted(error: sqlx::Error, name: &NewName) -> Error {
    if let NewName::Given(name) | NewName::CopyOf(name) = name
        && db::capsule_names::is_taken(&error)
    {
        return named::refused(error, name);
    }
    let origins = ["capsules_version_id_fkey", "capsules_template_id_fkey"];
    let constraint = error.as_database_error().and_then(|error| error.constraint());
    match constraint.is_some_and(|name| origins.contains(&name)) {
        true => Error::NotFound("template"),
        false => error.into(),
    }
}

/// Makes the row of a capsule that is about to start. Placement chooses its host later. `logs` is
/// the team's setting.
fn row(caller: Caller, wanted: &CreateSpec, logs: LogPolicy) -> Capsule {
    let (source, settings) = (&wanted.source, &wanted.settings);
    let now = OffsetDateTime::now_utc();
    let work = wanted.work;
    let id = work.map_or_else(CapsuleId::new, |work| work.id);
    let parent = wanted.parent();
    Capsule {
        id,
        team_id: caller.team,
        host_id: None,
        template_id: source.origin.template_id(),
        template: source.template.clone(),
        snapshot_id: source.origin.snapshot(),
        version_id: source.origin.version_id(),
        build_id: work.map(|work| work.build),
        state: CapsuleState::Starting,
        operation: String::new(),
        generation: 1,
        vcpus: source.size.vcpus,
        memory_mib: source.size.memory_mib,
        disk_mib: source.size.disk_mib,
        idle_sec: settings.idle_sec,
        ends_at: None,
        on_timeout: settings.on_timeout,
        auto_resume: settings.auto_resume,
        envd_token: new_envd_token(id),
        traffic_token: random_hex(32),
        link_generation: 1,
        created_by_key: caller.key().or_else(|| work?.created_by_key),
        public_ports: settings.public_ports.clone(),
        public_traffic: settings.public_traffic,
        host_header: settings.host_header.clone(),
        egress: Json(settings.egress.clone()),
        e2b: wanted.options.e2b,
        booted: false,
        stored: None,
        stored_tree: String::new(),
        stored_newest: false,
        disk_full: false,
        storage_bytes: 0,
        placed: None,
        age: 0.0,
        error: None,
        metadata: Json(settings.metadata.clone()),
        logs: settings.logs.unwrap_or(logs),
        created_at: now,
        started_at: None,
        updated_at: now,
        // The insert sets name and creator.
        name: None,
        created_by_type: None,
        created_by_id: None,
        created_by_label: None,
        parent_type: parent.map(|(kind, _)| kind),
        parent_id: parent.map(|(_, id)| id),
        state_since: now,
        paused_at: None,
        last_active_at: now,
        ended_at: None,
        isolation: None,
    }
}

/// Makes the request for the host.
fn request(row: &Capsule, wanted: &CreateSpec) -> CreateCapsuleRequest {
    let (size, snapshot) = (wanted.source.size, wanted.source.origin.snapshot());
    let version = wanted.source.origin.version();
    CreateCapsuleRequest {
        capsule_id: row.id.to_string(),
        template: row.template.clone(),
        vcpus: size.vcpus,
        memory_mib: size.memory_mib,
        disk_mib: size.disk_mib,
        envd_token: row.envd_token.clone(),
        envs: wanted.envs.clone().into_iter().collect(),
        generation: 1,
        snapshot_id: snapshot.map(|id| id.to_string()),
        lifetime: timeouts::wire(row, wanted.settings.timeout).into(),
        team_id: row.team_id.to_string(),
        egress: network::wire(&row.egress).into(),
        version_id: version.map(|version| version.id.to_string()),
        version_team_id: version.map(|version| version.team.to_string()),
        build_id: row.build_id.map(|id| id.to_string()),
        logs: row.logs.to_string(),
        ..Default::default()
    }
}

/// Has the row's host make the machine. If that host has no room or does not answer, tries others.
async fn make(
    app: &App,
    row: &mut Capsule,
    request: CreateCapsuleRequest,
    placement: &PlacementRequest<'_>,
    ready_within: Duration,
) -> Result<Started> {
    let mut tried = Vec::new();
    loop {
        let generation = row.generation;
        let request = CreateCapsuleRequest { generation, ..request.clone() };
        let agent = app.agent_of(row)?;
        let making = Box::pin(agent.create(request, ready_within));
        let error = match stage(STAGES, "host", making).await {
            Ok(started) => return Ok(started),
            Err(error @ (Error::NoCapacity(_) | Error::HostUnavailable)) => error,
            Err(error) => return Err(error),
        };
        let host = row.host_id;
        if let (Error::HostUnavailable, Some(host)) = (&error, host) {
            app.fleet.suspect(host);
        }
        tried.extend(host);
        let again = PlacementRequest { excluded: &tried, ..placement.clone() };
        let next = if tried.len() < HOSTS_MAX { app.fleet.place(&again).await.ok() } else { None };
        // After the move, a machine on the last host belongs to no row, and is removed there.
        let moved = match next {
            Some(next) => db::capsules::move_start(&app.db, row.id, row.generation, next).await?,
            None => None,
        };
        let (Some(next), Some(generation)) = (next, moved) else { return Err(error) };
        (row.host_id, row.generation) = (Some(next), generation);
    }
}

/// Marks the capsule as running.
async fn mark_running(
    app: &App,
    caller: Caller,
    row: &Capsule,
    started: Started,
) -> Result<Capsule> {
    let Started { left, booted } = started;
    let left = left.map(|left| left.as_secs_f64());
    if let Some(row) = set_running(app, row.id, row.generation, left, caller.by).await? {
        return Ok(Capsule { booted, ..row });
    }
    // The reconciler was faster, or someone deletes the capsule. A deletion removes the machine
    // too. The caller's right was checked before the capsule was made.
    if left.is_some() {
        db::capsules::set_end(&app.db, row.id, row.generation, left).await?;
    }
    let row = db::capsules::find_of(&app.db, caller.team, row.id, row.build_id).await?;
    match row.filter(|row| row.state == CapsuleState::Running) {
        Some(row) => Ok(Capsule { booted, ..row }),
        None => Err(Error::Conflict("the capsule was deleted while it was starting".to_owned())),
    }
}
