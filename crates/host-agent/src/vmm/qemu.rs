//! QEMU's `microvm` machine, on KVM or with software emulation.
//!
//! The process is unprivileged, in empty namespaces, under QEMU's own seccomp filter. Every
//! resource comes as an open descriptor. Guest output goes to a ring buffer inside the process, so
//! a guest cannot fill the host's disk. A guest that ends leaves the process paused, so that its
//! last words can still be read.

mod machine;

use super::{Disks, Driver, Error, Found, Machine, Saved, Spec, VmmRecord};
use super::{kernel_words, kvm, metadata, on_path, qmp, socket, with_args};
use crate::network::plan::GUEST_MAC;
use crate::placeholder;
use crate::snapshot::memory::Image;
use crate::sys::{self, FIRST_FD, Identity, VmmCommand};
use futures::FutureExt;
use futures::future::BoxFuture;
use machine::{CONSOLE, LOG, QemuMachine};
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use types::Isolation;

const PROGRAM: &str = "qemu-system-x86_64";

/// Executor of the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accelerator {
    Kvm,
    /// Emulation, with the rate of the host's time stamp counter, which the guest must be told.
    Tcg {
        tsc_khz: u64,
    },
}

/// The driver, with the files from which every machine boots.
pub(crate) struct Qemu {
    pub accelerator: Accelerator,
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    pub dns: Vec<IpAddr>,
    /// Version of QEMU, on which saved machines depend.
    pub version: String,
}

impl Qemu {
    /// Returns the driver with software emulation.
    pub(crate) fn tcg(kernel: PathBuf, initramfs: PathBuf, dns: Vec<IpAddr>) -> Self {
        let accelerator = Accelerator::Tcg { tsc_khz: sys::tsc_khz() };
        // If the program is missing, the start of the first machine reports it.
        let version = sys::run(PROGRAM, &["--version"]).unwrap_or_default();
        let version = version.lines().next().unwrap_or_default().to_owned();
        Self { accelerator, kernel, initramfs, dns, version }
    }

    fn start(&self, spec: Spec, image: Option<&Image>) -> Result<QemuMachine, Error> {
        self.spawn(spec, image).map_err(|e| Error::new("cannot start QEMU", e))
    }

