//! The kind of a template's root image, read from the magic number of its file system.

use anyhow::Context;
use std::fs::File;
use std::io::Read;

/// Offset of the superblock in an image of either kind.
const SUPERBLOCK: usize = 1024;
/// Magic number of EROFS, the first bytes of its superblock (the kernel's `fs/erofs/erofs_fs.h`).
const EROFS: [u8; 4] = [0xe2, 0xe1, 0xf5, 0xe0];
/// Magic number of ext4, and its offset in the superblock (the kernel's
/// `Documentation/filesystems/ext4/super.rst`).
const EXT4: [u8; 2] = [0x53, 0xef];
const EXT4_AT: usize = SUPERBLOCK + 0x38;
/// Bytes of an image that hold both magic numbers.
const HEAD: u64 = (EXT4_AT + EXT4.len()) as u64;

/// Kind of a root image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Erofs,
    Ext4,
}

impl Kind {
    /// Reads the kind of the image at `path`.
    ///
    /// # Errors
    /// Fails for an image of any other kind, and names the bytes that it begins with.
    pub(super) fn read(path: &str) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("opening the root image {path}"))?;
        let mut head = Vec::new();
        let read = file.take(HEAD).read_to_end(&mut head);
        read.with_context(|| format!("reading the root image {path}"))?;
        Self::of(&head).with_context(|| {
            let found = head.get(SUPERBLOCK..).unwrap_or_default();
            let found = found.get(..EROFS.len()).unwrap_or(found);
            format!(
                "the root image {path} is neither EROFS nor ext4: byte {SUPERBLOCK} begins \
                 {found:02x?}"
            )
        })
    }

    /// Returns the kind of the image that begins with these bytes. EROFS comes first, since its
    /// UUID lies where ext4 has its magic number.
    fn of(head: &[u8]) -> Option<Self> {
        if head.get(SUPERBLOCK..)?.starts_with(&EROFS) {
            return Some(Self::Erofs);
        }
        head.get(EXT4_AT..)?.starts_with(&EXT4).then_some(Self::Ext4)
    }

    /// Returns the name by which the kernel mounts the file system.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::Ext4 => "ext4",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(at: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        for (at, magic) in at {
            bytes[*at..*at + magic.len()].copy_from_slice(magic);
        }
        bytes
    }

    fn read(bytes: &[u8]) -> anyhow::Result<Kind> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, bytes).unwrap();
        Kind::read(path.to_str().unwrap())
    }

    #[test]
    fn image_kind_is_read_from_its_magic_number() {
        assert_eq!(read(&image(&[(1024, &EROFS)])).unwrap(), Kind::Erofs);
        assert_eq!(read(&image(&[(1080, &EXT4)])).unwrap(), Kind::Ext4);
        // The UUID of an EROFS may hold the magic number of ext4.
        assert_eq!(read(&image(&[(1024, &EROFS), (1080, &EXT4)])).unwrap(), Kind::Erofs);
    }

    #[test]
    fn image_of_another_kind_is_an_error_with_its_first_bytes() {
        let squashfs = read(&image(&[(0, b"hsqs"), (1024, &[1, 2, 3, 4])])).unwrap_err();
        let told = format!("{squashfs:#}");
        assert!(told.contains("neither EROFS nor ext4"), "{told}");
        assert!(told.contains("byte 1024 begins [01, 02, 03, 04]"), "{told}");
        for short in [&b""[..], &[0; 1024], &image(&[(1080, &EXT4)])[..1081]] {
            assert!(read(short).is_err(), "{} bytes", short.len());
        }
        assert!(format!("{:#}", Kind::read("/nowhere").unwrap_err()).contains("/nowhere"));
    }
}
