//! Waits until no start, pause or resume of a capsule is under way.

use super::get::get;
use crate::app::App;
use crate::auth::Caller;
use crate::db::capsules::Capsule;
use crate::error::{Error, Result};
use std::time::Duration;
use types::{CapsuleId, CapsuleState};

/// Longest wait for a capsule to settle.
const SETTLE: Duration = Duration::from_secs(150);

/// Returns a capsule when no start, pause or resume of it is under way.
pub(crate) async fn settled(app: &App, caller: Caller, id: CapsuleId) -> Result<Capsule> {
    let settled = |capsule: &Capsule| {
        let state = capsule.state;
        !matches!(state, CapsuleState::Starting | CapsuleState::Pausing | CapsuleState::Resuming)
    };
    let mut capsule = get(app, caller, id).await?;
    if settled(&capsule) {
        return Ok(capsule);
    }
    let mut waiter = app.waiters.watch(id, SETTLE);
    loop {
        waiter.note();
        capsule = get(app, caller, id).await?;
        if settled(&capsule) {
            return Ok(capsule);
        }
        if !waiter.again().await {
            return Err(Error::HostUnavailable);
        }
    }
}
