//! Control groups of the guest: what users run may not starve envd of memory or time.
//!
//! Two groups below the root: `user` for processes, `pty` for those with a terminal. On an
//! ordinary machine there are none.

use std::fs::{self, File, OpenOptions};
use std::path::Path;

const ROOT: &str = "/sys/fs/cgroup";
/// Kept from user processes, so that envd and the kernel always have room.
const RESERVE_MAX: u64 = 64 << 20;
/// Memory for each process that users may have: a bomb of forks ends there, and the kernel's
/// own tables for so many still fit.
const BYTES_PER_PROCESS: u64 = 128 << 10;

/// Open `cgroup.procs` files, to be written between fork and exec.
#[derive(Default)]
pub(crate) struct Cgroups {
    user: Option<File>,
    pty: Option<File>,
}

impl Cgroups {
    /// Makes the groups when this is a capsule.
    pub(crate) fn open(in_guest: bool) -> Self {
        if !in_guest {
            return Self::default();
        }
        let root = Path::new(ROOT);
        // Controllers first, or the groups have no limits to set. Each is best effort: a
        // kernel without one still runs programs.
        let _ = fs::write(root.join("cgroup.subtree_control"), "+memory +cpu +pids");
        let _ = fs::create_dir(root.join("envd"));
        let _ = fs::write(root.join("envd/cgroup.procs"), std::process::id().to_string());
        let _ = fs::write(root.join("envd/cpu.weight"), "10000");
        Self { user: group(root, "user"), pty: group(root, "pty") }
    }

    /// The group of a process with or without a terminal.
    pub(crate) fn of(&self, pty: bool) -> Option<&File> {
        if pty { self.pty.as_ref() } else { self.user.as_ref() }
    }
}

fn group(root: &Path, name: &str) -> Option<File> {
    let path = root.join(name);
    let _ = fs::create_dir(&path);
    let total = crate::metrics::memory().total;
    let reserve = RESERVE_MAX.min(total / 8);
    let _ = fs::write(path.join("memory.max"), (total - reserve).to_string());
    let _ = fs::write(path.join("cpu.weight"), "100");
    let _ = fs::write(path.join("pids.max"), (total / BYTES_PER_PROCESS).to_string());
    OpenOptions::new().write(true).open(path.join("cgroup.procs")).ok()
}
