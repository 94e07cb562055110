//! The root of a build's step: an overlay whose writes go to the step's own folder, with the file
//! systems that programs expect. Everything that is mounted for programs lies over the overlay, so
//! the step's folder holds the step's files alone.

use super::mounts::{self, attach, attach_to, leave_for, make_dir, make_upper};
use super::{modules, names, network};
use crate::build::{Build, Next, Step, scratch};
use crate::console::console;
use crate::guest::Held;
use crate::identity::{self, Ids};
use crate::root::Root;
use crate::{filesystem, overlay, sys};
use anyhow::Context;
use rustix::fs::{FileType, Mode, OFlags, fstat, makedev, mknodat, openat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount_bind, mount_change};
use std::fs::{self, File, Permissions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Lowest folder of each root. It has the places on which this module mounts, so that no mount adds
/// one to a step's folder.
const POINTS: &str = "/points";
/// Folders of [`POINTS`] and their modes.
const FOLDERS: [(&str, u32); 10] = [
    ("etc", 0o755),
    ("etc/profile.d", 0o755),
    ("proc", 0o755),
    ("sys", 0o755),
    ("dev", 0o755),
    ("run", 0o755),
    ("root", 0o700),
    ("tmp", 0o1777),
    ("var", 0o755),
    ("var/tmp", 0o1777),
];
/// Files that are covered for programs: the name of the file that is shown, and its place.
const COVERED: [(&str, &str); 5] = [
    ("hosts", "etc/hosts"),
    ("resolv.conf", "etc/resolv.conf"),
    ("hostname", "etc/hostname"),
    ("machine-id", "etc/machine-id"),
    ("profile", "etc/profile.d/zz-wrenn.sh"),
];
/// Folder of the own disk that the overlay works in.
const WORK: &str = "w";
/// Folder in memory with the files that programs see.
const OWN: &str = "/own";
/// Place of the step's files without anything that is mounted for programs.
const FILES: &str = "/files";
/// Devices of a root: name, numbers and mode (`Documentation/admin-guide/devices.txt`).
const DEVICES: [(&str, u32, u32, u32); 9] = [
    ("null", 1, 3, 0o666),
    ("zero", 1, 5, 0o666),
    ("full", 1, 7, 0o666),
    ("random", 1, 8, 0o666),
    ("urandom", 1, 9, 0o666),
    ("kmsg", 1, 11, 0o600),
    ("tty", 5, 0, 0o666),
    ("console", 5, 1, 0o600),
    ("ptmx", 5, 2, 0o666),
];

/// Makes the folders that all roots share.
pub(super) fn prepare() -> anyhow::Result<()> {
    for path in [POINTS, OWN, FILES] {
        make_dir(path)?;
    }
    for (path, mode) in FOLDERS {
        let path = format!("{POINTS}/{path}");
        make_dir(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
    }
    for (_, path) in COVERED {
        fs::write(format!("{POINTS}/{path}"), "").with_context(|| format!("cannot make {path}"))?;
    }
    Ok(())
}

/// Makes the root of a step in this process, and enters it.
pub(super) fn enter(next: &Next, disk: OwnedFd, tell: File) -> anyhow::Result<Held> {
    sys::own_mounts().context("cannot leave the mounts of other roots")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).context("cannot part the mounts from those of other roots")?;
    let outside = Root::open("/")?;
    mount_files(next, &outside)?;
    let files = Root::open(FILES)?;
    let root = Root::open("/root")?;
    mount_kernel(&root)?;
    let ids = write_own()?;
    let covered = cover(&root)?;
    let profile = File::options().write(true).open(format!("{OWN}/profile"))?;
    leave_for("/root")?;
    mounts::devices()?;
    modules::make_devices();
    let step = Step { files, profile, covered };
    let build = Build::new(next.folder, outside, tell, Some(step), None);
    Ok(Held { disk, ids: Some(ids), build: Some(build) })
}

/// Removes folders of the own disk, such as those of failed steps.
pub(super) fn remove(numbers: &[u32]) -> anyhow::Result<()> {
    for number in numbers {
        filesystem::remove(overlay::folder(0, &number.to_string()).as_ref())?;
    }
    Ok(())
}

/// Removes the folders that only the last step needed: its caches and the overlay's work folder.
pub(super) fn remove_scratch() -> anyhow::Result<()> {
    for path in [scratch::CACHES.to_owned(), overlay::folder(0, WORK)] {
        filesystem::remove(path.as_ref())?;
    }
    Ok(())
}

/// Mounts the overlay on `/root`, and its files alone on [`FILES`]. An earlier try may have left a
/// half-made folder.
fn mount_files(next: &Next, outside: &Root) -> anyhow::Result<()> {
    let own = |name: &str| overlay::folder(0, name);
    let (upper, work) = (own(&next.folder.to_string()), own(WORK));
    remove(&next.remove)?;
    remove_scratch()?;
    filesystem::remove(upper.as_ref())?;
    let mut lower = overlay::folders(&next.lower.parse()?, next.image);
    lower.push(POINTS.to_owned());
    overlay::check(outside, &lower)?;
    make_upper(&upper, &lower)?;
    make_dir(&work)?;
    let options = overlay::options(&lower, Some((&upper, &work)))?;
    attach("overlay", "/root", "overlay", MountFlags::NOATIME, &options)?;
    mount_bind("/root", FILES).context("cannot show the step's files alone")
}

/// Mounts the kernel's file systems below a root.
fn mount_kernel(root: &Root) -> anyhow::Result<()> {
    let closed = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for (kind, path, flags, data) in [
        ("tmpfs", "dev", MountFlags::NOSUID, "mode=755"),
        ("proc", "proc", closed, ""),
        ("sysfs", "sys", closed, ""),
        ("cgroup2", "sys/fs/cgroup", closed, ""),
    ] {
        root.make(Path::new(path))?;
        let at = root.find(path).with_context(|| format!("opening {path}"))?;
        attach_to(kind, &path_of(&at), kind, flags, data)?;
    }
    let dev = root.find("dev").context("opening dev")?;
    for (name, major, minor, mode) in DEVICES {
        let mode = Mode::from_raw_mode(mode);
        mknodat(&dev, name, FileType::CharacterDevice, mode, makedev(major, minor))
            .with_context(|| format!("making the device {name}"))?;
        rustix::fs::chmodat(&dev, name, mode, rustix::fs::AtFlags::empty())?;
    }
    Ok(())
}

/// Writes the files that programs see in place of the step's own. Returns the ids among them.
fn write_own() -> anyhow::Result<Ids> {
    attach("tmpfs", OWN, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, "mode=755")?;
    let (hosts, resolver) = names::contents(&network::servers());
    for (name, contents) in [
        ("hosts", hosts.as_slice()),
        ("resolv.conf", &resolver),
        ("hostname", b"capsule\n"),
        ("profile", b""),
    ] {
        fs::write(format!("{OWN}/{name}"), contents).with_context(|| format!("writing {name}"))?;
    }
    let at = |name: &str| PathBuf::from(format!("{OWN}/{name}"));
    Ids::create(&at("boot_id"), &at("machine-id"))
}

/// Covers files of a root. Returns the paths of those that are the step's own.
fn cover(root: &Root) -> anyhow::Result<Vec<PathBuf>> {
    cover_one(root, &format!("{OWN}/boot_id"), identity::BOOT)?;
    let mut covered = Vec::new();
    for (name, path) in COVERED {
        match cover_one(root, &format!("{OWN}/{name}"), path)? {
            true => covered.push(Path::new("/").join(path)),
            false => console(&format!("envd: this step has its own /{path}")),
        }
    }
    Ok(covered)
}

/// Mounts a file over another one, or over a link in its place. Returns `false` if nothing, or a
/// folder, is there.
fn cover_one(root: &Root, source: &str, path: &str) -> anyhow::Result<bool> {
    let path = Path::new(path);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(false) };
    let Ok(parent) = root.find(parent) else { return Ok(false) };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let at = match openat(&parent, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(false),
        at => at.with_context(|| format!("opening {}", path.display()))?,
    };
    if FileType::from_raw_mode(fstat(&at)?.st_mode) == FileType::Directory {
        return Ok(false);
    }
    let covered = mount_bind(source, path_of(&at));
    covered.with_context(|| format!("covering {}", path.display())).map(|()| true)
}

