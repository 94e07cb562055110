//! Control groups of kernels, below the group of all users' programs. Ending a group ends all that
//! its kernel has started. An ordinary machine has no such groups.

use crate::kernel::Memory;
use rustix::fs::{AtFlags, Dir, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::Errno;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Group of all users' programs. envd makes it.
const PARENT: &str = "/sys/fs/cgroup/user";
/// Most groups of one context that may await their removal.
const SAME_NAME_MAX: u32 = 100;
/// Most bytes that are read of a group's file.
const FILE_MAX: u64 = 4096;
/// Attempts to remove a group whose processes have been killed, and the time between them.
const REMOVALS: u32 = 100;
const REMOVAL_PAUSE: Duration = Duration::from_millis(100);

/// A control group.
#[derive(Debug, Clone)]
pub(super) struct Group {
    name: String,
    folder: Arc<OwnedFd>,
}

impl Group {
    /// Makes the group `k-{name}`, with a number after it while an earlier one still exists.
    /// Returns `None` on a machine without such groups.
    pub(super) fn make(name: &str) -> Option<Self> {
        let parent = parent()?;
        for number in 1..SAME_NAME_MAX {
            let name = if number == 1 { format!("k-{name}") } else { format!("k-{name}-{number}") };
            match mkdirat(parent, &name, Mode::from_raw_mode(0o755)) {
                Ok(()) => return Self::open(parent, name),
                Err(Errno::EXIST) => {}
                Err(_) => return None,
            }
        }
        None
    }

    /// Finds a group by its whole name.
    pub(super) fn find(name: &str) -> Option<Self> {
        let plain = name.starts_with("k-") && !name.contains('/');
        Self::open(parent().filter(|_| plain)?, name.to_owned())
    }

    /// Ends the groups of all kernels but those of the given names.
    pub(super) fn end_others(kept: &[&str]) {
        let Some(entries) = parent().and_then(|parent| Dir::read_from(parent).ok()) else { return };
        let names = entries.map_while(Result::ok).filter_map(|entry| {
            entry.file_name().to_str().ok().filter(|name| !kept.contains(name)).map(str::to_owned)
        });
        names.filter_map(|name| Self::find(&name)).for_each(|group| group.end());
    }

    fn open(parent: &OwnedFd, name: String) -> Option<Self> {
        let folder = Arc::new(open_folder(parent, &name)?);
        Some(Self { name, folder })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Opens the list of processes, into which a child writes itself.
    pub(super) fn processes(&self) -> Option<OwnedFd> {
        openat(&self.folder, "cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).ok()
    }

    /// Moves a process into the group.
    pub(super) fn add(&self, pid: i32) {
        if let Some(processes) = self.processes() {
            let _ = rustix::io::write(processes, pid.to_string().as_bytes());
        }
    }

    /// Kills every process of the group, and removes it.
    pub(super) fn end(&self) {
        self.kill();
        self.remove_soon();
    }

    /// Kills every process of the group (`cgroup.kill`, since Linux 5.14).
    fn kill(&self) {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        if let Ok(kill) = openat(&self.folder, "cgroup.kill", flags, Mode::empty()) {
            let _ = rustix::io::write(kill, b"1");
        }
    }

    /// Returns the memory in bytes that the group uses.
    pub(super) fn memory(&self) -> Option<u64> {
        number(&self.folder, "memory.current")
    }

    /// Returns the group's memory if the kernel of the guest killed a process of it for lack of
    /// memory.
    pub(super) fn out_of_memory(&self) -> Option<Memory> {
        let events = read(&self.folder, "memory.events")?;
        if field(&events, "oom_kill").unwrap_or_default() == 0 {
            return None;
        }
        let peak = number(&self.folder, "memory.peak").or_else(|| self.memory());
        let limit = number(parent()?, "memory.max").or_else(total_memory);
        Some(Memory { peak: peak.unwrap_or_default(), limit: limit.unwrap_or_default() })
    }

    /// Removes the group once its last process has ended. Gives up after some seconds.
    pub(super) fn remove_soon(&self) {
        if self.remove() {
            return;
        }
        let group = self.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                for _ in 0..REMOVALS {
                    tokio::time::sleep(REMOVAL_PAUSE).await;
                    if group.remove() {
                        return;
                    }
                    group.kill();
                }
            });
        }
    }

    /// Removes an empty group.
    fn remove(&self) -> bool {
        parent().is_some_and(|parent| {
            !matches!(
                unlinkat(parent, self.name.as_str(), AtFlags::REMOVEDIR),
                Err(Errno::BUSY | Errno::NOTEMPTY)
            )
        })
    }
}

/// Returns the group above those of kernels. Its folder is opened once, before users' code runs, so
/// that no mount over the path can hold the interpreter up.
fn parent() -> Option<&'static OwnedFd> {
    static FOLDER: OnceLock<Option<OwnedFd>> = OnceLock::new();
    let open = || {
        let folder = open_folder(rustix::fs::CWD, PARENT)?;
        openat(&folder, "cgroup.procs", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        Some(folder)
    };
    FOLDER.get_or_init(open).as_ref()
}

fn open_folder(at: impl AsFd, name: &str) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty()).ok()
}

fn read(folder: &OwnedFd, name: &str) -> Option<String> {
    let file = openat(folder, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut text = String::new();
    File::from(file).take(FILE_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

/// Reads a file that holds one number. Returns `None` for the word `max`.
fn number(folder: &OwnedFd, name: &str) -> Option<u64> {
    read(folder, name)?.trim().parse().ok()
}

/// Returns a number from a text of names and numbers.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line?.trim().parse().ok()
}

/// Returns the machine's memory in bytes.
fn total_memory() -> Option<u64> {
    let info = rustix::system::sysinfo();
    Some(info.totalram.saturating_mul(u64::from(info.mem_unit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_field_is_found_by_its_whole_name() {
        let events = "low 0\noom 4\noom_kill 2\noom_group_kill 7\n";
        assert_eq!(field(events, "oom_kill"), Some(2));
        assert_eq!(field(events, "oom"), Some(4));
        assert_eq!(field(events, "high"), None);
    }

    #[test]
    fn group_of_an_odd_name_is_not_found() {
        for name in ["k-../envd", "p1", "", "k-none"] {
            assert!(Group::find(name).is_none(), "{name}");
        }
        assert!(total_memory().is_some_and(|bytes| bytes > 1 << 20));
    }
}
