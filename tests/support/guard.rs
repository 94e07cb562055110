//! Guard that finds everything of a platform, or of one of its capsules, on this machine.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Time limit for the remains of removed capsules to go.
const REMAINS: Duration = Duration::from_secs(30);

/// Things of a platform that exist on this machine.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    tag: String,
    /// Command lines of processes that name the folder, work in it, or are a capsule's machine.
    pub processes: Vec<String>,
    /// Network namespaces.
    pub namespaces: Vec<String>,
    /// Network links of the host.
    pub links: Vec<String>,
    /// Mounts below the folder.
    pub mounts: Vec<String>,
    /// Control groups.
    pub cgroups: Vec<String>,
    /// Capsules' folders.
    pub folders: Vec<String>,
}

impl Leftovers {
    /// Finds everything that belongs to the platform in `dir`.
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
        let groups = ["", "cpu/", "cpuacct/", "memory/", "pids/"]
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

    /// Looks at the platform in `dir` until a condition holds, and returns the last look. A removal
    /// answers before the capsule's network, limits and folder are gone.
    ///
    /// # Panics
    /// When the condition does not hold in time. The message quotes `what`.
    pub async fn until(dir: &Path, what: &str, holds: impl Fn(&Self) -> bool) -> Self {
        let limit = Instant::now() + REMAINS;
        loop {
            let found = Self::of(dir);
            if holds(&found) {
                return found;
            }
            assert!(Instant::now() < limit, "not in time: {what}: {found:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Counts namespaces, links and folders, which each running capsule has one of.
    #[must_use]
    pub fn counts(&self) -> [usize; 3] {
        [self.namespaces.len(), self.links.len(), self.folders.len()]
    }

    /// Returns the path of a capsule's namespace, given the number of its network.
    #[must_use]
    pub fn namespace(&self, slot: u64) -> PathBuf {
        Path::new("/run/wrenn").join(&self.tag).join(slot.to_string())
    }

    /// Reports whether nothing was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self { tag: self.tag.clone(), ..Self::default() }
    }
}

/// Returns a process's descriptors and sockets in network namespaces that are neither its own nor
/// bound below `/run/wrenn`. An agent has none, except for an instant while it takes a namespace
/// down.
#[must_use]
pub fn held_in_removed_namespaces(pid: u32) -> Vec<String> {
    let known = || {
        let mut known = known_to(pid);
        for agent in fs::read_dir("/run/wrenn").into_iter().flatten().flatten() {
            for file in fs::read_dir(agent.path()).into_iter().flatten().flatten() {
                let at = fs::metadata(file.path()).ok();
                known.extend(at.map(|at| format!("net:[{}]", at.ino())));
                known.extend(sockets_in(&file.path()));
            }
        }
        known
    };
    unknown(pid, known)
}

/// Counts a process's descriptors of namespaces, and its sockets in namespaces other than its own.
#[must_use]
pub fn held_in_namespaces(pid: u32) -> (usize, usize) {
    let strange = unknown(pid, || known_to(pid));
    let (namespaces, sockets): (Vec<_>, Vec<_>) =
        strange.into_iter().partition(|link| link.starts_with("net:"));
    (namespaces.len(), sockets.len())
}

/// Returns the namespaces and sockets that a process has open and that are unknown at two looks.
/// Something that opens or closes between the looks is normal.
fn unknown(pid: u32, known: impl Fn() -> Vec<String>) -> Vec<String> {
    let look = || {
        let open = open_descriptors(pid);
        let known = known();
        open.into_iter().filter(|link| !known.contains(link)).collect::<Vec<_>>()
    };
    let first = look();
    if first.is_empty() {
        return first;
    }
    std::thread::sleep(std::time::Duration::from_millis(20));
    look().into_iter().filter(|link| first.contains(link)).collect()
}

/// Returns the namespaces and sockets that a process has open, by the text of their links.
fn open_descriptors(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    let links = links.map(|link| link.to_string_lossy().into_owned());
    links.filter(|link| link.starts_with("socket:[") || link.starts_with("net:[")).collect()
}

/// Returns a process's own namespace, and the sockets in it.
fn known_to(pid: u32) -> Vec<String> {
    let own = fs::read_link(format!("/proc/{pid}/ns/net")).unwrap_or_default();
    let mut known = sockets_below(&format!("/proc/{pid}/net"));
    known.push(own.to_string_lossy().into_owned());
    known
}

/// Tables of sockets in `/proc`, each with the column of the inode.
const TABLES: [(&str, usize); 8] = [
    ("tcp", 9),
    ("tcp6", 9),
    ("udp", 9),
    ("udp6", 9),
    ("raw", 9),
    ("unix", 6),
    ("netlink", 9),
    ("packet", 8),
];

fn links(table: &str, word: usize) -> Vec<String> {
    let inodes = table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(word));
    inodes.map(|inode| format!("socket:[{inode}]")).collect()
}

/// Returns the sockets of the namespace whose tables are in a folder.
fn sockets_below(folder: &str) -> Vec<String> {
    let read = |name: &str| fs::read_to_string(format!("{folder}/{name}")).unwrap_or_default();
    TABLES.iter().flat_map(|(name, word)| links(&read(name), *word)).collect()
}

/// Returns the sockets of a namespace that is bound to a file.
fn sockets_in(namespace: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for (name, word) in TABLES {
        let mut enter = std::process::Command::new("nsenter");
        enter.arg(format!("--net={}", namespace.display())).args(["cat"]);
        let out = enter.arg(format!("/proc/net/{name}")).output().unwrap();
        all.extend(links(&String::from_utf8_lossy(&out.stdout), word));
    }
    all
}

/// Returns the tag in the names of this folder's platform: the first four hex digits of the
/// folder's SHA-256. `docs/operations.md` documents the tag.
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
        // A zombie has no arguments, so its working folder does not count.
        if args.contains(dir) || cwd.starts_with(dir) && !args.is_empty() {
            found.push(args);
        }
    }
    found
}

/// Returns the ids of the processes of a capsule's machine.
#[must_use]
pub fn processes_of(capsule: &str) -> Vec<i32> {
    let (wanted, jailed) = (format!("WRENN_CAPSULE={capsule}"), format!("--id\0{capsule}\0"));
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let vars = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        // A jailer clears the environment, so the arguments count too.
        let args = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        vars.split(|byte| *byte == 0).any(|var| var == wanted.as_bytes())
            || args.windows(jailed.len()).any(|part| part == jailed.as_bytes())
    })
    .collect()
}

/// Counts the processes of machines that were started in folders below `dir`, by their
/// environment. A jailer clears the environment.
pub(crate) fn machines_below(dir: &Path) -> usize {
    let begin = format!("WRENN_CAPSULE_DIR={}/", dir.display());
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let vars = entries.filter_map(|entry| fs::read(entry.path().join("environ")).ok());
    let is_below = |var: &[u8]| var.starts_with(begin.as_bytes());
    vars.filter(|vars| vars.split(|byte| *byte == 0).any(is_below)).count()
}

/// Sends a signal to a process of this machine.
///
/// # Panics
/// When the process does not exist.
pub fn signal(pid: i32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}
