//! The life of a host after its enrolment: heartbeats, silence, draining and deletion.

use super::jwt::Enrolled;
use crate::app::App;
use crate::audit::{Actor, Entry};
use crate::auth::Caller;
use crate::db::capsules::Capsule;
use crate::error::{Error, Result};
use crate::{capsules, db, snapshots};
use futures::StreamExt;
use serde_json::json;
use std::time::Duration;
use types::{CapsuleState, HostId, PLATFORM_TEAM};

/// Time without a heartbeat, in seconds, after which a host is unreachable.
const SILENT: f64 = 90.0;
/// Time that hosts get for a heartbeat after no control plane ran to receive one. It is one and a
/// half times the pause between heartbeats.
const GRACE: Duration = Duration::from_secs(45);
/// Most capsules that are paused, or removed, at once.
const AT_ONCE: usize = 4;
/// Most capsules that a preview of a deletion names.
const NAMED: usize = 1000;

/// Stores a host's heartbeat. Returns `true` if the host must renew its credentials, because it
/// trusts another set of authorities.
pub(crate) async fn heartbeat(app: &App, who: Enrolled, said: &api::Heartbeat) -> Result<bool> {
    let Enrolled { host, enrolment } = who;
    super::enrol::check_specs(&said.specs)?;
    if !db::hosts::heard(&app.db, host, enrolment, &said.specs, &said.load).await? {
        return Err(match db::hosts::find(&app.db, host).await? {
            Some(_) => Error::InvalidToken("the host token"),
            None => Error::NotFound("host"),
        });
    }
    if app.fleet.known(host).is_none_or(|known| known.templates != said.specs.templates) {
        super::enrol::share_templates(app, host, &said.specs).await?;
    }
    let trusts = app.cert_store.as_ref().map(|cert_store| cert_store.trust_hash());
    Ok(said.trust != trusts)
}

/// Returns the time that passes before the silence of hosts counts. All hosts are silent when no
/// control plane ran, since nobody could hear them.
pub(crate) async fn grace(app: &App) -> Result<Duration> {
    let nobody_heard = db::hosts::are_all_silent(&app.db, SILENT).await?;
    Ok(if nobody_heard { GRACE } else { Duration::ZERO })
}

/// Marks silent hosts as unreachable and their capsules as missing. Deletes old tokens of hosts.
pub(crate) async fn watch(app: &App) -> Result<()> {
    for host in db::hosts::mark_unreachable(&app.db, SILENT).await? {
        tracing::warn!(%host, "no heartbeat from the host for {SILENT} s");
    }
    for capsule in db::capsules::list_lost(&app.db).await? {
        let (id, seen) = (capsule.id, capsule.generation);
        let by = Actor::SYSTEM.because("host_unreachable");
        capsules::transition(app, id, seen, CapsuleState::Missing, None, by).await?;
    }
    db::host_tokens::prune(&app.db).await?;
    Ok(())
}

/// Pauses the running capsules of a host that is being drained.
pub(crate) async fn empty(app: &App, host: HostId) -> Result<()> {
    let rows = db::capsules::list_by_host(&app.db, host).await?;
    // A capsule that works for a build cannot pause. It goes when the build ends.
    let idle = |row: &Capsule| row.state == CapsuleState::Running && row.build_id.is_none();
    let running = rows.into_iter().filter(idle);
    let pausing = running.map(|row| async move {
        let by = Actor::SYSTEM.because("host_draining");
        let caller = Caller { by, ..Caller::of(row.team_id) };
        if let Err(error) = capsules::pause(app, caller, row.id, true).await {
            tracing::warn!(id = %row.id, %error, "cannot pause a capsule of a draining host");
        }
    });
    futures::stream::iter(pausing).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    Ok(())
}

/// Returns the hosts that the caller may see. An operator sees all of them. Other callers see their
/// team's own hosts, and an outline of the hosts that serve every team.
pub(crate) async fn list(app: &App, caller: Caller) -> Result<Vec<api::Host>> {
    let rows = db::hosts::list(&app.db).await?;
    let seen = |row: db::hosts::Host| match row.team_id {
        _ if caller.operator => Some(to_api(row)),
        Some(team) if team == caller.team => Some(to_api(row)),
        None => Some(outlined(row)),
        Some(_) => None,
    };
    Ok(rows.into_iter().filter_map(seen).collect())
}

pub(crate) async fn get(app: &App, id: HostId) -> Result<api::Host> {
    let found = db::hosts::find(&app.db, id).await?;
    found.map(to_api).ok_or(Error::NotFound("host"))
}

pub(crate) async fn drain(app: &App, id: HostId, drain: bool, by: Actor) -> Result<api::Host> {
    let mut tx = app.db.begin().await?;
    if !db::hosts::set_draining(&mut *tx, id, drain).await? {
        return Err(Error::NotFound("host"));
    }
    let what = json!({ "drain": drain });
    let entry = Entry::new(PLATFORM_TEAM, by, "host.drain", id).with(what);
    db::audit::write(&mut *tx, &entry).await?;
    tx.commit().await?;
    app.fleet.read().await?;
    app.wake.notify_one();
    get(app, id).await
}

