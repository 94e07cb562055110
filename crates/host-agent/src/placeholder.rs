//! Placeholder drives: small drives without data that every new machine has after its own disk. The
//! drives of a saved machine can be neither added nor removed, but the file behind a drive can be
//! replaced. So a disk can later be attached in place of a placeholder.
//!
//! A drive's read-only mark cannot be changed in a saved machine either, since the guest's driver
//! has agreed to it (`VIRTIO_BLK_F_RO`, VIRTIO 1.2, section 5.2.3). So there is a drive of each
//! kind. A guest may write to the second drive, and those bytes are lost when its machine ends.

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Size of a placeholder, in bytes: a page, so that any sector size divides it.
const BYTES: u64 = 4096;

/// A drive that holds the place of a disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Placeholder {
    /// Name of the drive, and of its file in a machine's root. Saved machines contain it.
    pub name: &'static str,
    pub read_only: bool,
}

/// Number of placeholders of a machine that boots now.
pub(crate) const COUNT: u8 = 2;

/// Placeholders of a machine that boots now, in the order of its drives.
const ALL: [Placeholder; COUNT as usize] = [
    Placeholder { name: "spare_0", read_only: true },
    Placeholder { name: "spare_1", read_only: false },
];

/// Returns the first `count` placeholders. Machines that were saved before placeholders existed
/// have none.
pub(crate) fn first(count: u8) -> impl Iterator<Item = Placeholder> {
    ALL.into_iter().take(count.into())
}

/// Describes the placeholders of a machine that boots now. A template snapshot depends on them.
pub(crate) fn layout() -> String {
    format!("{ALL:?} {BYTES}")
}

impl Placeholder {
    /// Makes the drive's file without a path, open as the drive uses it. The file cannot grow.
    pub(crate) fn open(self) -> io::Result<File> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create(self.name, flags)?);
        file.set_len(BYTES)?;
        fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        if !self.read_only {
            return Ok(file);
        }
        File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
    }

    /// Makes the drive's file in a machine's root.
    pub(crate) fn create(self, root: &Path) -> io::Result<()> {
        let mode = if self.read_only { 0o400 } else { 0o600 };
        let path = root.join(self.name);
        let file = File::options().write(true).create_new(true).mode(mode).open(path)?;
        file.set_len(BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn placeholder_is_empty_and_cannot_grow() {
        for placeholder in first(COUNT) {
            let file = placeholder.open().unwrap();
            assert_eq!(file.metadata().unwrap().len(), BYTES);
            let written = file.write_all_at(b"x", 0).is_ok();
            assert_eq!(written, !placeholder.read_only, "{placeholder:?}");
            assert!(file.write_all_at(b"x", BYTES).is_err(), "{placeholder:?}");
        }
    }

    #[test]
    fn placeholder_in_a_root_is_made_once_with_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        for placeholder in first(COUNT) {
            placeholder.create(dir.path()).unwrap();
            assert!(placeholder.create(dir.path()).is_err(), "an existing file is not taken");
            let found = dir.path().join(placeholder.name).metadata().unwrap();
            assert_eq!((found.len(), found.blocks()), (BYTES, 0));
            let mode = if placeholder.read_only { 0o400 } else { 0o600 };
            assert_eq!(found.mode() & 0o7777, mode);
        }
        assert_eq!(first(0).count(), 0);
    }
}
