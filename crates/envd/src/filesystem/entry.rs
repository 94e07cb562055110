//! Facts about a path: type, size, owner, times, and metadata in extended attributes.

use crate::error::{Error, Result};
use crate::users::Names;
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Prefix of the attributes that hold callers' metadata.
const PREFIX: &str = "user.e2b.";
/// Longest key and value of metadata, in bytes.
pub(crate) const KEY_MAX: usize = 246;
pub(crate) const VALUE_MAX: usize = 4096;

/// Longest list of names, and longest value, that the kernel returns (`xattr(7)`), in bytes.
const NAMES_MAX: usize = 65_536;

/// Facts about a path. For a link, most of them describe its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub name: String,
    pub path: PathBuf,
    /// Kind of the target. `None` for anything but a file or a directory, such as a broken link.
    pub kind: Option<Kind>,
    pub is_symlink: bool,
    pub symlink_target: Option<String>,
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    pub owner: String,
    pub group: String,
    /// Time of the last change: seconds since 1970, and nanoseconds.
    pub modified: (i64, i32),
    pub metadata: BTreeMap<String, String>,
}

/// Kinds of path that have contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
}

impl Entry {
    pub(crate) fn is_directory(&self) -> bool {
        self.kind == Some(Kind::Directory)
    }

    /// Formats type and permissions in the manner of `ls`.
    pub(crate) fn permissions(&self) -> String {
        let kind = match self.kind {
            _ if self.is_symlink => 'L',
            Some(Kind::Directory) => 'd',
            Some(Kind::File) | None => '-',
        };
        let bits = "rwxrwxrwx".chars().enumerate();
        let bits = bits.map(|(i, c)| if self.mode & (0o400 >> i) == 0 { '-' } else { c });
        std::iter::once(kind).chain(bits).collect()
    }
}

/// Describes a path.
pub(crate) fn stat(path: &Path) -> Result<Entry> {
    stat_with(path, &Names::load())
}

/// Describes a path, with names that the caller has read already.
pub(crate) fn stat_with(path: &Path, names: &Names) -> Result<Entry> {
    let fail = |e| Error::io(&format!("cannot inspect {}", path.display()), &e);
    let link = fs::symlink_metadata(path).map_err(fail)?;
    let is_symlink = link.is_symlink();
    let target = if is_symlink { fs::metadata(path).ok() } else { Some(link.clone()) };
    let kind = target.as_ref().and_then(|t| {
        if t.is_dir() { Some(Kind::Directory) } else { t.is_file().then_some(Kind::File) }
    });
    let shown = target.unwrap_or(link);
    let name = path.file_name().map_or_else(|| "/".into(), |n| n.to_string_lossy());
    Ok(Entry {
        name: name.into_owned(),
        path: path.to_owned(),
        kind,
        is_symlink,
        symlink_target: is_symlink.then(|| target_of(path)),
        size: shown.size(),
        mode: shown.permissions().mode() & 0o7777,
        owner: names.user(shown.uid()),
        group: names.group(shown.gid()),
        modified: (shown.mtime(), i32::try_from(shown.mtime_nsec()).unwrap_or(0)),
        metadata: metadata(path),
    })
}

fn target_of(path: &Path) -> String {
    let target = fs::canonicalize(path).or_else(|_| fs::read_link(path));
    target.unwrap_or_default().to_string_lossy().into_owned()
}

fn metadata(path: &Path) -> BTreeMap<String, String> {
    // Most files have no attributes, and a single call shows this.
    match rustix::fs::listxattr_query(path) {
        Ok(1..) => {}
        _ => return BTreeMap::new(),
    }
    let mut names = vec![0u8; NAMES_MAX];
    let length = rustix::fs::listxattr(path, &mut names[..]).unwrap_or(0);
    let mut value = vec![0u8; VALUE_MAX + 1];
    names[..length]
        .split(|byte| *byte == 0)
        .filter_map(|name| std::str::from_utf8(name).ok()?.strip_prefix(PREFIX))
        .filter_map(|key| {
            let size = rustix::fs::getxattr(path, format!("{PREFIX}{key}"), &mut value[..]).ok()?;
            let text = String::from_utf8_lossy(&value[..size]).into_owned();
            Some((key.to_owned(), text))
        })
        .collect()
}

