//! Control groups of the guest: what users run may not starve envd of memory or time, nor one
//! program another. The end of a program's group ends all that the program has started.
//!
//! ```text
//! /envd          first in line for the processor
//! /user          limits of memory and number for all that users run
//! /user/p1 …     one for each program that was started, with an equal share of the processor
//! /pty           the same for programs with a terminal
//! ```
//! On an ordinary machine there are none. All of it goes through descriptors that were opened
//! before the first program ran, so that no mount over the path can hold up a caller.

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, unlinkat};
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

const ROOT: &str = "/sys/fs/cgroup";
/// Kept from user processes, so that envd and the kernel always have room.
const RESERVE_MAX: u64 = 64 << 20;
/// Memory for each process that users may have: a bomb of forks ends there, and the kernel's
/// own tables for so many still fit.
const BYTES_PER_PROCESS: u64 = 128 << 10;
/// Groups of ended programs that each start tries to remove.
const SWEEP: usize = 8;

/// The groups that there are.
#[derive(Default)]
pub(crate) struct Cgroups {
    parents: Option<Parents>,
    leaves: Mutex<Leaves>,
}

/// The groups above those of programs.
struct Parents {
    user: OwnedFd,
    pty: OwnedFd,
}

#[derive(Default)]
struct Leaves {
    made: u64,
    /// Those whose program has ended and whose other processes may not have.
    ended: VecDeque<Name>,
}

#[derive(Debug, Clone, Copy)]
struct Name {
    pty: bool,
    number: u64,
}

/// One program's group.
pub(crate) struct Leaf {
    name: Name,
    dir: OwnedFd,
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
        let parents = || {
            let open = |name| fs::File::open(limit(&root.join(name))).map(OwnedFd::from);
            io::Result::Ok(Parents { user: open("user")?, pty: open("pty")? })
        };
        Self { parents: parents().ok(), leaves: Mutex::default() }
    }

    /// Makes the group of a program with or without a terminal. Returns it with its list of
    /// processes, to which the child writes itself.
    pub(crate) fn leaf(&self, pty: bool) -> Option<(Leaf, OwnedFd)> {
        let parents = self.parents.as_ref()?;
        self.sweep(parents);
        let number = {
            let mut leaves = self.lock();
            leaves.made += 1;
            leaves.made
        };
        let name = Name { pty, number };
        mkdirat(parents.of(name), name.text(), Mode::from_raw_mode(0o755)).ok()?;
        let opened = parents.open(name);
        if opened.is_err() {
            self.remove(parents, name);
        }
        opened.ok()
    }

    /// Removes the group of a program that has ended; now, or once its last process has too.
    pub(crate) fn end(&self, leaf: Leaf) {
        let Some(parents) = &self.parents else { return };
        let name = leaf.name;
        drop(leaf);
        self.remove(parents, name);
    }

    /// Removes a group; now, or in a later sweep.
    fn remove(&self, parents: &Parents, name: Name) {
        if !parents.remove(name) {
            self.lock().ended.push_back(name);
        }
    }

    /// Removes some groups whose last process has ended since.
    fn sweep(&self, parents: &Parents) {
        let mut leaves = self.lock();
        for _ in 0..SWEEP.min(leaves.ended.len()) {
            let Some(name) = leaves.ended.pop_front() else { return };
            if !parents.remove(name) {
                leaves.ended.push_back(name);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Leaves> {
        self.leaves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Parents {
    fn of(&self, name: Name) -> &OwnedFd {
        if name.pty { &self.pty } else { &self.user }
    }

    /// Opens a group and its list of processes.
    fn open(&self, name: Name) -> rustix::io::Result<(Leaf, OwnedFd)> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(self.of(name), name.text(), flags, Mode::empty())?;
        let procs = open_for_writing(&dir, "cgroup.procs")?;
        Ok((Leaf { name, dir }, procs))
    }

    fn remove(&self, name: Name) -> bool {
        unlinkat(self.of(name), name.text(), AtFlags::REMOVEDIR).is_ok()
    }
}

impl Name {
    fn text(self) -> String {
        format!("p{}", self.number)
    }
}

impl Leaf {
    /// Kills every process of the group and of groups below it (`cgroup.kill`, since Linux 5.14),
    /// whatever session it is in. Does nothing on a kernel that cannot.
    pub(crate) fn kill(&self) {
        if let Ok(kill) = open_for_writing(&self.dir, "cgroup.kill") {
            let _ = rustix::io::write(kill, b"1");
        }
    }
}

fn open_for_writing(dir: impl AsFd, name: &str) -> rustix::io::Result<OwnedFd> {
    openat(dir, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Makes a group with limits, and returns its path.
fn limit(group: &Path) -> &Path {
    let _ = fs::create_dir(group);
    let total = crate::metrics::memory().total;
    let reserve = RESERVE_MAX.min(total / 8);
    let _ = fs::write(group.join("memory.max"), (total - reserve).to_string());
    let _ = fs::write(group.join("cpu.weight"), "100");
    let _ = fs::write(group.join("pids.max"), (total / BYTES_PER_PROCESS).to_string());
    let _ = fs::write(group.join("cgroup.subtree_control"), "+cpu");
    group
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Groups below an ordinary folder, where a group has no list of processes.
    fn groups(dir: &Path) -> Cgroups {
        let open = || OwnedFd::from(fs::File::open(dir).unwrap());
        let parents = Parents { user: open(), pty: open() };
        Cgroups { parents: Some(parents), leaves: Mutex::default() }
    }

    #[test]
    fn group_that_cannot_be_opened_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        assert!(groups(dir.path()).leaf(false).is_none());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn group_that_is_not_empty_at_its_end_is_removed_by_a_later_start() {
        let dir = tempfile::tempdir().unwrap();
        let groups = groups(dir.path());
        let (group, inner) = (dir.path().join("p7"), dir.path().join("p7/inner"));
        fs::create_dir_all(&inner).unwrap();
        let leaf = Leaf {
            name: Name { pty: false, number: 7 },
            dir: fs::File::open(&group).unwrap().into(),
        };
        groups.end(leaf);
        assert!(group.exists());
        fs::remove_dir(&inner).unwrap();
        assert!(groups.leaf(true).is_none());
        assert!(!group.exists());
    }
}
