//! Errors of host agents as errors of the platform. All functions are pure.

use crate::error::Error;
use connectrpc::{ConnectError, ErrorCode};
use protocol::host::{Failure, FailureReason};

/// Text in place of an internal error of a host, which may name paths of the host.
const SEE_LOG: &str = "see the host's log for details";

/// Command to a host, as far as its failures differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Create,
    Pause,
    Resume,
    Snapshot,
    Other,
}

impl Command {
    /// Converts a host's error about this command. An error without a known reason, for example of
    /// a newer agent or of a host that cannot be reached, is judged by its code.
    pub(super) fn error(self, error: &ConnectError) -> Error {
        let failure = Failure::from_error(error).unwrap_or_default();
        let reason = failure.reason.as_known().unwrap_or_default();
        let why = error.message.clone().unwrap_or_default();
        match reason {
            FailureReason::FAILURE_REASON_UNSPECIFIED => self.by_code(error),
            FailureReason::FAILURE_REASON_INVALID => Error::invalid("request", why),
            FailureReason::FAILURE_REASON_NOT_FOUND => Error::NotFound("capsule"),
            FailureReason::FAILURE_REASON_STATE
            | FailureReason::FAILURE_REASON_STALE
            | FailureReason::FAILURE_REASON_STOPPING => Error::Conflict(why),
            // Another host may have the room or the template.
            FailureReason::FAILURE_REASON_NO_CAPACITY
            | FailureReason::FAILURE_REASON_NO_TEMPLATE => Error::NoCapacity(why),
            FailureReason::FAILURE_REASON_DAMAGED => {
                let snapshots = failure.snapshots;
                self.unless_other(error, Error::SnapshotDamaged { why, snapshots })
            }
            FailureReason::FAILURE_REASON_INCOMPATIBLE => {
                self.unless_other(error, Error::SnapshotIncompatible(why))
            }
            FailureReason::FAILURE_REASON_SILENT => self.silent(why),
            FailureReason::FAILURE_REASON_START => self.failed(error, why),
            FailureReason::FAILURE_REASON_INTERNAL => self.failed(error, SEE_LOG.to_owned()),
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the library may add codes")]
    fn by_code(self, error: &ConnectError) -> Error {
        let why = error.message.clone().unwrap_or_default();
        match error.code {
            ErrorCode::ResourceExhausted => Error::NoCapacity(why),
            ErrorCode::InvalidArgument => Error::invalid("request", why),
            ErrorCode::Aborted | ErrorCode::FailedPrecondition => Error::Conflict(why),
            ErrorCode::NotFound => Error::NotFound("capsule"),
            ErrorCode::Unavailable | ErrorCode::Canceled | ErrorCode::DeadlineExceeded => {
                Error::HostUnavailable
            }
            ErrorCode::DataLoss => {
                self.unless_other(error, Error::SnapshotDamaged { why, snapshots: Vec::new() })
            }
            ErrorCode::Internal => self.failed(error, SEE_LOG.to_owned()),
            _ => internal(error),
        }
    }

    /// Makes the error of a command that the host could not carry out.
    fn failed(self, error: &ConnectError, why: String) -> Error {
        match self {
            Self::Create | Self::Resume => Error::StartFailed(why),
            Self::Pause => Error::PauseFailed(why),
            Self::Snapshot => Error::SnapshotFailed(why),
            Self::Other => internal(error),
        }
    }

    /// Makes the error of a command about a guest whose envd is silent.
    fn silent(self, why: String) -> Error {
        match self {
            Self::Create => Error::StartFailed(why),
            Self::Pause => Error::PauseFailed(why),
            Self::Snapshot => Error::SnapshotFailed(why),
            // After a resume, the capsule is paused as before.
            Self::Resume | Self::Other => Error::GuestUnavailable,
        }
    }

    /// Returns `told` for a command that reads a snapshot, and an internal error for others.
    fn unless_other(self, error: &ConnectError, told: Error) -> Error {
        if self == Self::Other { internal(error) } else { told }
    }
}

fn internal(error: &ConnectError) -> Error {
    Error::Internal(anyhow::anyhow!("{error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use connectrpc::ErrorDetail;

    const ALL: [Command; 5] =
        [Command::Create, Command::Pause, Command::Resume, Command::Snapshot, Command::Other];

    fn sent(reason: FailureReason) -> ConnectError {
        Failure { reason: reason.into(), snapshots: vec![1, 2], ..Default::default() }
            .into_error("why")
    }

    /// Returns the codes of the errors for each of [`ALL`].
    fn codes(error: &ConnectError) -> [&'static str; 5] {
        ALL.map(|command| command.error(error).code())
    }

    /// Returns the codes of a host's failure, with `other` for [`Command::Other`].
    fn failed(other: &'static str) -> [&'static str; 5] {
        ["start_failed", "pause_failed", "start_failed", "snapshot_failed", other]
    }

    /// Returns the codes of a fault in a snapshot.
    fn of_snapshot(code: &'static str) -> [&'static str; 5] {
        [code, code, code, code, "internal"]
    }

    #[test]
    fn every_reason_of_a_host_has_an_error_for_each_command() {
        use FailureReason as Reason;
        let [create, pause, _, snapshot, _] = failed("internal");
        let silent = [create, pause, "guest_unavailable", snapshot, "guest_unavailable"];
        for (reason, wanted) in [
            (Reason::FAILURE_REASON_INVALID, ["invalid_request"; 5]),
            (Reason::FAILURE_REASON_NOT_FOUND, ["not_found"; 5]),
            (Reason::FAILURE_REASON_STATE, ["conflict"; 5]),
            (Reason::FAILURE_REASON_STALE, ["conflict"; 5]),
            (Reason::FAILURE_REASON_STOPPING, ["conflict"; 5]),
            (Reason::FAILURE_REASON_NO_CAPACITY, ["no_capacity"; 5]),
            (Reason::FAILURE_REASON_NO_TEMPLATE, ["no_capacity"; 5]),
            (Reason::FAILURE_REASON_DAMAGED, of_snapshot("snapshot_damaged")),
            (Reason::FAILURE_REASON_INCOMPATIBLE, of_snapshot("snapshot_incompatible")),
            (Reason::FAILURE_REASON_INTERNAL, failed("internal")),
            (Reason::FAILURE_REASON_START, failed("internal")),
            (Reason::FAILURE_REASON_SILENT, silent),
        ] {
            assert_eq!(codes(&sent(reason)), wanted, "{reason:?}");
        }
    }

    #[test]
    fn error_without_known_reason_is_judged_by_its_code() {
        for (code, wanted) in [
            (ErrorCode::ResourceExhausted, ["no_capacity"; 5]),
            (ErrorCode::InvalidArgument, ["invalid_request"; 5]),
            (ErrorCode::Aborted, ["conflict"; 5]),
            (ErrorCode::FailedPrecondition, ["conflict"; 5]),
            (ErrorCode::NotFound, ["not_found"; 5]),
            (ErrorCode::Unavailable, ["host_unavailable"; 5]),
            (ErrorCode::Canceled, ["host_unavailable"; 5]),
            (ErrorCode::DeadlineExceeded, ["host_unavailable"; 5]),
            (ErrorCode::DataLoss, of_snapshot("snapshot_damaged")),
            (ErrorCode::Internal, failed("internal")),
            (ErrorCode::Unknown, ["internal"; 5]),
            (ErrorCode::Unimplemented, ["internal"; 5]),
        ] {
            // A transport's error has no detail; a newer agent's may have an unknown reason.
            let plain = ConnectError::new(code, "why");
            let unknown = Failure { reason: 999_i32.into(), ..Default::default() };
            let detail = unknown.into_error("why").details.remove(0);
            for error in [plain.clone(), plain.with_detail(detail)] {
                assert_eq!(codes(&error), wanted, "{code:?}");
            }
        }
    }

    #[test]
    fn damaged_snapshot_tells_the_numbers_of_all() {
        let error = Command::Resume.error(&sent(FailureReason::FAILURE_REASON_DAMAGED));
        assert_eq!(error.to_string(), "why; its snapshots are 1, 2");
        let plain = ConnectError::new(ErrorCode::DataLoss, "why");
        assert_eq!(Command::Resume.error(&plain).to_string(), "why");
    }

    #[test]
    fn internal_text_of_a_host_is_not_told() {
        let failure =
            Failure { reason: FailureReason::FAILURE_REASON_INTERNAL.into(), ..Default::default() };
        let error = failure.into_error("opening /var/lib/wrenn/x");
        for command in [Command::Create, Command::Pause, Command::Resume, Command::Snapshot] {
            assert!(!command.error(&error).to_string().contains("/var/lib"), "{command:?}");
        }
        assert_eq!(Command::Other.error(&error).to_string(), "internal error");
    }

    #[test]
    fn unreadable_detail_is_ignored() {
        let detail = ErrorDetail { type_url: "x".to_owned(), value: None, debug: None };
        let error = ConnectError::new(ErrorCode::Aborted, "why").with_detail(detail);
        assert_eq!(Command::Pause.error(&error).code(), "conflict");
    }
}
