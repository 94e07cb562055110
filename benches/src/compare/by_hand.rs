//! QEMU by hand in the comparison: a machine that is booted for each job, without a platform. The
//! guest's agent is reached straight from the machine's namespace.

use super::MEMORY_MIB;
use super::job::{Runtime, Sandbox};
use crate::bare::{Bare, Machine, Namespace};
use crate::exec::{self, Process};
use std::time::Duration;

/// Memory that QEMU takes beside its guest's, in MiB.
const OWN_MIB: u64 = 96;
/// Time for a guest to get up while many others boot.
const BOOT: Duration = Duration::from_secs(300);

/// The parameters of all machines.
pub(super) struct ByHand {
    bare: Bare,
    accelerator: &'static str,
}

/// A booted machine. The machine ends before its namespace.
struct Booted {
    machine: Machine,
    guest: Guest,
}

/// A guest that is reached from its namespace.
pub(super) struct Guest {
    at: Namespace,
    client: Process,
}

impl Guest {
    /// Names the namespace of a machine that serves.
    pub(super) fn of(at: Namespace) -> Self {
        let client = exec::process_client(at.inside(), None);
        Self { at, client }
    }

    /// Runs a program in the guest.
    pub(super) fn run(&self, command: &[&str]) -> Result<String, String> {
        let client = self.client.clone();
        let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        self.at.inside().run(move |runtime, _| runtime.block_on(exec::run(client, &command)))
    }
}

impl ByHand {
    pub(super) fn new(bare: Bare, driver: &str) -> Self {
        let accelerator = if driver == "kvm" { "on KVM" } else { "emulated" };
        Self { bare, accelerator }
    }
}

impl Runtime for ByHand {
    fn name(&self) -> String {
        format!("QEMU by hand ({})", self.accelerator)
    }

    fn isolation(&self) -> String {
        "a machine with a kernel of its own, VMM runs as root".to_owned()
    }

    fn need_mib(&self) -> u64 {
        u64::from(MEMORY_MIB) + OWN_MIB
    }

    fn start(&self, number: usize) -> Result<Box<dyn Sandbox + '_>, String> {
        let at = Namespace::new(&format!("compare-{number}"));
        let machine = self.bare.boot_within(&at, &format!("compare-{number}.sock"), BOOT)?;
        Ok(Box::new(Booted { machine, guest: Guest::of(at) }))
    }

    fn end(self: Box<Self>) {}
}

impl Sandbox for Booted {
    fn run(&self, command: &[&str]) -> Result<String, String> {
        self.guest.run(command)
    }

    fn stop(self: Box<Self>) -> Result<(), String> {
        self.machine.end();
        drop(self.guest);
        Ok(())
    }
}
