//! Fork: takes a snapshot that no list shows, and starts capsules from it. The source runs on, or
//! stays paused.

use super::detached::detached;
use super::settle::settled;
use super::spec::{CreateOptions, CreateSpec, Origin, Settings, Source};
use super::start::start;
use super::{named, timeouts, to_api_for_maker};
use crate::app::App;
use crate::audit::Actor;
use crate::auth::Caller;
use crate::db::capsule_names::NewName;
use crate::db::capsules::Capsule;
use crate::error::{Error, Result};
use crate::snapshots;
use futures::StreamExt;
use std::collections::BTreeMap;
use types::resources::{Resources, in_range};
use types::{CapsuleId, CapsuleState, Isolation, SnapshotId};

/// Most capsules of one fork.
const MOST: u32 = 100;
/// Most capsules of one fork that start at once.
const AT_ONCE: usize = 4;

/// Capsules that a fork made, and the errors of the others.
pub(crate) struct Forked {
    pub items: Vec<Capsule>,
    pub errors: Vec<Error>,
}

impl Forked {
    /// Converts the result to the API's form.
    pub(crate) fn into_api(self, caller: Caller) -> api::Forked {
        let to_api =
            |e: Error| api::ForkError { code: e.code().to_owned(), message: e.to_string() };
        api::Forked {
            items: self.items.into_iter().map(|row| to_api_for_maker(row, caller)).collect(),
            errors: self.errors.into_iter().map(to_api).collect(),
        }
    }
}

/// Starts capsules with the state of the capsule `id`.
pub(crate) async fn fork(
    app: &App,
    caller: Caller,
    id: CapsuleId,
    wanted: &api::Fork,
) -> Result<Forked> {
    let count = wanted.count.unwrap_or(1);
    in_range("count", count, 1, MOST)?;
    timeouts::check_timeout(wanted.lifetime)?;
    let name = named::read(wanted.name.clone())?;
    if name != NewName::None && count > 1 {
        return Err(Error::invalid("name", "needs a `count` of 1"));
    }
    let source = settled(app, caller, id).await?;
    // A caller confined to this capsule would not see the forks.
    if caller.confinement.capsule.is_some() {
        return Err(Error::Confined);
    }
    if !matches!(source.state, CapsuleState::Running | CapsuleState::Paused) {
        return Err(Error::NotRunning(source.state));
    }
    let copies = Copies { count, timeout: wanted.lifetime, name };
    let at = app.clone();
    let work = async move {
        let work = Box::pin(start_children(&at, caller, &source, copies));
        daemon::operation("wrenn_capsule_fork_seconds", "fork", work).await
    };
    detached(app, work).await
}

/// Capsules that a fork is to make.
struct Copies {
    count: u32,
    timeout: Option<u32>,
    /// Name of the only copy. Without one, the names follow from the source's.
    name: NewName,
}

/// Takes a snapshot of the source, starts the copies from it and removes it again.
async fn start_children(
    app: &App,
    caller: Caller,
    source: &Capsule,
    copies: Copies,
) -> Result<Forked> {
    let Copies { count, timeout, name } = copies;
    let name = match (name, &source.name) {
        (NewName::None, Some(own)) => NewName::CopyOf(own.clone()),
        (name, _) => name,
    };
    let taking = Box::pin(snapshots::take(app, caller, source, None, true, false));
    let taken = daemon::stage("wrenn_capsule_fork_stage_seconds", "snapshot", taking).await?;
    let snapshot = taken.id;
    daemon::failpoint("control.forked").map_err(|e| Error::Internal(e.into()))?;
    let made = futures::stream::iter(0..count)
        .map(|_| start(app, caller, child(source, snapshot, timeout, &name)))
        .buffer_unordered(AT_ONCE)
        .collect::<Vec<_>>()
        .await;
    // If the removal fails, the reconciler repeats it.
    if let Err(error) = snapshots::remove(app, &taken, Actor::SYSTEM).await {
        tracing::warn!(id = %source.id, %error, "cannot remove the temporary snapshot of a fork");
    }
    let (mut items, mut errors) = (Vec::new(), Vec::new());
    for one in made {
        match one {
            Ok(capsule) => items.push(capsule),
            Err(error) => errors.push(error),
        }
    }
    if items.is_empty()
        && let Some(error) = errors.pop()
    {
        return Err(error);
    }
    Ok(Forked { items, errors })
}

/// Makes the specification of a fork. It has the settings of its source.
fn child(
    source: &Capsule,
    snapshot: SnapshotId,
    timeout: Option<u32>,
    name: &NewName,
) -> CreateSpec {
    CreateSpec {
        name: name.clone(),
        fork_of: Some(source.id),
        source: Source {
            template: source.template.clone(),
            size: Resources {
                vcpus: source.vcpus,
                memory_mib: source.memory_mib,
                disk_mib: source.disk_mib,
            },
            // A fork requires no tier, since it starts on its source's host.
            origin: Origin::Snapshot {
                id: snapshot,
                template_id: source.template_id,
                version: source.version_id,
                isolation: Isolation::None,
                host: source.host_id,
                stored: false,
            },
        },
        settings: Settings {
            idle_sec: source.idle_sec,
            timeout,
            on_timeout: source.on_timeout,
            auto_resume: source.auto_resume,
            // A public port of the source is not public for its forks.
            public_ports: Vec::new(),
            public_traffic: source.public_traffic,
            host_header: source.host_header.clone(),
            egress: source.egress.0.clone(),
            metadata: source.metadata.0.clone(),
            logs: Some(source.logs),
        },
        options: CreateOptions { e2b: source.e2b, idempotency_key: None },
        work: None,
        host_tags: Vec::new(),
        envs: BTreeMap::new(),
    }
}
