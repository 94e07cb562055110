//! Use of processor and memory by a capsule's VMM, as the kernel of this host counts it. No guest
//! can change these counts.

use super::{Cgroups, Controller};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Counts of a control group. A count is `None` where the machine lacks the controller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct GroupUsage {
    /// Processor time since the group was made.
    pub cpu: Option<Duration>,
    /// Resident memory in bytes, without files that the kernel can drop at once.
    pub memory: Option<u64>,
    /// Processes that the kernel killed because the group had too little memory.
    pub oom_kills: Option<u64>,
}

impl Cgroups {
    /// Reads the counts of a capsule's groups. A group that is gone has no counts.
    pub(crate) fn usage(&self, capsule: &str) -> GroupUsage {
        let mut usage = GroupUsage::default();
        for (controller, parent) in &self.parents {
            let dir = parent.join(capsule);
            match controller {
                Controller::Unified => {
                    usage.cpu = field(&dir, "cpu.stat", "usage_usec").map(Duration::from_micros);
                    usage.memory = resident(&dir, "memory.current", "inactive_file");
                    usage.oom_kills = field(&dir, "memory.events", "oom_kill");
                }
                Controller::Cpuacct => {
                    usage.cpu = number(&dir, "cpuacct.usage").map(Duration::from_nanos);
                }
                Controller::Memory => {
                    usage.memory = resident(&dir, "memory.usage_in_bytes", "total_inactive_file");
                    usage.oom_kills = field(&dir, "memory.oom_control", "oom_kill");
                }
                Controller::Cpu | Controller::Pids => {}
            }
        }
        usage
    }
}

/// Returns the memory of a group without its inactive files.
fn resident(dir: &Path, all: &str, inactive: &str) -> Option<u64> {
    let dropped = field(dir, "memory.stat", inactive).unwrap_or(0);
    Some(number(dir, all)?.saturating_sub(dropped))
}

/// Reads a file that holds one number.
fn number(dir: &Path, file: &str) -> Option<u64> {
    fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok()
}

/// Reads a number from a file with a name and a number in each line.
fn field(dir: &Path, file: &str, name: &str) -> Option<u64> {
    find(&fs::read_to_string(dir.join(file)).ok()?, name)
}

fn find(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(known, _)| *known == name)?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(controllers: &[(Controller, &Path)]) -> Cgroups {
        Cgroups { parents: controllers.iter().map(|(c, at)| (*c, at.to_path_buf())).collect() }
    }

    #[test]
    fn counts_of_unified_group_are_read_and_missing_group_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("cl-1");
        fs::create_dir(&group).unwrap();
        let write = |file: &str, text: &str| fs::write(group.join(file), text).unwrap();
        write("cpu.stat", "usage_usec 1500000\nuser_usec 1\n");
        write("memory.current", "9000\n");
        write("memory.stat", "anon 5\ninactive_file 4000\n");
        write("memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 0\n");
        let groups = groups(&[(Controller::Unified, dir.path())]);
        let wanted = GroupUsage {
            cpu: Some(Duration::from_millis(1500)),
            memory: Some(5000),
            oom_kills: Some(2),
        };
        assert_eq!(groups.usage("cl-1"), wanted);
        assert_eq!(groups.usage("cl-2"), GroupUsage::default());
    }

    #[test]
    fn counts_of_version_1_groups_come_from_two_controllers() {
        let dir = tempfile::tempdir().unwrap();
        let (cpu, memory) = (dir.path().join("cpuacct"), dir.path().join("memory"));
        for parent in [&cpu, &memory] {
            fs::create_dir_all(parent.join("cl-1")).unwrap();
        }
        fs::write(cpu.join("cl-1/cpuacct.usage"), "2000000000\n").unwrap();
        let write = |file: &str, text: &str| fs::write(memory.join("cl-1").join(file), text);
        write("memory.usage_in_bytes", "700\n").unwrap();
        write("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n").unwrap();
        let groups = groups(&[(Controller::Cpuacct, &cpu), (Controller::Memory, &memory)]);
        let wanted =
            GroupUsage { cpu: Some(Duration::from_secs(2)), memory: Some(700), oom_kills: Some(1) };
        assert_eq!(groups.usage("cl-1"), wanted);
    }

    #[test]
    fn field_is_found_by_its_whole_name() {
        assert_eq!(find("oom_kill_disable 7\noom_kill 1\n", "oom_kill"), Some(1));
        assert_eq!(find("oom_kill\nx -1\n", "oom_kill"), None);
        assert_eq!(find("x -1\n", "x"), None);
    }
}
