//! Import of a container image against `buildah pull`, from a registry on this machine. Both sides
//! end with files that a container or guest can start from.
//!
//! The image is Debian with Python, one layer in gzip. Needs Debian's packages `buildah`,
//! `docker-registry`, `skopeo` and `mmdebstrap`.

use crate::stats::{Row, median, shown};
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PORT: u16 = 7451;
const ROUNDS: usize = 3;
/// Time between two looks at the converter's memory.
const LOOK: Duration = Duration::from_millis(10);

/// A registry with the image, which ends with this value.
struct Registry {
    process: Child,
    dir: TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn run(program: &str, args: &[&str]) {
    let out = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
}

impl Registry {
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("wrenn-images-").tempdir_in("/var/tmp").unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: 127.0.0.1:{PORT}}}\n",
            at("registry")
        );
        fs::write(at("registry.yml"), config).unwrap();
        let process = Command::new("docker-registry")
            .args(["serve", &at("registry.yml")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let this = Self { process, dir };
        while TcpStream::connect(("127.0.0.1", PORT)).is_err() {
            std::thread::sleep(LOOK);
        }
        this.push();
        this
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes the image, or takes the archive that `WRENN_BENCH_TAR` names.
    fn push(&self) {
        let archive = match std::env::var_os("WRENN_BENCH_TAR") {
            Some(given) => PathBuf::from(given),
            None => {
                let archive = self.at("image.tar");
                let text = archive.to_str().unwrap();
                let include = "--include=python3,python3-pip,git,curl,ca-certificates";
                run("mmdebstrap", &["--variant=minbase", include, "bookworm", text]);
                archive
            }
        };
        let packed = self.at("image.tar.gz");
        let script = "gzip -c \"$1\" >\"$2\"";
        run("sh", &["-c", script, "sh", archive.to_str().unwrap(), packed.to_str().unwrap()]);
        let from = format!("tarball:{}", packed.display());
        let to = format!("docker://{}", reference());
        run("skopeo", &["--insecure-policy", "copy", "-q", "--dest-tls-verify=false", &from, &to]);
    }
}

fn reference() -> String {
    format!("127.0.0.1:{PORT}/debian:1")
}

/// Imports the image into a folder. Returns the time, and the most memory of the converter in KiB.
fn import(dir: &Path, settings: &Path) -> (Duration, u64) {
    let wrenn = std::env::var_os("WRENN_BIN").expect("WRENN_BIN names the executable");
    let started = Instant::now();
    let mut child = Command::new(wrenn)
        .args(["image", "import", "bench", &reference(), "--dir"])
        .arg(dir)
        .arg("--registries")
        .arg(settings)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (mut converter, mut most) = (None, 0);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        converter = converter.or_else(|| child_of(child.id()));
        most = most.max(converter.and_then(peak).unwrap_or(0));
        std::thread::sleep(LOOK);
    };
    let took = started.elapsed();
    assert!(status.success());
    (took, most)
}

/// Returns the child of a process, if it has one.
fn child_of(pid: u32) -> Option<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let mut children =
        threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    children.find_map(|list| list.split_whitespace().next()?.parse().ok())
}

/// Returns the most memory that a process had resident so far, in KiB.
fn peak(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// Pulls the image by buildah into an empty storage.
fn pull(storage: &Path) -> Duration {
    let text = storage.to_str().unwrap();
    let (root, state) = (format!("{text}/root"), format!("{text}/run"));
    let started = Instant::now();
    let args = ["--root", &root, "--runroot", &state, "--storage-driver", "vfs", "pull", "-q"];
    run("buildah", &[&args[..], &["--tls-verify=false", &reference()]].concat());
    started.elapsed()
}

/// Measures imports of new and of known digests.
pub(crate) fn measure() -> Vec<Row> {
    let registry = Registry::start();
    let settings = registry.at("registries.toml");
    let host = format!("registries.\"127.0.0.1:{PORT}\" = {{ http = true, private = true }}\n");
    fs::write(&settings, host).unwrap();
    let (mut ours, mut theirs, mut again, mut most) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for round in 0..ROUNDS {
        let (own, storage) =
            (registry.at(&format!("own-{round}")), registry.at(&format!("buildah-{round}")));
        let (took, memory) = import(&own, &settings);
        ours.push(took);
        most = most.max(memory);
        theirs.push(pull(&storage));
        again.push(import(&own, &settings).0);
        fs::remove_dir_all(own).unwrap();
        let _ = fs::remove_dir_all(storage);
    }
    let known = median(&again);
    vec![
        Row::ratio("import of a new image ÷ buildah pull", &ours, &theirs, "≤ 0.60"),
        Row::new("import of a known digest", &shown(known), "–", &shown(known), "≤ 300 ms"),
        Row::new("converter's peak memory", &format!("{} MiB", most / 1024), "–", "", "≤ 400 MiB"),
    ]
}