/// Returns a path that leads to an open file, whatever its own path is.
fn path_of(at: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", at.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::copy::{self, Order};
    use std::os::unix::fs::MetadataExt;

    /// Runs work on a thread whose root is an empty file system in memory, with mounts of its own.
    fn in_empty_root<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let run = || {
            let dir = tempfile::tempdir().unwrap();
            sys::own_mounts().unwrap();
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", private).unwrap();
            let none = MountFlags::empty();
            attach_to("tmpfs", dir.path().to_str().unwrap(), "tmpfs", none, "").unwrap();
            rustix::process::chroot(dir.path()).unwrap();
            std::env::set_current_dir("/").unwrap();
            for path in ["dev", "proc", "sys", "disk", "root", "image", "origins"] {
                fs::create_dir(path).unwrap();
            }
            attach_to("proc", "/proc", "proc", none, "").unwrap();
            work()
        };
        std::thread::spawn(run).join().unwrap()
    }

    fn enter_folder_2() -> Held {
        fs::create_dir_all("/image/etc").unwrap();
        fs::write("/image/etc/hosts", "of the image").unwrap();
        std::os::unix::fs::symlink("/run/nowhere", "/image/etc/resolv.conf").unwrap();
        fs::create_dir_all("/disk/1/opt").unwrap();
        fs::write("/disk/1/opt/early", "1").unwrap();
        fs::create_dir_all("/disk/2/half").unwrap();
        fs::create_dir_all("/disk/9").unwrap();
        prepare().unwrap();
        let (_, tell) = rustix::pipe::pipe().unwrap();
        let next = Next { folder: 2, lower: "0/1".into(), image: Some(0), remove: vec![9] };
        let disk = File::open("/disk").unwrap().into();
        enter(&next, disk, tell.into()).unwrap()
    }

    fn is_there(build: &Build, path: &str) -> bool {
        build.outside.at(Path::new(path), OFlags::PATH | OFlags::NOFOLLOW).is_ok()
    }

    #[test]
    fn root_of_a_step_keeps_its_files_apart_from_those_of_programs() {
        in_empty_root(|| {
            let build = enter_folder_2().build.unwrap();
            assert_eq!(fs::read_to_string("/opt/early").unwrap(), "1");
            assert!(fs::read_to_string("/etc/hosts").unwrap().contains("capsule"));
            assert!(fs::read_to_string("/etc/resolv.conf").is_ok(), "a link that leads nowhere");
            assert_eq!(fs::read_to_string("/etc/machine-id").unwrap().len(), 33);
            fs::write("/dev/null", "x").unwrap();
            fs::write("/tmp/made", "x").unwrap();
            build.show_path("export PATH=/x\n").unwrap();
            let shown = fs::read_to_string("/etc/profile.d/zz-wrenn.sh").unwrap();
            assert_eq!(shown, "export PATH=/x\n");
            assert!(is_there(&build, "/disk/2/tmp/made"));
            for path in ["/disk/2/half", "/disk/9", "/disk/2/etc", "/disk/2/dev", "/disk/2/proc"] {
                assert!(!is_there(&build, path), "{path}");
            }
        });
    }

    #[test]
    fn copy_from_an_origin_replaces_even_covered_files() {
        in_empty_root(|| {
            let build = enter_folder_2().build.unwrap();
            for (source, dest) in [("/opt/early", "/etc/hosts"), ("opt", "/run/copied")] {
                let line = serde_json::json!({
                    "from": null, "files": null, "sources": [source], "inline": [], "dest": dest,
                    "into": false, "owner": "3", "mode": null, "unpack": false,
                    "dialect": "dockerfile", "origin": {"lower": "0/1", "image": 0},
                });
                let order = Order::read(&mut line.to_string().as_bytes()).unwrap();
                copy::run(&build, &order, std::io::empty(), Default::default()).unwrap();
            }
            assert_eq!(fs::read_to_string("/etc/hosts").unwrap(), "1");
            assert_eq!(fs::read_to_string("/run/copied/early").unwrap(), "1");
            assert!(is_there(&build, "/disk/2/etc/hosts"));
            assert!(is_there(&build, "/disk/2/run/copied/early"));
            copy::make_folder(&build, "/srv/app", "5:6").unwrap();
            let made = fs::metadata("/srv/app").unwrap();
            assert_eq!((made.uid(), made.gid()), (5, 6));
            assert_eq!(fs::metadata("/run/copied/early").unwrap().gid(), 3);
        });
    }
}
