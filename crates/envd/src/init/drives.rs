//! The guest's read-only drives, and the words of the kernel's command line that name their folders.
//! Drives come after the guest's own disk, in the order of the machine's drives.

use super::image::Kind;
use super::mounts::{attach, make_dir};
use crate::overlay::{self, DRIVES};
use anyhow::Context;
use protocol::lower::{BUILD, DRIVES_MAX, LOWER, Lower, OWN_DISK};
use rustix::mount::MountFlags;
use std::collections::BTreeSet;

/// Words of the kernel's command line that concern drives.
pub(super) struct Words {
    /// Folders below the guest's own writes.
    pub lower: Lower,
    /// Set if the guest runs the steps of a build.
    pub builds: bool,
}

impl Words {
    /// Reads the kernel's command line.
    pub(super) fn read() -> anyhow::Result<Self> {
        let cmdline = std::fs::read_to_string("/proc/cmdline");
        Self::of(&cmdline.context("cannot read the kernel's command line")?)
    }

    fn of(cmdline: &str) -> anyhow::Result<Self> {
        let mut words = Self { lower: Lower::default(), builds: false };
        for word in cmdline.split_whitespace() {
            words.builds |= word == BUILD;
            if let Some(lower) = word.strip_prefix(LOWER) {
                words.lower = lower.parse().with_context(|| format!("cannot read {LOWER}"))?;
            }
        }
        let own = words.lower.0.iter().any(|(drive, _)| *drive == OWN_DISK);
        anyhow::ensure!(!own, "{LOWER} names a folder of the guest's own disk");
        Ok(words)
    }
}

/// Mounts the drives that hold these folders.
pub(super) fn mount_used(lower: &Lower) -> anyhow::Result<()> {
    let used: BTreeSet<u8> = lower.0.iter().map(|(drive, _)| *drive).collect();
    used.into_iter().try_for_each(|drive| mount(drive, Kind::read(&device(drive))?))
}

/// Mounts every drive that holds a file system. A placeholder holds none.
pub(super) fn mount_all() -> anyhow::Result<()> {
    for drive in 1..=u8::try_from(DRIVES_MAX)? {
        if let Ok(kind) = Kind::read(&device(drive)) {
            mount(drive, kind)?;
        }
    }
    Ok(())
}

fn mount(drive: u8, kind: Kind) -> anyhow::Result<()> {
    make_dir(DRIVES)?;
    let flags = MountFlags::RDONLY | MountFlags::NOATIME;
    attach(&device(drive), &overlay::image(drive), kind.name(), flags, "")
}

/// Returns the device of a drive. The guest's own disk is `vdb`.
fn device(drive: u8) -> String {
    format!("/dev/vd{}", char::from(b'b'.saturating_add(drive)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_builds_are_read_from_the_command_line() {
        let words = Words::of("quiet wrenn.lower=1/1-2,2/upper x").unwrap();
        assert_eq!((words.lower.to_string().as_str(), words.builds), ("1/1-2,2/upper", false));
        let words = Words::of("wrenn.build\n").unwrap();
        assert!(words.builds && words.lower.0.is_empty());
        assert!(!Words::of("wrenn.builder xwrenn.build").unwrap().builds);
        for wrong in ["wrenn.lower=1", "wrenn.lower=0/1"] {
            assert!(Words::of(wrong).is_err(), "{wrong}");
        }
        assert_eq!((device(1), device(8)), ("/dev/vdc".to_owned(), "/dev/vdj".to_owned()));
    }
}
