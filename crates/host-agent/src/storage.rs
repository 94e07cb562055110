//! Disks of capsules: the templates' shared images, and each capsule's own disk. An own disk starts
//! empty and sparse, and is made in milliseconds. This module never changes an image.

use crate::config::Config;
use crate::sys;
use rustix::fs::{Mode, SeekFrom};
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

/// Bytes that are read, hashed and written at once.
const BLOCK: usize = 64 * 1024;
/// Unit of a copy, in bytes. A unit of zeros is not written.
const PIECE: usize = 4096;

/// Copies a disk that no process writes to. The copy shares the disk's blocks if the file system
/// supports that. Otherwise only data that is not zeros is written. Returns the copy, open for a
/// machine, with the hash of its contents. Fails once `cancel` is cancelled.
pub(crate) fn copy_disk(
    from: &File,
    to: &Path,
    cancel: &CancellationToken,
) -> io::Result<(File, blake3::Hash)> {
    match share_blocks(from, to)? {
        (copy, true) => Ok((copy, hash_disk(from, cancel)?)),
        (copy, false) => {
            let mut hash = DiskHash::new(from)?;
            copy_data(from, &copy, cancel, |at, block| hash.add(at, block))?;
            Ok((copy, hash.finish()))
        }
    }
}

/// Copies a sparse file without hashing it.
pub(crate) fn copy_sparse(from: &File, to: &Path) -> io::Result<File> {
    let (copy, shared) = share_blocks(from, to)?;
    if !shared {
        copy_data(from, &copy, &CancellationToken::new(), |_, _| {})?;
    }
    Ok(copy)
}

/// Makes a file that shares the blocks of another, if the file system supports that. The flag tells
/// if it does.
fn share_blocks(from: &File, to: &Path) -> io::Result<(File, bool)> {
    let copy = File::options().read(true).write(true).create(true).truncate(true).open(to)?;
    let shared = rustix::fs::ioctl_ficlone(&copy, from).is_ok();
    Ok((copy, shared))
}

/// Copies all data that is not zeros, and calls `seen` for each such block.
fn copy_data(
    from: &File,
    copy: &File,
    cancel: &CancellationToken,
    mut seen: impl FnMut(u64, &[u8]),
) -> io::Result<()> {
    copy.set_len(from.metadata()?.len())?;
    let zeros = [0; PIECE];
    each_block(from, cancel, |at, block| {
        seen(at, block);
        let mut pieces = (at..).step_by(PIECE).zip(block.chunks(PIECE));
        pieces.try_for_each(|(at, piece)| match *piece == zeros[..piece.len()] {
            true => Ok(()),
            false => copy.write_all_at(piece, at),
        })
    })
}

/// Returns the hash of a disk's contents, which does not depend on how sparse its file is. Fails
/// once `cancel` is cancelled.
pub(crate) fn hash_disk(file: &File, cancel: &CancellationToken) -> io::Result<blake3::Hash> {
    let mut hash = DiskHash::new(file)?;
    each_block(file, cancel, |at, block| {
        hash.add(at, block);
        Ok(())
    })?;
    Ok(hash.finish())
}

/// The hash of a disk in progress: of its length, and of the positions and contents of the blocks
/// that are not zeros.
struct DiskHash(blake3::Hasher);

impl DiskHash {
    fn new(disk: &File) -> io::Result<Self> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&disk.metadata()?.len().to_le_bytes());
        Ok(Self(hasher))
    }

    fn add(&mut self, at: u64, block: &[u8]) {
        self.0.update(&at.to_le_bytes());
        self.0.update(block);
    }

    fn finish(&self) -> blake3::Hash {
        self.0.finalize()
    }
}

/// Calls `work` for each block that is not zeros, until `cancel` is cancelled.
fn each_block(
    file: &File,
    cancel: &CancellationToken,
    mut work: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let (length, zeros, mut block) = (file.metadata()?.len(), vec![0; BLOCK], vec![0; BLOCK]);
    let mut at = 0;
    loop {
        if cancel.is_cancelled() {
            return Err(io::Error::other("the copy of the disk was cancelled"));
        }
        at = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data - data % BLOCK as u64,
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let size = usize::try_from((length - at).min(BLOCK as u64)).map_err(io::Error::other)?;
        file.read_exact_at(&mut block[..size], at)?;
        if block[..size] != zeros[..size] {
            work(at, &block[..size])?;
        }
        at += BLOCK as u64;
        if at >= length {
            return Ok(());
        }
    }
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

/// Returns the total and the free bytes of the file system that holds `dir`.
pub(crate) fn capacity(dir: &Path) -> (u64, u64) {
    rustix::fs::statvfs(dir).map_or((0, 0), |s| (s.f_blocks * s.f_frsize, s.f_bavail * s.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_copy_is_equal_and_sparse_with_the_same_hash() {
        let dir = tempfile::tempdir().unwrap();
        let disk = File::create_new(dir.path().join("disk")).unwrap();
        disk.set_len(64 << 20).unwrap();
        disk.write_all_at(b"one", 5).unwrap();
        disk.write_all_at(&[7; 300_000], 9 << 20).unwrap();
        disk.write_all_at(&[0; 1 << 20], 20 << 20).unwrap();
        disk.write_all_at(b"end", (64 << 20) - 3).unwrap();
        let disk = File::open(dir.path().join("disk")).unwrap();
        let cancel = CancellationToken::new();
        let (copy, hash) = copy_disk(&disk, &dir.path().join("copy"), &cancel).unwrap();
        let hash_of = |file: &File| hash_disk(file, &cancel).unwrap();
        assert_eq!(hash_of(&copy), hash);
        assert_eq!(hash_of(&disk), hash);
        assert!(
            fs::read(dir.path().join("copy")).unwrap()
                == fs::read(dir.path().join("disk")).unwrap()
        );
        copy.write_all_at(b"x", 40 << 20).unwrap();
        assert_ne!(hash_of(&copy), hash);
        copy.set_len(63 << 20).unwrap();
        assert_ne!(hash_of(&copy), hash);
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

    #[test]
    fn cancelled_disk_read_stops() {
        let dir = tempfile::tempdir().unwrap();
        let disk = tempfile::tempfile().unwrap();
        disk.write_all_at(&[7; 3 * BLOCK], 0).unwrap();
        let cancel = CancellationToken::new();
        let mut blocks = 0;
        let read = each_block(&disk, &cancel, |_, _| {
            blocks += 1;
            cancel.cancel();
            Ok(())
        });
        assert!(read.is_err());
        assert_eq!(blocks, 1);
        assert!(hash_disk(&disk, &cancel).is_err());
        assert!(copy_disk(&disk, &dir.path().join("copy"), &cancel).is_err());
    }
}
