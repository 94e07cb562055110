//! Version of the installed Firecracker, and the oldest version that may be used.

use crate::sys;
use anyhow::Context;
use std::fmt;
use std::path::Path;

/// The oldest version that is used; `docs/operations.md` names it too. Before it, a guest could
/// break out (CVE-2026-5747, in 1.13.0 to 1.14.3 and 1.15.0), and the jailer followed links
/// (CVE-2026-1386). Differential snapshots of guests with more than 3 GiB were wrong, too.
pub(crate) const FLOOR: Version = Version(1, 15, 1);
/// First version whose load request has `track_dirty_pages` in place of `enable_diff_snapshots`.
pub(super) const TRACKS: Version = Version(1, 13, 0);

/// A version: major, minor, patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub u32, pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// Returns the first version in a text, such as `v1.16.1` or `1.17.0-dev`.
pub(super) fn read(text: &str) -> Option<Version> {
    text.split_whitespace().find_map(|word| {
        let mut parts = word.trim_start_matches('v').splitn(3, '.');
        let mut number = || {
            let part = parts.next()?;
            let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            part[..end].parse().ok()
        };
        Some(Version(number()?, number()?, number()?))
    })
}

/// Asks a program for its version, and for the version of the snapshots that it makes.
pub(super) fn ask(program: &Path) -> anyhow::Result<(Version, Version)> {
    let name = program.to_str().context("the path of Firecracker is not valid UTF-8")?;
    let asked = |arg: &str| {
        let said = sys::run(name, &[arg])?;
        read(&said).with_context(|| format!("{name} {arg} printed no version"))
    };
    Ok((asked("--version")?, asked("--snapshot-version")?))
}

/// Returns the text that names a kind of snapshots: their version without the patch number, and the
/// model of the processor.
pub(super) fn fingerprint(snapshots: Version, cpu: &str) -> String {
    format!("firecracker snapshots {}.{} kvm {cpu}", snapshots.0, snapshots.1)
}

/// Reports whether a Firecracker with snapshots of version `own` reads those of a fingerprint, on a
/// model of processor. Firecracker refuses another major number and a newer minor number. In
/// fingerprints of earlier builds the minor number is missing. Firecracker itself then checks it.
pub(super) fn reads(own: Version, cpu: &str, fingerprint: &str) -> bool {
    let parts = fingerprint.strip_prefix("firecracker snapshots ");
    let Some((version, model)) = parts.and_then(|parts| parts.split_once(" kvm ")) else {
        return false;
    };
    let (major, minor) = version.split_once('.').unwrap_or((version, "0"));
    let number = |text: &str| text.parse::<u32>().ok();
    let fits = number(major) == Some(own.0) && number(minor).is_some_and(|minor| minor <= own.1);
    fits && model == cpu
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_page_names_the_minimum_version_once() {
        let text = include_str!("../../../../../docs/operations.md");
        assert_eq!(text.matches(&FLOOR.to_string()).count(), 1);
        assert!(text.contains(&format!("The oldest version that is used is {FLOOR};")));
    }

    #[test]
    fn snapshot_of_newer_minor_or_other_major_version_is_not_read() {
        let own = Version(10, 2, 3);
        for (snapshots, is_read) in [
            (Version(10, 2, 0), true),
            (Version(10, 2, 9), true),
            (Version(10, 1, 4), true),
            (Version(10, 0, 0), true),
            (Version(10, 3, 0), false),
            (Version(9, 0, 0), false),
            (Version(9, 2, 3), false),
            (Version(11, 0, 0), false),
        ] {
            let fingerprint = fingerprint(snapshots, "cpu of a kvm host");
            assert_eq!(reads(own, "cpu of a kvm host", &fingerprint), is_read, "{snapshots}");
            assert!(!reads(own, "other", &fingerprint));
        }
    }

    #[test]
    fn fingerprint_without_minor_version_is_read_by_its_major_version() {
        let own = Version(10, 2, 3);
        assert!(reads(own, "cpu", "firecracker snapshots 10 kvm cpu"));
        for other in [
            "firecracker snapshots 9 kvm cpu",
            "firecracker snapshots 10 kvm cpu 2",
            "firecracker snapshots 10.x kvm cpu",
            "firecracker snapshots 10",
            "qemu 9.2 kvm cpu",
            "",
        ] {
            assert!(!reads(own, "cpu", other), "{other}");
        }
    }

    #[test]
    fn firecracker_versions_are_parsed_and_compared_by_number() {
        assert_eq!(
            read("Firecracker v1.12.1\n\n2026-11-26T10:23:23 exiting"),
            Some(Version(1, 12, 1))
        );
        assert_eq!(read("v10.0.0\n"), Some(Version(10, 0, 0)));
        assert_eq!(read("Firecracker v1.17.0-dev"), Some(Version(1, 17, 0)));
        assert_eq!(read("Firecracker"), None);
        assert!(Version(1, 9, 9) < FLOOR && Version(1, 15, 0) < FLOOR);
        assert!(
            FLOOR <= Version(1, 15, 1) && FLOOR < Version(1, 16, 0) && FLOOR < Version(2, 0, 0)
        );
    }
}
