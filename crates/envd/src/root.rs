//! A root folder, and paths below it as programs of that root see them. Links lead to places within
//! the root, whatever they hold.

use anyhow::Context;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, fstat, mkdirat, openat2, readlinkat,
};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// Most parts of a path that are looked at, with the parts of all links in it.
const PARTS_MAX: usize = 256;

/// A root folder. Links in paths below it stay within it.
pub(crate) struct Root(OwnedFd);

impl Root {
    /// Opens the root folder at a path.
    pub(crate) fn open(path: impl AsRef<Path>) -> anyhow::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path.as_ref(), flags, Mode::empty());
        Ok(Self(root.context("opening the root")?))
    }

    /// Opens a path, and follows a link at its end.
    pub(crate) fn find(&self, path: impl AsRef<Path>) -> rustix::io::Result<OwnedFd> {
        self.at(path.as_ref(), OFlags::PATH)
    }

    /// Opens a path with these flags. Links lead to places within the root.
    pub(crate) fn at(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT)
    }

    /// Makes a folder with its parents, unless it exists. Makes the target of a link that leads
    /// nowhere. Returns `true` if any folder was made.
    ///
    /// # Errors
    /// Fails when anything but a folder or a link is in the way, and for endless links.
    pub(crate) fn make(&self, path: &Path) -> anyhow::Result<bool> {
        self.make_for(path, None)
    }

    /// Makes a folder like `make`. New folders get this user and group.
    pub(crate) fn make_for(&self, path: &Path, owner: Option<(u32, u32)>) -> anyhow::Result<bool> {
        let (mut done, mut left, mut made) = (PathBuf::from("."), Vec::new(), false);
        push_parts(&mut left, path);
        let mut looked_at = 0;
        while let Some(part) = left.pop() {
            looked_at += 1;
            anyhow::ensure!(looked_at <= PARTS_MAX, "the path has more than {PARTS_MAX} parts");
            let next = done.join(&part);
            let found = match self.at(&next, OFlags::PATH | OFlags::NOFOLLOW) {
                Err(Errno::NOENT) => {
                    let parent = self.find(&done);
                    let parent = parent.with_context(|| format!("opening {}", done.display()))?;
                    let new = mkdirat(&parent, &part, Mode::from_raw_mode(0o755));
                    new.with_context(|| format!("making {}", next.display()))?;
                    give(&parent, &part, owner)
                        .with_context(|| format!("giving {} to its owner", next.display()))?;
                    (made, done) = (true, next);
                    continue;
                }
                found => found.with_context(|| format!("opening {}", next.display()))?,
            };
            let stat = fstat(&found).with_context(|| format!("looking at {}", next.display()))?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            if kind == FileType::Directory {
                done = next;
                continue;
            }
            anyhow::ensure!(kind == FileType::Symlink, "{} is no folder", next.display());
            let target = readlinkat(&found, c"", Vec::new());
            let target = target.with_context(|| format!("reading {}", next.display()))?;
            let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
            if target.is_absolute() {
                done = PathBuf::from(".");
            }
            push_parts(&mut left, &target);
        }
        Ok(made)
    }
}

/// Gives a new folder to its owner.
fn give(parent: &OwnedFd, name: &OsStr, owner: Option<(u32, u32)>) -> rustix::io::Result<()> {
    let Some((user, group)) = owner else { return Ok(()) };
    let (user, group) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
    rustix::fs::chownat(parent, name, user, group, AtFlags::SYMLINK_NOFOLLOW)
}

/// Puts a path's parts on top of `left`, the first part last.
fn push_parts(left: &mut Vec<OsString>, path: &Path) {
    let part = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    left.extend(path.components().rev().filter_map(part));
}

impl From<OwnedFd> for Root {
    /// Takes an open folder as the root.
    fn from(folder: OwnedFd) -> Self {
        Self(folder)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        (dir, root)
    }

    #[test]
    fn file_endless_link_or_pipe_in_place_of_a_folder_is_an_error() {
        let (dir, root) = root();
        symlink("run", dir.path().join("run")).unwrap();
        fs::write(dir.path().join("etc"), "text").unwrap();
        let pipe = dir.path().join("tmp");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, Mode::from_raw_mode(0o600)).unwrap();
        for path in ["/run", "/etc", "/etc/x", "/tmp"] {
            assert!(root.make(Path::new(path)).is_err(), "{path}");
        }
        assert_eq!(fs::read(dir.path().join("etc")).unwrap(), b"text");
        let deep = "x/".repeat(PARTS_MAX + 1);
        let error = root.make(Path::new(&deep)).unwrap_err();
        assert!(error.to_string().contains("more than 256 parts"), "{error}");
    }
}
