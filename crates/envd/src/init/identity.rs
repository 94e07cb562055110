//! Which machine this is, for programs: `machine-id(5)`, and the boot's id, which the kernel gives
//! and never changes. Both are shown from files in memory, so that a guest which begins as a copy
//! of another has others at once.

use rustix::mount::mount_bind;
use std::io;
use std::path::Path;

const RANDOM: &str = "/proc/sys/kernel/random/uuid";
const BOOT: &str = "/proc/sys/kernel/random/boot_id";
const OWN_BOOT: &str = "/run/boot_id";
const MACHINE: &str = "/etc/machine-id";
const OWN_MACHINE: &str = "/run/machine-id";

/// Shows a new machine's id, and the boot's own.
pub(super) fn show() -> anyhow::Result<()> {
    use anyhow::Context;
    std::fs::copy(BOOT, OWN_BOOT).context("reading the boot's id")?;
    std::fs::write(OWN_MACHINE, machine_id()?).context("making the machine's id")?;
    if !Path::new(MACHINE).exists() {
        std::fs::write(MACHINE, "").context("making /etc/machine-id")?;
    }
    for (own, shown) in [(OWN_BOOT, BOOT), (OWN_MACHINE, MACHINE)] {
        mount_bind(own, shown).with_context(|| format!("showing {shown}"))?;
    }
    Ok(())
}

/// Becomes another machine, which has just booted.
pub(crate) fn renew() -> io::Result<()> {
    std::fs::write(OWN_BOOT, std::fs::read(RANDOM)?)?;
    std::fs::write(OWN_MACHINE, machine_id()?)
}

fn machine_id() -> io::Result<String> {
    Ok(std::fs::read_to_string(RANDOM)?.replace('-', ""))
}
