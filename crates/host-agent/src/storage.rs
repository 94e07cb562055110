//! Disks of capsules: the templates' shared images, and each capsule's own disk. An own disk starts
//! empty and sparse, and is made in milliseconds. This module never changes an image.

mod copy;

pub(crate) use copy::{BegunCopy, copy_disk, copy_sparse, hash_disk};

use crate::config::Config;
use crate::sys;
use rustix::fs::Mode;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;
use types::BuildId;

/// Name of a capsule's own disk, in its folder.
pub(crate) const DISK: &str = "disk.ext4";
/// Name of the image below a capsule or snapshot: a link, since the template may be replaced. An
/// image of EROFS has this name too, since the name is in the saved state of Firecracker's machines.
pub(crate) const OWN_IMAGE: &str = "image.ext4";
/// Names of a template's image, one for each kind that guests boot from. The first name that exists
/// counts.
const IMAGES: [&str; 2] = ["rootfs.erofs", DEFAULT_IMAGE];
const DEFAULT_IMAGE: &str = "rootfs.ext4";
/// Most read-only disks of a machine beside its image. A version has at most as many.
pub(crate) const LAYERS_MAX: usize = 6;
/// Place of an ext4 file system's features that a kernel must know to mount it.
const INCOMPATIBLE: u64 = 1024 + 0x60;
/// Feature of a file system whose journal holds writes that its other blocks lack.
const NEEDS_RECOVERY: u16 = 0x4;
/// Place and value of the magic number of ext4.
const MAGIC: (u64, u16) = (1024 + 0x38, 0xef53);

/// Options by which every capsule's own disk is made. The file is new, so its blocks are zeros and
/// nothing is discarded.
///
/// There is an inode for each 16 KiB, since trees of npm and conda hold many small files. Compared
/// with one for each 64 KiB, a disk of 5 GiB has 60 MiB (1.2 %) less room for data. Time and bytes
/// on the host are equal: 5 ms and 184 KiB (`mkfs.ext4` 1.47.0, median of 20).
pub(crate) const MKFS_OPTIONS: [&str; 10] = [
    "-q",
    "-F",
    "-O",
    "^resize_inode",
    "-m",
    "0",
    "-i",
    "16384",
    "-E",
    "nodiscard,assume_storage_prezeroed=1",
];

/// Returns the name of a read-only disk below a capsule or snapshot, by its number from 1. The name
/// is in the saved state of Firecracker's machines.
pub(crate) fn layer_name(number: usize) -> String {
    format!("layer-{number}.ext4")
}

/// Reports whether a file in a folder of a capsule or snapshot is the image or another read-only
/// disk. Many folders share such a file.
pub(crate) fn is_shared(name: &OsStr) -> bool {
    let number = || name.to_str()?.strip_prefix("layer-")?.strip_suffix(".ext4")?.parse().ok();
    name == OWN_IMAGE || number().is_some_and(|_: u8| true)
}

/// Lists the operator's templates that this host has. Versions are no such templates.
pub(crate) fn templates(config: &Config) -> Vec<String> {
    let entries = fs::read_dir(config.templates()).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|e| existing_image(&e.path()).is_some())
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|name| name.parse::<BuildId>().is_err())
        .collect();
    names.sort();
    names
}

/// Returns the path of a template's image. Nothing is at that path if the template has no image.
pub(crate) fn image(config: &Config, template: &str) -> PathBuf {
    let dir = config.templates().join(template);
    existing_image(&dir).unwrap_or_else(|| dir.join(DEFAULT_IMAGE))
}

pub(crate) fn existing_image(dir: &Path) -> Option<PathBuf> {
    IMAGES.iter().map(|name| dir.join(name)).find(|path| path.exists())
}

/// Links an image into a folder, and opens it. An image on another file system is copied.
pub(crate) fn link_image(from: &Path, dir: &Path) -> io::Result<File> {
    link(from, &dir.join(OWN_IMAGE))
}

/// Links read-only disks into a folder, under the names of their numbers, and opens them. A disk on
/// another file system is copied.
pub(crate) fn link_layers(from: &[PathBuf], dir: &Path) -> io::Result<Vec<File>> {
    let numbered = (1..).zip(from);
    let links = numbered.map(|(number, from)| {
        let file = link(from, &dir.join(layer_name(number)))?;
        // VMMs of all capsules open this file, each as a user of its own.
        rustix::fs::fchmod(&file, Mode::from_raw_mode(0o444))?;
        Ok(file)
    });
    links.collect()
}

/// Returns the read-only disks in a folder of a capsule or snapshot, in the order of their numbers.
pub(crate) fn layers(dir: &Path) -> Vec<PathBuf> {
    let all = (1..=LAYERS_MAX).map(|number| dir.join(layer_name(number)));
    all.take_while(|path| path.exists()).collect()
}

/// Links the image and all read-only disks of one folder into another.
pub(crate) fn link_below(from: &Path, to: &Path) -> io::Result<()> {
    link_image(&from.join(OWN_IMAGE), to)?;
    link_layers(&layers(from), to).map(drop)
}

fn link(from: &Path, to: &Path) -> io::Result<File> {
    match fs::hard_link(from.canonicalize()?, to) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
            copy_disk(&File::open(from)?, to, &CancellationToken::new())?;
        }
        linked => linked?,
    }
    File::open(to)
}

