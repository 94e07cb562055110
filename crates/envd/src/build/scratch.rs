//! Files and mounts for the program of a step that never become a part of the template: its script,
//! file systems in memory, and folders for caches.

use super::Build;
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::root::Root;
use rustix::fs::{CWD, Mode, OFlags, mkdirat};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Folder of the own disk with the folders for caches. Each root begins without it.
pub(crate) const CACHES: &str = "/disk/caches";
/// Folder in memory with a step's scripts.
const SCRIPTS: &str = "/dev/.wrenn";
/// Most mounts for one program.
const MOUNTS_MAX: usize = 64;

/// Mounts for the program of a step.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mounts {
    /// File systems in memory.
    #[serde(default)]
    tmpfs: Vec<Tmpfs>,
    /// Empty folders on the own disk.
    #[serde(default)]
    cache: Vec<Cache>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Tmpfs {
    target: String,
    /// Limit in bytes.
    size: Option<u64>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Cache {
    target: String,
}

/// Mounts for the program of a step. A mount that fails undoes all.
pub(crate) fn mount_all(build: &Build, mounts: &Mounts) -> Result<()> {
    build.step()?;
    let count = lock(&build.mounts).len() + mounts.tmpfs.len() + mounts.cache.len();
    if count > MOUNTS_MAX {
        return Err(Error::invalid(format!("a step has at most {MOUNTS_MAX} mounts")));
    }
    let root = Root::open("/").map_err(|e| Error::internal(format!("{e:#}")))?;
    let made = mounts.tmpfs.iter().try_for_each(|tmpfs| mount_tmpfs(build, &root, tmpfs));
    let made = made.and_then(|()| {
        mounts.cache.iter().try_for_each(|cache| mount_cache(build, &root, &cache.target))
    });
    made.inspect_err(|_| unmount_all(build))
}

/// Ends the mounts of the step's program, the last one first.
pub(crate) fn unmount_all(build: &Build) {
    let mut mounts = lock(&build.mounts);
    while let Some(path) = mounts.pop() {
        let _ = unmount(&path, UnmountFlags::DETACH);
    }
}

fn mount_tmpfs(build: &Build, root: &Root, tmpfs: &Tmpfs) -> Result<()> {
    let at = open(root, &tmpfs.target)?;
    let mut options = "mode=1777".to_owned();
    if let Some(size) = tmpfs.size {
        options = format!("{options},size={size}");
    }
    let options = CString::new(options).map_err(|e| Error::internal(e.to_string()))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", path_of(&at), "tmpfs", flags, options.as_c_str())
        .map_err(|e| failed(&tmpfs.target, e))?;
    build.remember(PathBuf::from(&tmpfs.target));
    Ok(())
}

fn mount_cache(build: &Build, root: &Root, target: &str) -> Result<()> {
    let at = open(root, target)?;
    let name = format!("{CACHES}/{}", lock(&build.mounts).len());
    let made = build.outside.make(Path::new(&name));
    made.map_err(|e| Error::internal(format!("cannot make a folder for {target}: {e:#}")))?;
    let folder = build.outside.find(&name).map_err(|e| failed(target, e))?;
    mount_bind(path_of(&folder), path_of(&at)).map_err(|e| failed(target, e))?;
    build.remember(PathBuf::from(target));
    Ok(())
}

/// Opens the folder to mount on, and makes it when it is missing.
fn open(root: &Root, target: &str) -> Result<OwnedFd> {
    let invalid = |why: &str| Error::invalid(format!("target `{target}` {why}"));
    let path = Path::new(target);
    if !path.is_absolute() || target.contains('\0') || path.parent().is_none() {
        return Err(invalid("is no absolute path below the root"));
    }
    root.make(path).map_err(|e| invalid(&format!("cannot be made: {e:#}")))?;
    root.at(path, OFlags::PATH | OFlags::DIRECTORY).map_err(|e| failed(target, e))
}

fn failed(target: &str, error: rustix::io::Errno) -> Error {
    Error::io(&format!("cannot mount on {target}"), &error.into())
}

fn path_of(at: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", at.as_raw_fd())
}

/// Writes a script outside of the step's own files. Returns its path.
pub(crate) fn write_script(build: &Build, name: &str, contents: &[u8]) -> Result<String> {
    build.step()?;
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.chars().all(is_part) {
        let rule = "1 to 64 letters, digits, `.`, `_` or `-`, and no `.` first";
        return Err(Error::invalid(format!("name must have {rule}")));
    }
    let path = format!("{SCRIPTS}/{name}");
    let _ = mkdirat(CWD, SCRIPTS, Mode::from_raw_mode(0o755));
    let _ = fs::remove_file(&path);
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o755).open(&path);
    let written = file.and_then(|mut file| file.write_all(contents));
    written.map_err(|e| Error::io(&format!("cannot write {path}"), &e))?;
    Ok(path)
}
