//! Passive reads: they resume no paused capsule, and do not count as activity.

use super::failure::classify_failure;
use super::get::get;
use super::wake::awake;
use crate::app::App;
use crate::auth::Caller;
use crate::db::capsules::Capsule;
use crate::error::{Error, Result};
use types::{CapsuleId, CapsuleState};

/// Returns a capsule whose guest can answer a read. Only a read that is not passive resumes a
/// paused capsule.
pub(crate) async fn readable(
    app: &App,
    caller: Caller,
    id: CapsuleId,
    passive: bool,
) -> Result<Capsule> {
    if !passive {
        return awake(app, caller, id).await;
    }
    let capsule = get(app, caller, id).await?;
    let state = capsule.state;
    if state == CapsuleState::Running { Ok(capsule) } else { Err(Error::NotRunning(state)) }
}

/// Returns the reason that a guest did not answer a read. A passive read interrupts no
/// program, so a pause in between is reported as `capsule_paused`.
pub(crate) async fn classify_read(app: &App, seen: &Capsule, passive: bool, error: Error) -> Error {
    let error = classify_failure(app, seen, error).await;
    match (passive, error) {
        (true, Error::Interrupted) => Error::NotRunning(CapsuleState::Paused),
        (_, error) => error,
    }
}
