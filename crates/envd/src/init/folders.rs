//! Paths below a root folder as programs of that root see them, and the folders that every guest
//! needs. An image may hold none of them, or links in their places.

use crate::console::console;
use anyhow::Context;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat2, readlinkat};
use rustix::io::Errno;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// Most parts of a path that are looked at, with the parts of all links in it.
const PARTS_MAX: usize = 256;
/// Mode of a folder that every user may write to.
const SHARED: u32 = 0o1777;

/// A folder that every guest has.
struct Folder {
    path: &'static str,
    /// Mode of the folder when it is made.
    mode: u32,
    /// Set if a folder of the image gets the mode too.
    always: bool,
}

const FOLDERS: [Folder; 4] = [
    Folder { path: "/etc", mode: 0o755, always: false },
    Folder { path: "/tmp", mode: SHARED, always: true },
    Folder { path: "/var/tmp", mode: SHARED, always: false },
    Folder { path: "/run", mode: 0o755, always: false },
];

/// Makes the folders that programs expect, where the image has none. The console names a folder for
/// which this fails, since no boot may fail for what root in the guest has put there.
pub(super) fn provide() {
    let provided = Root::open("/").map(|root| {
        for folder in &FOLDERS {
            if let Err(error) = root.provide(folder) {
                console(&format!("envd: {}: {error:#}", folder.path));
            }
        }
    });
    if let Err(error) = provided {
        console(&format!("envd: {error:#}"));
    }
}

/// A root folder. Links in paths below it stay within it.
pub(super) struct Root(OwnedFd);

impl Root {
    /// Opens the root folder at a path.
    pub(super) fn open(path: impl AsRef<Path>) -> anyhow::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path.as_ref(), flags, Mode::empty());
        Ok(Self(root.context("opening the root")?))
    }

    /// Opens a path, and follows a link at its end.
    pub(super) fn find(&self, path: impl AsRef<Path>) -> rustix::io::Result<OwnedFd> {
        self.at(path.as_ref(), OFlags::PATH)
    }

    fn at(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT)
    }

    fn provide(&self, folder: &Folder) -> anyhow::Result<()> {
        let made = self.make(Path::new(folder.path))?;
        if !made && !folder.always {
            return Ok(());
        }
        // A path alone cannot change a mode. The folder is not a device or a pipe, so it opens.
        let opened = self.at(Path::new(folder.path), OFlags::RDONLY | OFlags::DIRECTORY);
        let opened = opened.context("opening it")?;
        // An equal mode is not written, since that would copy the folder to the capsule's disk.
        let current = fstat(&opened).context("looking at it")?.st_mode & 0o7777;
        if current == folder.mode {
            return Ok(());
        }
        let mode = Mode::from_raw_mode(folder.mode);
        rustix::fs::fchmod(&opened, mode).context("setting its mode")
    }

    /// Makes a folder with its parents, unless it exists. Makes the target of a link that leads
    /// nowhere. Returns `true` if any folder was made.
    ///
    /// # Errors
    /// Fails when anything but a folder or a link is in the way, and for endless links.
    pub(super) fn make(&self, path: &Path) -> anyhow::Result<bool> {
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

/// Puts a path's parts on top of `left`, the first part last.
fn push_parts(left: &mut Vec<OsString>, path: &Path) {
    let part = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    left.extend(path.components().rev().filter_map(part));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        (dir, root)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn provide(root: &Root) {
        FOLDERS.iter().for_each(|folder| root.provide(folder).unwrap());
    }

    #[test]
    fn every_folder_is_made_in_an_empty_root() {
        let (dir, root) = root();
        for _ in 0..2 {
            provide(&root);
        }
        for (name, wanted) in
            [("etc", 0o755), ("tmp", 0o1777), ("var", 0o755), ("var/tmp", 0o1777), ("run", 0o755)]
        {
            assert_eq!(mode(&dir.path().join(name)), wanted, "{name}");
        }
    }

    #[test]
    fn folders_of_an_image_keep_their_modes_except_tmp() {
        let (dir, root) = root();
        for name in ["tmp", "var/tmp", "etc"] {
            let path = dir.path().join(name);
            fs::create_dir_all(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        }
        provide(&root);
        let modes = ["tmp", "var/tmp", "etc"].map(|name| mode(&dir.path().join(name)));
        assert_eq!(modes, [0o1777, 0o700, 0o700]);
    }

    #[test]
    fn links_that_lead_nowhere_get_their_targets_within_the_root() {
        let (dir, root) = root();
        fs::create_dir(dir.path().join("var")).unwrap();
        symlink("/var/tmp", dir.path().join("tmp")).unwrap();
        symlink("../private/etc", dir.path().join("etc")).unwrap();
        symlink("../../data/run", dir.path().join("var/run")).unwrap();
        symlink("var/run", dir.path().join("run")).unwrap();
        provide(&root);
        assert_eq!(mode(&dir.path().join("var/tmp")), 0o1777);
        assert!(dir.path().join("private/etc").is_dir());
        assert!(dir.path().join("data/run").is_dir());
        for link in ["tmp", "etc", "run"] {
            assert!(fs::symlink_metadata(dir.path().join(link)).unwrap().is_symlink(), "{link}");
        }
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
