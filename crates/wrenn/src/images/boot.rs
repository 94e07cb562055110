//! The files that a machine boots: the kernel, and an initramfs with the modules and envd as
//! `/init`. The initramfs is a `newc` archive (the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`).

use super::{Store, kernel, text};
use anyhow::Context;
use std::fs;
use std::path::Path;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const CONSOLE: u32 = 0o020_600;
/// Version of the way an initramfs is built. Raise it with each change.
const RECIPE: &[u8] = b"2";

/// Builds `images/boot` from a kernel and envd.
pub(super) fn ensure(store: &Store, kernel: &Path, envd: &Path) -> anyhow::Result<()> {
    let envd_bytes = fs::read(envd).with_context(|| {
        format!("cannot read envd at {}; build it, or set its path with --envd", envd.display())
    })?;
    // The kernel folder's name identifies the choice of modules, and the package's name their
    // contents.
    let source = fs::read(kernel.join(kernel::SOURCE))?;
    let made_of = text(kernel)?.rsplit('/').next().unwrap_or_default();
    let path = store.path("boot", &[RECIPE, &source, made_of.as_bytes(), &envd_bytes]);
    store.ensure(&path, "the guest initramfs", false, |dir| {
        fs::copy(kernel.join(kernel::IMAGE), dir.join(kernel::IMAGE))?;
        fs::write(dir.join("initramfs"), initramfs(kernel, &envd_bytes)?)?;
        Ok(())
    })?;
    store.publish(&path, "boot")
}

fn initramfs(kernel: &Path, envd: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut archive = Archive::default();
    for dir in ["dev", "proc", "sys", "image", "disk", "root", "modules"] {
        archive.add(dir, DIRECTORY, b"");
    }
    archive.add("dev/console", CONSOLE, b"");
    archive.add("init", PROGRAM, envd);
    let order = fs::read_to_string(kernel.join(kernel::ORDER))?;
    for name in order.lines() {
        archive.add(&format!("modules/{name}"), FILE, &fs::read(kernel.join(name))?);
    }
    archive.add("modules/order", FILE, order.as_bytes());
    archive.add("modules/common", FILE, &fs::read(kernel.join(kernel::COMMON_LIST))?);
    archive.add_tree("loadable", &kernel.join(kernel::TREE))?;
    Ok(archive.finish())
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        // The console is the character device 5:1.
        let (major, minor) = if mode == CONSOLE { (5, 1) } else { (0, 0) };
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    /// Adds a folder with everything in it, sorted by name so that the result is reproducible.
    fn add_tree(&mut self, name: &str, from: &Path) -> anyhow::Result<()> {
        self.add(name, DIRECTORY, b"");
        let mut entries = fs::read_dir(from)?.collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let name = format!("{name}/{}", text(Path::new(&entry.file_name()))?);
            if entry.file_type()?.is_dir() {
                self.add_tree(&name, &path)?;
            } else {
                self.add(&name, FILE, &fs::read(&path)?);
            }
        }
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, b"");
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpio_archive_has_the_newc_format() {
        let mut archive = Archive::default();
        archive.add("dir", DIRECTORY, b"");
        archive.add("dir/file", FILE, b"hello");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let header = std::str::from_utf8(&bytes[..110]).unwrap();
        assert_eq!(&header[..6], "070701");
        assert_eq!(&header[14..22], "000041ed", "mode");
        assert_eq!(&header[94..102], "00000004", "length of the name with its NUL");
        let text = String::from_utf8_lossy(&bytes);
        assert!(
            text.contains("dir/file\0") && text.contains("hello") && text.contains("TRAILER!!!")
        );
    }

    #[test]
    fn tree_is_archived_with_directories_before_their_contents() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("b/c")).unwrap();
        fs::write(dir.path().join("b/c/file"), "x").unwrap();
        fs::write(dir.path().join("a"), "y").unwrap();
        let mut archive = Archive::default();
        archive.add_tree("tree", dir.path()).unwrap();
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        let at = |name: &str| text.find(&format!("{name}\0")).unwrap();
        let names = ["tree", "tree/a", "tree/b", "tree/b/c", "tree/b/c/file"].map(at);
        assert!(names.is_sorted(), "{names:?}");
    }
}
