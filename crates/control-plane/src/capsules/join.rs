//! Joins of pauses and resumes that are under way, and the bound on lost races.

use crate::db::capsules::Capsule;
use crate::error::{Error, Result};
use types::CapsuleState;

/// Attempts at a change that another change may outrun. Each lost attempt means that another change
/// was made.
pub(super) const RACES: u32 = 20;

/// Makes the error of a change that another change outran.
pub(super) fn busy() -> Error {
    Error::Conflict("another operation on the capsule is under way; try again".to_owned())
}

/// Reports whether the requested operation is under way already, so that the caller joins it.
///
/// # Errors
/// A conflict, when another operation is under way, or this one with other parameters.
pub(super) fn joins(capsule: &Capsule, to: CapsuleState, operation: &str) -> Result<bool> {
    let under_way = capsule.state;
    match under_way {
        CapsuleState::Pausing | CapsuleState::Resuming => {
            let same = capsule.operation.is_empty() || capsule.operation == operation;
            if under_way == to && same { Ok(true) } else { Err(busy()) }
        }
        CapsuleState::Starting
        | CapsuleState::Running
        | CapsuleState::Paused
        | CapsuleState::Missing
        | CapsuleState::Error
        | CapsuleState::Stopping
        | CapsuleState::Stopped => Ok(false),
    }
}

/// Reports whether an operation that was seen under way has failed. The capsule is back in the
/// state before that operation. A success and a later operation lead there too, by more changes.
pub(super) fn has_failed(seen: &Capsule, now: &Capsule) -> bool {
    now.generation == seen.generation + 1
}
