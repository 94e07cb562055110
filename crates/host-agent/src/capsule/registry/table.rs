//! The one table of requests: the answer to each request in each state of a capsule. Pure.
//!
//! ```text
//!  state      Create    Pause     Resume    Snapshot  Expire    Evict   Connect
//!                                           Set…
//!  (unknown)  ACCEPT    NotFound  NotFound  NotFound  NotFound  ACCEPT  NotRunning
//!  Starting   ACCEPT    State     State     State     ignore    State   NotRunning
//!  Running    ignore    ACCEPT    ignore    ACCEPT    ACCEPT    State   ACCEPT
//!  Pausing    Stopping  State     State     State     ignore    State   Draining
//!  Paused     Stopping  ignore    ACCEPT    ACCEPT    ignore    ACCEPT  Paused
//!  Resuming   Stopping  State     State     State     ignore    State   Draining
//!  Expired    Stopping  State     State     State     ignore    State   NotRunning
//!  Stopping   Stopping  State     State     State     ignore    State   NotRunning
//!  Dead       Stopping  State     ACCEPT *  State     ignore    ACCEPT  NotRunning
//!                                 * else State, without a snapshot
//! ```
//! `Set…` stands for `SetLifetime` and `Change`. Every state accepts `Destroy`. `ignore` is
//! success without work; a start is answered with the last start. A denial is a variant of
//! [`Error`], or of [`Refusal`] in the last column.
//!
//! Generations and room are checked later, and only for accepted requests.

use crate::capsule::{Error, State};
use protocol::Refusal;
use types::CapsuleId;

/// Request for a capsule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Create,
    Pause,
    /// Resume of a capsule that has a snapshot of its own, or has none.
    Resume {
        has_snapshot: bool,
    },
    Snapshot,
    /// Change of the time limits, or mere activity.
    SetLifetime,
    /// Change of another setting: rules for outgoing connections, or output for the log.
    Change,
    /// End of a capsule whose time is over.
    Expire,
    /// Removal of a copy that the platform has placed elsewhere since.
    Evict,
    Destroy,
    /// Request or connection to the guest.
    Connect,
}

/// Answer of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The operation begins.
    Accept,
    /// The request succeeds without work.
    Ignore,
    Deny(Denial),
}

/// Reason of a denial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denial {
    /// This host does not have the capsule.
    Unknown,
    /// The id belongs to a capsule that is no longer new.
    Stopping,
    /// The capsule's state does not allow the operation.
    State,
    /// The guest takes no connection.
    Refused(Refusal),
}

impl Denial {
    /// Returns the answer to a denied connection.
    pub(super) fn refusal(self) -> Refusal {
        match self {
            Self::Refused(refusal) => refusal,
            Self::Unknown | Self::Stopping | Self::State => Refusal::NotRunning,
        }
    }

    /// Returns the error of a denied operation.
    fn error(self, id: CapsuleId, state: Option<&State>) -> Error {
        match (self, state) {
            (Self::Stopping, _) => Error::Stopping,
            (Self::State | Self::Refused(_), Some(state)) => Error::State(state.clone()),
            (Self::Unknown | Self::State | Self::Refused(_), _) => Error::unknown(id),
        }
    }
}

/// Decides on a request for a capsule in a state, `None` for an unknown capsule. Pure.
pub(super) fn decide(state: Option<&State>, request: Request) -> Verdict {
    use Verdict::{Accept, Deny, Ignore};
    let Some(state) = state else {
        return match request {
            Request::Create | Request::Destroy | Request::Evict => Accept,
            Request::Connect => Deny(Denial::Refused(Refusal::NotRunning)),
            Request::Pause
            | Request::Resume { .. }
            | Request::Snapshot
            | Request::SetLifetime
            | Request::Change
            | Request::Expire => Deny(Denial::Unknown),
        };
    };
    match (request, state) {
        (Request::Destroy, _) => Accept,

        (Request::Create, State::Starting) => Accept,
        (Request::Create, State::Running) => Ignore,
        (Request::Create, _) => Deny(Denial::Stopping),

        (Request::Pause, State::Running) => Accept,
        (Request::Pause, State::Paused) => Ignore,

        (Request::Resume { .. }, State::Paused) => Accept,
        (Request::Resume { .. }, State::Running) => Ignore,
        // A capsule whose machine is lost may still have an earlier snapshot.
        (Request::Resume { has_snapshot: true }, State::Dead(_)) => Accept,

        (
            Request::Snapshot | Request::SetLifetime | Request::Change,
            State::Running | State::Paused,
        ) => Accept,

        (Request::Expire, State::Running) => Accept,
        (Request::Expire, _) => Ignore,

        (Request::Evict, State::Paused | State::Dead(_)) => Accept,

        (Request::Connect, State::Running) => Accept,
        (Request::Connect, State::Paused) => Deny(Denial::Refused(Refusal::Paused)),
        (Request::Connect, State::Pausing | State::Resuming) => {
            Deny(Denial::Refused(Refusal::Draining))
        }
        (Request::Connect, State::Starting | State::Expired | State::Stopping | State::Dead(_)) => {
            Deny(Denial::Refused(Refusal::NotRunning))
        }

        (
            Request::Pause
            | Request::Resume { .. }
            | Request::Snapshot
            | Request::SetLifetime
            | Request::Change
            | Request::Evict,
            _,
        ) => Deny(Denial::State),
    }
}

