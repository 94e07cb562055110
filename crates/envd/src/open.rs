//! Opens files of the guest, at whose paths root may have put anything. Opening never waits for
//! another program. The file system alone can hold it up.

use crate::error::{Error, Result};
use std::fs::{self, File, Metadata, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Flags of every open. With them, a named pipe does not block, and no device becomes envd's
/// terminal.
pub(crate) const OPEN_FLAGS: i32 = libc::O_NONBLOCK | libc::O_NOCTTY;

/// Opens a regular file for reading.
///
/// # Errors
/// Returns `invalid_argument` for anything else, and leaves it untouched.
pub(crate) fn open_regular(path: &Path) -> Result<File> {
    Ok(open(path)?.0)
}

/// Opens a regular file for reading. Returns it with its metadata.
///
/// # Errors
/// Returns `invalid_argument` for anything else, and leaves it untouched.
pub(crate) fn open(path: &Path) -> Result<(File, Metadata)> {
    // Opening a device or a named pipe may change something, so the type is checked first.
    let found = look(path)?;
    let fail = |e| Error::io(&format!("cannot read {}", path.display()), &e);
    check_regular(path, &found)?;
    let file = OpenOptions::new().read(true).custom_flags(OPEN_FLAGS).open(path).map_err(fail)?;
    // The path may lead to another file by now.
    let found = file.metadata().map_err(fail)?;
    check_regular(path, &found)?;
    Ok((file, found))
}

/// Checks that a path leads to a regular file. Returns its device and inode.
pub(crate) fn identify(path: &Path) -> Result<(u64, u64)> {
    let found = look(path)?;
    check_regular(path, &found)?;
    Ok((found.dev(), found.ino()))
}

fn look(path: &Path) -> Result<Metadata> {
    fs::metadata(path).map_err(|e| Error::io(&format!("cannot read {}", path.display()), &e))
}

fn check_regular(path: &Path, found: &Metadata) -> Result<()> {
    if found.is_file() { Ok(()) } else { Err(not_regular(path)) }
}

/// Makes the refusal of a path that has no contents of its own.
pub(crate) fn not_regular(path: &Path) -> Error {
    Error::invalid(format!("path is not a regular file: {}", path.display()))
}
