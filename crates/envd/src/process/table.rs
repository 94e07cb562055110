//! All processes of the guest, from `/proc` (proc(5)). The programs are hostile, so every read and
//! every text is bounded.
//!
//! A process can block the read of its command line for ever, since the text is in its own memory.
//! So [`Table::read`] takes only what the kernel holds, and [`commands`] runs apart from it.

use crate::clock;
use crate::lock::lock;
use crate::open::open_regular;
use crate::users::Names;
use rustix::time::{ClockId, clock_gettime};
use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Most processes that are listed.
const MOST: usize = 4096;
/// Most entries of `/proc` that are looked at. A guest may cover it with a folder of its own.
const ENTRIES: usize = 65_536;
/// Most bytes that are read of a file of the kernel's.
const BYTES: u64 = 4096;
/// Longest command line, in bytes.
const COMMAND: usize = 4096;
/// Most bytes of all command lines together. Names stand in for those beyond it.
const COMMANDS: usize = 1 << 20;
/// Longest name of a user or a tag, in bytes.
const NAME: usize = 256;
/// Milliseconds of the kernel's unit of time (`USER_HZ` is 100 on all machines with guests).
const TICK_MS: u64 = 10;
/// Bytes of a page on x86-64.
const PAGE: u64 = 4096;
/// Flag of the kernel's own threads in `/proc/PID/stat` (`PF_KTHREAD`).
const KERNEL: u64 = 0x0020_0000;

/// Processes of the guest at a moment.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Table {
    /// Time of the read, in milliseconds since 1970.
    pub at_ms: i64,
    /// Set if the guest has more processes than are listed.
    pub truncated: bool,
    /// Processes by pid, without the kernel's own threads.
    pub processes: Vec<Row>,
}

/// A process of the guest.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Row {
    pub pid: u32,
    pub ppid: u32,
    /// Name of the effective user, or its number.
    pub user: String,
    /// Command line, or the name in brackets.
    pub command: String,
    /// State as the kernel's letter, such as `R`, `S` or `Z`.
    pub state: char,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Processor time since the start, in milliseconds.
    pub cpu_ms: u64,
    /// Resident memory, in bytes.
    pub memory_bytes: u64,
    /// Time of the start, in milliseconds since 1970.
    pub started_ms: i64,
}

impl Table {
    /// Reads the processes, with names in place of command lines. `tags` are the tags of programs
    /// by pid. Reads many files of `/proc`, so it belongs on a thread of its own.
    pub(crate) fn read(tags: &HashMap<u32, String>) -> Self {
        let (names, at_ms) = (Names::load(), clock::unix_ms());
        let booted_ms = at_ms.saturating_sub(uptime_ms());
        let row = |pid: u32| {
            let stat = Stat::parse(&text(&folder(pid).join("stat"))?)?;
            let user = names.user(effective_user(&text(&folder(pid).join("status"))?)?);
            let started = i64::try_from(stat.started * TICK_MS).unwrap_or(i64::MAX);
            (!stat.kernel).then(|| Row {
                pid,
                ppid: stat.ppid,
                user: cut(&user, NAME),
                command: format!("[{}]", stat.name),
                state: stat.state,
                tag: tags.get(&pid).filter(|tag| tag.len() <= NAME).cloned(),
                cpu_ms: stat.ticks * TICK_MS,
                memory_bytes: stat.pages * PAGE,
                started_ms: booted_ms.saturating_add(started),
            })
        };
        let mut processes: Vec<Row> = pids().filter_map(row).take(MOST + 1).collect();
        let truncated = processes.len() > MOST;
        processes.truncate(MOST);
        Self { at_ms, truncated, processes }
    }

    /// Returns the pids, for [`commands`].
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(|row| row.pid).collect()
    }

    /// Replaces names by the command lines that were found.
    pub(crate) fn complete(&mut self, mut commands: HashMap<u32, String>) {
        for row in &mut self.processes {
            if let Some(command) = commands.remove(&row.pid) {
                row.command = command;
            }
        }
    }
}

/// Reads the command lines of processes into `found`. A process may hold up the read for ever. The
/// command lines that were read before are then in `found`.
pub(crate) fn commands(pids: &[u32], found: &Mutex<HashMap<u32, String>>) {
    let mut left = COMMANDS;
    for pid in pids {
        let Some(bytes) = bytes(&folder(*pid).join("cmdline")) else { continue };
        let command = command(&bytes);
        if command.is_empty() || command.len() > left {
            continue;
        }
        left -= command.len();
        lock(found).insert(*pid, command);
    }
}

