//! The template `base`: Debian in one read-only image, built from `images/base`.

use super::{Store, remove, text};
use crate::sys::Run;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

const SUITE: &str = "bookworm";
const PACKAGES: &str = include_str!("../../../../images/base/packages");
const CUSTOMIZE: &str = include_str!("../../../../images/base/customize.sh");
/// Version of the way an image is built. Raise it with each change.
const RECIPE: &[u8] = b"2";

/// Builds `images/templates/base`.
pub(super) fn ensure(store: &Store, refresh: bool) -> anyhow::Result<()> {
    let inputs = [SUITE.as_bytes(), PACKAGES.as_bytes(), CUSTOMIZE.as_bytes(), RECIPE];
    let path = store.path("base", &inputs);
    store.ensure(&path, "the template base (Debian)", refresh, make)?;
    store.publish(&path, "templates/base")
}

fn make(dir: &Path) -> anyhow::Result<()> {
    let (tree, script) = (dir.join("tree"), dir.join("customize.sh"));
    fs::write(&script, CUSTOMIZE)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700))?;
    let packages: Vec<&str> =
        PACKAGES.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    Run::new("mmdebstrap", &["--mode=root", "--variant=minbase"])
        .arg(format!("--include={}", packages.join(",")))
        .arg("--dpkgopt=path-exclude=/usr/share/{man,locale,doc}/*")
        .arg(format!("--customize-hook={}", text(&script)?))
        .arg(SUITE)
        .arg(text(&tree)?)
        .output()?;
    let image = dir.join("rootfs.ext4");
    // The image is read-only: it needs no journal and no reserve, and room only for the file
    // system's own tables.
    let size_kib = size_of(&tree)? / 1024 * 23 / 20 + (32 << 10);
    let options = [
        "-q",
        "-F",
        "-b",
        "4096",
        "-L",
        "base",
        "-m",
        "0",
        "-O",
        "^has_journal,^resize_inode",
        "-d",
    ];
    Run::new("mkfs.ext4", &options)
        .arg(text(&tree)?)
        .arg(text(&image)?)
        .arg(format!("{size_kib}k"))
        .output()?;
    fs::remove_file(&script)?;
    remove(&tree)
}

/// Returns the bytes that a tree takes in the image, each file in whole blocks.
fn size_of(dir: &Path) -> anyhow::Result<u64> {
    let mut total = 0;
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let found = entry.metadata()?;
            total += found.size().next_multiple_of(4096) + 256;
            if found.is_dir() {
                left.push(entry.path());
            }
        }
    }
    Ok(total)
}
