//! The control plane's one error. The only file that knows status codes.

use axum::Json;
use axum::response::{IntoResponse, Response};
use connectrpc::{ConnectError, ErrorCode};
use http::StatusCode;
use types::resources::OutOfRange;

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} not found")]
    NotFound(&'static str),
    #[error("{0}")]
    Conflict(String),
    #[error("{field} {message}")]
    Invalid { field: String, message: String },
    #[error("the X-API-Key header is missing or its key is not valid")]
    Unauthenticated,
    #[error("no capacity: {0}")]
    NoCapacity(String),
    #[error("the capsule's host does not answer")]
    HostUnavailable,
    #[error("the guest's disk is full")]
    DiskFull,
    #[error("internal error")]
    Internal(#[source] anyhow::Error),
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), message: message.into() }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Invalid { .. } => StatusCode::BAD_REQUEST,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::NoCapacity(_) | Self::HostUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::DiskFull => StatusCode::INSUFFICIENT_STORAGE,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "not_found",
            Self::Conflict(_) => "conflict",
            Self::Invalid { .. } => "invalid_request",
            Self::Unauthenticated => "unauthorized",
            Self::NoCapacity(_) => "no_capacity",
            Self::HostUnavailable => "host_unavailable",
            Self::DiskFull => "disk_full",
            Self::Internal(_) => "internal",
        }
    }

    /// What envd or an agent refused, in our words.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the library may add codes")]
    pub(crate) fn from_guest(error: &ConnectError) -> Self {
        let message = error.message.clone().unwrap_or_default();
        match error.code {
            ErrorCode::NotFound => Self::NotFound("path or process"),
            ErrorCode::AlreadyExists | ErrorCode::FailedPrecondition => Self::Conflict(message),
            ErrorCode::InvalidArgument
            | ErrorCode::OutOfRange
            | ErrorCode::Unauthenticated
            | ErrorCode::PermissionDenied => Self::invalid("request", message),
            ErrorCode::ResourceExhausted => Self::DiskFull,
            ErrorCode::Unavailable => Self::HostUnavailable,
            _ => Self::Internal(anyhow::anyhow!("{error}")),
        }
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Internal(error.into())
    }
}

impl From<OutOfRange> for Error {
    fn from(error: OutOfRange) -> Self {
        Self::Invalid { field: error.field.to_owned(), message: error.message }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let request_id = uuid::Uuid::new_v4().simple().to_string();
        if let Self::Internal(source) = &self {
            tracing::error!(request_id, error = format!("{source:#}"), "internal error");
        }
        let message = self.to_string();
        let body = api::ErrorBody {
            error: api::ErrorDetail { code: self.code().to_owned(), message, request_id },
        };
        (self.status(), Json(body)).into_response()
    }
}
