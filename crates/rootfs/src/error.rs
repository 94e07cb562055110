//! Reasons why layers do not become an image, and the places where they were found.

use std::fmt;
use std::io;

/// Longest part of a path that an error shows, in bytes.
const SHOWN: usize = 200;

/// A conversion's failure: its reason and its place.
#[derive(Debug)]
pub struct Error {
    /// Number of the layer, from 1. `None` for a failure outside of all layers.
    pub layer: Option<u32>,
    /// Number of the entry in its layer, from 1.
    pub entry: Option<u64>,
    /// Path of the entry, as printable ASCII.
    pub path: Option<String>,
    /// Reason of the failure.
    pub fault: Fault,
}

impl Error {
    pub(crate) fn of_entry(number: u64, path: &[u8], fault: Fault) -> Self {
        Self { layer: None, entry: Some(number), path: Some(printable(path)), fault }
    }

    pub(crate) fn in_layer(mut self, number: u32) -> Self {
        self.layer = Some(number);
        self
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Self { layer: None, entry: None, path: None, fault }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut joint = "";
        if let Some(layer) = self.layer {
            write!(out, "layer {layer}")?;
            joint = ", ";
        }
        if let Some(entry) = self.entry {
            write!(out, "{joint}entry {entry}")?;
            joint = ", ";
        }
        if let Some(path) = self.path.as_deref().filter(|path| !path.is_empty()) {
            write!(out, "{joint}\"{path}\"")?;
            joint = ", ";
        }
        let colon = if joint.is_empty() { "" } else { ": " };
        write!(out, "{colon}{}", self.fault)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.fault)
    }
}

/// Reason of a failure.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The layer's stream failed, or its compression is damaged.
    #[error("the layer cannot be read")]
    Read(#[source] io::Error),
    /// The image's file failed.
    #[error("the image cannot be written")]
    Write(#[source] io::Error),
    /// The plain bytes are not those that the image's configuration names.
    #[error("the contents have the digest sha256:{found}, and the image names sha256:{expected}")]
    Digest { expected: String, found: String },
    /// The image or its layers have more bytes than allowed.
    #[error("more than {limit} {unit}")]
    TooLarge { limit: u64, unit: &'static str },
    /// Another limit was passed, such as a count or the length of a name.
    #[error("more than {limit} {unit}")]
    Limit { limit: u64, unit: &'static str },
    /// The archive ends within an entry.
    #[error("the archive breaks off")]
    Truncated,
    /// The archive is not tar as the reader takes it.
    #[error("the archive is damaged: {0}")]
    Malformed(&'static str),
    /// The entry is well-formed, and no image may have it.
    #[error("the entry is refused: {0}")]
    Refused(&'static str),
}

/// Shows the beginning of a path as printable ASCII.
fn printable(path: &[u8]) -> String {
    let shown = path.get(..SHOWN).unwrap_or(path);
    let dots = if shown.len() < path.len() { "…" } else { "" };
    format!("{}{dots}", shown.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_names_layer_entry_path_and_limit() {
        let fault = Fault::Limit { limit: 7, unit: "entries" };
        let error = Error::of_entry(8, b"a\n\xff", fault).in_layer(2);
        assert_eq!(error.to_string(), "layer 2, entry 8, \"a\\n\\xff\": more than 7 entries");
        assert_eq!(Error::from(Fault::Truncated).to_string(), "the archive breaks off");
        let long = Error::of_entry(1, &[b'x'; 5000], Fault::Truncated).to_string();
        assert!(long.len() < 300, "{long}");
    }
}
