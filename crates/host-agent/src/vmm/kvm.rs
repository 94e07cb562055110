//! Checks of `/dev/kvm`: that it exists, and that a VMM may open it.

use anyhow::Context;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;

pub(super) const DEVICE: &str = "/dev/kvm";

/// Permission bits of reading and writing, for a file's group and for everyone else.
const GROUP: u32 = 0o060;
const OTHERS: u32 = 0o006;

/// Returns the device's group, which a VMM joins. Returns `None` if the group is root's or the
/// device is missing.
pub(super) fn group() -> Option<u32> {
    Some(std::fs::metadata(DEVICE).ok()?.gid()).filter(|gid| *gid != 0)
}

/// Checks that machines can use the device. With `unprivileged`, a VMM opens the device as its own
/// user; a jailer makes a device of its own instead.
///
/// # Errors
/// Fails when machines cannot use the device, and gives the remedy.
pub(super) fn check(unprivileged: bool) -> anyhow::Result<()> {
    let found = match std::fs::metadata(DEVICE) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            anyhow::bail!("{DEVICE} does not exist")
        }
        found => found.with_context(|| format!("cannot inspect {DEVICE}"))?,
    };
    File::options().read(true).write(true).open(DEVICE).with_context(|| {
        format!(
            "the host agent cannot open {DEVICE}; run it as root, and give a container access to \
             the device"
        )
    })?;
    if unprivileged && !opens(found.mode(), found.gid()) {
        anyhow::bail!(
            "unprivileged VMMs cannot open {DEVICE} (mode {:04o}, group {}); run `chgrp kvm \
             {DEVICE} && chmod 0660 {DEVICE}`",
            found.mode() & 0o7777,
            found.gid()
        );
    }
    Ok(())
}

/// Reports whether an unprivileged user may open a file of this mode and group. The user owns no
/// file, and joins the group unless it is root's.
fn opens(mode: u32, gid: u32) -> bool {
    let needed = if gid == 0 { OTHERS } else { GROUP };
    mode & needed == needed
}

#[cfg(test)]
mod tests {
    use super::opens;

    #[test]
    fn kvm_access_follows_group_mode_for_members_and_other_mode_otherwise() {
        assert!(opens(0o660, 104) && opens(0o666, 104) && opens(0o666, 0));
        assert!(!opens(0o600, 0) && !opens(0o660, 0) && !opens(0o600, 104));
        assert!(!opens(0o606, 104), "a member of the group is not everyone else");
        assert!(!opens(0o640, 104) && !opens(0o664, 0));
    }
}
