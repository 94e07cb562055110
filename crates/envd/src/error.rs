//! The error of all envd handlers: a Connect code and a text for people. The code's HTTP status
//! serves the plain endpoints too. No other file knows status codes of errors.

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::response::{IntoResponse, Response};
use connectrpc::{ConnectError, ErrorCode};
use http::StatusCode;
use std::io;

/// Errors of a file or its device, not of envd.
const FILES_OWN: [i32; 5] = [libc::EIO, libc::ENXIO, libc::ENODEV, libc::ESTALE, libc::ETIMEDOUT];

/// Reason why a request failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Error {
    pub code: ErrorCode,
    pub message: String,
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::NotFound, message)
    }

    pub(crate) fn unauthenticated(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Unauthenticated, message)
    }

    /// Makes an error from an I/O error, with the code that fits it. `what` names the attempted
    /// action.
    pub(crate) fn io(what: &str, error: &io::Error) -> Self {
        use io::ErrorKind as Kind;
        let kind = error.kind();
        let code = if kind == Kind::NotFound {
            ErrorCode::NotFound
        } else if matches!(kind, Kind::AlreadyExists | Kind::DirectoryNotEmpty) {
            ErrorCode::AlreadyExists
        } else if matches!(
            kind,
            Kind::CrossesDevices
                | Kind::ResourceBusy
                | Kind::ExecutableFileBusy
                | Kind::Unsupported
        ) || error.raw_os_error().is_some_and(|number| FILES_OWN.contains(&number))
        {
            ErrorCode::FailedPrecondition
        } else if matches!(kind, Kind::PermissionDenied | Kind::ReadOnlyFilesystem) {
            ErrorCode::PermissionDenied
        } else if matches!(kind, Kind::StorageFull | Kind::QuotaExceeded) {
            ErrorCode::ResourceExhausted
        } else if matches!(
            kind,
            Kind::NotADirectory | Kind::IsADirectory | Kind::InvalidInput | Kind::InvalidFilename
        ) || error.raw_os_error() == Some(libc::ELOOP)
        {
            ErrorCode::InvalidArgument
        } else {
            ErrorCode::Internal
        };
        Self::new(code, format!("{what}: {error}"))
    }

    fn status(&self) -> StatusCode {
        if self.code == ErrorCode::ResourceExhausted {
            return StatusCode::INSUFFICIENT_STORAGE;
        }
        self.code.http_status()
    }
}

impl From<Error> for ConnectError {
    fn from(error: Error) -> Self {
        Self::new(error.code, error.message)
    }
}

impl From<QueryRejection> for Error {
    fn from(rejection: QueryRejection) -> Self {
        Self::invalid(rejection.body_text())
    }
}

impl From<JsonRejection> for Error {
    fn from(rejection: JsonRejection) -> Self {
        Self::invalid(rejection.body_text())
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = self.status();
        let body = serde_json::json!({ "code": status.as_u16(), "message": self.message });
        (status, axum::Json(body)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_system_errors_map_to_specific_codes() {
        for (number, code) in [
            (libc::ENOENT, ErrorCode::NotFound),
            (libc::EEXIST, ErrorCode::AlreadyExists),
            (libc::ENOTEMPTY, ErrorCode::AlreadyExists),
            (libc::EXDEV, ErrorCode::FailedPrecondition),
            (libc::EBUSY, ErrorCode::FailedPrecondition),
            (libc::EOPNOTSUPP, ErrorCode::FailedPrecondition),
            (libc::EROFS, ErrorCode::PermissionDenied),
            (libc::EDQUOT, ErrorCode::ResourceExhausted),
            (libc::ELOOP, ErrorCode::InvalidArgument),
            (libc::EIO, ErrorCode::FailedPrecondition),
            (libc::ENXIO, ErrorCode::FailedPrecondition),
            (libc::ENOMEM, ErrorCode::Internal),
        ] {
            let error = Error::io("cannot move a", &io::Error::from_raw_os_error(number));
            assert_eq!(error.code, code, "{error}");
            assert!(error.message.starts_with("cannot move a: "), "{error}");
        }
    }
}
