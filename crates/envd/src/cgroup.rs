//! Control groups of the guest. They keep users' programs from starving envd, or each other, of
//! memory or processor time. Ending a program's group ends everything that the program has started.
//!
//! ```text
//! /envd          first in line for the processor
//! /user          limits of memory and number for all programs of users
//! /user/p1 …     a group for each started program, with an equal share of the processor
//! /pty           a group like /user, for programs with a terminal
//! ```
//! An ordinary machine has no such groups. All calls use descriptors that were opened before the
//! first program ran. So no mount over the path can hold up a caller.

use crate::lock::lock;
use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, unlinkat};
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

const ROOT: &str = "/sys/fs/cgroup";
/// Most memory in bytes that stays reserved for envd and the kernel.
const RESERVE_MAX: u64 = 64 << 20;
/// Bytes of memory for each process that users may have. The limit ends a fork bomb, and the
/// kernel's own tables for so many processes still fit.
const BYTES_PER_PROCESS: u64 = 128 << 10;
/// Most groups that are removed between two roots of a build.
const GROUPS_MAX: usize = 100_000;
/// Groups of ended programs that each start tries to remove.
const SWEEP: usize = 8;

/// The guest's control groups.
#[derive(Default)]
pub(crate) struct Cgroups {
    parents: Option<Parents>,
    leaves: Mutex<Leaves>,
}

/// Groups above those of programs.
struct Parents {
    user: OwnedFd,
    pty: OwnedFd,
}

#[derive(Default)]
struct Leaves {
    made: u64,
    /// Groups whose program has ended and whose other processes may still run.
    ended: VecDeque<Name>,
}

#[derive(Debug, Clone, Copy)]
struct Name {
    pty: bool,
    number: u64,
}

/// A program's group.
pub(crate) struct Leaf {
    name: Name,
    dir: OwnedFd,
}

impl Cgroups {
    /// Makes the groups, if this is a capsule.
    pub(crate) fn open(in_guest: bool) -> Self {
        if !in_guest {
            return Self::default();
        }
        let root = Path::new(ROOT);
        // Controllers come first, or the groups have no limits to set. Failures are ignored, since
        // programs also run on a kernel without controllers.
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

    /// Makes the group of a program with or without a terminal. Returns it and its list of
    /// processes. The child writes itself into that list.
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

    /// Removes the group of an ended program, at once or after its last process has ended too.
    pub(crate) fn end(&self, leaf: Leaf) {
        let Some(parents) = &self.parents else { return };
        let name = leaf.name;
        drop(leaf);
        self.remove(parents, name);
    }

    /// Removes a group, at once or in a later sweep.
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
        lock(&self.leaves)
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
    /// Kills every process of the group and of groups below it (`cgroup.kill`, since Linux 5.14). A
    /// process's session makes no difference. Does nothing on a kernel without this file.
    pub(crate) fn kill(&self) {
        if let Ok(kill) = open_for_writing(&self.dir, "cgroup.kill") {
            let _ = rustix::io::write(kill, b"1");
        }
    }
}

/// Removes every group that has no process. Only for a process that has ended all others.
pub(crate) fn clean() {
    clean_below(Path::new(ROOT));
}

/// Removes the groups below a group, the lowest first.
fn clean_below(root: &Path) {
    let mut found = vec![root.to_owned()];
    let mut at = 0;
    while let Some(group) = found.get(at).cloned()
        && found.len() < GROUPS_MAX
    {
        let entries = fs::read_dir(group).into_iter().flatten().flatten();
        let is_folder = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
        found.extend(entries.filter(is_folder).map(|entry| entry.path()));
        at += 1;
    }
    for group in found.iter().skip(1).rev() {
        let _ = fs::remove_dir(group);
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
    let _ = fs::write(group.join("cgroup.subtree_control"), "+cpu +memory");
    group
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes the parents as ordinary folders, where a group has no list of processes.
    fn groups(dir: &Path) -> Cgroups {
        let open = || OwnedFd::from(fs::File::open(dir).unwrap());
        let parents = Parents { user: open(), pty: open() };
        Cgroups { parents: Some(parents), leaves: Mutex::default() }
    }

    #[test]
    fn cgroup_that_cannot_be_opened_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        assert!(groups(dir.path()).leaf(false).is_none());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn groups_below_the_root_are_removed_from_the_bottom() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("user/p1/a/b")).unwrap();
        fs::create_dir_all(dir.path().join("pty")).unwrap();
        fs::write(dir.path().join("cgroup.procs"), "").unwrap();
        clean_below(dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn nonempty_cgroup_is_removed_by_a_later_start() {
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
