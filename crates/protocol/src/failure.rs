//! Failures of a host's commands. A [`Failure`] travels as the detail of a Connect error.

use crate::host::{Failure, FailureReason};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use buffa::{Message, MessageName};
use connectrpc::{ConnectError, ErrorCode, ErrorDetail};

impl FailureReason {
    /// Returns the code of a Connect error that has this reason.
    #[must_use]
    pub const fn code(self) -> ErrorCode {
        match self {
            Self::FAILURE_REASON_UNSPECIFIED => ErrorCode::Unknown,
            Self::FAILURE_REASON_INVALID => ErrorCode::InvalidArgument,
            Self::FAILURE_REASON_NOT_FOUND | Self::FAILURE_REASON_NO_TEMPLATE => {
                ErrorCode::NotFound
            }
            Self::FAILURE_REASON_STATE | Self::FAILURE_REASON_INCOMPATIBLE => {
                ErrorCode::FailedPrecondition
            }
            Self::FAILURE_REASON_STALE | Self::FAILURE_REASON_STOPPING => ErrorCode::Aborted,
            Self::FAILURE_REASON_NO_CAPACITY => ErrorCode::ResourceExhausted,
            Self::FAILURE_REASON_DAMAGED => ErrorCode::DataLoss,
            Self::FAILURE_REASON_SILENT => ErrorCode::Unavailable,
            Self::FAILURE_REASON_INTERNAL | Self::FAILURE_REASON_START => ErrorCode::Internal,
        }
    }
}

impl Failure {
    /// Makes the Connect error that carries this failure. `message` explains it to people.
    #[must_use]
    pub fn into_error(self, message: impl Into<String>) -> ConnectError {
        let code = self.reason.as_known().unwrap_or_default().code();
        let detail = ErrorDetail::from_message(Self::FULL_NAME, &self);
        ConnectError::new(code, message).with_detail(detail)
    }

    /// Reads the failure that a Connect error carries. Returns `None` for an error without a
    /// readable one, for example of a host that cannot be reached.
    #[must_use]
    pub fn from_error(error: &ConnectError) -> Option<Self> {
        let is_failure =
            |detail: &&ErrorDetail| detail.type_url.rsplit('/').next() == Some(Self::FULL_NAME);
        let value = error.details.iter().find(is_failure)?.value.as_deref()?;
        let bytes = STANDARD_NO_PAD.decode(value.trim_end_matches('=')).ok()?;
        Self::decode_from_slice(&bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use buffa::{EnumValue, Enumeration};

    fn sent(failure: Failure) -> ConnectError {
        let error = failure.into_error("why");
        serde_json::from_slice(&error.to_json()).unwrap()
    }

    #[test]
    fn failure_round_trips_through_error_detail() {
        for reason in FailureReason::values() {
            let failure =
                Failure { reason: (*reason).into(), snapshots: vec![1, 300], ..Default::default() };
            let error = sent(failure.clone());
            assert_eq!((error.code, error.message.as_deref()), (reason.code(), Some("why")));
            assert_eq!(Failure::from_error(&error), Some(failure));
        }
    }

    #[test]
    fn unknown_reason_is_read_as_unknown() {
        let failure = Failure { reason: EnumValue::Unknown(999), ..Default::default() };
        let read = Failure::from_error(&sent(failure)).unwrap();
        assert_eq!((read.reason.as_known(), read.reason.to_i32()), (None, 999));
    }

    #[test]
    fn error_without_readable_failure_has_none() {
        let plain = ConnectError::new(ErrorCode::Aborted, "why");
        assert_eq!(Failure::from_error(&plain), None);
        let detail = |type_url: &str, value: Option<&str>| ErrorDetail {
            type_url: type_url.to_owned(),
            value: value.map(str::to_owned),
            debug: None,
        };
        for detail in [
            detail("google.rpc.RetryInfo", Some("")),
            detail(Failure::FULL_NAME, None),
            detail(Failure::FULL_NAME, Some("!")),
        ] {
            assert_eq!(Failure::from_error(&plain.clone().with_detail(detail)), None);
        }
        let prefixed = format!("type.googleapis.com/{}", Failure::FULL_NAME);
        let padded = plain.with_detail(detail(&prefixed, Some("CAQ=")));
        let read = Failure::from_error(&padded).unwrap();
        assert_eq!(read.reason, FailureReason::FAILURE_REASON_STALE);
    }
}
