//! Reads and changes of the guest's file system, for `rpc/filesystem.rs` and `http/files.rs`. They
//! run as root on behalf of a user, and give that user whatever they make.
//!
//! Every call here may wait for a hanging file system, so callers run it as a job (`jobs.rs`).

mod closer;
pub(crate) mod entry;
mod remove;
pub(crate) mod sink;
pub(crate) mod source;
pub(crate) mod watch;

use crate::error::{Error, Result};
use crate::users::{Names, User};
use connectrpc::ErrorCode;
use entry::Entry;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of contents per read or write.
pub(crate) const CHUNK: usize = 256 * 1024;
/// Prefix of the names of files that are being written. Watchers do not report them.
pub(crate) const STAGED_PREFIX: &str = ".wrenn-upload-";
/// Time that a caller waits for the removal of a tree, or for the end of a write.
pub(crate) const LONG: Duration = Duration::from_secs(600);
/// Entries that one listing may have.
const LIST_MAX: usize = 100_000;
/// Bytes of text that one listing may have.
const LIST_BYTES: usize = 64 << 20;

/// Makes a directory and its parents. Each new one belongs to the user.
///
/// # Errors
/// Returns `already_exists` for an existing directory, and `invalid_argument` for another kind of
/// file at the path.
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

/// Makes the missing parts of a directory's path. Each new one belongs to the user.
pub(crate) fn ensure_dir(path: &Path, user: &User) -> Result<()> {
    let fail =
        |at: &Path, e: &std::io::Error| Error::io(&format!("cannot create {}", at.display()), e);
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

/// Gives a path to the user. Without the right to do so, on an ordinary machine, does nothing.
fn own(path: &Path, user: &User) -> Result<()> {
    if !rustix::process::getuid().is_root() {
        return Ok(());
    }
    chown(path, Some(user.uid), Some(user.gid)).map_err(|e| {
        Error::io(&format!("cannot change the owner of {} to {}", path.display(), user.name), &e)
    })
}

/// Renames a path, after making the destination's parents.
pub(crate) fn rename(source: &Path, destination: &Path, user: &User) -> Result<()> {
    let missing = |e| Error::io(&format!("cannot move {}", source.display()), &e);
    fs::symlink_metadata(source).map_err(missing)?;
    if let Some(parent) = destination.parent() {
        ensure_dir(parent, user)?;
    }
    fs::rename(source, destination)
        .map_err(|e| Error::io(&format!("cannot move to {}", destination.display()), &e))
}

/// Removes a path with all below it. Succeeds too if nothing is there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => remove::tree(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        // Another removal may have been faster.
        Err(e) if !is_gone(path) => {
            Err(Error::io(&format!("cannot remove {}", path.display()), &e))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn is_gone(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
}

/// Lists a directory down to `depth`, in lexical order, parents before children.
pub(crate) fn list(path: &Path, depth: u32) -> Result<Vec<Entry>> {
    let found = fs::metadata(path)
        .map_err(|e| Error::io(&format!("cannot list {}", path.display()), &e))?;
    if !found.is_dir() {
        return Err(Error::invalid(format!("path is not a directory: {}", path.display())));
    }
    let names = Names::load();
    let (mut out, mut bytes) = (Vec::new(), 0);
    // A list of its own serves in place of recursion, which would end the thread's stack in a deep
    // tree.
    let mut waiting = children(path, depth.max(1), LIST_MAX)?;
    while let Some((path, depth)) = waiting.pop() {
        // An entry that vanishes meanwhile is left out.
        let Ok(entry) = entry::stat_with(&path, &names) else { continue };
        let descend = depth > 1 && entry.is_directory() && !entry.is_symlink;
        bytes += text_bytes(&entry);
        if bytes > LIST_BYTES {
            return Err(too_long());
        }
        out.push(entry);
        if descend {
            let room = LIST_MAX.saturating_sub(out.len() + waiting.len());
            match children(&path, depth - 1, room) {
                // A directory below the top that cannot be read is listed without its contents.
                Err(e) if matches!(e.code, ErrorCode::NotFound | ErrorCode::PermissionDenied) => {}
                below => waiting.extend(below?),
            }
        }
    }
    Ok(out)
}

/// Lists the paths in a directory, in reverse order, each with its remaining depth.
fn children(dir: &Path, depth: u32, room: usize) -> Result<Vec<(PathBuf, u32)>> {
    let fail = |e: std::io::Error| Error::io(&format!("cannot list {}", dir.display()), &e);
    let mut paths = Vec::new();
    for child in fs::read_dir(dir).map_err(fail)? {
        if paths.len() >= room {
            return Err(too_long());
        }
        paths.push((child.map_err(fail)?.path(), depth));
    }
    paths.sort_unstable_by(|one, other| other.0.cmp(&one.0));
    Ok(paths)
}

fn too_long() -> Error {
    let message =
        format!("the listing has over {LIST_MAX} entries; list a subfolder or use a smaller depth");
    Error::new(ErrorCode::OutOfRange, message)
}

/// Counts the bytes of text in an entry.
fn text_bytes(entry: &Entry) -> usize {
    let metadata = entry.metadata.iter().map(|(key, value)| key.len() + value.len());
    let target = entry.symlink_target.as_ref().map_or(0, String::len);
    entry.name.len() + entry.path.as_os_str().len() + target + metadata.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> User {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        User { name: "me".into(), uid, gid, groups: vec![], home: "/".into() }
    }

    #[test]
    fn directories_are_created_moved_listed_and_removed() {
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

    #[test]
    fn non_utf8_names_are_listed_and_removed_with_their_directory() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        fs::create_dir(&top).unwrap();
        fs::write(top.join(std::ffi::OsStr::from_bytes(b"a\xff")), "x").unwrap();
        assert_eq!(list(&top, 1).unwrap()[0].name, "a\u{fffd}");
        remove(&top).unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn deep_tree_is_listed_on_a_small_stack() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d/".repeat(1_500));
        fs::create_dir_all(deep).unwrap();
        let root = dir.path().to_owned();
        let thread = std::thread::Builder::new().stack_size(128 * 1024);
        let listed = thread.spawn(move || list(&root, u32::MAX).unwrap().len()).unwrap();
        assert_eq!(listed.join().unwrap(), 1_500);
        remove(&dir.path().join("d")).unwrap();
    }

    #[test]
    fn pipes_sockets_and_link_loops_are_listed_and_removed_without_blocking() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        fs::create_dir(&top).unwrap();
        let made = std::process::Command::new("mkfifo").arg(top.join("pipe")).status().unwrap();
        assert!(made.success());
        let _listener = std::os::unix::net::UnixListener::bind(top.join("socket")).unwrap();
        std::os::unix::fs::symlink("loop", top.join("loop")).unwrap();
        let names: Vec<String> = list(&top, 9).unwrap().into_iter().map(|e| e.name).collect();
        assert_eq!(names, ["loop", "pipe", "socket"]);
        let below = make_dir(&top.join("loop/d"), &me()).unwrap_err();
        assert_eq!(below.code, ErrorCode::InvalidArgument);
        remove(&top.join("pipe")).unwrap();
        remove(&top).unwrap();
        assert!(!top.exists());
    }
}
