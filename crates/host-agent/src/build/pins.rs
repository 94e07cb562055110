//! Links to all files that a build lies on, in the build's own folder. So a template, layer or image
//! may be removed while the build goes on.

use super::folders;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Links files into a folder, by their position. A file of another file system stays where it is.
///
/// # Errors
/// Fails when a file is gone, or when the folder cannot be made.
pub(super) fn pin(files: &[PathBuf], dir: &Path) -> io::Result<Vec<PathBuf>> {
    folders::empty(dir)?;
    let link = |(at, file): (usize, &PathBuf)| {
        let (from, to) = (file.canonicalize()?, dir.join(at.to_string()));
        match fs::hard_link(&from, &to) {
            Ok(()) => Ok(to),
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => Ok(from),
            Err(error) => Err(error),
        }
    };
    files.iter().enumerate().map(link).collect()
}