/// Makes a line of a list of arguments, each of which ends with NUL.
fn command(bytes: &[u8]) -> String {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    cut(&String::from_utf8_lossy(&bytes[..end]), COMMAND)
}

/// Cuts a text at `most` bytes. A space stands in for each control character.
pub(crate) fn cut(text: &str, most: usize) -> String {
    let text = &text[..text.floor_char_boundary(most)];
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn folder(pid: u32) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

/// Returns the pids of `/proc`.
fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten().take(ENTRIES);
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Reads the begin of a file. Returns `None` for a process that has ended.
fn bytes(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path).ok()?.take(BYTES).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn text(path: &Path) -> Option<String> {
    bytes(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns the time since the boot, by the clock that starts of processes are in.
fn uptime_ms() -> i64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec.saturating_mul(1000).saturating_add(now.tv_nsec / 1_000_000)
}

/// Reads the effective user from `/proc/PID/status`.
fn effective_user(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Fields of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    state: char,
    ppid: u32,
    /// Set for a thread of the kernel's own.
    kernel: bool,
    ticks: u64,
    /// Ticks between boot and start.
    started: u64,
    pages: u64,
}

impl Stat {
    /// Reads the fields. The name may contain spaces and parentheses.
    fn parse(text: &str) -> Option<Self> {
        let (begin, rest) = text.rsplit_once(')')?;
        let (_, name) = begin.split_once('(')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().take(22).collect();
        // A guest's own file may have numbers of any size.
        let number = |at: usize| fields.get(at)?.parse::<u32>().ok().map(u64::from);
        let large = |at: usize| Some(fields.get(at)?.parse::<u64>().ok()?.min(1 << 48));
        Some(Self {
            name: cut(name, NAME),
            state: fields.first()?.chars().next()?,
            ppid: fields.get(1)?.parse().ok()?,
            kernel: number(6)? & KERNEL != 0,
            ticks: large(11)? + large(12)?,
            started: large(19)?,
            pages: large(21)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_line_with_parentheses_in_the_name_is_parsed() {
        let line = "7 (a) b) S 1 7 7 0 -1 4194560 9 0 0 0 30 12 0 0 20 0 1 0 500 999 25 1844 1";
        let wanted = Stat {
            name: "a) b".to_owned(),
            state: 'S',
            ppid: 1,
            kernel: false,
            ticks: 42,
            started: 500,
            pages: 25,
        };
        assert_eq!(Stat::parse(line), Some(wanted));
        let kernel = "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 0 0 0";
        assert!(Stat::parse(kernel).unwrap().kernel);
        for wrong in ["", "7", "7 (a", "7 (a) S", "7 (a) S x 7 7", "() S 1"] {
            assert_eq!(Stat::parse(wrong), None, "{wrong}");
        }
        let huge = format!("1 (a) S 1 {}", vec!["18446744073709551615"; 22].join(" "));
        assert_eq!(Stat::parse(&huge), None, "the flags have 32 bits");
    }

    #[test]
    fn command_line_is_cut_and_has_no_control_characters() {
        assert_eq!(command(b"sh\0-c\0a\x1b[2J\n\0\0"), "sh -c a [2J ");
        assert_eq!(command(b"a\xff\0"), "a\u{fffd}");
        assert_eq!(command(b"\0\0"), "");
        let long = command(&"é".repeat(COMMAND).into_bytes());
        assert!(long.len() <= COMMAND && long.chars().all(|c| c == 'é'), "{}", long.len());
        assert_eq!(effective_user("Name:\tx\nUid:\t0\t1000\t0\t0\n"), Some(1000));
        assert_eq!(effective_user("Uid:\t0\n"), None);
    }

    #[test]
    fn own_process_is_listed_with_its_parent_and_command_line() {
        let own = std::process::id();
        let tags = HashMap::from([(own, "own".to_owned())]);
        let mut table = Table::read(&tags);
        let found = Mutex::default();
        commands(&table.pids(), &found);
        table.complete(found.into_inner().unwrap());
        let row = table.processes.iter().find(|row| row.pid == own).unwrap();
        assert_eq!(row.ppid, std::os::unix::process::parent_id());
        assert_eq!(row.tag.as_deref(), Some("own"));
        assert!(row.memory_bytes > 0 && row.started_ms <= table.at_ms + 1000, "{row:?}");
        let first = std::env::args().next().unwrap();
        assert!(row.command.starts_with(&first), "{row:?}");
        assert!(!table.truncated);
    }
}
