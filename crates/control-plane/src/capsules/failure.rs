//! Finds the reason that a guest did not answer.

use crate::app::App;
use crate::db;
use crate::db::capsules::Capsule;
use crate::error::Error;
use std::time::Duration;
use types::CapsuleState;

/// Longest wait for the reason that a guest does not answer.
const WHY: Duration = Duration::from_millis(750);

/// Returns the reason that a guest did not answer: the capsule may have been paused meanwhile.
/// `seen` is the capsule as it was when the guest was asked.
pub(crate) async fn classify_failure(app: &App, seen: &Capsule, error: Error) -> Error {
    if !matches!(error, Error::GuestUnavailable) {
        return error;
    }
    let mut waiter = app.waiters.watch(seen.id, WHY);
    loop {
        waiter.note();
        let Ok(Some(now)) = db::capsules::stands(&app.db, seen.id).await else { return error };
        let (state, generation) = now;
        if state != CapsuleState::Running || generation != seen.generation {
            let kept = matches!(
                state,
                CapsuleState::Pausing
                    | CapsuleState::Paused
                    | CapsuleState::Resuming
                    | CapsuleState::Running
            );
            return if kept { Error::Interrupted } else { error };
        }
        if !waiter.again().await {
            return error;
        }
    }
}