pub(crate) async fn set_tags(
    app: &App,
    id: HostId,
    tags: &[String],
    by: Actor,
) -> Result<api::Host> {
    super::enrol::check_tags(tags)?;
    let mut tx = app.db.begin().await?;
    if !db::hosts::set_tags(&mut *tx, id, tags).await? {
        return Err(Error::NotFound("host"));
    }
    let entry = Entry::new(PLATFORM_TEAM, by, "host.set_tags", id).with(json!({ "tags": tags }));
    db::audit::write(&mut *tx, &entry).await?;
    tx.commit().await?;
    app.fleet.read().await?;
    get(app, id).await
}

/// Returns the capsules and the numbers of snapshots and versions that would be lost with a host.
pub(crate) async fn loss(app: &App, id: HostId) -> Result<api::HostLoss> {
    get(app, id).await?;
    let rows = db::capsules::list_by_host(&app.db, id).await?;
    let lost = |row: Capsule| api::LostCapsule {
        id: row.id.to_string(),
        team_id: row.team_id.to_string(),
        status: row.state.to_string(),
    };
    let here_alone = rows.into_iter().filter(|row| !row.is_safe());
    let capsules = here_alone.take(NAMED).map(lost).collect();
    let snapshots = db::snapshots::list_by_host(&app.db, id).await?;
    let snapshots = snapshots.into_iter().filter(|snapshot| !snapshot.stored).count();
    let snapshots = i64::try_from(snapshots).unwrap_or(i64::MAX);
    let versions = db::versions::count_only_there(&app.db, id).await?;
    Ok(api::HostLoss { capsules, snapshots, versions })
}

/// Deletes a host. With `force`, also deletes a host that has capsules, snapshots or versions of
/// templates, which are then lost.
pub(crate) async fn delete(app: &App, id: HostId, force: bool, by: Actor) -> Result<()> {
    let host = get(app, id).await?;
    if force {
        db::hosts::set_draining(&app.db, id, true).await?;
        app.fleet.read().await?;
        give_up(app, id, by).await?;
    }
    let what = json!({ "name": host.name, "force": force });
    let entry = Entry::new(PLATFORM_TEAM, by, "host.delete", id).with(what);
    if !db::hosts::remove(&app.db, id, force, &entry).await? {
        let loss = loss(app, id).await?;
        return Err(Error::HostNotEmpty(loss.capsules.len(), loss.snapshots, loss.versions));
    }
    app.agents.forget(id);
    app.fleet.read().await?;
    Ok(())
}

/// Removes the capsules and snapshots that only this host has. If the host does not answer, changes
/// only the database.
async fn give_up(app: &App, id: HostId, by: Actor) -> Result<()> {
    let answers = app.agent(id).describe().await.is_ok();
    let rows = db::capsules::list_by_host(&app.db, id).await?;
    let lost = rows.into_iter().filter(|row| !row.is_safe());
    let ending = lost.map(|row| async move {
        let ended = if answers {
            capsules::remove(app, &row, by).await
        } else {
            capsules::abandon(app, &row, "the capsule's host was deleted", by).await
        };
        if let Err(error) = ended {
            tracing::warn!(id = %row.id, %error, "cannot end a capsule of a deleted host");
        }
    });
    futures::stream::iter(ending).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    let snapshots = db::snapshots::list_by_host(&app.db, id).await?;
    for snapshot in snapshots.into_iter().filter(|snapshot| !snapshot.stored) {
        if answers {
            snapshots::remove(app, &snapshot, by).await?;
        } else {
            db::snapshots::remove(&app.db, snapshot.id).await?;
        }
    }
    Ok(())
}

/// Converts a row to the API's form for a caller who does not own the host. It shows only the kind
/// of host.
fn outlined(row: db::hosts::Host) -> api::Host {
    let host = to_api(row);
    api::Host {
        name: host.id.clone(),
        address: String::new(),
        tags: Vec::new(),
        load: api::HostLoad::default(),
        cert_fingerprint: None,
        cert_expires_at: None,
        last_heartbeat_at: None,
        capsules: 0,
        used_vcpus: 0,
        used_memory_mib: 0,
        used_disk_mib: 0,
        ..host
    }
}

/// Converts a row to the API's form.
fn to_api(row: db::hosts::Host) -> api::Host {
    api::Host {
        id: row.id.to_string(),
        name: row.name,
        status: row.state.to_string(),
        draining: row.draining,
        team_id: row.team_id.map(|id| id.to_string()),
        tags: row.tags,
        address: row.address,
        arch: row.arch,
        driver: row.driver,
        accelerator: row.accelerator,
        isolation: row.isolation.to_string(),
        version: row.version,
        templates: row.templates,
        store: row.store,
        cpu_cores: row.cpu_cores,
        vcpus: row.max_vcpus,
        memory_mib: row.memory_mib,
        disk_mib: row.disk_mib,
        capsules: row.capsules,
        used_vcpus: row.used_vcpus,
        used_memory_mib: row.used_memory_mib,
        used_disk_mib: row.used_disk_mib,
        load: row.load.0,
        cert_fingerprint: row.cert_fingerprint,
        cert_expires_at: row.cert_expires_at,
        created_at: row.created_at,
        last_heartbeat_at: row.last_heartbeat_at,
    }
}
