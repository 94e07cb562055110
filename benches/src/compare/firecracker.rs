//! Firecracker by hand in the comparison, where KVM boots a guest. Each job boots a machine,
//! without jailer and platform.

use super::MEMORY_MIB;
use super::by_hand::Guest;
use super::job::{Runtime, Sandbox};
use crate::bare::{Bare, Namespace, make_disk};
use crate::firecracker::Running;
use serde_json::json;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;

/// Memory that Firecracker takes beside its guest's, in MiB.
const OWN_MIB: u64 = 16;
/// Time for a guest to get up while many others boot.
const BOOT: Duration = Duration::from_secs(300);

/// The files of all machines.
pub(super) struct Firecracker {
    program: PathBuf,
    kernel: PathBuf,
    initramfs: PathBuf,
    image: PathBuf,
    line: String,
    dir: TempDir,
}

/// A booted machine. The machine ends before its namespace.
struct Booted {
    running: Running,
    guest: Guest,
}

impl Firecracker {
    /// Takes kernel, initramfs, image and command line of QEMU's machine.
    pub(super) fn new(program: PathBuf, bare: &Bare) -> Self {
        let dir = tempfile::Builder::new().prefix("wrenn-compare-").tempdir_in("/dev/shm");
        Self {
            program,
            kernel: bare.boot_dir().join("vmlinux"),
            initramfs: bare.boot_dir().join("initramfs"),
            image: bare.image().to_owned(),
            // Firecracker ends at a reset by the keyboard's controller.
            line: bare.kernel_line().replace("reboot=t", "reboot=k"),
            dir: dir.unwrap(),
        }
    }

    /// Describes the machine to a started Firecracker and boots it.
    fn boot(&self, running: &Running) {
        let size = json!({ "vcpu_count": 1, "mem_size_mib": MEMORY_MIB });
        running.ask("PUT", "/machine-config", &size);
        let source = json!({ "kernel_image_path": self.kernel, "initrd_path": self.initramfs,
            "boot_args": self.line });
        running.ask("PUT", "/boot-source", &source);
        let disk = running.root().join("disk.ext4");
        for (id, path, read_only) in [("image", &self.image, true), ("disk", &disk, false)] {
            let drive = json!({ "drive_id": id, "path_on_host": path, "is_root_device": false,
                "is_read_only": read_only });
            running.ask("PUT", &format!("/drives/{id}"), &drive);
        }
        let network = json!({ "iface_id": "eth0", "guest_mac": "52:54:00:00:00:02",
            "host_dev_name": "tap0" });
        running.ask("PUT", "/network-interfaces/eth0", &network);
        running.ask("PUT", "/actions", &json!({ "action_type": "InstanceStart" }));
    }
}

impl Runtime for Firecracker {
    fn name(&self) -> String {
        "Firecracker by hand".to_owned()
    }

    fn isolation(&self) -> String {
        "a machine with a kernel of its own, VMM runs as root, no jailer".to_owned()
    }

    fn need_mib(&self) -> u64 {
        u64::from(MEMORY_MIB) + OWN_MIB
    }

    fn start(&self, number: usize) -> Result<Box<dyn Sandbox + '_>, String> {
        let at = Namespace::new(&format!("compare-{number}"));
        let root = self.dir.path().join(number.to_string());
        fs::create_dir(&root).map_err(|error| error.to_string())?;
        make_disk(&root.join("disk.ext4"));
        let running = Running::start(&self.program, &root, at.name());
        self.boot(&running);
        if !at.is_healthy_within(BOOT) {
            running.end();
            return Err(format!("the machine {number} did not get up within {BOOT:?}"));
        }
        Ok(Box::new(Booted { running, guest: Guest::of(at) }))
    }

    fn end(self: Box<Self>) {}
}

impl Sandbox for Booted {
    fn run(&self, command: &[&str]) -> Result<String, String> {
        self.guest.run(command)
    }

    fn stop(self: Box<Self>) -> Result<(), String> {
        self.running.end();
        drop(self.guest);
        Ok(())
    }
}
