//! The service `wrenn.host.v1.Host`, which converts between wire and domain types, and has no
//! rules.

use crate::capsule::capture::PauseMode;
use crate::capsule::fetch::Placed;
use crate::capsule::lifetime::{Lifetime, OnTimeout};
use crate::capsule::manager::Manager;
use crate::capsule::record::{CapsuleRecord, Phase};
use crate::capsule::registry::{Listed, Stage, Started};
use crate::capsule::resume::ResumeRequest;
use crate::capsule::stored_snapshot::StoredSnapshot;
use crate::capsule::{Error, State, chain};
use crate::context::AgentContext;
use crate::snapshot::{Layers, System};
use connectrpc::{
    ConnectError, ErrorCode, RequestContext, Response, ServiceRequest, ServiceResult,
};
use protocol::host as wire;
use std::sync::Arc;
use std::time::Duration;
use types::egress::{Egress, Rule};
use types::resources::Resources;
use types::{CapsuleId, SnapshotId};

/// Longest wait for a change, after which the call returns without a change.
const CHANGE: Duration = Duration::from_secs(20);

pub(crate) struct Service {
    pub manager: Manager,
    pub context: Arc<AgentContext>,
}

#[allow(refining_impl_trait, reason = "concrete types read better than the trait's opaque ones")]
impl wire::Host for Service {
    async fn create_capsule(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, wire::CreateCapsuleRequest>,
    ) -> ServiceResult<wire::CreateCapsuleResponse> {
        let request = request.to_owned_message();
        let record = CapsuleRecord {
            id: capsule_id(&request.capsule_id)?,
            generation: request.generation,
            team: request.team_id,
            template: request.template,
            resources: Resources {
                vcpus: request.vcpus,
                memory_mib: request.memory_mib,
                disk_mib: request.disk_mib,
            },
            envd_token: request.envd_token,
            envs: request.envs.into_iter().collect(),
            egress: egress(request.egress.into_option())?,
            slot: None,
            machine: None,
            phase: Phase::Starting,
            last: 0,
            stored: 0,
            tree: String::new(),
            base_layers: Layers::default(),
            system: System::default(),
            life: lifetime(request.life.into_option()),
        };
        let from = match request.snapshot_id.as_str() {
            "" => None,
            id => Some(snapshot_id(id)?),
        };
        let id = record.id;
        let started = Box::pin(self.manager.create(record, from)).await;
        let (stages, left_ms) = to_wire(started.map_err(|e| refused(id, &e))?);
        Response::ok(wire::CreateCapsuleResponse { stages, left_ms, ..Default::default() })
    }

    async fn pause_capsule(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, wire::PauseCapsuleRequest>,
    ) -> ServiceResult<wire::PauseCapsuleResponse> {
        let id = capsule_id(request.capsule_id)?;
        let mode = if request.disk_only { PauseMode::Disk } else { PauseMode::Memory };
        let paused = self.manager.pause(id, Some(request.generation), mode);
        paused.await.map_err(|e| refused(id, &e))?;
        Response::ok(wire::PauseCapsuleResponse::default())
    }

    async fn resume_capsule(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, wire::ResumeCapsuleRequest>,
    ) -> ServiceResult<wire::ResumeCapsuleResponse> {
        let request = request.to_owned_message();
        let id = capsule_id(&request.capsule_id)?;
        let resume = ResumeRequest {
            id,
            generation: request.generation,
            life: lifetime(request.life.into_option()),
            egress: egress(request.egress.into_option())?,
            number: (request.snapshot != 0).then_some(request.snapshot),
            cold: request.cold,
        };
        if request.stored != 0 {
            let tree = StoredSnapshot::new(request.stored, &request.stored_tree);
            let tree = tree.ok_or_else(|| ConnectError::invalid_argument("stored_tree"))?;
            let at = Placed { generation: request.generation, since: request.placed };
            let fetched = self.manager.fetch_capsule(&request.team_id, id, &tree, at).await;
            fetched.map_err(|e| refused(id, &e))?;
        }
        let (stages, left_ms) = match self.manager.resume(resume).await {
            Ok(started) => to_wire(started),
            Err(error @ Error::Damaged(_)) => {
                let numbers = self.manager.numbers(id);
                let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
                tracing::error!(%id, error = chain(&error), "a snapshot is damaged");
                let said = format!("{}; its snapshots are {}", chain(&error), numbers.join(", "));
                return Err(ConnectError::new(ErrorCode::DataLoss, said));
            }
            Err(error) => return Err(refused(id, &error)),
        };
        Response::ok(wire::ResumeCapsuleResponse { stages, left_ms, ..Default::default() })
    }

