//! The creation of a capsule, from a template or from a snapshot, or as the builder of a build.
//!
//! ```text
//!  admit (memory, disk) ─▶ fetch what is missing ─▶ folder ─┬─▶ boot ──────────────────┬─▶ run
//!                            │                        │      └─▶ claim a ready capsule ─┘
//!                            └────────────────────────┴─────────┴─▶ remove all parts and the entry
//! ```
//! The host lists the capsule from its admission on. The platform takes a create that no host lists
//! for lost, so every wait comes after the admission.

use super::boot::{self, BOOT_STAGES, Origin, Ready};
use super::host::Host;
use super::logs::{self, LifecycleEvent};
use super::ready::claim;
use super::record::CapsuleRecord;
use super::registry::{Admission, Started};
use super::template_snapshot::{self, TemplateSnapshot};
use super::{Error, chain, fetch, files, io_error, liveness, snapshot_error, teardown, until};
use crate::builders::BuilderDisks;
use crate::snapshot::{self, Snapshot};
use crate::version::{self, Version};
use daemon::stage;
use std::{fs, io};
use tokio_util::sync::CancellationToken;
use types::{BuildId, SnapshotId};

/// Source of a capsule, as its command names it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Source {
    /// Snapshot that the capsule begins from; `None` for its template.
    pub snapshot: Option<SnapshotId>,
    /// Version of the template; `None` for a template of the operator's, and for a builder.
    pub version: Option<VersionRef>,
    /// Build that the capsule works for. Without a version or snapshot, the capsule is its builder.
    pub build: Option<BuildId>,
}

/// A version and its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VersionRef {
    pub id: BuildId,
    /// Team whose part of the store has the version.
    pub team: String,
}

impl Source {
    /// Returns the build whose steps the capsule runs.
    fn builder(&self) -> Option<BuildId> {
        self.build.filter(|_| self.version.is_none() && self.snapshot.is_none())
    }
}

/// Makes a capsule. A capsule that runs or is being made gets the answer of its first creation.
pub(super) async fn create(
    host: &Host,
    record: CapsuleRecord,
    from: Source,
) -> Result<Started, Error> {
    record.resources.check().map_err(|e| Error::Invalid(e.to_string()))?;
    let this = host.clone();
    host.detached(async move { Box::pin(create_under_lock(&this, record, from)).await }).await
}

async fn create_under_lock(
    host: &Host,
    mut record: CapsuleRecord,
    from: Source,
) -> Result<Started, Error> {
    let id = record.id;
    let _creating = host.ready.begin_create();
    record.builds = from.builder();
    let memory_mib = u64::from(record.resources.memory_mib);
    let has_room = |own| host.check_room(own, memory_mib);
    let Admission { lock, cancel } = host.registry.admit(&record, has_room)?;
    let _guard = lock.lock().await;
    if let Some(started) = host.registry.begin_create(id)? {
        return Ok(started);
    }
    match make(host, &mut record, &from, &cancel).await {
        Ok(ready) => {
            liveness::run(host, id, ready);
            let copied = from.snapshot.is_some();
            let event = if copied { LifecycleEvent::Forked } else { LifecycleEvent::Created };
            logs::follow(host, &record, Some(event));
            host.registry.started(id)
        }
        Err(error) => {
            host.make_way(&error);
            if let Err(undo) = teardown::remove(&host.context, id).await {
                tracing::error!(%id, error = %chain(&undo), "cannot undo a failed create");
            }
            host.registry.remove(id);
            Err(error)
        }
    }
}

/// Fetches the capsule's origin, and makes the capsule's folder and machine.
async fn make(
    host: &Host,
    record: &mut CapsuleRecord,
    from: &Source,
    cancel: &CancellationToken,
) -> Result<Ready, Error> {
    let fetching = async { until(cancel, Box::pin(fetch_origin(host, record, from))).await? };
    stage(BOOT_STAGES, "fetched", fetching).await?;
    check_origin(host, record, from)?;
    let folder = fs::create_dir_all(files::folder(&host.context, record.id));
    folder.map_err(io_error("cannot create the capsule's folder"))?;
    let booted = Box::pin(boot(host, record, from, cancel)).await;
    booted.inspect_err(|_| metrics::counter!("wrenn_boots_failed_total").increment(1))
}

