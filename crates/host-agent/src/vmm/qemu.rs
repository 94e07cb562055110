//! QEMU's `microvm` machine, on KVM or with software emulation.
//!
//! The process is unprivileged, in empty namespaces, under QEMU's own seccomp filter, and
//! gets every resource as an open descriptor. Guest output goes to a ring buffer inside it,
//! so a guest cannot fill the host's disk; a guest that ends leaves it paused, so that the
//! last words can still be read.

mod machine;

use super::qmp;
use super::{Disks, Driver, Error, Machine, Record, Saved, Spec};
use crate::network::plan::GUEST_MAC;
use crate::sys::{self, FIRST_FD, VmmCommand};
use futures::FutureExt;
use futures::future::BoxFuture;
use machine::QemuMachine;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const PROGRAM: &str = "qemu-system-x86_64";
/// Console kept, in bytes; a power of two, by QEMU's rule.
const CONSOLE: usize = 64 * 1024;
const LOG: &str = "qemu.log";
/// What only a kernel that got to its first process can have written.
const PROBE_WORD: &[u8] = b"envd:";

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accelerator {
    Kvm,
    /// Emulation; with the host's time stamp counter rate, which the guest must be told.
    Tcg {
        tsc_khz: u64,
    },
}

/// The driver, with what every machine boots from.
pub(crate) struct Qemu {
    pub accelerator: Accelerator,
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    pub dns: Vec<IpAddr>,
    /// QEMU's own, which saved machines depend on.
    pub version: String,
}

impl Qemu {
    /// The emulating driver.
    pub(crate) fn tcg(kernel: PathBuf, initramfs: PathBuf, dns: Vec<IpAddr>) -> Self {
        let accelerator = Accelerator::Tcg { tsc_khz: sys::tsc_khz() };
        // Without the program, the first machine tells that it is missing.
        let version = sys::run(PROGRAM, &["--version"]).unwrap_or_default();
        let version = version.lines().next().unwrap_or_default().to_owned();
        Self { accelerator, kernel, initramfs, dns, version }
    }

