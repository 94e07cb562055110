//! The kernel's modules. A few load before the root is there. Programs load the others when they
//! need them, through `modprobe` or through the kernel, which runs `/sbin/modprobe`.
//!
//! The loadable modules stay in the initramfs, in memory. So they fit the kernel, whatever the
//! template's image holds. `images/kernel.rs` of `wrenn` chooses them.

use super::mounts::{attach_to, make_dir};
use crate::console::console;
use crate::root::Root;
use crate::sys;
use anyhow::Context;
use rustix::fs::{CWD, Dev, FileType, Mode, makedev, mknodat};
use rustix::mount::MountFlags;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;

/// List of the modules that load at once, in order.
const ORDER: &str = "/modules/order";
/// List of the modules to load in a guest without `modprobe`, as paths below `LOADABLE`.
const COMMON: &str = "/modules/common";
/// Folder of the loadable modules, with the index that `modprobe` reads.
const LOADABLE: &str = "/loadable";
/// Folder that becomes the root.
const ROOT: &str = "/root";
/// Major number of the devices below (`Documentation/admin-guide/devices.txt`).
const MISC: u32 = 10;
/// Devices that load their modules when a program opens them: path, minor number and mode.
const DEVICES: [(&str, u32, u32); 4] = [
    ("/dev/fuse", 229, 0o666),
    ("/dev/net/tun", 200, 0o666),
    ("/dev/loop-control", 237, 0o600),
    ("/dev/cuse", 203, 0o600),
];

/// Loads the modules that the root needs.
pub(super) fn load() -> anyhow::Result<()> {
    let order = fs::read_to_string(ORDER).context("cannot read the list of kernel modules")?;
    for name in order.lines() {
        load_file(&format!("/modules/{name}"))?;
    }
    Ok(())
}

fn load_file(path: &str) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| format!("cannot open the kernel module {path}"))?;
    sys::load_module(&file).with_context(|| format!("cannot load the kernel module {path}"))
}

/// Offers the loadable modules to programs of the future root. A guest without them still runs.
pub(super) fn offer() {
    let offered = Root::open(ROOT).and_then(|root| {
        show(&root)?;
        // Images of containers often hold no `modprobe`, so their kernel can run none.
        if root.find("sbin/modprobe").is_err() {
            load_common()?;
        }
        Ok(())
    });
    if let Err(error) = offered {
        console(&format!("envd: cannot load some kernel modules: {error:#}"));
    }
}

/// Shows the modules below `/lib/modules`. Changes go to the capsule's own disk, so that modules
/// and headers that a user installs stay.
fn show(root: &Root) -> anyhow::Result<()> {
    let system = rustix::system::uname();
    let release = system.release().to_str().context("cannot read the kernel's release")?;
    let own = format!("/disk/modules/{release}");
    let (upper, work) = (format!("{own}/upper"), format!("{own}/work"));
    for dir in ["/disk/modules", own.as_str(), upper.as_str(), work.as_str()] {
        make_dir(dir)?;
    }
    let path = Path::new("/lib/modules").join(release);
    root.make(&path)?;
    let at = root.find(&path).with_context(|| format!("opening {}", path.display()))?;
    let to = format!("/proc/self/fd/{}", at.as_raw_fd());
    let layers = format!("lowerdir={LOADABLE},upperdir={upper},workdir={work}");
    let flags = MountFlags::NOATIME | MountFlags::NOSUID | MountFlags::NODEV;
    attach_to("modules", &to, "overlay", flags, &layers)
}

/// Loads the modules of a guest without `modprobe`.
pub(super) fn load_common() -> anyhow::Result<()> {
    let common =
        fs::read_to_string(COMMON).context("cannot read the list of common kernel modules")?;
    for name in common.lines() {
        load_file(&format!("{LOADABLE}/{name}"))?;
    }
    Ok(())
}

/// Makes the devices that load their modules. Every user may open `/dev/fuse` and `/dev/net/tun`,
/// since the kernel itself checks the user's rights.
pub(super) fn make_devices() {
    for (path, minor, mode) in DEVICES {
        if let Err(error) = make_device(path, makedev(MISC, minor), Mode::from_raw_mode(mode)) {
            console(&format!("envd: cannot create {path}: {error:#}"));
        }
    }
}

fn make_device(path: &str, number: Dev, mode: Mode) -> anyhow::Result<()> {
    if let Some((dir, _)) = path.rsplit_once('/') {
        make_dir(dir)?;
    }
    // A loaded module has made its device already, for root alone.
    match mknodat(CWD, path, FileType::CharacterDevice, mode, number) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    // The process's umask clears bits of a new file's mode.
    Ok(rustix::fs::chmod(path, mode)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        (dir, root)
    }

    #[test]
    fn module_directory_is_created_through_links_within_the_root() {
        let path = Path::new("/lib/modules/6.1.0");
        for link in ["usr/lib", "/usr/lib"] {
            for exists in [true, false] {
                let (dir, root) = root();
                if exists {
                    fs::create_dir_all(dir.path().join("usr/lib")).unwrap();
                }
                symlink(link, dir.path().join("lib")).unwrap();
                assert!(root.make(path).unwrap());
                assert!(!root.make(path).unwrap());
                assert!(dir.path().join("usr/lib/modules/6.1.0").is_dir(), "{link} {exists}");
            }
        }
        let (dir, root) = root();
        root.make(path).unwrap();
        assert!(dir.path().join("lib/modules/6.1.0").is_dir());
    }

    #[test]
    fn modprobe_is_found_behind_absolute_links() {
        let (dir, root) = root();
        fs::create_dir_all(dir.path().join("usr/sbin")).unwrap();
        fs::create_dir_all(dir.path().join("bin")).unwrap();
        symlink("usr/sbin", dir.path().join("sbin")).unwrap();
        symlink("/bin/kmod", dir.path().join("usr/sbin/modprobe")).unwrap();
        assert!(root.find("sbin/modprobe").is_err());
        fs::write(dir.path().join("bin/kmod"), "").unwrap();
        assert!(root.find("sbin/modprobe").is_ok());
    }
}
