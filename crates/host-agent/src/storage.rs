//! Disks: the templates' shared images, and each capsule's own, which is empty, sparse and
//! made in milliseconds. Never changes an image.

use crate::config::Config;
use crate::sys;
use std::fs::{self, File};
use std::io;
use std::path::Path;

const DISK: &str = "disk.ext4";
const IMAGE: &str = "rootfs.ext4";

/// Names of the templates that this host has.
pub(crate) fn templates(config: &Config) -> Vec<String> {
    let entries = fs::read_dir(config.templates()).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|e| e.path().join(IMAGE).exists())
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Opens a template's image.
pub(crate) fn open_image(config: &Config, template: &str) -> io::Result<File> {
    File::open(config.templates().join(template).join(IMAGE))
}

/// Makes a capsule's disk of `mib` in its folder and opens it. It takes no room until it is
/// written to; its journal keeps it whole through a kill at any instant.
pub(crate) fn make_disk(dir: &Path, mib: u32) -> io::Result<File> {
    let path = dir.join(DISK);
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
    file.set_len(u64::from(mib) << 20)?;
    let options = "nodiscard,assume_storage_prezeroed=1";
    let path = path.to_str().ok_or_else(|| io::Error::other("the folder's name is no text"))?;
    let args = ["-q", "-F", "-O", "^resize_inode", "-m", "0", "-i", "65536", "-E", options, path];
    sys::run("mkfs.ext4", &args)?;
    Ok(file)
}

/// Bytes of the file system that holds `dir`: all, and free.
pub(crate) fn capacity(dir: &Path) -> (u64, u64) {
    rustix::fs::statvfs(dir).map_or((0, 0), |s| (s.f_blocks * s.f_frsize, s.f_bavail * s.f_frsize))
}
