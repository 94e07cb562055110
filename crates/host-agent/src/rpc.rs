//! Serves `wrenn.host.v1.Host` by calls of the manager and of the builds. `wire` and `builds` convert
//! messages and errors. `files` takes uploads over HTTP.

mod builds;
pub(crate) mod files;
mod log;
mod stats;
mod wire;

use crate::build::engine::{BeginRequest, Builds};
use crate::capsule::capture::PauseMode;
use crate::capsule::lifetime::Lifetime;
use crate::capsule::manager::Manager;
use crate::capsule::record::CapsuleRecord;
use crate::capsule::resume::ResumeRequest;
use crate::capsule::stored_snapshot::StoredSnapshot;
use crate::capsule::{Error, chain, io_error};
use crate::context::AgentContext;
use crate::log::Query;
use crate::stats::Stats;
use connectrpc::{ConnectError, RequestContext, Response, ServiceRequest, ServiceResult};
use protocol::host;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;
use types::{CapsuleId, SnapshotId};

/// Longest wait for a change, after which the call returns without a change.
const CHANGE: Duration = Duration::from_secs(20);

pub(crate) struct Service {
    pub manager: Manager,
    pub context: Arc<AgentContext>,
    pub builds: Builds,
    pub stats: Stats,
}

#[allow(refining_impl_trait, reason = "concrete types read better than the trait's opaque ones")]
impl host::Host for Service {
    async fn create_capsule(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, host::CreateCapsuleRequest>,
    ) -> ServiceResult<host::CreateCapsuleResponse> {
        let request = request.to_owned_message();
        let from = wire::source_of(&request)?;
        let record = CapsuleRecord::try_from(request)?;
        let id = record.id;
        let started = Box::pin(self.manager.create(record, from)).await;
        let started = host::Started::from(started.map_err(|e| self.refused(id, &e))?);
        Response::ok(host::CreateCapsuleResponse { started: started.into(), ..Default::default() })
    }

    async fn pause_capsule(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, host::PauseCapsuleRequest>,
    ) -> ServiceResult<host::PauseCapsuleResponse> {
        let id = capsule_id(request.capsule_id)?;
        let mode = if request.disk_only { PauseMode::Disk } else { PauseMode::Memory };
        let paused = self.manager.pause(id, Some(request.generation), mode);
        paused.await.map_err(|e| self.refused(id, &e))?;
        Response::ok(host::PauseCapsuleResponse::default())
    }

    async fn resume_capsule(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, host::ResumeCapsuleRequest>,
    ) -> ServiceResult<host::ResumeCapsuleResponse> {
        let request = request.to_owned_message();
        let stored = wire::StoredCapsule::of(&request)?;
        let resume = ResumeRequest::try_from(request)?;
        let id = resume.id;
        if let Some(stored) = stored {
            let (team, snapshot) = (&stored.team, &stored.snapshot);
            let fetched = self.manager.fetch_capsule(team, id, snapshot, stored.placed).await;
            fetched.map_err(|e| self.refused(id, &e))?;
        }
        let started = self.manager.resume(resume).await;
        let started = host::Started::from(started.map_err(|e| self.refused(id, &e))?);
        Response::ok(host::ResumeCapsuleResponse { started: started.into(), ..Default::default() })
    }

    async fn set_lifetime(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, host::SetLifetimeRequest>,
    ) -> ServiceResult<host::SetLifetimeResponse> {
        let request = request.to_owned_message();
        let id = capsule_id(&request.capsule_id)?;
        let life = Lifetime::try_from(request.lifetime.into_option().unwrap_or_default())?;
        let left = self.manager.set_lifetime(id, request.generation, life).await;
        let left_ms = left.map_err(|e| self.refused(id, &e))?;
        Response::ok(host::SetLifetimeResponse { left_ms, ..Default::default() })
    }

    async fn touch_capsule(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, host::TouchCapsuleRequest>,
    ) -> ServiceResult<host::TouchCapsuleResponse> {
        let id = capsule_id(request.capsule_id)?;
        self.manager.touch(id).await.map_err(|e| self.refused(id, &e))?;
        Response::ok(host::TouchCapsuleResponse::default())
    }

    async fn set_egress(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, host::SetEgressRequest>,
    ) -> ServiceResult<host::SetEgressResponse> {
        let request = request.to_owned_message();
        let id = capsule_id(&request.capsule_id)?;
        let egress = wire::egress(request.egress.into_option())?;
        self.manager.set_egress(id, egress).await.map_err(|e| self.refused(id, &e))?;
        Response::ok(host::SetEgressResponse::default())
    }

    async fn set_logs(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, host::SetLogsRequest>,
    ) -> ServiceResult<host::SetLogsResponse> {
        let id = capsule_id(request.capsule_id)?;
        let mode = wire::log_mode(request.logs)?;
        self.manager.set_logs(id, mode).await.map_err(|e| self.refused(id, &e))?;
        Response::ok(host::SetLogsResponse::default())
    }

