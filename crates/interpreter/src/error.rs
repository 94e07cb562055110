//! The failure of a request: a status and a text for people. Only this file maps failures of
//! kernels to statuses.

use crate::kernel::StartError;
use http::StatusCode;

/// Reason why a request failed. The text is the body of the answer, and its reason phrase.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Error {
    pub status: StatusCode,
    pub text: String,
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    /// A request that names both or neither of two things, or a value that cannot be.
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    /// A body that does not have the shape of its route.
    pub(crate) fn unprocessable(text: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, text)
    }

    pub(crate) fn no_context(id: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("Context {id} not found"))
    }

    pub(crate) fn no_execution(id: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("Execution {id} not found"))
    }

    pub(crate) fn too_many(text: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, text)
    }

    pub(crate) fn internal(text: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    }
}

impl From<&StartError> for Error {
    fn from(error: &StartError) -> Self {
        match error {
            StartError::UnknownLanguage(..) | StartError::Folder(..) => {
                Self::invalid(error.to_string())
            }
            StartError::Failed { .. } => Self::internal(error.to_string()),
        }
    }
}