    fn spawn(&self, spec: Spec, image: Option<&Image>) -> io::Result<QemuMachine> {
        let dir = &spec.dir;
        let mut args = self.machine_args(&spec);
        let mut fds: Vec<OwnedFd> = Vec::new();
        let mut number = FIRST_FD;
        let mut pass = |fd: OwnedFd| {
            fds.push(fd);
            number += 1;
            number - 1
        };
        for name in [qmp::COMMANDS, qmp::EVENTS] {
            let fd = pass(socket::listen(dir, name)?.into());
            args.extend(words(&[
                "-chardev",
                &format!("socket,id=m{fd},fd={fd},server=on,wait=off"),
                "-mon",
                &format!("chardev=m{fd},mode=control"),
            ]));
        }
        // Pages are never merged with another guest's, since access times would reveal equal pages.
        let size = format!("id=m0,size={}M,merge=off", spec.resources.memory_mib);
        match image {
            None => {
                let kernel = pass(File::open(&self.kernel)?.into());
                let initramfs = pass(File::open(&self.initramfs)?.into());
                args.extend(words(&["-kernel", &format!("/proc/self/fd/{kernel}")]));
                args.extend(words(&["-initrd", &format!("/proc/self/fd/{initramfs}")]));
                let line = with_args(self.command_line(), &spec.kernel_args);
                args.extend(words(&["-append", &line]));
                args.extend(words(&["-object", &format!("memory-backend-ram,{size}")]));
            }
            // A restored guest has its kernel in its memory.
            Some(image) => {
                let image = pass(image.file.try_clone()?.into());
                let path = format!("mem-path=/proc/self/fd/{image},share=off");
                args.extend(words(&["-object", &format!("memory-backend-file,{size},{path}")]));
                args.extend(words(&["-S", "-incoming", "defer"]));
            }
        }
        for (disk, mode) in spec.disks.map(drives).transpose()?.unwrap_or_default() {
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
        if let Some(tap) = spec.tap {
            let mac = GUEST_MAC.map(|b| format!("{b:02x}")).join(":");
            args.extend(words(&[
                "-netdev",
                &format!("tap,id=net0,fd={}", pass(tap)),
                "-device",
                &format!("virtio-net-device,netdev=net0,mac={mac}"),
            ]));
        }
        let service = spec.namespace.as_ref().map(|at| metadata::serve(at, &spec.metadata));
        let service = service.transpose()?;
        let group = (self.accelerator == Accelerator::Kvm).then(kvm::group).flatten();
        let command = VmmCommand {
            program: Path::new(PROGRAM),
            capsule: &spec.name,
            dir,
            cwd: Path::new("/"),
            args,
            fds,
            identity: Some(Identity { id: spec.uid, group }),
            namespace: None,
            cgroups: spec.cgroups,
            out: None,
            log: File::options().create(true).append(true).open(dir.join(LOG))?,
        };
        let pid = i32::try_from(sys::spawn_vmm(command)?.id()).map_err(io::Error::other)?;
        let record = VmmRecord::of(pid, None).ok_or(io::ErrorKind::NotFound)?;
        Ok(QemuMachine::new(record, spec.dir, service))
    }

    fn machine_args(&self, spec: &Spec) -> Vec<String> {
        let (accel, cpu) = match self.accelerator {
            Accelerator::Kvm => ("kvm", "host"),
            // The model is named, since the meaning of `max` changes with QEMU.
            Accelerator::Tcg { .. } => ("tcg,thread=multi,tb-size=128", "EPYC"),
        };
        words(&[
            // The names of QEMU's threads tell which of them run processors.
            "-name",
            &format!("{},debug-threads=on", spec.name),
            "-M",
            "microvm,suppress-vmdesc=on,memory-backend=m0",
            // A saved state holds only the devices' state.
            "-global",
            "migration.send-configuration=off",
            "-accel",
            accel,
            "-cpu",
            cpu,
            "-smp",
            &spec.resources.vcpus.to_string(),
            "-m",
            &spec.resources.memory_mib.to_string(),
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

    /// Returns the command line of the guest's kernel; see `docs/operations.md` for each word.
    fn command_line(&self) -> String {
        let clock = match self.accelerator {
            Accelerator::Kvm => String::new(),
            // Without these words, an emulated guest may wait for ever to learn its clock's rate.
            Accelerator::Tcg { tsc_khz } => {
                format!("tsc_early_khz={tsc_khz} tsc=reliable no_timer_check mitigations=off ")
            }
        };
        format!("{clock}panic=-1 reboot=t {}", kernel_words(&self.dns))
    }
}

/// Returns the file of each drive in the guest's order, with the options by which it is opened.
fn drives(disks: Disks) -> io::Result<Vec<(File, &'static str)>> {
    const READ_ONLY: &str = "readonly=on";
    let mut drives =
        vec![(disks.image, READ_ONLY), (disks.own, "auto-read-only=off,discard=unmap")];
    drives.extend(disks.read_only.into_iter().map(|disk| (disk, READ_ONLY)));
    for placeholder in placeholder::first(disks.placeholders) {
        let options = if placeholder.read_only { READ_ONLY } else { "auto-read-only=off" };
        drives.push((placeholder.open()?, options));
    }
    Ok(drives)
}

fn words(args: &[&str]) -> Vec<String> {
    args.iter().map(|&a| a.to_owned()).collect()
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

    fn isolation(&self) -> Isolation {
        match self.accelerator {
            Accelerator::Kvm => Isolation::Kvm,
            Accelerator::Tcg { .. } => Isolation::Tcg,
        }
    }

    fn boots_images(&self) -> bool {
        true
    }

    fn programs(&self) -> Vec<PathBuf> {
        on_path(PROGRAM).into_iter().collect()
    }

    fn boot(&self, spec: Spec) -> BoxFuture<'_, Result<Box<dyn Machine>, Error>> {
        async move { Ok(Box::new(self.start(spec, None)?) as Box<dyn Machine>) }.boxed()
    }

    fn fingerprint(&self) -> String {
        // The processor counts under emulation too, since its counter measures the guest's clock.
        format!("qemu {} {} {}", self.version, self.accelerator(), sys::cpu_model())
    }

    fn restore(&self, spec: Spec, saved: Saved) -> BoxFuture<'_, Result<Box<dyn Machine>, Error>> {
        async move {
            let bytes = u64::from(spec.resources.memory_mib) << 20;
            let machine = self.start(spec, Some(&Arc::clone(&saved.image)))?;
            if let Err(error) = machine.load(saved, bytes).await {
                tracing::warn!(
                    log_tail = machine.log_tail(),
                    "QEMU failed to load a saved machine"
                );
                super::kill_failed(&machine).await;
                return Err(Error::new("cannot load the saved machine", error));
            }
            Ok(Box::new(machine) as Box<dyn Machine>)
        }
        .boxed()
    }

    fn adopt(&self, found: Found<'_>) -> Option<Box<dyn Machine>> {
        if !found.record.is_alive() {
            return None;
        }
        let served = found.namespace.map(|at| metadata::serve(at, &found.metadata));
        let warn = |error: &io::Error| {
            tracing::warn!(%error, "cannot serve the metadata of an adopted guest");
        };
        let service = served.and_then(|served| served.inspect_err(warn).ok());
        Some(Box::new(QemuMachine::new(found.record.clone(), found.dir.to_owned(), service)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn read_only_disks_come_between_own_disk_and_placeholders() {
        let files: Vec<File> = (0..4).map(|_| tempfile::tempfile().unwrap()).collect();
        let order: Vec<u64> = files.iter().map(|f| f.metadata().unwrap().ino()).collect();
        let mut files = files.into_iter();
        let mut next = || files.next().unwrap();
        let disks = Disks {
            image: next(),
            own: next(),
            read_only: vec![next(), next()],
            placeholders: placeholder::COUNT,
        };
        let drives = drives(disks).unwrap();
        let found = drives.iter().map(|(file, _)| file.metadata().unwrap().ino());
        assert_eq!(found.take(4).collect::<Vec<_>>(), order);
        let options: Vec<&str> = drives.iter().map(|(_, options)| *options).collect();
        assert_eq!(options.iter().filter(|options| **options == "readonly=on").count(), 4);
        assert_eq!((options.len(), options[3]), (6, "readonly=on"));
    }
}
