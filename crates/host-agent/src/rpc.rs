//! `wrenn.host.v1.Host`: wire to domain and back, no rules of its own.

use crate::capsule::Error;
use crate::capsule::ledger::Ledger;
use crate::capsule::manager::{Manager, State, chain};
use crate::{Parts, storage};
use connectrpc::{
    ConnectError, ErrorCode, RequestContext, Response, ServiceRequest, ServiceResult,
};
use protocol::host as wire;
use std::sync::Arc;
use types::CapsuleId;
use types::resources::Resources;

pub(crate) struct Service {
    pub manager: Manager,
    pub parts: Arc<Parts>,
}

#[allow(refining_impl_trait, reason = "concrete types read better than the trait's opaque ones")]
impl wire::Host for Service {
    async fn create_capsule(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, wire::CreateCapsuleRequest>,
    ) -> ServiceResult<wire::CreateCapsuleResponse> {
        let request = request.to_owned_message();
        let ledger = Ledger {
            id: capsule_id(&request.capsule_id)?,
            generation: request.generation,
            template: request.template,
            resources: Resources {
                vcpus: request.vcpus,
                memory_mib: request.memory_mib,
                disk_mib: request.disk_mib,
            },
            envd_token: request.envd_token,
            envs: request.envs.into_iter().collect(),
            slot: None,
            machine: None,
            ready: false,
        };
        let id = ledger.id;
        let stages = self.manager.create(ledger).await.map_err(|e| refused(id, &e))?;
        let stage =
            |(name, took): (&str, std::time::Duration)| wire::create_capsule_response::Stage {
                name: name.to_owned(),
                micros: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
                ..Default::default()
            };
        let stages = stages.into_iter().map(stage).collect();
        Response::ok(wire::CreateCapsuleResponse { stages, ..Default::default() })
    }

    async fn destroy_capsule(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, wire::DestroyCapsuleRequest>,
    ) -> ServiceResult<wire::DestroyCapsuleResponse> {
        let id = capsule_id(request.capsule_id)?;
        self.manager.destroy(id).await.map_err(|e| refused(id, &e))?;
        Response::ok(wire::DestroyCapsuleResponse::default())
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
        let (disk, _) = storage::capacity(&self.parts.config.dir);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Response::ok(wire::DescribeResponse {
            arch: std::env::consts::ARCH.to_owned(),
            cpu_cores: u32::try_from(cores).unwrap_or(u32::MAX),
            memory_mib: self.parts.memory_mib,
            disk_mib: disk >> 20,
            driver: self.parts.driver.name().to_owned(),
            accelerator: self.parts.driver.accelerator().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            templates: self.parts.templates(),
            ..Default::default()
        })
    }
}

fn capsule_id(text: &str) -> Result<CapsuleId, ConnectError> {
    text.parse().map_err(|e| ConnectError::invalid_argument(format!("capsule_id: {e}")))
}

fn info((id, state, generation): (CapsuleId, State, u64)) -> wire::CapsuleInfo {
    let (state, reason) = match state {
        State::Starting => (wire::CapsuleState::CAPSULE_STATE_STARTING, String::new()),
        State::Running => (wire::CapsuleState::CAPSULE_STATE_RUNNING, String::new()),
        State::Stopping => (wire::CapsuleState::CAPSULE_STATE_STOPPING, String::new()),
        State::Dead(reason) => (wire::CapsuleState::CAPSULE_STATE_DEAD, reason),
    };
    wire::CapsuleInfo {
        capsule_id: id.to_string(),
        state: state.into(),
        generation,
        reason,
        ..Default::default()
    }
}

fn refused(id: CapsuleId, error: &Error) -> ConnectError {
    let code = match error {
        Error::Invalid(_) => ErrorCode::InvalidArgument,
        Error::NoTemplate(_) => ErrorCode::FailedPrecondition,
        Error::NoCapacity(_) => ErrorCode::ResourceExhausted,
        Error::Network(crate::network::Error::Full(_)) => ErrorCode::ResourceExhausted,
        Error::Stopping => ErrorCode::Aborted,
        Error::NotFound(_) => ErrorCode::NotFound,
        Error::GuestSilent { .. }
        | Error::Died { .. }
        | Error::Io { .. }
        | Error::Network(_)
        | Error::Vmm(_) => ErrorCode::Internal,
    };
    let text = chain(error);
    tracing::warn!(%id, error = text, "refused");
    ConnectError::new(code, text)
}
