//! Changes of a capsule that leave its machine and its state as they are: time limits, activity,
//! rules for outgoing connections, and output for the log.

use super::host::Host;
use super::lifetime::{Lifetime, now_ms};
use super::{Error, files, io_error, logs};
use crate::log::LogMode;
use std::time::Instant;
use types::{CapsuleId, Egress};

/// Changes a capsule's rules for outgoing connections. On return, these rules or later ones are
/// in force.
pub(super) async fn set_egress(host: &Host, id: CapsuleId, egress: Egress) -> Result<(), Error> {
    let lock = host.registry.capsule_lock(id)?;
    let _guard = lock.lock().await;
    let running = host.registry.begin_change(id)?;
    let mut record = files::record(&host.context, id)?;
    if egress.revision < record.egress.revision {
        return Ok(());
    }
    // The record comes first, so that an agent that dies now applies the rules after its
    // restart.
    record.egress = egress.clone();
    files::save(&record, &files::folder(&host.context, id))?;
    let revision = egress.revision;
    if let Some(guard) = running.and_then(|running| running.guest.guard()) {
        guard.set(egress).await.map_err(io_error("cannot apply the network rules"))?;
    }
    host.registry.change(id, |capsule| capsule.egress = revision);
    Ok(())
}

/// Changes the output that a capsule's log has.
///
/// # Errors
/// Fails like [`touch`], on disk errors, and when the guest's agent does not answer. The call may be
/// repeated. A log that is to have no output has none, even if the guest's agent is silent.
pub(super) async fn set_logs(host: &Host, id: CapsuleId, mode: LogMode) -> Result<(), Error> {
    let lock = host.registry.capsule_lock(id)?;
    let _guard = lock.lock().await;
    let running = host.registry.begin_change(id)?;
    let mut record = files::record(&host.context, id)?;
    let before = std::mem::replace(&mut record.logs, mode);
    if let Some(running) = running.as_ref().filter(|_| before == LogMode::None) {
        logs::skip(host, &record, running).await?;
    }
    files::save(&record, &files::folder(&host.context, id))?;
    if mode == LogMode::None {
        // The follower reads this before each look.
        host.registry.change(id, |capsule| capsule.logs = mode);
    }
    if let Some(running) = &running {
        let told = logs::tell(host, &record, &running.guest).await;
        told.or_else(|error| if mode == LogMode::None { Ok(()) } else { Err(error) })?;
    }
    host.registry.change(id, |capsule| capsule.logs = mode);
    logs::follow(host, &record, None);
    Ok(())
}

/// Counts as activity.
///
/// # Errors
/// Fails for an unknown capsule, and for a capsule that is neither running nor paused.
pub(super) async fn touch(host: &Host, id: CapsuleId) -> Result<(), Error> {
    let lock = host.registry.capsule_lock(id)?;
    let _guard = lock.lock().await;
    host.registry.note_activity(id)
}

/// Sets a capsule's lifetime, and counts as activity. Returns the milliseconds until the
/// lifetime ends; `None` is never.
///
/// # Errors
/// Fails like [`touch`], after a command of a later generation, and on disk errors.
pub(super) async fn set_lifetime(
    host: &Host,
    id: CapsuleId,
    generation: u64,
    mut life: Lifetime,
) -> Result<Option<u64>, Error> {
    let lock = host.registry.capsule_lock(id)?;
    let _guard = lock.lock().await;
    host.registry.note_activity(id)?;
    if host.registry.change(id, |capsule| generation < capsule.generation) != Some(false) {
        return Err(Error::Stale);
    }
    life.begin(now_ms());
    let left = life.left_ms(now_ms());
    let mut record = files::record(&host.context, id)?;
    record.life = life.clone();
    files::save(&record, &files::folder(&host.context, id))?;
    host.registry.change(id, |capsule| {
        capsule.life = life;
        capsule.due_after = Instant::now();
    });
    Ok(left)
}
