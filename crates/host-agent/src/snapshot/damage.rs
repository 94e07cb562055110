//! Errors of damaged snapshots.

use std::io;

/// Error for a file that differs from the file that was written.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Damaged(String);

/// Returns the error for a damaged snapshot.
pub(crate) fn damaged(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, Damaged(what.into()))
}

/// Reports whether an error means that a snapshot is damaged.
pub(crate) fn is_damage(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Damaged>())
}

/// Maps a missing or truncated file of a snapshot to damage.
pub(super) fn unreadable(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::NotFound {
        return damaged("a file of the snapshot is missing");
    }
    let cut = error.kind() == io::ErrorKind::UnexpectedEof;
    if cut { damaged("a file of the snapshot is truncated") } else { error }
}