    async fn create_snapshot(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, host::CreateSnapshotRequest>,
    ) -> ServiceResult<host::CreateSnapshotResponse> {
        let (id, to) = (capsule_id(request.capsule_id)?, snapshot_id(request.snapshot_id)?);
        let taken = self.manager.snapshot(id, to, !request.disk_only).await;
        let size = taken.map_err(|e| self.refused(id, &e))?;
        Response::ok(host::CreateSnapshotResponse {
            size_bytes: size.bytes,
            storage_bytes: size.own_bytes,
            ..Default::default()
        })
    }

    async fn delete_snapshot(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, host::DeleteSnapshotRequest>,
    ) -> ServiceResult<host::DeleteSnapshotResponse> {
        let id = snapshot_id(request.snapshot_id)?;
        let team = request.team_id;
        let removed = async {
            self.manager.remove_snapshot(id).await?;
            match team {
                Some(team) => self.manager.forget_snapshot(team, id).await,
                None => Ok(()),
            }
        };
        removed.await.map_err(|e| refused(id, &e, Vec::new()))?;
        Response::ok(host::DeleteSnapshotResponse::default())
    }

    async fn list_snapshots(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, host::ListSnapshotsRequest>,
    ) -> ServiceResult<host::ListSnapshotsResponse> {
        let texts = |ids: Vec<SnapshotId>| ids.iter().map(ToString::to_string).collect();
        Response::ok(host::ListSnapshotsResponse {
            snapshot_ids: texts(self.manager.snapshots()),
            stored_ids: texts(self.manager.stored_snapshots()),
            storage_bytes: self.manager.snapshot_sizes().into_iter().collect(),
            ..Default::default()
        })
    }

    async fn wait_change(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, host::WaitChangeRequest>,
    ) -> ServiceResult<host::WaitChangeResponse> {
        let stopping = self.context.tasks.stopping();
        // Counts begin at the time of the agent's start, so no count is 0.
        let seen = request.seen.unwrap_or_default();
        let count = tokio::select! {
            count = self.manager.wait_change(seen, CHANGE) => count,
            () = stopping => seen,
        };
        Response::ok(host::WaitChangeResponse { count, ..Default::default() })
    }

    async fn destroy_capsule(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, host::DestroyCapsuleRequest>,
    ) -> ServiceResult<host::DestroyCapsuleResponse> {
        let id = capsule_id(request.capsule_id)?;
        self.builds.release(id).await;
        self.manager.destroy(id, request.generation).await.map_err(|e| self.refused(id, &e))?;
        if let Some(team) = request.team_id {
            let forgotten = self.manager.prune_stored(team, id, None).await;
            forgotten.map_err(|e| self.refused(id, &e))?;
        }
        Response::ok(host::DestroyCapsuleResponse::default())
    }

    async fn prune_stored(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, host::PruneStoredRequest>,
    ) -> ServiceResult<host::PruneStoredResponse> {
        let request = request.to_owned_message();
        let id = capsule_id(&request.capsule_id)?;
        let retained = request.retained.into_option().unwrap_or_default();
        let retained = StoredSnapshot::try_from(retained)?;
        let pruned = self.manager.prune_stored(&request.team_id, id, Some(&retained)).await;
        pruned.map_err(|e| self.refused(id, &e))?;
        Response::ok(host::PruneStoredResponse::default())
    }

    async fn list_capsules(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, host::ListCapsulesRequest>,
    ) -> ServiceResult<host::ListCapsulesResponse> {
        let capsules = self.manager.list().into_iter().map(host::CapsuleInfo::from).collect();
        Response::ok(host::ListCapsulesResponse { capsules, ..Default::default() })
    }

    async fn read_logs(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, host::ReadLogsRequest>,
    ) -> ServiceResult<host::ReadLogsResponse> {
        let id = capsule_id(request.capsule_id)?;
        let console = self.manager.console(id).await.map_err(|e| self.refused(id, &e))?;
        Response::ok(host::ReadLogsResponse { console, ..Default::default() })
    }

    async fn read_stats(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, host::ReadStatsRequest>,
    ) -> ServiceResult<host::ReadStatsResponse> {
        Response::ok(stats::read(&self.stats, request.to_owned_message()).await?)
    }

    async fn collect_stats(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, host::CollectStatsRequest>,
    ) -> ServiceResult<host::CollectStatsResponse> {
        Response::ok(stats::collect(&self.stats, request.acknowledged).await?)
    }

    async fn read_log(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, host::ReadLogRequest>,
    ) -> ServiceResult<host::ReadLogResponse> {
        let request = request.to_owned_message();
        let id = capsule_id(&request.capsule_id)?;
        let query = Query::try_from(&request)?;
        let wait = Duration::from_millis(request.wait_ms.into());
        let read = self.manager.read_log(&request.team_id, id, query, wait);
        let page = Box::pin(read).await.map_err(|e| self.refused(id, &e))?;
        Response::ok(host::ReadLogResponse::from(page))
    }

