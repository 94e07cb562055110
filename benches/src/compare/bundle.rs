//! Bundles of containers by the OCI's runtime specification. The root file system of the template
//! `base` is unpacked once. Each container has an overlay over it, as Docker makes it.

use super::MEMORY_MIB;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Time for the kernel to let go of a mount.
const UNMOUNT: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);

/// Unpacks a root image with Debian's erofs-utils. The folder goes with the value.
pub(super) fn root(image: &Path) -> TempDir {
    let dir = tempfile::Builder::new().prefix("wrenn-compare-").tempdir_in("/var/tmp").unwrap();
    let to = dir.path().join("root");
    let mut unpack = Command::new("fsck.erofs");
    unpack.arg(format!("--extract={}", to.display())).arg(image);
    let out = unpack.output().expect("fsck.erofs is missing");
    assert!(out.status.success(), "fsck.erofs: {}", String::from_utf8_lossy(&out.stderr));
    assert!(to.join("usr/bin/python3").exists(), "the template `base` has no Python");
    dir
}

/// A container's bundle, with its root mounted.
pub(super) struct Bundle {
    pub dir: PathBuf,
}

impl Bundle {
    /// Makes a bundle in a new folder over the unpacked root.
    pub(super) fn make(dir: PathBuf, root: &Path, id: &str) -> Result<Self, String> {
        let text = |error: std::io::Error| format!("the bundle of {id}: {error}");
        for name in ["upper", "work", "rootfs"] {
            fs::create_dir_all(dir.join(name)).map_err(text)?;
        }
        fs::write(dir.join("config.json"), config(id).to_string()).map_err(text)?;
        let at = |name: &str| dir.join(name).display().to_string();
        let (lower, upper, work) = (root.join("root"), at("upper"), at("work"));
        let layers = format!("lowerdir={},upperdir={upper},workdir={work}", lower.display());
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "-o", &layers, "overlay"]).arg(dir.join("rootfs"));
        run(&mut mount)?;
        Ok(Self { dir })
    }

    /// Unmounts the root and removes the folder. A container's last process may hold the mount for
    /// a moment.
    pub(super) fn remove(self) -> Result<(), String> {
        let limit = Instant::now() + UNMOUNT;
        while let Err(error) = run(Command::new("umount").arg(self.dir.join("rootfs"))) {
            if Instant::now() > limit {
                return Err(error);
            }
            std::thread::sleep(LOOK);
        }
        fs::remove_dir_all(&self.dir).map_err(|error| error.to_string())
    }
}

/// Runs a command that must succeed. Returns its output.
pub(super) fn run(command: &mut Command) -> Result<String, String> {
    let out = command.output().map_err(|error| error.to_string())?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&out.stderr)))
}

/// Returns the configuration of a container that waits for programs. The container has few
/// capabilities, no network but its own loopback, and a capsule's memory.
fn config(id: &str) -> Value {
    let kinds = ["pid", "ipc", "uts", "mount", "network"];
    let namespaces: Vec<Value> = kinds.iter().map(|kind| json!({ "type": kind })).collect();
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": ["sleep", "infinity"],
            // The variable marks processes that are left.
            "env": [path, "WRENN_BENCH=1"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": false },
        "hostname": "compare",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
        ],
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": format!("/{id}"),
            "resources": { "memory": { "limit": u64::from(MEMORY_MIB) << 20 } },
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
