//! Reasons why an image is not kept. The texts begin as those of E2B's builder, since its users and
//! programs look for them.

use crate::room::NoRoom;
use std::io;

/// Failure of an image's import. No text holds a credential.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry or the archive does not give the image.
    #[error(transparent)]
    Source(#[from] registry::Error),
    /// The image's files take more room than a root may have.
    #[error(
        "the uncompressed Docker image size (more than {}) exceeds the maximum filesystem size ({}) \
         of '{image}': {why}", megabytes(*.limit), megabytes(*.limit)
    )]
    TooLarge { image: String, limit: u64, why: String },
    /// The layers make no image.
    #[error("image '{image}' cannot be used: {why}")]
    Refused { image: String, why: String },
    /// The conversion itself failed. The image may be good.
    #[error("image '{image}' was not converted: {why}")]
    Conversion { image: String, why: String },
    /// The host's disk has no room for the image.
    #[error("no room for image '{image}': {why}")]
    NoRoom { image: String, why: String },
    /// The host has no image with this digest.
    #[error("the host does not keep the image {0}")]
    NotKept(String),
    /// The caller cancelled the import.
    #[error("the import of the image was cancelled")]
    Cancelled,
    /// The host's own files cannot be read or written.
    #[error("{what}: {source}")]
    Files { what: String, source: io::Error },
}

impl Error {
    /// Reports whether the caller is at fault: another reference, login or image would help.
    #[must_use]
    pub fn is_callers(&self) -> bool {
        match self {
            Self::Source(error) => !matches!(error.root(), registry::Error::Settings { .. }),
            Self::TooLarge { .. } | Self::Refused { .. } | Self::Cancelled => true,
            Self::Conversion { .. }
            | Self::NoRoom { .. }
            | Self::NotKept(_)
            | Self::Files { .. } => false,
        }
    }

    pub(super) fn files(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Files { what, source }
    }

    pub(super) fn no_room(image: &str, why: &NoRoom) -> Self {
        Self::NoRoom { image: image.to_owned(), why: why.to_string() }
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_begin_as_e2bs() {
        let image = "docker.io/library/x:1".to_owned();
        let large = Error::TooLarge { image, limit: 10 << 30, why: "layer 2".to_owned() };
        let text = large.to_string();
        let begins = "the uncompressed Docker image size (more than 10240 MB) exceeds the maximum \
                      filesystem size (10240 MB)";
        assert!(text.starts_with(begins), "{text}");
        let missing = registry::Error::ImageNotFound { image: "x".to_owned() };
        let text = Error::from(missing).to_string();
        assert!(text.starts_with("image 'x' not found: the image or tag does not exist"), "{text}");
    }
}