    async fn keep_capsule(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, wire::KeepCapsuleRequest>,
    ) -> ServiceResult<wire::KeepCapsuleResponse> {
        let request = request.to_owned_message();
        let id = capsule_id(&request.capsule_id)?;
        let left = match request.life.into_option() {
            Some(to) => self.manager.set_lifetime(id, request.generation, lifetime(Some(to))).await,
            None => self.manager.touch(id).await,
        };
        let left_ms = left.map_err(|e| refused(id, &e))?.unwrap_or(0);
        Response::ok(wire::KeepCapsuleResponse { left_ms, ..Default::default() })
    }

    async fn set_egress(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, wire::SetEgressRequest>,
    ) -> ServiceResult<wire::SetEgressResponse> {
        let request = request.to_owned_message();
        let id = capsule_id(&request.capsule_id)?;
        let egress = egress(request.egress.into_option())?;
        self.manager.set_egress(id, egress).await.map_err(|e| refused(id, &e))?;
        Response::ok(wire::SetEgressResponse::default())
    }

    async fn create_snapshot(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, wire::CreateSnapshotRequest>,
    ) -> ServiceResult<wire::CreateSnapshotResponse> {
        let (id, to) = (capsule_id(request.capsule_id)?, snapshot_id(request.snapshot_id)?);
        let taken = self.manager.snapshot(id, to, !request.disk_only).await;
        let size = taken.map_err(|e| refused(id, &e))?;
        Response::ok(wire::CreateSnapshotResponse {
            size_bytes: size.bytes,
            storage_bytes: size.own_bytes,
            ..Default::default()
        })
    }

    async fn delete_snapshot(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, wire::DeleteSnapshotRequest>,
    ) -> ServiceResult<wire::DeleteSnapshotResponse> {
        let id = snapshot_id(request.snapshot_id)?;
        let team = request.team_id;
        let removed = async {
            self.manager.remove_snapshot(id).await?;
            if team.is_empty() { Ok(()) } else { self.manager.forget_snapshot(team, id).await }
        };
        removed.await.map_err(|e| ConnectError::internal(chain(&e)))?;
        Response::ok(wire::DeleteSnapshotResponse::default())
    }

    async fn list_snapshots(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, wire::ListSnapshotsRequest>,
    ) -> ServiceResult<wire::ListSnapshotsResponse> {
        let texts = |ids: Vec<SnapshotId>| ids.iter().map(ToString::to_string).collect();
        Response::ok(wire::ListSnapshotsResponse {
            snapshot_ids: texts(self.manager.snapshots()),
            stored_ids: texts(self.manager.stored_snapshots()),
            storage_bytes: self.manager.snapshot_sizes().into_iter().collect(),
            ..Default::default()
        })
    }

    async fn wait_change(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, wire::WaitChangeRequest>,
    ) -> ServiceResult<wire::WaitChangeResponse> {
        let stopping = self.context.tasks.stopping();
        let count = tokio::select! {
            count = self.manager.wait_change(request.seen, CHANGE) => count,
            () = stopping => request.seen,
        };
        Response::ok(wire::WaitChangeResponse { count, ..Default::default() })
    }

    async fn destroy_capsule(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, wire::DestroyCapsuleRequest>,
    ) -> ServiceResult<wire::DestroyCapsuleResponse> {
        let id = capsule_id(request.capsule_id)?;
        let newest = (request.generation != 0).then_some(request.generation);
        self.manager.destroy(id, newest).await.map_err(|e| refused(id, &e))?;
        if !request.team_id.is_empty() {
            let forgotten = self.manager.prune_stored(request.team_id, id, None).await;
            forgotten.map_err(|e| refused(id, &e))?;
        }
        Response::ok(wire::DestroyCapsuleResponse::default())
    }

    async fn prune_stored(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, wire::PruneStoredRequest>,
    ) -> ServiceResult<wire::PruneStoredResponse> {
        let id = capsule_id(request.capsule_id)?;
        let stays = StoredSnapshot::parse(request.tree);
        let stays = stays.ok_or_else(|| ConnectError::invalid_argument("tree"))?;
        let pruned = self.manager.prune_stored(request.team_id, id, Some(&stays)).await;
        pruned.map_err(|e| refused(id, &e))?;
        Response::ok(wire::PruneStoredResponse::default())
    }

    async fn list_capsules(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, wire::ListCapsulesRequest>,
    ) -> ServiceResult<wire::ListCapsulesResponse> {
        let capsules = self.manager.list().into_iter().map(info).collect();
        Response::ok(wire::ListCapsulesResponse { capsules, ..Default::default() })
    }

    async fn read_logs(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, wire::ReadLogsRequest>,
    ) -> ServiceResult<wire::ReadLogsResponse> {
        let id = capsule_id(request.capsule_id)?;
        let console = self.manager.console(id).await.map_err(|e| refused(id, &e))?;
        Response::ok(wire::ReadLogsResponse { console, ..Default::default() })
    }

