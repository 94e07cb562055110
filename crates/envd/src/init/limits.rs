//! Settings of the guest's kernel that `init` makes at boot. The kernel's own limits of inotify are
//! for a small machine and refuse a watch of 8,192 folders. The ports of envd and the code
//! interpreter lie in the range of ports of outgoing connections, so they are reserved.

use crate::console::console;

/// Bytes of kernel memory for a watch and the directory that it keeps in memory.
const WATCH_BYTES: u64 = 1024;
/// Bounds of a user's number of watches.
const WATCHES: std::ops::RangeInclusive<u64> = 16_384..=1_048_576;
/// Watchers, each with a queue, that a user may have.
const INSTANCES: u64 = 1024;
/// Events that the kernel keeps for a watcher until it reads them.
const EVENTS: u64 = 65_536;

/// Ports that no outgoing connection may take.
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Raises the limits of inotify and reserves ports. The console names a setting that failed.
pub(super) fn set() {
    let info = rustix::system::sysinfo();
    let memory = info.totalram * u64::from(info.mem_unit);
    let figures = [
        ("max_user_watches", watches(memory)),
        ("max_user_instances", INSTANCES),
        ("max_queued_events", EVENTS),
    ];
    for (name, figure) in figures {
        write(&format!("/proc/sys/fs/inotify/{name}"), &figure.to_string());
    }
    let ports = format!("{},{}", protocol::ENVD_PORT, protocol::INTERPRETER_PORT);
    write(RESERVED, &ports);
}

fn write(path: &str, text: &str) {
    if let Err(error) = std::fs::write(path, text) {
        console(&format!("envd: cannot write {path}: {error}"));
    }
}

/// Returns the number of watches that a user may have. They take at most a quarter of the memory,
/// within the bounds.
fn watches(memory: u64) -> u64 {
    (memory / 4 / WATCH_BYTES).clamp(*WATCHES.start(), *WATCHES.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inotify_watches_take_at_most_a_quarter_of_memory() {
        assert_eq!(watches(512 << 20), 131_072);
        assert_eq!(watches(32 << 20), 16_384);
        assert_eq!(watches(64 << 30), 1_048_576);
    }
}
