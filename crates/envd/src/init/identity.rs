//! Which machine this is, for programs: `machine-id(5)`, and the boot's id, which the kernel gives
//! and never changes. Both are shown from files in memory, so that a guest which begins as a copy
//! of another has others at once.

use anyhow::Context;
use rustix::mount::mount_bind;
use std::io;

const RANDOM: &str = "/proc/sys/kernel/random/uuid";
const BOOT: &str = "/proc/sys/kernel/random/boot_id";
const OWN_BOOT: &str = "/run/boot_id";
const MACHINE: &str = "/etc/machine-id";
const OWN_MACHINE: &str = "/run/machine-id";

/// Shows a new machine's id, and the boot's own. Root in the guest may have made anything of
/// `/etc/machine-id`. In such a case the console tells why the id is not shown there.
pub(super) fn show() -> anyhow::Result<()> {
    std::fs::copy(BOOT, OWN_BOOT).context("reading the boot's id")?;
    std::fs::write(OWN_MACHINE, machine_id()?).context("making the machine's id")?;
    mount_bind(OWN_BOOT, BOOT).with_context(|| format!("showing {BOOT}"))?;
    if let Err(error) = show_machine() {
        super::console(&format!("envd: {MACHINE} does not show the machine's id: {error:#}"));
    }
    Ok(())
}

fn show_machine() -> anyhow::Result<()> {
    match std::fs::symlink_metadata(MACHINE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::File::create_new(MACHINE).context("making it")?;
        }
        found => anyhow::ensure!(found.context("looking at it")?.is_file(), "it is no file"),
    }
    mount_bind(OWN_MACHINE, MACHINE).context("mounting it")
}

/// Becomes another machine, which has just booted.
pub(crate) fn renew() -> io::Result<()> {
    std::fs::write(OWN_BOOT, std::fs::read(RANDOM)?)?;
    std::fs::write(OWN_MACHINE, machine_id()?)
}

fn machine_id() -> io::Result<String> {
    Ok(std::fs::read_to_string(RANDOM)?.replace('-', ""))
}
