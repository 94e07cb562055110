//! Import of a container image against `buildah pull`, from a registry on this machine. Both sides
//! end with files that a container or guest can start from.
//!
//! The image has one layer in gzip. Needs Debian's packages `buildah`, `docker-registry` and
//! `skopeo`.

mod generated;

use crate::buildah::Buildah;
use crate::stats::{Row, say};
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PORT: u16 = 7451;
const ROUNDS: usize = 5;
/// Time between two looks at the converter's memory.
const LOOK: Duration = Duration::from_millis(10);
/// Time for the registry to listen.
const START: Duration = Duration::from_secs(20);
/// Argument of the converter's process.
const CONVERTER: &str = "convert-image";

/// A registry with the image, which ends with this value.
struct Registry {
    process: Child,
    dir: TempDir,
    /// Compressed bytes of the image.
    packed: u64,
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
        let mut this = Self { process, dir, packed: 0 };
        let limit = Instant::now() + START;
        while TcpStream::connect(("127.0.0.1", PORT)).is_err() {
            assert!(Instant::now() < limit, "the registry does not listen on {PORT}");
            std::thread::sleep(LOOK);
        }
        this.packed = this.push();
        this
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Pushes the generated image, or the root file system in the archive that `WRENN_BENCH_TAR`
    /// names. Returns the compressed bytes.
    fn push(&self) -> u64 {
        let file = self.at("image");
        let text = file.to_str().unwrap();
        let from = match std::env::var_os("WRENN_BENCH_TAR") {
            Some(given) => {
                let script = "gzip -c \"$1\" >\"$2\"";
                run("sh", &["-c", script, "sh", given.to_str().unwrap(), text]);
                format!("tarball:{text}")
            }
            None => {
                fs::write(&file, generated::image().layout()).unwrap();
                format!("oci-archive:{text}")
            }
        };
        let to = format!("docker://{}", reference());
        run("skopeo", &["--insecure-policy", "copy", "-q", "--dest-tls-verify=false", &from, &to]);
        fs::metadata(file).unwrap().len()
    }

    /// Writes the settings by which Wrenn may pull from here.
    fn settings(&self) -> PathBuf {
        let settings = self.at("registries.toml");
        let host = format!("registries.\"127.0.0.1:{PORT}\" = {{ http = true, private = true }}\n");
        fs::write(&settings, host).unwrap();
        settings
    }
}

fn reference() -> String {
    format!("127.0.0.1:{PORT}/debian:1")
}

/// Imports the image into a folder. Returns the time, and the most memory of the converter in KiB;
/// 0 if none ran.
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
        converter = converter.or_else(|| converter_of(child.id()));
        most = most.max(converter.and_then(peak).unwrap_or(0));
        std::thread::sleep(LOOK);
    };
    let took = started.elapsed();
    assert!(status.success());
    (took, most)
}

/// Returns the converter that a process has started, if there is one.
fn converter_of(pid: u32) -> Option<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let lists = threads.filter_map(|at| fs::read_to_string(at.path().join("children")).ok());
    let children: Vec<u32> = lists
        .flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|child| child.parse().ok())
        .collect();
    children.into_iter().find(|child| {
        let line = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|arg| arg == CONVERTER.as_bytes())
    })
}

/// Returns the most memory that a process had resident so far, in KiB.
fn peak(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// Measures imports of new and of known digests.
pub(crate) fn measure() -> Vec<Row> {
    let buildah = Buildah::find().expect("buildah is missing");
    let registry = Registry::start();
    let settings = registry.settings();
    let (mut ours, mut theirs, mut again, mut most) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for round in 0..ROUNDS {
        let own = registry.at(&format!("own-{round}"));
        let (took, memory) = import(&own, &settings);
        assert!(memory > 0, "no converter was seen");
        ours.push(took);
        most = most.max(memory);
        let storage = buildah.storage(registry.dir.path(), &format!("buildah-{round}"));
        theirs.push(storage.pull(&reference()));
        let (took, memory) = import(&own, &settings);
        assert_eq!(memory, 0, "a known image was converted again");
        again.push(took);
        fs::remove_dir_all(own).unwrap();
    }
    let what = format!("import of a new image, {} MB ÷ buildah pull", registry.packed / 1_000_000);
    let most = format!("{} MB", most * 1024 / 1_000_000);
    say(vec![
        Row::ratio(&what, &ours, &theirs, "≤ 0.60"),
        Row::alone("import of a known digest", &again, "≤ 300 ms"),
        Row::value("converter's peak resident memory", &most, "≤ 400 MB"),
    ])
}
