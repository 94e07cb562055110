//! Facts from `/proc` about a process and the session that it leads. They serve a machine without
//! control groups, and tell a process from a later one with the same number.

use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::os::unix::fs::MetadataExt;

/// Returns the start time of a process in clock ticks since the machine's start.
pub(super) fn start_time(pid: i32) -> Option<u64> {
    field(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?, 22)?.parse().ok()
}

/// Reports whether a process of a user leads a session.
pub(super) fn leads(pid: i32, uid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let owned = fs::metadata(format!("/proc/{pid}")).is_ok_and(|found| found.uid() == uid);
    owned && field(&stat, 6).is_some_and(|id| id.parse() == Ok(pid))
}

/// Returns the memory in bytes of all processes of a session, shared pages in shares.
pub(super) fn memory(session: i32) -> Option<u64> {
    let share = |pid| pss(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?);
    members(session).into_iter().filter_map(share).reduce(u64::saturating_add)
}

/// Kills all processes of a session.
pub(super) fn kill(session: i32) {
    for pid in members(session).into_iter().filter_map(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Returns the processes of a session.
fn members(session: i32) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let of_session = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        field(&stat, 6).is_some_and(|id| id.parse() == Ok(session))
    };
    pids.filter(of_session).collect()
}

/// Returns a field of `/proc/PID/stat` by its number from 1. The second field, the program's name
/// in brackets, may itself hold spaces and brackets.
fn field(stat: &str, number: usize) -> Option<&str> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(number.checked_sub(3)?)
}

/// Reads the proportional share in bytes from a text of `smaps_rollup`.
fn pss(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_program_with_an_odd_name_are_found() {
        let stat = "12 (a) b (c)) S 1 12 13 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 9\n";
        assert_eq!((field(stat, 4), field(stat, 6)), (Some("1"), Some("13")));
        assert_eq!(field(stat, 22), Some("4711"));
        assert_eq!((field("", 6), field(stat, 1)), (None, None));
    }

    #[test]
    fn own_process_has_a_start_time_and_memory() {
        let pid = rustix::process::getpid().as_raw_pid();
        assert!(start_time(pid).is_some_and(|ticks| ticks > 0));
        assert_eq!(start_time(i32::MAX), None);
        assert!(!leads(pid, u32::MAX) && !leads(i32::MAX, 0));
        assert_eq!(pss("Rss: 9 kB\nPss:                  12 kB\nPss_Dirty: 1 kB\n"), Some(12_288));
        assert_eq!(memory(i32::MAX), None);
    }
}
