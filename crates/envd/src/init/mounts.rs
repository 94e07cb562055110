//! Mounts of the guest: the kernel's file systems, the root, and the file systems that programs
//! expect below it. The root is an overlay of the shared image and the capsule's own disk.

use super::image::Kind;
use super::{folders, modules};
use anyhow::Context;
use rustix::fs::{CWD, Mode};
use rustix::mount::{MountFlags, mount, mount_move};
use std::ffi::CString;
use std::fs;
use std::os::fd::OwnedFd;

/// The shared, read-only image.
const IMAGE: &str = "/dev/vda";
/// The capsule's own disk.
const DISK: &str = "/dev/vdb";

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

/// Makes the overlay the root and leaves the initramfs, freeing its memory. Returns the disk below
/// the overlay, which has no path any more.
pub(super) fn enter_root() -> anyhow::Result<OwnedFd> {
    let kind = Kind::read(IMAGE)?;
    attach(IMAGE, "/image", kind.name(), MountFlags::RDONLY | MountFlags::NOATIME, "")?;
    attach(DISK, "/disk", "ext4", MountFlags::NOATIME, "discard")?;
    let disk = crate::epoch::open_disk("/disk").context("cannot open the disk")?;
    for dir in ["/disk/upper", "/disk/work"] {
        make_dir(dir)?;
    }
    let layers = "lowerdir=/image,upperdir=/disk/upper,workdir=/disk/work";
    attach("overlay", "/root", "overlay", MountFlags::NOATIME, layers)?;
    modules::offer();
    for dir in ["dev", "proc", "sys"] {
        let to = format!("/root/{dir}");
        // A link there would lead to another place than it does for programs.
        make_mount_point(&to, fs::symlink_metadata(&to).is_ok_and(|found| found.is_dir()))?;
        mount_move(format!("/{dir}"), &to).with_context(|| format!("cannot move /{dir}"))?;
    }
    free_initramfs();
    std::env::set_current_dir("/root")?;
    mount_move(".", "/").context("cannot move the root")?;
    rustix::process::chroot(".").context("cannot enter the root")?;
    std::env::set_current_dir("/")?;
    Ok(disk)
}

/// Mounts the file systems that programs expect below `/dev`, `/run` and `/sys/fs/cgroup`. Makes
/// the folders that the image lacks, and the usual links in `/dev`.
pub(super) fn runtime_file_systems() -> anyhow::Result<()> {
    folders::provide();
    let safe = MountFlags::NOSUID | MountFlags::NODEV;
    attach(
        "devpts",
        "/dev/pts",
        "devpts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        "gid=5,mode=620,ptmxmode=666",
    )?;
    attach("tmpfs", "/dev/shm", "tmpfs", safe, "mode=1777")?;
    attach("tmpfs", "/run", "tmpfs", safe, "mode=755")?;
    attach("cgroup2", "/sys/fs/cgroup", "cgroup2", safe | MountFlags::NOEXEC, "")?;
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

fn attach(source: &str, to: &str, kind: &str, flags: MountFlags, data: &str) -> anyhow::Result<()> {
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
fn free_initramfs() {
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
