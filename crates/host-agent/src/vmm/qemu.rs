//! QEMU's `microvm` machine, on KVM or with software emulation.
//!
//! The process is unprivileged, in empty namespaces, under QEMU's own seccomp filter, and
//! gets every resource as an open descriptor. Guest output goes to a ring buffer inside it,
//! so a guest cannot fill the host's disk; a guest that ends leaves it paused, so that the
//! last words can still be read.

use super::qmp::{self, Qmp};
use super::{Disks, Driver, Error, Machine, Record, Spec, kill_record, wait_record};
use crate::network::plan::GUEST_MAC;
use crate::sys::{self, FIRST_FD, VmmCommand};
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::json;
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const PROGRAM: &str = "qemu-system-x86_64";
/// Console kept, in bytes; a power of two, by QEMU's rule.
const CONSOLE: usize = 64 * 1024;
const CONSOLE_LOG: &str = "console.log";
const LOG: &str = "qemu.log";
/// What QEMU itself may have said, in bytes, before it is forgotten.
const LOG_MAX: u64 = 1 << 20;
/// How much of its last words is told, in bytes.
const WORDS: usize = 2000;
/// What QEMU says of each feature that emulation lacks.
const HARMLESS: &str = "TCG doesn't support requested feature";
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
}

impl Qemu {
    /// The emulating driver.
    pub(crate) fn tcg(kernel: PathBuf, initramfs: PathBuf, dns: Vec<IpAddr>) -> Self {
        let accelerator = Accelerator::Tcg { tsc_khz: sys::tsc_khz() };
        Self { accelerator, kernel, initramfs, dns }
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
        let kernel = pass(File::open(&self.kernel)?.into());
        let initramfs = pass(File::open(&self.initramfs)?.into());
        args.extend(words(&["-kernel", &format!("/proc/self/fd/{kernel}")]));
        args.extend(words(&["-initrd", &format!("/proc/self/fd/{initramfs}")]));
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
            "microvm",
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
            "-append",
            &self.command_line(),
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
}

impl Default for Devices {
    fn default() -> Self {
        Self { disks: None, tap: None, uid: 65_534, cgroups: Vec::new() }
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
        async move {
            let sizes =
                Sizes { vcpus: spec.resources.vcpus, memory_mib: spec.resources.memory_mib };
            let devices =
                Devices { disks: spec.disks, tap: spec.tap, uid: spec.uid, cgroups: spec.cgroups };
            let machine = self.spawn(&spec.name, &sizes, &spec.dir, devices);
            let machine = machine.map_err(|e| Error::new("starting QEMU", e))?;
            Ok(Box::new(machine) as Box<dyn Machine>)
        }
        .boxed()
    }

    fn adopt(&self, record: &Record, dir: PathBuf) -> Option<Box<dyn Machine>> {
        let machine = QemuMachine { record: record.clone(), dir };
        record.lives().then(|| Box::new(machine) as Box<dyn Machine>)
    }
}

struct QemuMachine {
    record: Record,
    dir: PathBuf,
}

impl QemuMachine {
    async fn watch(&self) -> io::Result<String> {
        Qmp::connect(&self.dir, qmp::EVENTS).await?.guest_ended().await
    }

    /// Takes what is new from the ring and keeps it beside what was read before.
    async fn drain_console(&self) -> io::Result<()> {
        let mut qmp = Qmp::connect(&self.dir, qmp::COMMANDS).await?;
        let arguments = json!({ "device": "console", "size": CONSOLE, "format": "base64" });
        let read = qmp.command("ringbuf-read", arguments).await?;
        use base64::Engine;
        let new = base64::engine::general_purpose::STANDARD.decode(read.as_str().unwrap_or(""));
        let mut all = self.kept_console();
        all.extend(new.map_err(io::Error::other)?);
        let from = all.len().saturating_sub(CONSOLE);
        std::fs::write(self.dir.join(CONSOLE_LOG), &all[from..])
    }

    fn kept_console(&self) -> Vec<u8> {
        std::fs::read(self.dir.join(CONSOLE_LOG)).unwrap_or_default()
    }
}

impl Machine for QemuMachine {
    fn record(&self) -> Record {
        self.record.clone()
    }

    fn loopback(&self, _port: u16) -> Option<SocketAddr> {
        None
    }

    fn ended(&self) -> BoxFuture<'_, String> {
        async {
            tokio::select! {
                () = wait_record(&self.record) => "the VMM ended".to_owned(),
                reason = async {
                    loop {
                        match self.watch().await {
                            Ok(reason) => break reason,
                            // QEMU serves one connection at a time, or has just gone.
                            Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
                        }
                    }
                } => reason,
            }
        }
        .boxed()
    }

    fn console(&self) -> BoxFuture<'_, Vec<u8>> {
        async {
            // A machine that has ended keeps its last words in the file alone.
            let _ = self.drain_console().await;
            self.kept_console()
        }
        .boxed()
    }

    fn kill(&self) -> BoxFuture<'_, Result<(), Error>> {
        kill_record(&self.record).boxed()
    }

    fn said(&self) -> String {
        let log = std::fs::read(self.dir.join(LOG)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log[log.len().saturating_sub(WORDS)..]).into_owned();
        // An emulated processor lacks some features of its model; that ends nothing.
        let words: Vec<&str> = log.lines().filter(|line| !line.contains(HARMLESS)).collect();
        words.join("; ")
    }

    fn trim_logs(&self) {
        // QEMU appends, so that it goes on at the new end.
        let log = File::options().write(true).open(self.dir.join(LOG));
        if let Ok(log) = log
            && log.metadata().is_ok_and(|found| found.len() > LOG_MAX)
        {
            let _ = log.set_len(0);
        }
    }
}
