//! Changes of a capsule's name, metadata, wake-up, log and idle time.

use super::create::check_metadata;
use super::get::get;
use super::{named, query, timeouts};
use crate::app::App;
use crate::audit::Entry;
use crate::auth::Caller;
use crate::db;
use crate::db::capsule_names::Changes;
use crate::db::capsules::Capsule;
use crate::db::listen::Change;
use crate::error::{Error, Result};
use serde_json::json;
use types::resources::{MAX_TIMEOUT_SEC, in_range};
use types::{CapsuleId, CapsuleState, LogPolicy, names};

/// Changes settings of a capsule. The row changes first and as a whole. After that, the host learns
/// of another choice for the log and of a new idle time.
pub(crate) async fn change(
    app: &App,
    caller: Caller,
    id: CapsuleId,
    wanted: api::ChangeCapsule,
) -> Result<Capsule> {
    check(caller, &wanted)?;
    let capsule = get(app, caller, id).await?;
    let idle = wanted.idle_timeout;
    let logs = wanted.logs.as_deref().map(str::parse::<LogPolicy>).transpose()?;
    let api::ChangeCapsule { name, metadata, auto_resume, .. } = wanted;
    let changes = Changes { name, metadata, auto_resume, logs };
    let changes_row = changes.name.is_some() || changes.metadata.is_some();
    let capsule = match changes_row || auto_resume.is_some() || logs.is_some() {
        true => change_row(app, caller, id, &changes).await?,
        false => capsule,
    };
    // A host that fails here learns of the choice from the reconciler, or with the next resume.
    if logs.is_some() && capsule.state == CapsuleState::Running {
        apply_logs(app, &capsule).await?;
    }
    match idle {
        Some(idle) => set_idle(app, caller, &capsule, idle).await,
        None => Ok(capsule),
    }
}

fn check(caller: Caller, wanted: &api::ChangeCapsule) -> Result<()> {
    if let Some(name) = &wanted.name {
        // An answer would tell which names other capsules have.
        if caller.confinement.capsule.is_some() {
            return Err(Error::Confined);
        }
        if !name.is_empty() {
            names::check_capsule_name("name", name)?;
        }
    }
    if let Some(metadata) = &wanted.metadata {
        check_metadata(metadata)?;
    }
    in_range("idle_timeout", wanted.idle_timeout.unwrap_or(0), 0, MAX_TIMEOUT_SEC)?;
    Ok(())
}

/// Has the host of a running capsule apply the row's choice of output for the log.
pub(crate) async fn apply_logs(app: &App, capsule: &Capsule) -> Result<()> {
    app.agent_of(capsule)?.set_logs(capsule.id, capsule.logs).await
}

/// Changes the row, with the entry in the audit log.
async fn change_row(
    app: &App,
    caller: Caller,
    id: CapsuleId,
    changes: &Changes,
) -> Result<Capsule> {
    let Changes { name, metadata, auto_resume, logs } = changes;
    let what = json!({ "name": name, "metadata": metadata.is_some(), "auto_resume": auto_resume,
        "logs": logs });
    let entry = Entry::new(caller.team, caller.by, "capsule.change", id).with(what);
    let mut tx = app.db.begin().await?;
    let changed = db::capsule_names::change(&mut *tx, caller.team, id, changes, &caller.by).await;
    let refused = |error| named::refused(error, name.as_deref().unwrap_or_default());
    let capsule = changed.map_err(refused)?.ok_or(Error::NotFound("capsule"))?;
    db::audit::write(&mut *tx, &entry).await?;
    tx.commit().await?;
    app.changed(&Change::Capsule(id));
    Ok(capsule)
}

/// Sets the idle time. The end of the lifetime stays, to the second.
async fn set_idle(app: &App, caller: Caller, capsule: &Capsule, idle: u32) -> Result<Capsule> {
    let left = query::time_left(app, capsule).await?;
    let seconds = left.map(|left| u32::try_from(left.as_secs()).unwrap_or(MAX_TIMEOUT_SEC) + 1);
    let lifetime = seconds.map(|seconds| seconds.min(MAX_TIMEOUT_SEC));
    let wanted = api::SetTimeout { lifetime, on_timeout: None, idle_timeout: Some(idle) };
    timeouts::set_lifetime(app, caller, capsule.id, &wanted).await
}