    async fn describe(
        &self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, wire::DescribeRequest>,
    ) -> ServiceResult<wire::DescribeResponse> {
        let specs = self.context.specs();
        Response::ok(wire::DescribeResponse {
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
}

fn capsule_id(text: &str) -> Result<CapsuleId, ConnectError> {
    text.parse().map_err(|e| ConnectError::invalid_argument(format!("capsule_id: {e}")))
}

fn snapshot_id(text: &str) -> Result<SnapshotId, ConnectError> {
    text.parse().map_err(|e| ConnectError::invalid_argument(format!("snapshot_id: {e}")))
}

fn egress(wire: Option<wire::Egress>) -> Result<Egress, ConnectError> {
    let wire = wire.unwrap_or_default();
    let rules = |texts: Vec<String>| -> Result<Vec<Rule>, ConnectError> {
        let rules = texts.iter().map(|text| text.parse()).collect::<Result<_, _>>();
        rules.map_err(|e: types::egress::BadRule| ConnectError::invalid_argument(e.to_string()))
    };
    Ok(Egress { allow: rules(wire.allow)?, deny: rules(wire.deny)?, revision: wire.revision })
}

fn lifetime(wire: Option<wire::Life>) -> Lifetime {
    let wire = wire.unwrap_or_default();
    Lifetime {
        ends_at_ms: None,
        on_timeout: match (wire.kill, wire.disk_only) {
            (true, _) => OnTimeout::Kill,
            (false, true) => OnTimeout::PauseDisk,
            (false, false) => OnTimeout::Pause,
        },
        // On the wire, 0 is never.
        idle_sec: (wire.idle_sec != 0).then_some(wire.idle_sec),
        lasts_ms: (wire.lasts_ms != 0).then_some(wire.lasts_ms),
    }
}

/// Returns the stages of a start, and the time that is left; on the wire, 0 is never.
fn to_wire(started: Started) -> (Vec<wire::Stage>, u64) {
    let stage = |Stage { name, took }: Stage| wire::Stage {
        name: name.to_owned(),
        micros: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        ..Default::default()
    };
    (started.stages.into_iter().map(stage).collect(), started.left_ms.unwrap_or(0))
}

fn info(listed: Listed) -> wire::CapsuleInfo {
    let (state, reason) = match listed.state {
        State::Starting => (wire::CapsuleState::CAPSULE_STATE_STARTING, String::new()),
        State::Running => (wire::CapsuleState::CAPSULE_STATE_RUNNING, String::new()),
        State::Pausing => (wire::CapsuleState::CAPSULE_STATE_PAUSING, String::new()),
        State::Paused => (wire::CapsuleState::CAPSULE_STATE_PAUSED, String::new()),
        State::Resuming => (wire::CapsuleState::CAPSULE_STATE_RESUMING, String::new()),
        State::Expired => (wire::CapsuleState::CAPSULE_STATE_EXPIRED, String::new()),
        State::Stopping => (wire::CapsuleState::CAPSULE_STATE_STOPPING, String::new()),
        State::Dead(reason) => (wire::CapsuleState::CAPSULE_STATE_DEAD, reason),
    };
    wire::CapsuleInfo {
        capsule_id: listed.id.to_string(),
        state: state.into(),
        generation: listed.generation,
        stored: listed.stored.as_ref().map_or(0, |tree| tree.number),
        stored_tree: listed.stored.map_or_else(String::new, |tree| tree.name().to_owned()),
        egress_revision: listed.egress,
        reason,
        waits_for_room: listed.waits_for_room,
        storage_bytes: listed.snapshot_bytes,
        ..Default::default()
    }
}

fn refused(id: CapsuleId, error: &Error) -> ConnectError {
    let code = match error {
        Error::Invalid(_) => ErrorCode::InvalidArgument,
        Error::NoTemplate(_) => ErrorCode::FailedPrecondition,
        Error::Damaged(_) => ErrorCode::DataLoss,
        Error::Incompatible { .. } => ErrorCode::OutOfRange,
        Error::NoCapacity(_) => ErrorCode::ResourceExhausted,
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
            ErrorCode::ResourceExhausted
        }
        Error::Network(crate::network::Error::Full(_)) => ErrorCode::ResourceExhausted,
        Error::Stopping | Error::Stale | Error::State(_) => ErrorCode::Aborted,
        Error::NotFound(_) => ErrorCode::NotFound,
        Error::Silent | Error::GuestSilent { .. } => ErrorCode::Unavailable,
        Error::Died { .. }
        | Error::Unsaved(_)
        | Error::Ended(_)
        | Error::Io { .. }
        | Error::Network(_)
        | Error::Vmm(_) => ErrorCode::Internal,
    };
    let text = chain(error);
    tracing::warn!(%id, error = text, "refused");
    // A silent guest's last words stay in the log.
    let text = if code == ErrorCode::Unavailable { protocol::SILENT.to_owned() } else { text };
    ConnectError::new(code, text)
}
