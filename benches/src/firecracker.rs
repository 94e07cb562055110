//! Costs of the jailer, of Firecracker's memory beside its guest's, and of creates with
//! Firecracker.
//!
//! `WRENN_TEST_FIRECRACKER` names the Firecracker, and the jailer stands beside it. The first two
//! need no working KVM: they load a guest and never run anything in it.

mod create;

use crate::stats::Row;
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 31;
const MEMORY_MIB: u32 = 256;
const UID: u32 = 2_200_000;
const LIMIT: Duration = Duration::from_secs(30);

/// A running Firecracker and its root.
pub(crate) struct Running {
    root: PathBuf,
    pid: i32,
    child: Child,
}

impl Running {
    /// Starts a Firecracker that works in `root`, in a network namespace. Waits for its API.
    pub(crate) fn start(firecracker: &Path, root: &Path, namespace: &str) -> Self {
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", namespace]).arg(firecracker).args(["--api-sock", "api.sock"]);
        // `ip` executes Firecracker in its own process, so the pid is Firecracker's.
        let child = quiet(inside.current_dir(root));
        let pid = i32::try_from(child.id()).unwrap();
        drop(connect(root));
        Self { root: root.to_owned(), pid, child }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Sends a request that must succeed.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &Value) {
        let body = body.to_string();
        let mut stream = connect(&self.root);
        let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}", body.len());
        stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
        let mut answer = [0; 4096];
        let count = stream.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..count]);
        assert!(answer.starts_with("HTTP/1.1 204"), "{method} {path}: {answer}");
    }

    /// Ends the process and removes the root.
    pub(crate) fn end(mut self) {
        rustix::process::kill_process(Pid::from_raw(self.pid).unwrap(), Signal::KILL).unwrap();
        let _ = self.child.wait();
        fs::remove_dir_all(&self.root).unwrap();
    }
}