/// Returns true if a request's operation begins, and false if the request succeeds without work.
///
/// # Errors
/// Fails for a denied request.
pub(super) fn check(id: CapsuleId, state: Option<&State>, request: Request) -> Result<bool, Error> {
    match decide(state, request) {
        Verdict::Accept => Ok(true),
        Verdict::Ignore => Ok(false),
        Verdict::Deny(denial) => Err(denial.error(id, state)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YES: Verdict = Verdict::Accept;
    const DONE: Verdict = Verdict::Ignore;
    const GONE: Verdict = Verdict::Deny(Denial::Unknown);
    const STOP: Verdict = Verdict::Deny(Denial::Stopping);
    const NO: Verdict = Verdict::Deny(Denial::State);
    const DEAD: Verdict = Verdict::Deny(Denial::Refused(Refusal::NotRunning));
    const WAIT: Verdict = Verdict::Deny(Denial::Refused(Refusal::Draining));
    const WAKE: Verdict = Verdict::Deny(Denial::Refused(Refusal::Paused));

    const REQUESTS: [Request; 11] = [
        Request::Create,
        Request::Pause,
        Request::Resume { has_snapshot: true },
        Request::Resume { has_snapshot: false },
        Request::Snapshot,
        Request::SetLifetime,
        Request::Change,
        Request::Expire,
        Request::Evict,
        Request::Destroy,
        Request::Connect,
    ];

    #[test]
    fn every_request_in_every_state_has_the_answer_of_the_table() {
        let dead = || State::Dead("its VMM ended".to_owned());
        let table = [
            (None, [YES, GONE, GONE, GONE, GONE, GONE, GONE, GONE, YES, YES, DEAD]),
            (Some(State::Starting), [YES, NO, NO, NO, NO, NO, NO, DONE, NO, YES, DEAD]),
            (Some(State::Running), [DONE, YES, DONE, DONE, YES, YES, YES, YES, NO, YES, YES]),
            (Some(State::Pausing), [STOP, NO, NO, NO, NO, NO, NO, DONE, NO, YES, WAIT]),
            (Some(State::Paused), [STOP, DONE, YES, YES, YES, YES, YES, DONE, YES, YES, WAKE]),
            (Some(State::Resuming), [STOP, NO, NO, NO, NO, NO, NO, DONE, NO, YES, WAIT]),
            (Some(State::Expired), [STOP, NO, NO, NO, NO, NO, NO, DONE, NO, YES, DEAD]),
            (Some(State::Stopping), [STOP, NO, NO, NO, NO, NO, NO, DONE, NO, YES, DEAD]),
            (Some(dead()), [STOP, NO, YES, NO, NO, NO, NO, DONE, YES, YES, DEAD]),
        ];
        for (state, answers) in table {
            for (request, wanted) in REQUESTS.into_iter().zip(answers) {
                let found = decide(state.as_ref(), request);
                assert_eq!(found, wanted, "{state:?} {request:?}");
            }
        }
    }

    #[test]
    fn denied_operation_names_the_state_and_unknown_capsule_is_not_found() {
        let id = CapsuleId::new();
        let paused = check(id, Some(&State::Expired), Request::Pause);
        assert!(matches!(paused, Err(Error::State(State::Expired))), "{paused:?}");
        let paused = check(id, None, Request::Pause);
        assert!(matches!(paused, Err(Error::NotFound(_))), "{paused:?}");
        let created = check(id, Some(&State::Paused), Request::Create);
        assert!(matches!(created, Err(Error::Stopping)), "{created:?}");
        assert!(!check(id, Some(&State::Paused), Request::Pause).unwrap());
        assert!(check(id, None, Request::Destroy).unwrap());
    }
}
