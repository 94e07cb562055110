//! Third step of the proxy: has a capsule run that wakes for requests.

use super::access::Admitted;
use super::authorize::Authorized;
use super::port_admission::PortAdmission;
use super::routes::Route;
use crate::app::App;
use crate::capsules;
use crate::error::{Error, Result};
use hop::Share;
use std::sync::Arc;
use types::{CapsuleId, CapsuleState, HostId};

/// Reports whether a request has to wake its capsule first. Pure.
pub(super) fn is_needed(route: &Route) -> bool {
    route.auto_resume && route.state != CapsuleState::Running
}

/// Wakes the capsule of a request that was let in. Returns the capsule as it is afterwards.
///
/// # Errors
/// `TooManyConnections` if too many requests wait for the capsule. `NotRunning`, `NotFound` and
/// the errors of a resume, if the capsule does not wake.
pub(super) async fn wake(app: &App, authorized: &Authorized) -> Result<Arc<Route>> {
    let _place = place(app, &authorized.admission)?;
    let capsule = authorized.admission.target.capsule;
    Box::pin(capsules::wake(app, authorized.waker, capsule)).await?;
    let found = app.routes.find(capsule, None, None).await?;
    found.0.ok_or(Error::NotFound("capsule"))
}

/// Takes a place among the requests that wait for a capsule; the owner needs none.
///
/// # Errors
/// `TooManyConnections` if there is no place left.
pub(super) fn place(app: &App, admission: &PortAdmission) -> Result<Option<Share<CapsuleId>>> {
    match admission.admitted {
        Admitted::Owner => Ok(None),
        Admitted::Guest(_) | Admitted::Link(_) => {
            app.load.waiter(admission.target.capsule).map(Some)
        }
    }
}

/// Has the rows of a host's capsules follow the host, which knows first of a pause or an end.
pub(super) async fn follow_host(app: &App, host: HostId) {
    app.rounds.fresh(host).await;
}

impl Route {
    /// Returns the host of a capsule that can be reached.
    ///
    /// # Errors
    /// `HostUnavailable`, `NotFound` or `NotRunning`, by the capsule's state.
    pub(super) fn reachable(&self) -> Result<HostId> {
        match self.state {
            CapsuleState::Running => self.host.ok_or(Error::HostUnavailable),
            CapsuleState::Missing => Err(Error::HostUnavailable),
            CapsuleState::Stopped => Err(Error::NotFound("capsule")),
            state @ (CapsuleState::Starting
            | CapsuleState::Pausing
            | CapsuleState::Paused
            | CapsuleState::Resuming
            | CapsuleState::Error
            | CapsuleState::Stopping) => Err(Error::NotRunning(state)),
        }
    }
}
