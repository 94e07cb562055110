//! Finds what belongs to a platform, or to one of its capsules, on this machine.

use std::fs;
use std::path::{Path, PathBuf};

/// What is there.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    tag: String,
    /// Command lines of processes that name the folder or work in it, or that are a capsule's
    /// machine.
    pub processes: Vec<String>,
    /// Network namespaces.
    pub namespaces: Vec<String>,
    /// Links of the host's.
    pub links: Vec<String>,
    /// Mounts below the folder.
    pub mounts: Vec<String>,
    /// Control groups.
    pub cgroups: Vec<String>,
    /// Folders of capsules.
    pub folders: Vec<String>,
}

impl Leftovers {
    /// Looks for what belongs to the platform in `dir`.
    #[must_use]
    pub fn of(dir: &Path) -> Self {
        let tag = tag(dir);
        let names = |at: &str| -> Vec<String> {
            let entries = fs::read_dir(at).into_iter().flatten().flatten();
            entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
        };
        let begin = |names: Vec<String>, prefix: &str| -> Vec<String> {
            names.into_iter().filter(|name| name.starts_with(prefix)).collect()
        };
        let text = dir.display().to_string();
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let groups = ["", "cpu/", "memory/", "pids/"]
            .iter()
            .flat_map(|controller| names(&format!("/sys/fs/cgroup/{controller}wrenn-{tag}")));
        Self {
            processes: processes(&text),
            tag: tag.clone(),
            namespaces: names(&format!("/run/wrenn/{tag}")),
            links: begin(names("/sys/class/net"), &format!("wr{tag}-")),
            mounts: mounts.lines().filter(|line| line.contains(&text)).map(str::to_owned).collect(),
            cgroups: groups.filter(|name| name.starts_with("cl-")).collect(),
            folders: names(&format!("{text}/capsules")),
        }
    }

    /// Where a capsule's namespace is, by the number of its network.
    #[must_use]
    pub fn namespace(&self, slot: u64) -> PathBuf {
        Path::new("/run/wrenn").join(&self.tag).join(slot.to_string())
    }

    /// Whether nothing is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self { tag: self.tag.clone(), ..Self::default() }
    }
}

/// The name that tells this folder's platform from others on the machine; the first four hex
/// digits of its SHA-256, which the host agent documents in `docs/operations.md`.
fn tag(dir: &Path) -> String {
    let path = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let mut child = std::process::Command::new("sha256sum");
    child.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = child.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, path.as_os_str().as_encoded_bytes()).unwrap();
    drop(stdin);
    let out = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&out.stdout).chars().take(4).collect()
}

fn processes(dir: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let path = entry.path();
        if entry.file_name().to_string_lossy().parse::<u32>().is_err() {
            continue;
        }
        let read = |file: &str| fs::read(path.join(file)).unwrap_or_default();
        let args = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let cwd = fs::read_link(path.join("cwd")).unwrap_or_default();
        // A zombie has no arguments.
        if args.contains(dir) || cwd.starts_with(dir) && !args.is_empty() {
            found.push(args);
        }
    }
    found
}

/// The processes that are a capsule's machine.
#[must_use]
pub fn processes_of(capsule: &str) -> Vec<i32> {
    let (wanted, jailed) = (format!("WRENN_CAPSULE={capsule}"), format!("--id\0{capsule}\0"));
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let vars = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        // A jailer takes the environment away.
        let args = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        vars.split(|byte| *byte == 0).any(|var| var == wanted.as_bytes())
            || args.windows(jailed.len()).any(|part| part == jailed.as_bytes())
    })
    .collect()
}

/// Signals a process of this machine.
///
/// # Panics
/// When there is none.
pub fn signal(pid: i32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}
