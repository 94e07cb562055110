//! Small files that hold secrets.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Replaces a file durably in one step. Only the file's owner can read it.
///
/// # Errors
/// Returns the failed call's error. The old contents stand unless the last call, which syncs the
/// folder, is the one that failed.
pub fn write_private(path: &Path, contents: &[u8]) -> io::Result<()> {
    let staged = path.with_extension("new");
    let _ = fs::remove_file(&staged);
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&staged)?;
    file.write_all(contents)?;
    file.sync_all()?;
    fs::rename(&staged, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}