    /// Boots the guest's kernel without disks, in `dir`, to see whether it gets up in time.
    ///
    /// # Errors
    /// Why not, for people.
    pub(crate) async fn probe(&self, name: &str, dir: &Path, limit: Duration) -> Result<(), Error> {
        let fail = |e| Error::new("booting a probe guest", e);
        let sizes = Sizes { vcpus: 1, memory_mib: 128 };
        let machine = self.spawn(name, &sizes, dir, Devices::default());
        let machine = machine.map_err(fail)?;
        let limit = tokio::time::Instant::now() + limit;
        let mut result = Err(fail(io::ErrorKind::TimedOut.into()));
        while tokio::time::Instant::now() < limit {
            let console = machine.console().await;
            if console.windows(PROBE_WORD.len()).any(|w| w == PROBE_WORD) {
                result = Ok(());
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        machine.kill().await?;
        result
    }

    fn start(&self, spec: Spec, image: Option<Arc<File>>) -> Result<QemuMachine, Error> {
        let sizes = Sizes { vcpus: spec.resources.vcpus, memory_mib: spec.resources.memory_mib };
        let Spec { disks, tap, uid, cgroups, .. } = spec;
        let devices = Devices { disks, tap, uid, cgroups, image };
        let machine = self.spawn(&spec.name, &sizes, &spec.dir, devices);
        machine.map_err(|e| Error::new("starting QEMU", e))
    }

    fn spawn(
        &self,
        name: &str,
        sizes: &Sizes,
        dir: &Path,
        devices: Devices,
    ) -> io::Result<QemuMachine> {
        let mut args = self.machine_args(name, sizes);
        let mut fds: Vec<OwnedFd> = Vec::new();
        let mut number = FIRST_FD;
        let mut pass = |fd: OwnedFd| {
            fds.push(fd);
            number += 1;
            number - 1
        };
        for socket in [qmp::COMMANDS, qmp::EVENTS] {
            let fd = pass(qmp::listen(dir, socket)?.into());
            args.extend(words(&[
                "-chardev",
                &format!("socket,id=m{fd},fd={fd},server=on,wait=off"),
                "-mon",
                &format!("chardev=m{fd},mode=control"),
            ]));
        }
        // Never merged with another's: that what is equal is shared could be told by its speed.
        let size = format!("id=m0,size={}M,merge=off", sizes.memory_mib);
        match devices.image {
            None => {
                let kernel = pass(File::open(&self.kernel)?.into());
                let initramfs = pass(File::open(&self.initramfs)?.into());
                args.extend(words(&["-kernel", &format!("/proc/self/fd/{kernel}")]));
                args.extend(words(&["-initrd", &format!("/proc/self/fd/{initramfs}")]));
                args.extend(words(&["-append", &self.command_line()]));
                args.extend(words(&["-object", &format!("memory-backend-ram,{size}")]));
            }
            // A restored guest has its kernel in its memory.
            Some(image) => {
                let image = pass(image.try_clone()?.into());
                let path = format!("mem-path=/proc/self/fd/{image},share=off");
                args.extend(words(&["-object", &format!("memory-backend-file,{size},{path}")]));
                args.extend(words(&["-S", "-incoming", "defer"]));
            }
        }
        let disks = devices.disks.into_iter();
        let modes = disks
            .flat_map(|d| [(d.image, "readonly=on"), (d.own, "auto-read-only=off,discard=unmap")]);
        for (disk, mode) in modes {
            let fd = pass(disk.into());
            args.extend(words(&[
                "-add-fd",
                &format!("fd={fd},set={fd}"),
                "-drive",
                &format!(
                    "id=d{fd},file=/dev/fdset/{fd},format=raw,if=none,file.locking=off,{mode}"
                ),
                "-device",
                &format!("virtio-blk-device,drive=d{fd}"),
            ]));
        }
        if let Some(tap) = devices.tap {
            let mac = GUEST_MAC.map(|b| format!("{b:02x}")).join(":");
            args.extend(words(&[
                "-netdev",
                &format!("tap,id=net0,fd={}", pass(tap)),
                "-device",
                &format!("virtio-net-device,netdev=net0,mac={mac}"),
            ]));
        }
        let log = File::options().create(true).append(true).open(dir.join(LOG))?;
        let group = (self.accelerator == Accelerator::Kvm).then(kvm_group).flatten();
        let command = VmmCommand {
            program: PROGRAM,
            capsule: name,
            dir,
            args,
            fds,
            id: devices.uid,
            group,
            cgroups: devices.cgroups,
            log,
        };
        let pid = i32::try_from(sys::spawn_vmm(command)?.id()).map_err(io::Error::other)?;
        let record = Record::of(pid, None).ok_or(io::ErrorKind::NotFound)?;
        Ok(QemuMachine { record, dir: dir.to_owned() })
    }

    fn machine_args(&self, name: &str, sizes: &Sizes) -> Vec<String> {
        let (accel, cpu) = match self.accelerator {
            Accelerator::Kvm => ("kvm", "host"),
            // A named model: what `max` means changes with QEMU.
            Accelerator::Tcg { .. } => ("tcg,thread=multi,tb-size=128", "EPYC"),
        };
        words(&[
            "-name",
            name,
            "-M",
            "microvm,suppress-vmdesc=on,memory-backend=m0",
            // Of a state that is loaded, nothing but the devices' is there.
            "-global",
            "migration.send-configuration=off",
            "-accel",
            accel,
            "-cpu",
            cpu,
            "-smp",
            &sizes.vcpus.to_string(),
            "-m",
            &sizes.memory_mib.to_string(),
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-action",
            "panic=pause,shutdown=pause,reboot=shutdown",
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            "-chardev",
            &format!("ringbuf,id=console,size={CONSOLE}"),
            "-serial",
            "chardev:console",
        ])
    }

    /// What the guest's kernel is told; see `docs/operations.md` for each word.
    fn command_line(&self) -> String {
        let dns: Vec<String> = self.dns.iter().map(IpAddr::to_string).collect();
        let clock = match self.accelerator {
            Accelerator::Kvm => String::new(),
            // Without these an emulated guest may wait for ever to learn its clock's rate.
            Accelerator::Tcg { tsc_khz } => {
                format!("tsc_early_khz={tsc_khz} tsc=reliable no_timer_check mitigations=off ")
            }
        };
        format!(
            "{clock}quiet loglevel=3 console=ttyS0 panic=-1 reboot=t random.trust_cpu=on \
             cryptomgr.notests audit=0 8250.nr_uarts=1 init_on_alloc=0 lsm= \
             rcupdate.rcu_expedited=1 wrenn.dns={}",
            dns.join(",")
        )
    }
}

struct Sizes {
    vcpus: u32,
    memory_mib: u32,
}

/// What a machine has besides processor and memory; the probe has none of it.
struct Devices {
    disks: Option<Disks>,
    tap: Option<OwnedFd>,
    uid: u32,
    cgroups: Vec<File>,
    /// Memory to be mapped; without it, a kernel is booted.
    image: Option<Arc<File>>,
}

impl Default for Devices {
    fn default() -> Self {
        Self { disks: None, tap: None, uid: 65_534, cgroups: Vec::new(), image: None }
    }
}

fn words(args: &[&str]) -> Vec<String> {
    args.iter().map(|&a| a.to_owned()).collect()
}

fn kvm_group() -> Option<u32> {
    Some(std::fs::metadata("/dev/kvm").ok()?.gid()).filter(|gid| *gid != 0)
}

impl Driver for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn accelerator(&self) -> &'static str {
        match self.accelerator {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg { .. } => "tcg",
        }
    }

    fn boots_images(&self) -> bool {
        true
    }

    fn boot(&self, spec: Spec) -> BoxFuture<'_, Result<Box<dyn Machine>, Error>> {
        async move { Ok(Box::new(self.start(spec, None)?) as Box<dyn Machine>) }.boxed()
    }

    fn fingerprint(&self) -> String {
        // The processor counts under emulation too: the guest's clock is measured by its.
        format!("qemu {} {} {}", self.version, self.accelerator(), sys::cpu_model())
    }

    fn restore(&self, spec: Spec, saved: Saved) -> BoxFuture<'_, Result<Box<dyn Machine>, Error>> {
        async move {
            let bytes = u64::from(spec.resources.memory_mib) << 20;
            let machine = self.start(spec, Some(Arc::clone(&saved.image)))?;
            if let Err(error) = machine.load(saved, bytes).await {
                tracing::warn!(said = machine.said(), "QEMU did not load a saved machine");
                machine.kill().await?;
                return Err(Error::new("loading the saved machine", error));
            }
            Ok(Box::new(machine) as Box<dyn Machine>)
        }
        .boxed()
    }

    fn adopt(&self, record: &Record, dir: PathBuf) -> Option<Box<dyn Machine>> {
        let machine = QemuMachine { record: record.clone(), dir };
        record.lives().then(|| Box::new(machine) as Box<dyn Machine>)
    }
}
