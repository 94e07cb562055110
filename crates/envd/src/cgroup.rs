//! Control groups of the guest: what users run may not starve envd of memory or time, nor one
//! program another.
//!
//! ```text
//! /envd          first in line for the processor
//! /user          limits of memory and number for all that users run
//! /user/p1 …     one for each program that was started, with an equal share of the processor
//! /pty           the same for programs with a terminal
//! ```
//! On an ordinary machine there are none.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

const ROOT: &str = "/sys/fs/cgroup";
/// Kept from user processes, so that envd and the kernel always have room.
const RESERVE_MAX: u64 = 64 << 20;
/// Memory for each process that users may have: a bomb of forks ends there, and the kernel's
/// own tables for so many still fit.
const BYTES_PER_PROCESS: u64 = 128 << 10;

/// The groups that there are.
#[derive(Default)]
pub(crate) struct Cgroups {
    in_guest: bool,
    leaves: Mutex<Leaves>,
}

#[derive(Default)]
struct Leaves {
    made: u64,
    /// Those whose program has ended and whose other processes may not have.
    ended: BTreeSet<PathBuf>,
}

/// One program's group.
pub(crate) struct Leaf {
    dir: PathBuf,
    /// Open, to be written between fork and exec.
    pub procs: File,
}

impl Cgroups {
    /// Makes the groups when this is a capsule.
    pub(crate) fn open(in_guest: bool) -> Self {
        if in_guest {
            let root = Path::new(ROOT);
            // Controllers first, or the groups have no limits to set. Each is best effort: a
            // kernel without one still runs programs.
            let _ = fs::write(root.join("cgroup.subtree_control"), "+memory +cpu +pids");
            let _ = fs::create_dir(root.join("envd"));
            let _ = fs::write(root.join("envd/cgroup.procs"), std::process::id().to_string());
            let _ = fs::write(root.join("envd/cpu.weight"), "10000");
            limit(&root.join("user"));
            limit(&root.join("pty"));
        }
        Self { in_guest, leaves: Mutex::default() }
    }

    /// Makes the group of a program with or without a terminal.
    pub(crate) fn leaf(&self, pty: bool) -> Option<Leaf> {
        if !self.in_guest {
            return None;
        }
        let number = {
            let mut leaves = self.lock();
            leaves.ended.retain(|dir| fs::remove_dir(dir).is_err());
            leaves.made += 1;
            leaves.made
        };
        let parent = Path::new(ROOT).join(if pty { "pty" } else { "user" });
        let dir = parent.join(format!("p{number}"));
        fs::create_dir(&dir).ok()?;
        let procs = OpenOptions::new().write(true).open(dir.join("cgroup.procs")).ok()?;
        Some(Leaf { dir, procs })
    }

    /// Removes the group of a program that has ended; now, or once its last process has too.
    pub(crate) fn end(&self, leaf: Leaf) {
        if fs::remove_dir(&leaf.dir).is_err() {
            self.lock().ended.insert(leaf.dir);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Leaves> {
        self.leaves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn limit(group: &Path) {
    let _ = fs::create_dir(group);
    let total = crate::metrics::memory().total;
    let reserve = RESERVE_MAX.min(total / 8);
    let _ = fs::write(group.join("memory.max"), (total - reserve).to_string());
    let _ = fs::write(group.join("cpu.weight"), "100");
    let _ = fs::write(group.join("pids.max"), (total / BYTES_PER_PROCESS).to_string());
    let _ = fs::write(group.join("cgroup.subtree_control"), "+cpu");
}
