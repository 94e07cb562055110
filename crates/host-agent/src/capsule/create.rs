//! The creation of a capsule, from a template or from a snapshot.
//!
//! ```text
//!  fetch what is missing ─▶ admit (memory, disk) ─▶ folder ─▶ boot ─▶ run
//!                                                      └────────┴─▶ remove all parts and the entry
//! ```

use super::boot::{self, Origin, Ready};
use super::host::Host;
use super::record::CapsuleRecord;
use super::registry::{Admission, Started};
use super::template_snapshot::{self, TemplateSnapshot};
use super::{Error, chain, fetch, files, io_error, liveness, snapshot_error, teardown, until};
use crate::snapshot::{self, Snapshot};
use std::fs;
use tokio_util::sync::CancellationToken;
use types::SnapshotId;

/// Makes a capsule. A capsule that runs or is being made gets the answer of its first creation.
pub(super) async fn create(
    host: &Host,
    record: CapsuleRecord,
    from: Option<SnapshotId>,
) -> Result<Started, Error> {
    record.resources.check().map_err(|e| Error::Invalid(e.to_string()))?;
    match from {
        Some(id) => fetch::snapshot(host, &record.team, id).await?,
        None => fetch::template(host, &record.template).await?,
    }
    let this = host.clone();
    host.detached(async move { Box::pin(create_under_lock(&this, record, from)).await }).await
}

async fn create_under_lock(
    host: &Host,
    mut record: CapsuleRecord,
    from: Option<SnapshotId>,
) -> Result<Started, Error> {
    let id = record.id;
    let Admission { lock, cancel } = host.registry.admit(&record, |own| {
        if !host.context.templates().contains(&record.template) {
            return Err(Error::NoTemplate(record.template.clone()));
        }
        host.check_room(own, u64::from(record.resources.memory_mib))
    })?;
    let _guard = lock.lock().await;
    if let Some(started) = host.registry.begin_create(id)? {
        return Ok(started);
    }
    let booted = match fs::create_dir_all(files::folder(&host.context, id)) {
        Ok(()) => boot(host, &mut record, from, &cancel).await,
        Err(e) => Err(io_error("cannot create the capsule's folder")(e)),
    };
    match booted {
        Ok(ready) => {
            for stage in &ready.stages {
                metrics::histogram!("wrenn_boot_stage_seconds", "stage" => stage.name)
                    .record(stage.took.as_secs_f64());
            }
            liveness::run(host, id, ready);
            host.registry.started(id)
        }
        Err(error) => {
            metrics::counter!("wrenn_boots_failed_total").increment(1);
            if let Err(undo) = teardown::remove(&host.context, id).await {
                tracing::error!(%id, error = %chain(&undo), "cannot undo a failed boot");
            }
            host.registry.remove(id);
            Err(error)
        }
    }
}

/// Makes a machine from a snapshot or from the template. The template snapshot is restored if
/// there is one; otherwise a kernel boots.
async fn boot(
    host: &Host,
    record: &mut CapsuleRecord,
    from: Option<SnapshotId>,
    cancel: &CancellationToken,
) -> Result<Ready, Error> {
    let context = &*host.context;
    if let Some(from) = from {
        let snapshot = standalone(host, from)?;
        let origin = match snapshot.manifest.memory {
            Some(_) => Origin::Fork(snapshot),
            None => Origin::Disk(snapshot),
        };
        return boot::boot(context, record, origin, cancel).await;
    }
    if !context.driver.boots_images() {
        return boot::boot(context, record, Origin::Image(None), cancel).await;
    }
    let found = host.template_snapshots.find(context, &record.template, record.resources);
    let found = until(cancel, found).await?;
    let snapshot = match found.map_err(template_snapshot::error)? {
        TemplateSnapshot::Ready(snapshot) => snapshot,
        TemplateSnapshot::Pending(pending) => {
            return boot::boot(context, record, Origin::Image(Some(pending)), cancel).await;
        }
    };
    let restored = boot::boot(context, record, Origin::Fork(snapshot.clone()), cancel).await;
    match restored {
        Err(error @ (Error::Damaged(_) | Error::Incompatible { .. } | Error::Vmm(_))) => {
            let id = record.id;
            tracing::warn!(
                %id, error = chain(&error),
                "cannot restore from the template snapshot; booting instead"
            );
            teardown::release(context, record).await?;
            if !matches!(error, Error::Vmm(_)) {
                let removed = snapshot::remove(&snapshot.dir);
                removed.map_err(io_error("cannot remove a template snapshot"))?;
            }
            boot::boot(context, record, Origin::Image(None), cancel).await
        }
        restored => restored,
    }
}

/// Opens a snapshot that belongs to no capsule.
fn standalone(host: &Host, id: SnapshotId) -> Result<Snapshot, Error> {
    let dir = files::snapshot_dir(&host.context, id);
    if !dir.exists() {
        return Err(Error::NotFound(format!("snapshot {id}")));
    }
    Snapshot::open(&dir).map_err(snapshot_error("cannot open the snapshot"))
}