    async fn erase_log(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, host::EraseLogRequest>,
    ) -> ServiceResult<host::EraseLogResponse> {
        let (id, team) = (request.capsule_id, request.team_id);
        let one = (!id.is_empty()).then(|| capsule_id(id)).transpose()?;
        let erased = self.manager.erase_log(team, one).await;
        erased.map_err(|e| refused(id, &e, Vec::new()))?;
        Response::ok(host::EraseLogResponse::default())
    }

    async fn describe(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, host::DescribeRequest>,
    ) -> ServiceResult<host::DescribeResponse> {
        let specs = self.context.specs();
        Response::ok(host::DescribeResponse {
            arch: specs.arch,
            cpu_cores: specs.cpu_cores,
            memory_mib: specs.memory_mib,
            disk_mib: specs.disk_mib,
            driver: specs.driver,
            accelerator: specs.accelerator,
            version: specs.version,
            templates: specs.templates,
            ..Default::default()
        })
    }

    async fn begin_build(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, host::BeginBuildRequest>,
    ) -> ServiceResult<host::BeginBuildResponse> {
        let request = BeginRequest::try_from(request.to_owned_message())?;
        let id = request.id;
        self.builds.begin(request).map_err(|e| refused(id, &e, Vec::new()))?;
        Response::ok(host::BeginBuildResponse::default())
    }

    async fn run_build(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, host::RunBuildRequest>,
    ) -> ServiceResult<host::RunBuildResponse> {
        let id = builds::build_id(request.build_id)?;
        let capsule = capsule_id(request.capsule_id)?;
        self.builds.run(id, capsule).map_err(|e| refused(id, &e, Vec::new()))?;
        Response::ok(host::RunBuildResponse::default())
    }

    async fn watch_build(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, host::WatchBuildRequest>,
    ) -> ServiceResult<host::WatchBuildResponse> {
        let id = builds::build_id(request.build_id)?;
        let events = self.builds.watch(id, request.seen).await;
        let events = events.map_err(|e| refused(id, &e, Vec::new()))?;
        let events = events.into_iter().map(host::BuildEvent::from).collect();
        Response::ok(host::WatchBuildResponse { events, ..Default::default() })
    }

    async fn cancel_build(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, host::CancelBuildRequest>,
    ) -> ServiceResult<host::CancelBuildResponse> {
        self.builds.cancel(builds::build_id(request.build_id)?);
        Response::ok(host::CancelBuildResponse::default())
    }

    async fn forget_build(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, host::ForgetBuildRequest>,
    ) -> ServiceResult<host::ForgetBuildResponse> {
        let id = builds::build_id(request.build_id)?;
        self.builds.forget(id).map_err(|e| refused(id, &e, Vec::new()))?;
        Response::ok(host::ForgetBuildResponse::default())
    }

    async fn list_builds(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, host::ListBuildsRequest>,
    ) -> ServiceResult<host::ListBuildsResponse> {
        let builds = self.builds.clone();
        // The list looks at every version and archive.
        let listed =
            daemon::blocking(move || Ok((builds.list(), builds.versions(), builds.files().list())));
        let (ids, versions, files) = listed.await.map_err(io_error("cannot list builds"))?;
        Response::ok(host::ListBuildsResponse {
            build_ids: ids.iter().map(ToString::to_string).collect(),
            versions: versions.into_iter().map(From::from).collect(),
            files: files.into_iter().map(From::from).collect(),
            ..Default::default()
        })
    }

    async fn delete_version(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, host::DeleteVersionRequest>,
    ) -> ServiceResult<host::DeleteVersionResponse> {
        let id = builds::version_id(request.version_id)?;
        let removed = self.manager.remove_version(request.team_id, id).await;
        removed.map_err(|e| refused(id, &e, Vec::new()))?;
        Response::ok(host::DeleteVersionResponse::default())
    }
}

impl Service {
    /// Logs an error of a command about a capsule, and converts it for the control plane.
    fn refused(&self, id: CapsuleId, error: &Error) -> ConnectError {
        // A capsule with a damaged snapshot can still be resumed from its other ones.
        let damaged = matches!(error, Error::Damaged(_));
        let snapshots = if damaged { self.manager.numbers(id) } else { Vec::new() };
        refused(id, error, snapshots)
    }
}

fn refused(id: impl Display, error: &Error, snapshots: Vec<u64>) -> ConnectError {
    let text = chain(error);
    if matches!(error, Error::Damaged(_)) {
        tracing::error!(%id, error = text, "a snapshot is damaged");
    } else {
        tracing::warn!(%id, error = text, "refused");
    }
    wire::failure(error, snapshots)
}

fn capsule_id(text: &str) -> Result<CapsuleId, Error> {
    wire::parse("capsule_id", text)
}

fn snapshot_id(text: &str) -> Result<SnapshotId, Error> {
    wire::parse("snapshot_id", text)
}
