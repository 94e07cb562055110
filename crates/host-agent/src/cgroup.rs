//! Limits of each VMM by control groups of version 1 or 2, whichever the machine has. A machine
//! without a controller still runs capsules; the missing controller is logged at the start.

mod usage;

pub(crate) use usage::GroupUsage;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use types::resources::Resources;

const ROOT: &str = "/sys/fs/cgroup";
/// Memory of QEMU itself beside the guest's, in MiB: its code cache, its heap, its page tables.
const OVERHEAD_MIB: u64 = 256;
/// Most threads that QEMU uses for disks at once (`thread-pool-max` of its main loop).
const DISK_THREADS: u32 = 64;
/// Threads of a VMM besides its disk and processor threads, with room to spare. A VMM that
/// gets no thread ends at once, and its guest with it.
const OWN_THREADS: u32 = 64;
const PERIOD_US: u64 = 100_000;

/// Control groups of this agent's capsules.
pub(crate) struct Cgroups {
    parents: Vec<(Controller, PathBuf)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Controller {
    Unified,
    Cpu,
    /// Processor time in version 1. Some machines have it in the same groups as `Cpu`.
    Cpuacct,
    Memory,
    Pids,
}

impl Cgroups {
    /// Finds the machine's controllers and makes the agent's own groups.
    pub(crate) fn new(tag: &str) -> Self {
        let name = format!("wrenn-{tag}");
        let controllers = fs::read_to_string(format!("{ROOT}/cgroup.controllers"));
        let wanted: &[_] = if controllers.is_ok_and(|c| c.contains("memory")) {
            let _ = fs::write(format!("{ROOT}/cgroup.subtree_control"), "+cpu +memory +pids");
            &[(Controller::Unified, "")]
        } else {
            &[
                (Controller::Cpu, "cpu"),
                (Controller::Cpuacct, "cpuacct"),
                (Controller::Memory, "memory"),
                (Controller::Pids, "pids"),
            ]
        };
        let mut parents = Vec::new();
        for (controller, dir) in wanted {
            let path = Path::new(ROOT).join(dir).join(&name);
            match prepare(*controller, &path) {
                Ok(()) => parents.push((*controller, path)),
                Err(error) => {
                    // A container's root group, for example, holds processes and so has no
                    // controllers.
                    tracing::warn!(
                        ?controller, %error,
                        "cannot use a cgroup controller; machines have no limits by it"
                    );
                    let _ = fs::remove_dir(&path);
                }
            }
        }
        Self { parents }
    }

    /// Makes a capsule's groups and opens the files through which its VMM joins them.
    pub(crate) fn create(&self, capsule: &str, size: &Resources) -> io::Result<Vec<File>> {
        // A page that the guest first touches may cost two: its own, and an empty page of the image
        // below it. The kernel makes the empty page for the first guest, and other guests share it.
        let memory = (2 * u64::from(size.memory_mib) + OVERHEAD_MIB) << 20;
        // The quota is one core more than the guest has, for the VMM's own threads.
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
                // This controller only counts.
                Controller::Cpuacct => {}
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

    /// Lists the capsules that have a group.
    pub(crate) fn existing(&self) -> Vec<String> {
        let dirs = self.parents.iter().flat_map(|(_, p)| fs::read_dir(p).into_iter().flatten());
        let dirs = dirs.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
        dirs.filter_map(|e| e.file_name().into_string().ok()).collect()
    }

    /// Removes the agent's own groups, which succeeds only when no capsule has a group.
    pub(crate) fn remove_all(&self) {
        for (_, parent) in &self.parents {
            let _ = fs::remove_dir(parent);
        }
    }
}

/// Returns the most threads that a VMM may have. The guest's requests decide on its disk threads.
fn threads_max(size: &Resources) -> u32 {
    DISK_THREADS + size.vcpus + OWN_THREADS
}

/// Makes the agent's own group and checks that its children will have limits.
fn prepare(controller: Controller, path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    if controller != Controller::Unified {
        return Ok(());
    }
    let file = path.join("cgroup.subtree_control");
    fs::write(&file, "+cpu +memory +pids")?;
    let given = fs::read_to_string(&file)?;
    let all = ["cpu", "memory", "pids"].iter().all(|c| given.split_whitespace().any(|g| g == *c));
    if all {
        Ok(())
    } else {
        Err(io::Error::other(format!("the kernel grants only the controllers `{}`", given.trim())))
    }
}

/// Removes a group. Retries for up to 2 s, since a group stays busy briefly after its last process.
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