/// Fetches the snapshot, version or template of a capsule from the store, if this host lacks it.
async fn fetch_origin(host: &Host, record: &CapsuleRecord, from: &Source) -> Result<(), Error> {
    match from {
        Source { snapshot: Some(id), .. } => fetch::snapshot(host, &record.team, *id).await,
        Source { version: Some(version), .. } => fetch::version(host, version).await,
        Source { build: Some(_), .. } => Ok(()),
        _ => fetch::template(host, &record.template).await,
    }
}

/// Checks that this host has the disks of a capsule's origin.
fn check_origin(host: &Host, record: &CapsuleRecord, from: &Source) -> Result<(), Error> {
    let context = &host.context;
    let has = match from {
        // A snapshot has links to all disks below it.
        Source { snapshot: Some(_), .. } => true,
        Source { version: Some(version), .. } => {
            version::folder(&context.config, version.id).join(version::FILE).exists()
        }
        Source { build: Some(build), .. } => return builder_disks(host, *build).map(drop),
        _ => context.templates().contains(&record.template),
    };
    has.then_some(()).ok_or_else(|| Error::NoTemplate(record.template.clone()))
}

/// Returns the disks that a build has registered for its builder.
fn builder_disks(host: &Host, build: BuildId) -> Result<BuilderDisks, Error> {
    let unknown = || Error::Invalid(format!("build_id: this host has no disks for {build}"));
    host.context.builders.disks(build).ok_or_else(unknown)
}

/// Makes a machine from a snapshot or from the template, or takes a ready one. The template's
/// snapshot is restored if there is one; otherwise a kernel boots.
async fn boot(
    host: &Host,
    record: &mut CapsuleRecord,
    from: &Source,
    cancel: &CancellationToken,
) -> Result<Ready, Error> {
    let context = &*host.context;
    let log = &*context.builders.log(from.build);
    if let Some(from) = from.snapshot {
        let snapshot = standalone(host, from)?;
        // The version may have left this host since the snapshot was taken.
        record.version.clone_from(&snapshot.manifest.version);
        let origin = match snapshot.manifest.memory {
            Some(_) => Origin::Fork(snapshot),
            None => Origin::Disk(snapshot),
        };
        return boot::boot(context, record, origin, cancel, log).await;
    }
    if let Some(build) = record.builds {
        let origin = Origin::Builder(builder_disks(host, build)?);
        return boot::boot(context, record, origin, cancel, log).await;
    }
    if let Some(wanted) = &from.version {
        let found = Version::find(&context.config, wanted.id).map_err(|error| {
            // Its removal may have come since the check.
            let is_gone = error.kind() == io::ErrorKind::NotFound;
            let none = || Error::NoTemplate(record.template.clone());
            if is_gone { none() } else { io_error("cannot read the template's version")(error) }
        });
        record.version = Some(found?);
    }
    // A build waits for the output of its version's commands.
    if from.build.is_none()
        && let Some(ready) = Box::pin(claim::claim(host, record, cancel)).await?
    {
        return Ok(ready);
    }
    if !context.driver.boots_images() {
        return boot::boot(context, record, Origin::Image(None), cancel, log).await;
    }
    let found = host.template_snapshots.find(context, record);
    let found = until(cancel, found).await?;
    let snapshot = match found.map_err(template_snapshot::error)? {
        TemplateSnapshot::Ready(snapshot) => snapshot,
        TemplateSnapshot::Pending(pending) => {
            return boot::boot(context, record, Origin::Image(Some(pending)), cancel, log).await;
        }
    };
    let restored = boot::boot(context, record, Origin::Fork(snapshot.clone()), cancel, log).await;
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
            boot::boot(context, record, Origin::Image(None), cancel, log).await
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

#[cfg(test)]
mod tests;
