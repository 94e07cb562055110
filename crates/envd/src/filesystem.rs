//! Looking at and changing the guest's file system, for `rpc/filesystem.rs` and
//! `http/files.rs`. Acts as root on behalf of a user and gives what it makes to that user.

pub(crate) mod entry;
pub(crate) mod watch;

use crate::error::{Error, Result};
use crate::users::User;
use connectrpc::ErrorCode;
use entry::Entry;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::Path;

/// Entries that one listing may have.
const LIST_MAX: usize = 100_000;

/// Makes a directory and its parents, each new one the user's.
///
/// # Errors
/// `already_exists` when it is there; `invalid_argument` when something else is.
pub(crate) fn make_dir(path: &Path, user: &User) -> Result<()> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Err(Error::new(
            ErrorCode::AlreadyExists,
            format!("directory already exists: {}", path.display()),
        )),
        Ok(_) => Err(Error::invalid(format!("path is a file: {}", path.display()))),
        Err(_) => ensure_dir(path, user),
    }
}

/// Makes what is missing of a directory and its parents, each new one the user's.
pub(crate) fn ensure_dir(path: &Path, user: &User) -> Result<()> {
    let fail = |at: &Path, e: &std::io::Error| Error::io(&format!("making {}", at.display()), e);
    let mut missing: Vec<&Path> = Vec::new();
    for ancestor in path.ancestors() {
        match fs::metadata(ancestor) {
            Ok(found) if found.is_dir() => break,
            Ok(_) => return Err(Error::invalid(format!("path is a file: {}", ancestor.display()))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => missing.push(ancestor),
            Err(e) => return Err(fail(ancestor, &e)),
        }
    }
    for dir in missing.into_iter().rev() {
        match fs::DirBuilder::new().mode(0o755).create(dir) {
            Ok(()) => own(dir, user)?,
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(fail(dir, &e)),
        }
    }
    Ok(())
}

/// Gives a path to the user; on an ordinary machine without the right to, it stays ours.
fn own(path: &Path, user: &User) -> Result<()> {
    if !rustix::process::getuid().is_root() {
        return Ok(());
    }
    chown(path, Some(user.uid), Some(user.gid))
        .map_err(|e| Error::io(&format!("giving {} to {}", path.display(), user.name), &e))
}

/// Renames, making the destination's parents.
pub(crate) fn rename(source: &Path, destination: &Path, user: &User) -> Result<()> {
    let missing = |e| Error::io(&format!("moving {}", source.display()), &e);
    fs::symlink_metadata(source).map_err(missing)?;
    if let Some(parent) = destination.parent() {
        ensure_dir(parent, user)?;
    }
    fs::rename(source, destination)
        .map_err(|e| Error::io(&format!("moving to {}", destination.display()), &e))
}

/// Removes recursively; a missing path is success.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(&format!("removing {}", path.display()), &e))
        }
        _ => Ok(()),
    }
}

/// Lists a directory to a depth, in lexical order, parents before children.
pub(crate) fn list(path: &Path, depth: u32) -> Result<Vec<Entry>> {
    let found =
        fs::metadata(path).map_err(|e| Error::io(&format!("listing {}", path.display()), &e))?;
    if !found.is_dir() {
        return Err(Error::invalid(format!("path is not a directory: {}", path.display())));
    }
    let mut out = Vec::new();
    walk(path, depth.max(1), &mut out)?;
    Ok(out)
}

fn walk(dir: &Path, depth: u32, out: &mut Vec<Entry>) -> Result<()> {
    let fail = |e: std::io::Error| Error::io(&format!("listing {}", dir.display()), &e);
    let mut paths = Vec::new();
    for child in fs::read_dir(dir).map_err(fail)? {
        paths.push(child.map_err(fail)?.path());
    }
    paths.sort();
    for path in paths {
        if out.len() >= LIST_MAX {
            let message = format!("the listing has over {LIST_MAX} entries; list a part of it");
            return Err(Error::new(ErrorCode::OutOfRange, message));
        }
        // What vanishes while it is listed was not there.
        let Ok(entry) = entry::stat(&path) else { continue };
        let descend = depth > 1 && entry.is_directory() && !entry.is_symlink;
        out.push(entry);
        if descend {
            walk(&path, depth - 1, out)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> User {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        User { name: "me".into(), uid, gid, groups: vec![], home: "/".into() }
    }

    #[test]
    fn directories_are_made_moved_listed_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        make_dir(&root.join("a/b"), &me()).unwrap();
        assert_eq!(make_dir(&root.join("a/b"), &me()).unwrap_err().code, ErrorCode::AlreadyExists);
        fs::write(root.join("a/f"), "x").unwrap();
        let file_below_file = make_dir(&root.join("a/f/g"), &me()).unwrap_err();
        assert_eq!(file_below_file.code, ErrorCode::InvalidArgument);
        rename(&root.join("a/f"), &root.join("c/d/f"), &me()).unwrap();
        let gone = rename(&root.join("a/f"), &root.join("x"), &me()).unwrap_err();
        assert_eq!(gone.code, ErrorCode::NotFound);
        let names = |depth| -> Vec<String> {
            let entries = list(root, depth).unwrap();
            entries
                .iter()
                .map(|e| e.path.strip_prefix(root).unwrap().display().to_string())
                .collect()
        };
        assert_eq!(names(0), ["a", "c"]);
        assert_eq!(names(9), ["a", "a/b", "c", "c/d", "c/d/f"]);
        remove(&root.join("c")).unwrap();
        remove(&root.join("c")).unwrap();
        assert_eq!(names(1), ["a"]);
    }
}