fn connect(root: &Path) -> UnixStream {
    let began = Instant::now();
    loop {
        match UnixStream::connect(root.join("api.sock")) {
            Ok(stream) => return stream,
            Err(error) => assert!(began.elapsed() < LIMIT, "no API: {error}"),
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn quiet(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Starts a Firecracker that works in `root`.
fn bare(firecracker: &Path, root: &Path) -> Running {
    let mut command = Command::new(firecracker);
    let child = quiet(command.args(["--api-sock", "api.sock"]).current_dir(root));
    Running { root: root.to_owned(), pid: i32::try_from(child.id()).unwrap(), child }
}

/// Starts a jailed Firecracker. The jailer makes the root below `base`.
fn jailed(firecracker: &Path, base: &Path, root: &Path) -> Running {
    let mut command = Command::new(firecracker.with_file_name("jailer"));
    command.args(["--id", "bench", "--new-pid-ns", "--exec-file"]).arg(firecracker);
    command.args(["--uid", &UID.to_string(), "--gid", &UID.to_string()]);
    command.arg("--chroot-base-dir").arg(base);
    let mut child = quiet(command.args(["--", "--api-sock", "api.sock"]));
    assert!(child.wait().unwrap().success(), "the jailer failed");
    let name = firecracker.file_name().unwrap().to_str().unwrap();
    let pid = fs::read_to_string(root.join(format!("{name}.pid"))).unwrap();
    Running { root: root.to_owned(), pid: pid.trim().parse().unwrap(), child }
}

/// Loads the kept machine and resumes it.
fn load(running: &Running) {
    let memory = json!({ "backend_type": "File", "backend_path": "memory" });
    let body = json!({ "snapshot_path": "state", "mem_backend": memory, "resume_vm": true });
    running.ask("PUT", "/snapshot/load", &body);
}

/// Makes a root with the kept machine in it.
fn furnish(kept: &Path, root: &Path) {
    fs::create_dir_all(root).unwrap();
    for name in ["state", "memory"] {
        fs::hard_link(kept.join(name), root.join(name)).unwrap();
    }
    std::os::unix::fs::chown(root, Some(UID), Some(UID)).unwrap();
}

/// Returns the bytes of memory that are Firecracker's own, without its share of the guest's memory.
fn own_memory(pid: i32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (mut kib, mut of_guest) = (0, false);
    for line in maps.lines() {
        if let Some(number) = line.strip_prefix("Pss:") {
            let number: u64 = number.trim().trim_end_matches(" kB").parse().unwrap();
            kib += if of_guest { 0 } else { number };
        } else if line.split(' ').next().is_some_and(|range| range.contains('-')) {
            of_guest = line.ends_with("/memory");
        }
    }
    kib << 10
}

/// Returns the path of the Firecracker that the environment names, if any.
fn named() -> Option<PathBuf> {
    let named = std::env::var_os("WRENN_TEST_FIRECRACKER").map(PathBuf::from);
    if named.is_none() {
        println!("firecracker: skipped, since WRENN_TEST_FIRECRACKER names none");
    }
    Some(named?.canonicalize().unwrap())
}

/// Measures creates and resumes.
pub(crate) async fn measure() -> Vec<Row> {
    match named() {
        Some(path) => create::measure(&path).await,
        None => Vec::new(),
    }
}

/// Measures loads in a jail and without one.
pub(crate) fn jail() -> Vec<Row> {
    let Some(path) = named() else { return Vec::new() };
    let dir = tempfile::Builder::new().prefix("wrenn-jail-").tempdir().unwrap();
    let kept = dir.path().join("kept");
    keep_one(&path, &kept);
    let name = path.file_name().unwrap();
    let root = dir.path().join("jail").join(name).join("bench/root");
    let alone = dir.path().join("alone");
    let (mut ours, mut floor, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    // The first round only warms caches.
    for _ in 0..=ROUNDS {
        furnish(&kept, &alone);
        let began = Instant::now();
        let running = bare(&path, &alone);
        load(&running);
        floor.push(began.elapsed());
        running.end();
        furnish(&kept, &root);
        let began = Instant::now();
        let running = jailed(&path, &dir.path().join("jail"), &root);
        load(&running);
        ours.push(began.elapsed());
        memory.push(own_memory(running.pid));
        running.end();
    }
    let (ours, floor) = (ours.split_off(1), floor.split_off(1));
    memory.sort_unstable();
    let mib = format!("{:.1} MiB", memory[memory.len() / 2] as f64 / f64::from(1 << 20));
    Vec::from([
        Row::less("Firecracker: load and resume in a jail, less bare", &ours, &floor, "≤ 10 ms"),
        Row::new("Firecracker: of its own, beside the guest's memory", &mib, "–", &mib, "≤ 10 MiB"),
    ])
}

/// Makes and keeps a machine whose kernel is loaded into its memory.
fn keep_one(firecracker: &Path, kept: &Path) {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-images/images/boot");
    fs::create_dir_all(kept).unwrap();
    let running = bare(firecracker, kept);
    let size = json!({ "vcpu_count": 1, "mem_size_mib": MEMORY_MIB });
    running.ask("PUT", "/machine-config", &size);
    let kernel = images.join("vmlinux").canonicalize().unwrap();
    running.ask("PUT", "/boot-source", &json!({ "kernel_image_path": kernel }));
    running.ask("PUT", "/actions", &json!({ "action_type": "InstanceStart" }));
    running.ask("PATCH", "/vm", &json!({ "state": "Paused" }));
    let what = json!({ "snapshot_path": "state", "mem_file_path": "memory" });
    running.ask("PUT", "/snapshot/create", &what);
    let Running { pid, mut child, .. } = running;
    rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    child.wait().unwrap();
    for name in ["state", "memory"] {
        std::os::unix::fs::chown(kept.join(name), Some(UID), Some(UID)).unwrap();
    }
}
