//! Errors of damaged snapshots.

use std::io;

/// Damage of a snapshot: one of its files is missing, truncated, or not as it was written.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Damaged(String);

/// Makes the error of a damaged snapshot. `what` describes the damage.
pub(crate) fn damaged(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, Damaged(what.into()))
}

/// Reports whether an error means that a snapshot is damaged.
pub(crate) fn is_damage(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Damaged>())
}

/// Turns the error of a missing or truncated file into damage. Any other error stays as it is.
pub(super) fn as_damage(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::NotFound {
        return damaged("a file of the snapshot is missing");
    }
    let cut = error.kind() == io::ErrorKind::UnexpectedEof;
    if cut { damaged("a file of the snapshot is truncated") } else { error }
}
