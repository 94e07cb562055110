//! Resuming a capsule. A machine is made from the last snapshot and begins a new epoch; only then
//! are requests let in. The snapshot does not change, so a resume that fails loses nothing.
//!
//! ```text
//!  begin_resume ─▶ settle, if its machine died ─▶ record: Resuming ─▶ boot ─▶ run
//!                        └──────────────────────────────┴─────────────┴─▶ settle, state before
//! ```

use super::boot::{self, Origin, Ready};
use super::host::Host;
use super::lifetime::Lifetime;
use super::logs::{self, LifecycleEvent};
use super::record::{CapsuleRecord, Phase};
use super::registry::Started;
use super::registry::transitions::{ResumeStart, Resuming};
use super::settle::settle;
use super::{Error, chain, files, liveness, snapshot_error};
use crate::builders::NoLog;
use crate::log::LogMode;
use tokio_util::sync::CancellationToken;
use types::{CapsuleId, Egress};

/// Request to resume a capsule.
pub(crate) struct ResumeRequest {
    pub id: CapsuleId,
    pub generation: u64,
    pub life: Lifetime,
    pub egress: Egress,
    /// Output that the capsule's log has from now on.
    pub logs: LogMode,
    /// Number of the snapshot to resume; the last one when `None`.
    pub number: Option<u64>,
    /// True to boot on the saved disk without the saved memory.
    pub cold: bool,
}

/// Resumes a paused capsule. A running capsule gets the answer of its last start.
pub(super) async fn resume(host: &Host, request: ResumeRequest) -> Result<Started, Error> {
    let this = host.clone();
    host.detached(async move { resume_under_lock(&this, request).await }).await
}

async fn resume_under_lock(host: &Host, request: ResumeRequest) -> Result<Started, Error> {
    let id = request.id;
    let lock = host.registry.capsule_lock(id)?;
    let _guard = lock.lock().await;
    let record = files::record(&host.context, id)?;
    let has_room = |own, wanted| host.check_room(own, wanted);
    let begun = host.registry.begin_resume(&record, request.generation, has_room)?;
    let Resuming { before, cancel } = match begun {
        ResumeStart::Running(started) => return Ok(started),
        ResumeStart::Begun(resuming) => resuming,
    };
    match restore(host, &request, &cancel).await {
        Ok(ready) => {
            liveness::run(host, id, ready);
            let record = CapsuleRecord { logs: request.logs, ..record };
            logs::follow(host, &record, Some(LifecycleEvent::Resumed));
            host.registry.started(id)
        }
        Err(error) => {
            metrics::counter!("wrenn_resumes_failed_total").increment(1);
            host.make_way(&error);
            if let Err(undo) = undo_resume(host, id).await {
                tracing::error!(%id, error = chain(&undo), "cannot undo a resume");
            }
            host.registry.abandon_resume(id, before);
            Err(error)
        }
    }
}

async fn restore(
    host: &Host,
    request: &ResumeRequest,
    cancel: &CancellationToken,
) -> Result<Ready, Error> {
    let context = &host.context;
    let mut record = files::record(context, request.id)?;
    if record.phase != Phase::Paused {
        // The machine died, and its remains are removed first.
        let last = record.last;
        settle(context, &mut record, last).await?;
    }
    let number = request.number.unwrap_or(record.last);
    if request.number.is_some() && !files::numbers(context, request.id).contains(&number) {
        return Err(Error::Invalid(format!("the capsule has no snapshot {number}")));
    }
    let snapshot = files::own_snapshot(context, request.id, number);
    let snapshot = snapshot.map_err(snapshot_error("cannot open the capsule's snapshot"))?;
    let origin = match snapshot.manifest.memory.is_some() && !request.cold {
        true => Origin::Resume(snapshot),
        false => Origin::Disk(snapshot),
    };
    (record.phase, record.generation) = (Phase::Resuming, request.generation);
    record.life = request.life.clone();
    record.egress = request.egress.clone();
    record.logs = request.logs;
    host.registry.change(request.id, |capsule| {
        (capsule.egress, capsule.logs) = (request.egress.revision, request.logs);
    });
    // A resume runs no commands of the version, so there is nothing to log.
    Box::pin(boot::boot(context, &mut record, origin, cancel, &NoLog)).await
}

/// Restores the state before a resume that failed.
async fn undo_resume(host: &Host, id: CapsuleId) -> Result<(), Error> {
    let dir = files::folder(&host.context, id);
    match CapsuleRecord::load(&dir) {
        Some(mut record) => {
            let last = record.last;
            settle(&host.context, &mut record, last).await
        }
        None => Ok(()),
    }
}
