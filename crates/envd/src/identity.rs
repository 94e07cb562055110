//! The machine's ids for programs: `machine-id(5)` and the boot's id. The kernel makes the latter
//! and never changes it. Files in memory show both, so that a copy of a guest has ids of its own at
//! once.

use crate::console::console;
use anyhow::Context;
use rustix::mount::mount_bind;
use rustix::rand::{GetRandomFlags, getrandom};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// File of the kernel that shows the boot's id.
pub(crate) const BOOT: &str = "/proc/sys/kernel/random/boot_id";
const OWN_BOOT: &str = "/run/boot_id";
const MACHINE: &str = "/etc/machine-id";
const OWN_MACHINE: &str = "/run/machine-id";

/// The files that show both ids. They are opened before the first program runs. So root in the
/// guest cannot hold up a later epoch by changing their paths.
pub(crate) struct Ids {
    boot: File,
    machine: File,
}

/// Shows a new machine id, and the boot's own id. Root in the guest may have replaced
/// `/etc/machine-id`. The console then tells why the id is not shown there.
pub(crate) fn show() -> anyhow::Result<Ids> {
    let ids = Ids::create(OWN_BOOT.as_ref(), OWN_MACHINE.as_ref())?;
    mount_bind(OWN_BOOT, BOOT).with_context(|| format!("cannot mount over {BOOT}"))?;
    if let Err(error) = show_machine() {
        console(&format!("envd: cannot show the machine id in {MACHINE}: {error:#}"));
    }
    Ok(ids)
}

fn show_machine() -> anyhow::Result<()> {
    match fs::symlink_metadata(MACHINE) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            File::create_new(MACHINE).context("cannot create the file")?;
        }
        found => anyhow::ensure!(
            found.context("cannot inspect the file")?.is_file(),
            "the path is not a file"
        ),
    }
    mount_bind(OWN_MACHINE, MACHINE).context("cannot mount the machine id")
}

impl Ids {
    /// Creates the files of both ids: of this boot, and of a new machine.
    pub(crate) fn create(boot: &Path, machine: &Path) -> anyhow::Result<Self> {
        let boot = create(boot).context("cannot create the boot id")?;
        let id = fs::read_to_string(BOOT).context("cannot read the boot id")?;
        fill(&boot, &id).context("cannot create the boot id")?;
        let machine = create(machine).context("cannot create the machine id")?;
        fill(&machine, &machine_id(random()?)).context("cannot create the machine id")?;
        Ok(Self { boot, machine })
    }

    /// Makes new ids, as for another machine that has just booted.
    pub(crate) fn renew(&self) -> io::Result<()> {
        fill(&self.boot, &boot_id(random()?))?;
        fill(&self.machine, &machine_id(random()?))
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o444).open(path)
}

/// Overwrites a file in place, since mounts refer to its inode.
fn fill(file: &File, contents: &str) -> io::Result<()> {
    file.write_all_at(contents.as_bytes(), 0)?;
    file.set_len(contents.len() as u64)
}

/// Makes the bits of a random UUID (RFC 9562, version 4). Does not read the kernel's
/// `/proc/sys/kernel/random/uuid`, since root in the guest may have covered it.
fn random() -> io::Result<u128> {
    let mut bytes = [0_u8; 16];
    // Like the kernel's own UUIDs, this does not wait for randomness at boot.
    getrandom(&mut bytes[..], GetRandomFlags::INSECURE)?;
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    Ok(u128::from_be_bytes(bytes))
}

fn machine_id(uuid: u128) -> String {
    format!("{uuid:032x}\n")
}

fn boot_id(uuid: u128) -> String {
    let digits = format!("{uuid:032x}");
    let (a, b, c, d, e) =
        (&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]);
    format!("{a}-{b}-{c}-{d}-{e}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode, mkfifoat};

    #[test]
    fn boot_id_and_machine_id_have_their_formats() {
        let uuid = 0x0123_4567_89ab_4def_8123_4567_89ab_cdef;
        assert_eq!(boot_id(uuid), "01234567-89ab-4def-8123-456789abcdef\n");
        assert_eq!(machine_id(uuid), "0123456789ab4def8123456789abcdef\n");
        let random = boot_id(random().unwrap());
        assert_eq!(random.as_bytes()[14], b'4');
        assert!(b"89ab".contains(&random.as_bytes()[19]), "{random}");
    }

    #[test]
    fn ids_are_renewed_without_blocking_when_pipes_replace_their_files() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (boot, machine) = (create(&at("boot")).unwrap(), create(&at("machine")).unwrap());
        fill(&machine, "the id of another machine, with more text than an id has\n").unwrap();
        for name in ["boot", "machine"] {
            // A second name shows the same file, like a mount.
            fs::rename(at(name), at(&format!("{name}-shown"))).unwrap();
            mkfifoat(CWD, at(name), Mode::from_raw_mode(0o600)).unwrap();
        }
        let ids = Ids { boot, machine };
        let shown = || {
            ids.renew().unwrap();
            ["boot-shown", "machine-shown"].map(|name| fs::read_to_string(at(name)).unwrap())
        };
        let (first, second) = (shown(), shown());
        assert_eq!((first[0].len(), first[1].len()), (37, 33));
        assert!(first[0] != second[0] && first[1] != second[1]);
    }
}
