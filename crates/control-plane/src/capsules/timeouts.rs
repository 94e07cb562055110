//! Lifetimes of capsules. The control plane sets them, and the host enforces them.

use super::get::get;
use super::settle::settled;
use crate::app::App;
use crate::audit::Entry;
use crate::auth::Caller;
use crate::db;
use crate::db::capsules::{Capsule, Rules};
use crate::error::{Error, Result};
use protocol::host::{self, Lifetime, SetLifetimeRequest};
use serde_json::json;
use std::time::Duration;
use types::resources::{MAX_TIMEOUT_SEC, in_range};
use types::{CapsuleId, OnTimeout};

/// Lifetime in seconds of a capsule that traffic woke, if its lifetime is limited at all. Its
/// former end may have passed while it was paused.
const AWAKE: u32 = 300;

pub(crate) fn check_timeout(timeout: Option<u32>) -> Result<()> {
    timeout.map_or(Ok(()), |timeout| Ok(in_range("lifetime", timeout, 1, MAX_TIMEOUT_SEC)?))
}

pub(crate) fn read_on_timeout(on_timeout: Option<&str>) -> Result<Option<OnTimeout>> {
    let wrong = |_| Error::invalid("on_timeout", "must be `pause`, `pause_disk` or `kill`");
    on_timeout.map(str::parse::<OnTimeout>).transpose().map_err(wrong)
}

/// Makes the host's message for a capsule that may run for `timeout` seconds from its start.
pub(crate) fn wire(capsule: &Capsule, timeout: Option<u32>) -> Lifetime {
    let on_timeout = match capsule.on_timeout {
        OnTimeout::Kill => host::OnTimeout::ON_TIMEOUT_KILL,
        OnTimeout::PauseDisk => host::OnTimeout::ON_TIMEOUT_PAUSE_DISK,
        OnTimeout::Pause => host::OnTimeout::ON_TIMEOUT_PAUSE,
    };
    Lifetime {
        lasts_ms: timeout.map(|seconds| u64::from(seconds) * 1000),
        on_timeout: on_timeout.into(),
        idle_sec: capsule.idle_sec,
        ..Default::default()
    }
}

/// Returns the lifetime in seconds of a capsule that traffic woke.
pub(super) fn after_waking(capsule: &Capsule) -> Option<u32> {
    capsule.ends_at.map(|_| AWAKE)
}

/// Sets a capsule's end, counted from now, and its rules for timeouts.
pub(crate) async fn set_lifetime(
    app: &App,
    caller: Caller,
    id: CapsuleId,
    wanted: &api::SetTimeout,
) -> Result<Capsule> {
    let on_timeout = read_on_timeout(wanted.on_timeout.as_deref())?;
    if let Some(timeout) = wanted.lifetime {
        in_range("lifetime", timeout, 0, MAX_TIMEOUT_SEC)?;
    }
    if let Some(idle) = wanted.idle_timeout {
        in_range("idle_timeout", idle, 0, MAX_TIMEOUT_SEC)?;
    }
    let mut capsule = settled(app, caller, id).await?;
    if let Some(on_timeout) = on_timeout {
        capsule.on_timeout = on_timeout;
    }
    if let Some(idle) = wanted.idle_timeout {
        capsule.idle_sec = Some(idle).filter(|idle| *idle > 0);
    }
    let request = SetLifetimeRequest {
        capsule_id: id.to_string(),
        lifetime: wire(&capsule, wanted.lifetime).into(),
        generation: capsule.generation,
        ..Default::default()
    };
    let left = app.agent_of(&capsule)?.set_lifetime(request).await?;
    let left = left.map(|left| left.as_secs_f64());
    let (on_timeout, idle_sec) = (capsule.on_timeout, capsule.idle_sec);
    let rules = Rules { on_timeout, idle_sec };
    let mut tx = app.db.begin().await?;
    let (seen, by) = (capsule.generation, &caller.by);
    db::capsules::set_lifetime(&mut *tx, id, seen, left, &rules, by).await?;
    let idle = idle_sec.unwrap_or(0);
    let what = json!({ "lifetime": wanted.lifetime, "on_timeout": on_timeout, "idle_timeout": idle,
        "timeout": wanted.lifetime, "timeout_sec": idle });
    let entry = Entry::new(caller.team, caller.by, "capsule.set_timeout", id).with(what);
    db::audit::write(&mut *tx, &entry).await?;
    tx.commit().await?;
    get(app, caller, id).await
}

/// Moves the end of a running capsule to `timeout` seconds from now, unless its end is later.
pub(crate) async fn extend(
    app: &App,
    caller: Caller,
    capsule: Capsule,
    timeout: u32,
) -> Result<Capsule> {
    if capsule.ends_at.is_none() {
        return Ok(capsule);
    }
    let left = db::capsules::left(&app.db, capsule.id).await?;
    if left.is_none_or(|left| left >= Duration::from_secs(timeout.into())) {
        return Ok(capsule);
    }
    let wanted = api::SetTimeout { lifetime: Some(timeout), ..Default::default() };
    set_lifetime(app, caller, capsule.id, &wanted).await
}

/// Counts a capsule as active, for its idle timeout.
pub(crate) async fn ping(app: &App, caller: Caller, id: CapsuleId) -> Result<()> {
    let capsule = get(app, caller, id).await?;
    app.agent_of(&capsule)?.touch(id).await
}
