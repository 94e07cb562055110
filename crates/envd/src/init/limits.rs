//! Limits of the guest's kernel that `init` raises at boot: how much programs may watch with
//! inotify. The kernel's own figures are for a small machine and refuse a watch of 8,192 folders.

/// Bytes of kernel memory that a watch takes, with the directory that it keeps in memory.
const WATCH_BYTES: u64 = 1024;
/// Bounds of the watches of one user.
const WATCHES: std::ops::RangeInclusive<u64> = 16_384..=1_048_576;
/// Watchers, each with a queue, of one user.
const INSTANCES: u64 = 1024;
/// Events that the kernel keeps for one watcher until it reads them.
const EVENTS: u64 = 65_536;

/// Raises the limits of inotify. A failure is told on the console and leaves the kernel's figure.
pub(super) fn raise() {
    let info = rustix::system::sysinfo();
    let memory = info.totalram * u64::from(info.mem_unit);
    let figures = [
        ("max_user_watches", watches(memory)),
        ("max_user_instances", INSTANCES),
        ("max_queued_events", EVENTS),
    ];
    for (name, figure) in figures {
        let path = format!("/proc/sys/fs/inotify/{name}");
        if let Err(error) = std::fs::write(&path, figure.to_string()) {
            super::console(&format!("envd: {path}: {error}"));
        }
    }
}

/// Returns the watches that one user may have: at most a quarter of the memory.
fn watches(memory: u64) -> u64 {
    (memory / 4 / WATCH_BYTES).clamp(*WATCHES.start(), *WATCHES.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_take_at_most_a_quarter_of_the_memory() {
        assert_eq!(watches(512 << 20), 131_072);
        assert_eq!(watches(32 << 20), 16_384);
        assert_eq!(watches(64 << 30), 1_048_576);
    }
}
