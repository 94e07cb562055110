//! The floor of a boot: QEMU alone with the same kernel, initramfs, image, empty disk, processor
//! and kernel command line, in a namespace with a tap, until envd's `/health` answers.

use crate::inside::Inside;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tests::{Platform, processes_of};

const NAMESPACE: &str = "wrenn-bench";
/// As often as the agent looks.
const POLL: Duration = Duration::from_millis(10);

/// What a bare machine is started with.
pub(crate) struct Bare {
    images: PathBuf,
    dir: tempfile::TempDir,
    /// As QEMU was given them for a capsule.
    taken: Vec<String>,
}

impl Bare {
    /// Takes what matters from a running capsule's machine.
    pub(crate) fn like(platform: &Platform, capsule: &str) -> Self {
        let pid = processes_of(capsule)[0];
        let args = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        let args: Vec<String> =
            args.split(|b| *b == 0).map(|a| String::from_utf8_lossy(a).into_owned()).collect();
        let mut taken = Vec::new();
        for flag in ["-M", "-accel", "-cpu", "-smp", "-m", "-append", "-sandbox"] {
            let at = args.iter().position(|arg| arg == flag).unwrap();
            taken.extend([flag.to_owned(), args[at + 1].clone()]);
        }
        let this = Self {
            images: platform.dir().join("images"),
            dir: tempfile::tempdir().unwrap(),
            taken,
        };
        this.remove();
        for command in [
            format!("netns add {NAMESPACE}"),
            format!("-n {NAMESPACE} tuntap add tap0 mode tap"),
            format!("-n {NAMESPACE} link set tap0 address 02:57:52:00:00:01 up"),
            format!("-n {NAMESPACE} addr add 169.254.0.1/30 dev tap0"),
        ] {
            assert!(ip(&command), "ip {command}");
        }
        this
    }

    fn remove(&self) {
        ip(&format!("netns del {NAMESPACE}"));
    }

    /// Boots one and returns how long it took.
    pub(crate) fn boot(&self) -> Duration {
        let disk = self.dir.path().join("disk.ext4");
        make_disk(&disk);
        let inside = Inside::enter(Path::new(&format!("/run/netns/{NAMESPACE}")));
        let file = |name: &str| self.images.join(name).display().to_string();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", NAMESPACE, "qemu-system-x86_64"]).args(&self.taken);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.args(["-kernel", &file("boot/vmlinux"), "-initrd", &file("boot/initramfs")]);
        command.args(["-serial", "null"]);
        let image = file("templates/base/rootfs.ext4");
        for (id, drive) in [
            ("d0", format!("id=d0,file={image},format=raw,if=none,readonly=on")),
            ("d1", format!("id=d1,file={},format=raw,if=none,discard=unmap", disk.display())),
        ] {
            command.args(["-drive", &drive, "-device", &format!("virtio-blk-device,drive={id}")]);
        }
        command.args(["-netdev", "tap,id=net0,ifname=tap0,script=no,downscript=no"]);
        command.args(["-device", "virtio-net-device,netdev=net0,mac=52:54:00:00:00:02"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let started = Instant::now();
        let mut machine = command.spawn().unwrap();
        inside.run(|runtime, client| runtime.block_on(wait_healthy(client)));
        let took = started.elapsed();
        machine.kill().unwrap();
        machine.wait().unwrap();
        took
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.remove();
    }
}

async fn wait_healthy(client: &reqwest::Client) {
    for _ in 0..6000 {
        let asked = client.get("http://169.254.0.2:49983/health").send();
        if tokio::time::timeout(Duration::from_secs(1), asked).await.is_ok_and(|a| a.is_ok()) {
            return;
        }
        tokio::time::sleep(POLL).await;
    }
    panic!("the bare machine did not get up");
}

/// The capsule's own disk, as the agent makes it.
fn make_disk(path: &Path) {
    let file = std::fs::File::create(path).unwrap();
    file.set_len(5 << 30).unwrap();
    let options = ["-q", "-F", "-O", "^resize_inode", "-m", "0", "-i", "65536", "-E"];
    let made = Command::new("mkfs.ext4")
        .args(options)
        .arg("nodiscard,assume_storage_prezeroed=1")
        .arg(path)
        .status();
    assert!(made.unwrap().success());
}

fn ip(command: &str) -> bool {
    let out = Command::new("ip").args(command.split(' ')).output().unwrap();
    out.status.success()
}
