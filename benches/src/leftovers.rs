//! Things of Wrenn and of its rivals that exist on this machine: namespaces, links, processes,
//! folders, mounts and control groups. A run looks at them before and after each of its groups.
//!
//! The look is at the whole machine, so nothing else of Wrenn may start or end meanwhile.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Time that the kernel and a stopped platform have to take everything away.
const SETTLE: Duration = Duration::from_secs(20);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// Kinds of things, in the order of the summary.
const KINDS: [&str; 6] =
    ["namespaces", "links", "processes", "folders", "mounts", "control groups"];
/// Beginning of the names of folders that platforms and benchmarks make.
const FOLDER: &str = "wrenn-";
/// Marks in a process's arguments or environment: a folder of ours, a machine, a container.
const MARKS: [&str; 4] = ["/wrenn-", "WRENN_CAPSULE=", "WRENN_BENCH=", "--id\0cl-"];
/// Depth of the control groups that are looked at.
const DEPTH: u32 = 4;

/// A thing that exists: its kind and its name.
type Thing = (&'static str, String);

/// The things that were there before, and those that groups of the run left.
pub(crate) struct Watch {
    known: BTreeSet<Thing>,
    left: Vec<Thing>,
}

impl Watch {
    /// Begins a run. Things that exist now are not the run's.
    pub(crate) fn begin() -> Self {
        Self { known: now(), left: Vec::new() }
    }

    /// Takes everything that exists now for the run's own. The caller removes it before the end.
    pub(crate) fn accept(&mut self) {
        self.known.extend(now());
    }

    /// Waits until everything that is new has gone, up to a limit. Returns the number of things
    /// that stayed. Each thing counts once.
    pub(crate) fn look(&mut self) -> usize {
        let limit = Instant::now() + SETTLE;
        let new = loop {
            let new: Vec<Thing> = now().difference(&self.known).cloned().collect();
            if new.is_empty() || Instant::now() > limit {
                break new;
            }
            std::thread::sleep(LOOK);
        };
        self.known.extend(new.iter().cloned());
        self.left.extend(new.iter().cloned());
        new.len()
    }

    /// Returns the summary of the run: a count of each kind, then a line for each thing.
    pub(crate) fn summary(&self) -> String {
        let count = |kind: &str| self.left.iter().filter(|(of, _)| *of == kind).count();
        let counts = KINDS.map(|kind| format!("{kind} {}", count(kind)));
        let things = self.left.iter().map(|(kind, name)| format!("\n- {kind}: {name}"));
        format!("Left over on the machine: {}.{}", counts.join(", "), things.collect::<String>())
    }

    /// Reports whether nothing was left.
    pub(crate) fn is_clean(&self) -> bool {
        self.left.is_empty()
    }
}

/// Finds everything that exists.
fn now() -> BTreeSet<Thing> {
    let [namespace, link, process, folder, mount, group] = KINDS;
    let mut all = BTreeSet::new();
    let mut add = |kind, names: Vec<String>| all.extend(names.into_iter().map(|name| (kind, name)));
    add(namespace, namespaces());
    add(link, below(Path::new("/sys/class/net"), "wr"));
    add(process, processes());
    let temporary = [std::env::temp_dir(), "/var/tmp".into(), "/dev/shm".into()];
    add(folder, temporary.iter().flat_map(|dir| below(dir, FOLDER)).collect());
    add(mount, mounts());
    add(group, groups(Path::new("/sys/fs/cgroup"), DEPTH));
    all
}

/// Lists the entries of a folder whose names begin with `prefix`, as paths.
fn below(dir: &Path, prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    ours.map(|entry| entry.path().display().to_string()).collect()
}

/// Lists the agents' namespaces and the benchmarks' own.
fn namespaces() -> Vec<String> {
    let agents = fs::read_dir("/run/wrenn").into_iter().flatten().flatten();
    let mut all: Vec<String> = agents.flat_map(|agent| below(&agent.path(), "")).collect();
    all.extend(below(Path::new("/run/netns"), FOLDER));
    all
}

/// Lists processes with a mark in their arguments or environment, except for this one.
fn processes() -> Vec<String> {
    let own = std::process::id();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid != own).filter_map(marked).collect()
}

/// Describes a process that has a mark.
fn marked(pid: u32) -> Option<String> {
    let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let args = String::from_utf8_lossy(&read("cmdline")).into_owned();
    // A zombie has no arguments, and ends with its parent.
    if args.is_empty() {
        return None;
    }
    let vars = read("environ");
    let vars = String::from_utf8_lossy(&vars);
    let ours = MARKS.iter().any(|mark| args.contains(mark) || vars.contains(mark));
    ours.then(|| format!("{pid} {:.200}", args.replace('\0', " ")))
}

/// Lists mounts on folders of ours. Bound namespaces count as namespaces.
fn mounts() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    places.filter(|place| place.contains("/wrenn-")).map(str::to_owned).collect()
}

/// Lists control groups of agents, capsules and containers.
fn groups(dir: &Path, depth: u32) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let dirs: Vec<PathBuf> = dirs.map(|entry| entry.path()).collect();
    let mut all = Vec::new();
    for dir in dirs {
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(FOLDER) || name.starts_with("cl-") {
            all.push(dir.display().to_string());
        }
        if depth > 1 {
            all.extend(groups(&dir, depth - 1));
        }
    }
    all
}