/// Replaces all metadata of an open file.
pub(crate) fn replace_metadata(file: &File, wanted: &BTreeMap<String, String>) -> io::Result<()> {
    let mut names = vec![0u8; NAMES_MAX];
    let length = rustix::fs::flistxattr(file, &mut names[..]).unwrap_or(0);
    let known = names[..length].split(|byte| *byte == 0);
    let keys = known.filter_map(|name| std::str::from_utf8(name).ok()?.strip_prefix(PREFIX));
    for key in keys.filter(|key| !wanted.contains_key(*key)) {
        rustix::fs::fremovexattr(file, format!("{PREFIX}{key}"))?;
    }
    for (key, value) in wanted {
        let (name, value) = (format!("{PREFIX}{key}"), value.as_bytes());
        let set = rustix::fs::fsetxattr(file, name, value, XattrFlags::empty());
        set.map_err(|error| metadata_error(file, key, error))?;
    }
    Ok(())
}

/// Makes the error for metadata that a file system refuses.
fn metadata_error(file: &File, key: &str, error: Errno) -> io::Error {
    let has_room = || rustix::fs::fstatvfs(file).is_ok_and(|found| found.f_bfree > 0);
    // Some file systems have little room for a file's attributes, however much room the disk has.
    if error == Errno::NOSPC && has_room() {
        let message = format!("metadata {key}: the file system cannot store a value of this size");
        return io::Error::new(io::ErrorKind::InvalidInput, message);
    }
    let error = io::Error::from(error);
    io::Error::new(error.kind(), format!("metadata {key}: {error}"))
}

/// Copies access lists and users' own attributes from the file at `from` to its successor. Skips
/// metadata, attributes that must not outlive the old contents, such as capabilities, and
/// attributes that cannot be copied.
pub(crate) fn copy_attributes(from: &Path, to: &File) {
    const ACCESS: &str = "system.posix_acl_access";
    match rustix::fs::listxattr_query(from) {
        Ok(1..) => {}
        _ => return,
    }
    let (mut names, mut value) = (vec![0u8; NAMES_MAX], vec![0u8; NAMES_MAX]);
    let length = rustix::fs::listxattr(from, &mut names[..]).unwrap_or(0);
    let names = names[..length].split(|byte| *byte == 0);
    for name in names.filter_map(|name| std::str::from_utf8(name).ok()) {
        let own = name.starts_with("user.") && !name.starts_with(PREFIX);
        if !own && name != ACCESS {
            continue;
        }
        if let Ok(size) = rustix::fs::getxattr(from, name, &mut value[..]) {
            let _ = rustix::fs::fsetxattr(to, name, &value[..size], XattrFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_stored_and_replaced_whole() {
        // The folder is beside the sources, since some temporary folders' file systems lack such
        // attributes.
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("f");
        let file = File::create(&path).unwrap();
        let of = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        assert_eq!(stat(&path).unwrap().metadata, of(&[]));
        for wanted in [of(&[("a", "1"), ("b", "ü")]), of(&[("b", "2")]), of(&[])] {
            replace_metadata(&file, &wanted).unwrap();
            assert_eq!(stat(&path).unwrap().metadata, wanted);
        }
    }

    #[test]
    fn metadata_key_refused_by_file_is_named() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let file = File::create(dir.path().join("f")).unwrap();
        // No file system takes a value of more than 64 KiB.
        let large = BTreeMap::from([("large".to_owned(), "x".repeat(NAMES_MAX + 1))]);
        let error = replace_metadata(&file, &large).unwrap_err();
        assert!(error.to_string().starts_with("metadata large: "), "{error}");
        let full = metadata_error(&file, "k", Errno::NOSPC);
        assert_eq!(full.kind(), io::ErrorKind::InvalidInput, "{full}");
    }

    #[test]
    fn files_links_and_broken_links_are_described() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "abc").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let entry = stat(&file).unwrap();
        assert_eq!((entry.size, entry.kind, entry.is_symlink), (3, Some(Kind::File), false));
        assert_eq!(entry.permissions(), "-rw-r--r--");
        assert!(stat(dir.path()).unwrap().permissions().starts_with('d'));
        let link = dir.path().join("l");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let entry = stat(&link).unwrap();
        assert_eq!((entry.kind, entry.is_symlink), (Some(Kind::File), true));
        assert!(entry.symlink_target.unwrap().ends_with("/f"));
        fs::remove_file(&file).unwrap();
        assert_eq!(stat(&link).unwrap().kind, None);
        assert!(stat(&file).is_err());
    }
}
