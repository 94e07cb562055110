//! The one error type of this crate. No message holds a credential, or a URL's query.
//!
//! The first three messages begin as in E2B's builder, since programs look for these beginnings.

use crate::digest::Digest;
use std::time::Duration;

/// Reasons why an image was not found, read or checked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry has the repository, and not the tag or digest.
    #[error("image '{image}' not found: the image or tag does not exist in the registry")]
    ImageNotFound { image: String },
    /// The registry does not have the repository.
    #[error("repository '{image}' not found: the registry has no repository of this name")]
    RepositoryNotFound { image: String },
    /// The registry wants a login, or another one.
    #[error(
        "access denied to '{image}': authentication required or insufficient permissions{hint}"
    )]
    AccessDenied { image: String, hint: String },
    /// The text is no reference to an image.
    #[error("invalid image reference '{text}': {why}")]
    Reference { text: String, why: &'static str },
    /// The settings cannot be used.
    #[error("registry settings: `{field}`: {why}")]
    Settings { field: String, why: String },
    /// The login cannot be used for this registry.
    #[error("login of registry '{registry}': {why}")]
    Login { registry: String, why: &'static str },
    /// The operator's lists exclude the image.
    #[error("image '{image}' is not allowed: its registry is {why}")]
    NotAllowed { image: String, why: &'static str },
    /// The registry limits requests, and its wait is over the limit.
    #[error(
        "registry '{registry}' answers too many requests (429){text}; a login or a mirror \
         (`registries.\"{registry}\".login`, `.mirrors`) may help"
    )]
    TooManyRequests { registry: String, text: String },
    /// Another server answers in place of a registry, such as a portal.
    #[error("'{registry}' is not a registry: {why}")]
    NotARegistry { registry: String, why: String },
    /// No connection was made, or it broke off.
    #[error("registry '{registry}' cannot be reached: {host}: {why}")]
    Unreachable { registry: String, host: String, why: String },
    /// The server sent nothing for too long.
    #[error("registry '{registry}' sent nothing for {} s: {host}", .limit.as_secs_f32())]
    Stalled { registry: String, host: String, limit: Duration },
    /// The whole time of a pull is over.
    #[error("image '{image}' was not pulled within {} s (`limits.pull_timeout_ms`)", .limit.as_secs_f32())]
    TimedOut { image: String, limit: Duration },
    /// The server fails, or answers with a status that has no meaning here.
    #[error("registry '{registry}' answers {status}{text}")]
    Status { registry: String, status: u16, text: String },
    /// A URL leads to a private address, and the operator did not name its host.
    #[error(
        "{what} of registry '{registry}' refused: '{host}' has no public address; if it is \
         meant, set `registries.\"{host}\".private = true`"
    )]
    PrivateAddress { registry: String, what: &'static str, host: String },
    /// A URL is not encrypted, and the operator did not permit that.
    #[error(
        "{what} of registry '{registry}' refused: '{host}' is not asked by https; if it is \
         meant, set `registries.\"{host}\".http = true`"
    )]
    NotEncrypted { registry: String, what: &'static str, host: String },
    /// A URL cannot be used.
    #[error("{what} of registry '{registry}' refused: {why}")]
    Url { registry: String, what: &'static str, why: &'static str },
    /// The registry's answer breaks the protocol.
    #[error("registry '{registry}' breaks the protocol: {why}")]
    Protocol { registry: String, why: String },
    /// Contents are larger than their limit.
    #[error("{what} is larger than its limit of {limit} bytes")]
    TooLarge { what: String, limit: u64 },
    /// Contents have another digest than the manifest or the reference says.
    #[error("{what} has the digest {found} in place of {expected}")]
    WrongDigest { what: String, expected: Digest, found: Digest },
    /// Contents have another size than the manifest says.
    #[error("{what} has {found} bytes in place of {expected}")]
    WrongSize { what: String, expected: u64, found: u64 },
    /// The manifest or the configuration is malformed, or of a kind that is not taken.
    #[error("manifest of '{image}': {why}")]
    Manifest { image: String, why: crate::manifest::Refusal },
    /// An archive of an image is malformed, or its file cannot be read.
    #[error("image archive: {why}")]
    Archive { why: String },
    /// The stream is read on after an error.
    #[error("{what} was not read to its end before")]
    FailedBefore { what: String },
    /// The image has no layer of this number.
    #[error("the image has {layers} layers, and none with the index {index}")]
    NoSuchLayer { index: usize, layers: usize },
    /// All of the mirrors failed, and the registry itself too.
    #[error("{last}; mirrors that were asked first: {mirrors}")]
    Mirrors { last: Box<Error>, mirrors: String },
}

/// Result of this crate's calls.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Returns the registry's own error, where mirrors were asked before it.
    #[must_use]
    pub fn root(&self) -> &Self {
        let mut error = self;
        // Mirrors have no mirrors, so this ends after one step.
        while let Self::Mirrors { last, .. } = error {
            error = last;
        }
        error
    }

    /// Reports whether a later try may succeed.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Stalled { .. })
    }

    /// Reports whether no other registry could help: the time is over.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Self::TimedOut { .. })
    }
}

/// Returns the error of this crate inside a reader's error.
#[must_use]
pub fn from_io(error: &std::io::Error) -> Option<&Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}
