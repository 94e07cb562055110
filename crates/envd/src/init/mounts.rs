//! Mounts of the guest: the kernel's file systems, the root, and the file systems that programs
//! expect below it. The root is an overlay of the shared image and the capsule's own disk.

use super::drives::{self, Words};
use super::image::Kind;
use super::{folders, modules};
use crate::overlay::{self, DISK, IMAGE};
use anyhow::Context;
use rustix::fs::{CWD, Mode};
use rustix::mount::{MountFlags, mount, mount_move};
use std::ffi::CString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

/// Device of the shared, read-only image.
const IMAGE_DEVICE: &str = "/dev/vda";
/// Device of the capsule's own disk.
const DISK_DEVICE: &str = "/dev/vdb";

/// Mounts `/dev`, `/proc` and `/sys`.
pub(super) fn kernel_file_systems() -> anyhow::Result<()> {
    attach("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, "")?;
    attach(
        "proc",
        "/proc",
        "proc",
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        "",
    )?;
    attach(
        "sysfs",
        "/sys",
        "sysfs",
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        "",
    )
}

/// Mounts the image.
pub(super) fn image() -> anyhow::Result<()> {
    let kind = Kind::read(IMAGE_DEVICE)?;
    attach(IMAGE_DEVICE, IMAGE, kind.name(), MountFlags::RDONLY | MountFlags::NOATIME, "")
}

/// Mounts the capsule's own disk and opens it.
pub(super) fn disk() -> anyhow::Result<OwnedFd> {
    attach(DISK_DEVICE, DISK, "ext4", MountFlags::NOATIME, "discard")?;
    crate::epoch::open_disk(DISK).context("cannot open the disk")
}

/// Makes the overlay the root and leaves the initramfs, freeing its memory. Returns the disk below
/// the overlay, which has no path any more.
pub(super) fn enter_root(words: &Words) -> anyhow::Result<OwnedFd> {
    image()?;
    drives::mount_used(&words.lower)?;
    let disk = disk()?;
    let lower = overlay::folders(&words.lower, Some(0));
    overlay::check(fs::File::open("/")?, &lower)?;
    let (upper, work) = (overlay::folder(0, "upper"), overlay::folder(0, "work"));
    make_upper(&upper, &lower)?;
    make_dir(&work)?;
    let options = overlay::options(&lower, Some((&upper, &work)))?;
    attach("overlay", "/root", "overlay", MountFlags::NOATIME, &options)?;
    modules::offer();
    for dir in ["dev", "proc", "sys"] {
        let to = format!("/root/{dir}");
        // A link there would lead to another place than it does for programs.
        make_mount_point(&to, fs::symlink_metadata(&to).is_ok_and(|found| found.is_dir()))?;
        mount_move(format!("/{dir}"), &to).with_context(|| format!("cannot move /{dir}"))?;
    }
    free_initramfs();
    leave_for("/root")?;
    Ok(disk)
}

/// Makes the folder that takes the writes of an overlay. The top of the merged tree has the mode
/// and owner of this folder, so they come from the highest folder below.
pub(super) fn make_upper(path: &str, lower: &[String]) -> anyhow::Result<()> {
    if fs::symlink_metadata(path).is_ok() {
        return Ok(());
    }
    make_dir(path)?;
    let [like, _, ..] = lower else { return Ok(()) };
    let like = fs::metadata(like).with_context(|| format!("cannot look at {like}"))?;
    std::os::unix::fs::chown(path, Some(like.uid()), Some(like.gid()))
        .and_then(|()| fs::set_permissions(path, like.permissions()))
        .with_context(|| format!("cannot set the mode of {path}"))
}

/// Makes a mounted folder the root of this process.
pub(super) fn leave_for(root: &str) -> anyhow::Result<()> {
    std::env::set_current_dir(root)?;
    mount_move(".", "/").context("cannot move the root")?;
    rustix::process::chroot(".").context("cannot enter the root")?;
    Ok(std::env::set_current_dir("/")?)
}

/// Mounts the file systems that programs expect below `/dev`, `/run` and `/sys/fs/cgroup`. Makes
/// the folders that the image lacks, and the usual links in `/dev`.
pub(super) fn runtime_file_systems() -> anyhow::Result<()> {
    folders::provide();
    let safe = MountFlags::NOSUID | MountFlags::NODEV;
    devices()?;
    attach("tmpfs", "/run", "tmpfs", safe, "mode=755")?;
    control_groups()
}

/// Mounts the control groups.
pub(super) fn control_groups() -> anyhow::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    attach("cgroup2", "/sys/fs/cgroup", "cgroup2", flags, "")
}

/// Mounts the file systems below `/dev`, and makes the usual links there.
pub(super) fn devices() -> anyhow::Result<()> {
    let safe = MountFlags::NOSUID | MountFlags::NODEV;
    attach(
        "devpts",
        "/dev/pts",
        "devpts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        "gid=5,mode=620,ptmxmode=666",
    )?;
    attach("tmpfs", "/dev/shm", "tmpfs", safe, "mode=1777")?;
    for (link, to) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        let _ = std::os::unix::fs::symlink(to, link);
    }
    Ok(())
}

/// Mounts on a path, whose folder is made when it is missing.
pub(super) fn attach(
    source: &str,
    to: &str,
    kind: &str,
    flags: MountFlags,
    data: &str,
) -> anyhow::Result<()> {
    make_mount_point(to, fs::metadata(to).is_ok_and(|found| found.is_dir()))?;
    attach_to(source, to, kind, flags, data)
}

/// Mounts on an existing path.
pub(super) fn attach_to(
    source: &str,
    to: &str,
    kind: &str,
    flags: MountFlags,
    data: &str,
) -> anyhow::Result<()> {
    let data = CString::new(data)?;
    mount(source, to, kind, flags, data.as_c_str())
        .with_context(|| format!("cannot mount {source} on {to}"))
}

/// Makes a folder to mount on, unless it exists. Sets aside anything that root in the guest has put
/// in its place, since no boot may fail for that.
fn make_mount_point(path: &str, is_folder: bool) -> anyhow::Result<()> {
    if !is_folder && fs::symlink_metadata(path).is_ok() {
        let moved = fs::rename(path, format!("{path}.before-boot"));
        moved.or_else(|_| fs::remove_file(path)).with_context(|| format!("cannot clear {path}"))?;
    }
    make_dir(path)
}

/// Makes a folder, unless it exists.
pub(super) fn make_dir(path: &str) -> anyhow::Result<()> {
    match rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot create {path}")),
    }
}

/// Removes the initramfs's own files, except for the modules that programs may load.
pub(super) fn free_initramfs() {
    let _ = fs::remove_dir_all("/modules");
    let _ = fs::remove_file("/init");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_or_dangling_link_at_a_mount_point_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let is_folder = |path: &str| fs::metadata(path).is_ok_and(|found| found.is_dir());
        fs::write(at("run"), "text").unwrap();
        std::os::unix::fs::symlink("nowhere", at("sys")).unwrap();
        for name in ["run", "sys", "dev"] {
            let path = at(name);
            make_mount_point(&path, is_folder(&path)).unwrap();
            make_mount_point(&path, is_folder(&path)).unwrap();
            assert!(is_folder(&path), "{name}");
        }
        assert_eq!(fs::read_to_string(at("run.before-boot")).unwrap(), "text");
    }
}