/// Reports whether the journal of an ext4 disk holds writes that its other blocks lack. A read-only
/// mount of such a disk fails. Nothing else of the disk is read.
///
/// # Errors
/// Fails when the disk holds no ext4 file system.
pub(crate) fn needs_recovery(disk: &File) -> io::Result<bool> {
    let read = |at: u64| {
        let mut bytes = [0; 2];
        disk.read_exact_at(&mut bytes, at).map(|()| u16::from_le_bytes(bytes))
    };
    if read(MAGIC.0)? != MAGIC.1 {
        return Err(io::Error::other("the disk holds no ext4 file system"));
    }
    Ok(read(INCOMPATIBLE)? & NEEDS_RECOVERY != 0)
}

/// Returns the bytes that linking a file into a folder writes: 0 if a link is possible.
pub(crate) fn copied(from: &Path, dir: &Path) -> u64 {
    let device = |path: &Path| path.metadata().map(|found| (found.dev(), found.blocks() * 512));
    match (device(from), device(dir)) {
        (Ok((here, bytes)), Ok((there, _))) if here != there => bytes,
        _ => 0,
    }
}

/// Makes a capsule's disk of `mib` in its folder and opens it. The disk takes no room until it is
/// written to. Its journal keeps it consistent through a kill at any instant.
pub(crate) fn make_disk(dir: &Path, mib: u32) -> io::Result<File> {
    let path = dir.join(DISK);
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
    file.set_len(u64::from(mib) << 20)?;
    let path =
        path.to_str().ok_or_else(|| io::Error::other("the folder's name is not valid UTF-8"))?;
    let args: Vec<&str> = MKFS_OPTIONS.into_iter().chain([path]).collect();
    sys::run("mkfs.ext4", &args)?;
    Ok(file)
}

/// Removes a folder; a missing folder is success.
pub(crate) fn remove_all(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Returns the bytes on disk of everything below a folder but images and other shared disks. A file with
/// several names counts once.
pub(crate) fn used(dir: &Path, seen: &mut HashSet<u64>) -> u64 {
    let mut bytes = 0;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(found) = entry.metadata() else { continue };
        if found.is_dir() {
            bytes += used(&entry.path(), seen);
        } else if !is_shared(&entry.file_name()) && seen.insert(found.ino()) {
            bytes += found.blocks() * 512;
        }
    }
    bytes
}

/// Returns the total and the free bytes of the file system that holds `dir`. A folder that does not
/// exist yet is on the file system of its nearest parent.
pub(crate) fn capacity(dir: &Path) -> (u64, u64) {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let found = absolute.ancestors().find_map(|dir| rustix::fs::statvfs(dir).ok());
    found.map_or((0, 0), |s| (s.f_blocks * s.f_frsize, s.f_bavail * s.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_folder_has_the_room_of_its_nearest_parent() {
        let dir = tempfile::tempdir().unwrap();
        let (total, free) = capacity(&dir.path().join("not/yet"));
        assert!(total > 0 && free > 0, "{total} {free}");
        assert_eq!(total, capacity(dir.path()).0);
    }

    #[test]
    fn journal_with_writes_is_seen_in_the_superblock() {
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(8192).unwrap();
        assert!(needs_recovery(&disk).is_err(), "it holds no file system");
        disk.write_all_at(&MAGIC.1.to_le_bytes(), MAGIC.0).unwrap();
        disk.write_all_at(&[0xc2, 0x02], INCOMPATIBLE).unwrap();
        assert!(!needs_recovery(&disk).unwrap());
        disk.write_all_at(&[0xc6, 0x02], INCOMPATIBLE).unwrap();
        assert!(needs_recovery(&disk).unwrap());
    }

    #[test]
    fn new_disk_has_nothing_to_recover() {
        let dir = tempfile::tempdir().unwrap();
        // The program is not in each environment in which unit tests run.
        let Ok(disk) = make_disk(dir.path(), 16) else { return };
        assert!(!needs_recovery(&disk).unwrap());
    }

    #[test]
    fn shared_disks_are_linked_and_do_not_count_as_used() {
        let dir = tempfile::tempdir().unwrap();
        let [from, one, two] = ["from", "one", "two"].map(|name| dir.path().join(name));
        for folder in [&from, &one, &two] {
            fs::create_dir(folder).unwrap();
        }
        for name in ["image", "a", "b"] {
            fs::write(from.join(name), vec![7; 8192]).unwrap();
        }
        link_image(&from.join("image"), &one).unwrap();
        let files = link_layers(&[from.join("a"), from.join("b")], &one).unwrap();
        assert_eq!(files.len(), 2);
        link_below(&one, &two).unwrap();
        link_below(&one, &two).unwrap();
        assert_eq!(layers(&two), ["layer-1.ext4", "layer-2.ext4"].map(|name| two.join(name)));
        assert_eq!(two.join("layer-2.ext4").metadata().unwrap().nlink(), 3);
        fs::write(two.join("layer-x.ext4"), vec![7; 8192]).unwrap();
        assert_eq!(used(&two, &mut HashSet::new()), 8192);
    }
}
