//! The part that all requests about one sandbox share: the caller, and the sandbox that the path
//! names.

use super::sandbox_id;
use crate::app::App;
use crate::auth::Caller;
use crate::capsules;
use crate::db::capsules::Capsule;
use crate::error::{Error, Result};
use crate::http::extract::Path;
use axum::extract::FromRequestParts;
use http::request::Parts;
use std::sync::Arc;
use types::{CapsuleId, CapsuleState};

/// A request about one sandbox. Any body or query of the request is another extractor.
pub(super) struct SandboxRequest {
    pub app: Arc<App>,
    pub caller: Caller,
    /// Sandbox's id as the path has it.
    id: String,
}

impl FromRequestParts<Arc<App>> for SandboxRequest {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self> {
        let caller = Caller::from_request_parts(parts, app).await?;
        let Path(id) = Path::from_request_parts(parts, app).await?;
        Ok(Self { app: Arc::clone(app), caller, id })
    }
}

impl SandboxRequest {
    /// Returns the id of a sandbox that may have ended.
    pub(super) fn id(&self) -> Result<CapsuleId> {
        sandbox_id(&self.id)
    }

    /// Returns the sandbox in its present state.
    pub(super) async fn present(&self) -> Result<Capsule> {
        known(capsules::get(&self.app, self.caller, sandbox_id(&self.id)?).await?)
    }

    /// Returns the sandbox once its state is not changing.
    pub(super) async fn settled(&self) -> Result<Capsule> {
        known(capsules::settled(&self.app, self.caller, sandbox_id(&self.id)?).await?)
    }
}

/// Reports a capsule in `stopping` as not found, since its owner has removed it.
pub(super) fn known(capsule: Capsule) -> Result<Capsule> {
    match capsule.state == CapsuleState::Stopping {
        true => Err(Error::NotFound("capsule")),
        false => Ok(capsule),
    }
}
