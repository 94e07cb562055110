//! Limits of each VMM by control groups, of version 1 or 2, whichever the machine has. A
//! machine without them still runs capsules: what is missing is logged once, at the start.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use types::resources::Resources;

const ROOT: &str = "/sys/fs/cgroup";
/// QEMU's own memory beside the guest's, in MiB: its code cache, its heap, its page tables.
const OVERHEAD_MIB: u64 = 256;
/// Most threads with which QEMU reads and writes disks at once (`thread-pool-max` of its main loop).
const DISK_THREADS: u32 = 64;
/// Threads of a VMM beside those of its disks and its processors, with room to spare. A VMM that
/// gets no thread ends at once, and its guest with it.
const OWN_THREADS: u32 = 64;
const PERIOD_US: u64 = 100_000;

/// Where the groups of this agent's capsules are.
pub(crate) struct Cgroups {
    parents: Vec<(Controller, PathBuf)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Controller {
    Unified,
    Cpu,
    Memory,
    Pids,
}

impl Cgroups {
    /// Finds out what the machine offers and makes the agent's own groups.
    pub(crate) fn new(tag: &str) -> Self {
        let name = format!("wrenn-{tag}");
        let controllers = fs::read_to_string(format!("{ROOT}/cgroup.controllers"));
        let wanted: &[_] = if controllers.is_ok_and(|c| c.contains("memory")) {
            let _ = fs::write(format!("{ROOT}/cgroup.subtree_control"), "+cpu +memory +pids");
            &[(Controller::Unified, "")]
        } else {
            &[(Controller::Cpu, "cpu"), (Controller::Memory, "memory"), (Controller::Pids, "pids")]
        };
        let mut parents = Vec::new();
        for (controller, dir) in wanted {
            let path = Path::new(ROOT).join(dir).join(&name);
            match prepare(*controller, &path) {
                Ok(()) => parents.push((*controller, path)),
                Err(error) => {
                    // As in a container, whose root group holds processes and so no controllers.
                    tracing::warn!(?controller, %error, "machines have no limits by this controller");
                    let _ = fs::remove_dir(&path);
                }
            }
        }
        Self { parents }
    }

    /// Makes a capsule's groups and opens what its VMM writes itself into.
    pub(crate) fn create(&self, capsule: &str, size: &Resources) -> io::Result<Vec<File>> {
        // A page that the guest first touches may cost two: its own, and the empty one of the image
        // below, which the kernel makes for it and others then share.
        let memory = (2 * u64::from(size.memory_mib) + OVERHEAD_MIB) << 20;
        // A core more than the guest has, for the VMM's own threads.
        let quota = u64::from(size.vcpus + 1) * PERIOD_US;
        let mut procs = Vec::new();
        for (controller, parent) in &self.parents {
            let dir = parent.join(capsule);
            fs::create_dir_all(&dir)?;
            let set = |file: &str, value: String| fs::write(dir.join(file), value);
            match controller {
                Controller::Unified => {
                    set("memory.max", memory.to_string())?;
                    set("cpu.max", format!("{quota} {PERIOD_US}"))?;
                    set("pids.max", threads_max(size).to_string())?;
                }
                Controller::Cpu => {
                    set("cpu.cfs_period_us", PERIOD_US.to_string())?;
                    set("cpu.cfs_quota_us", quota.to_string())?;
                }
                Controller::Memory => set("memory.limit_in_bytes", memory.to_string())?,
                Controller::Pids => set("pids.max", threads_max(size).to_string())?,
            }
            procs.push(OpenOptions::new().write(true).open(dir.join("cgroup.procs"))?);
        }
        Ok(procs)
    }

    /// Removes a capsule's groups, whose processes have ended.
    pub(crate) fn remove(&self, capsule: &str) -> io::Result<()> {
        for (_, parent) in &self.parents {
            remove_group(&parent.join(capsule))?;
        }
        Ok(())
    }

    /// Capsules that have a group.
    pub(crate) fn existing(&self) -> Vec<String> {
        let dirs = self.parents.iter().flat_map(|(_, p)| fs::read_dir(p).into_iter().flatten());
        let dirs = dirs.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
        dirs.filter_map(|e| e.file_name().into_string().ok()).collect()
    }

    /// Removes the agent's own groups; only when no capsule has one.
    pub(crate) fn remove_all(&self) {
        for (_, parent) in &self.parents {
            let _ = fs::remove_dir(parent);
        }
    }
}

/// Returns the most threads of a VMM. A guest decides how many of its disks' threads there are.
fn threads_max(size: &Resources) -> u32 {
    DISK_THREADS + size.vcpus + OWN_THREADS
}

/// Makes the agent's own group and sees that its children will have limits.
fn prepare(controller: Controller, path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    if controller != Controller::Unified {
        return Ok(());
    }
    let file = path.join("cgroup.subtree_control");
    fs::write(&file, "+cpu +memory +pids")?;
    let given = fs::read_to_string(&file)?;
    let all = ["cpu", "memory", "pids"].iter().all(|c| given.split_whitespace().any(|g| g == *c));
    if all { Ok(()) } else { Err(io::Error::other(format!("only `{}` is given", given.trim()))) }
}

/// The kernel lets a group go a moment after its last process.
fn remove_group(dir: &Path) -> io::Result<()> {
    let limit = Instant::now() + Duration::from_secs(2);
    loop {
        match fs::remove_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && Instant::now() < limit => {
                std::thread::sleep(Duration::from_millis(5));
            }
            done => return done,
        }
    }
}
