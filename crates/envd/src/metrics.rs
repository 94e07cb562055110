//! Figures of the guest's processors, memory and disk, from `/proc` and `statvfs`.

use crate::lock::lock;
use std::sync::Mutex;

/// Memory of the guest, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    pub total: u64,
    pub used: u64,
    pub cache: u64,
}

/// Reads `/proc/meminfo`.
pub(crate) fn memory() -> Memory {
    parse_memory(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default())
}

fn parse_memory(text: &str) -> Memory {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or(0)
            * 1024
    };
    let total = field("MemTotal");
    Memory { total, used: total.saturating_sub(field("MemAvailable")), cache: field("Cached") }
}

/// Returns the share of processor time used since the last call. 100 percent is all processors.
pub(crate) fn cpu_percent() -> f64 {
    static LAST: Mutex<(u64, u64)> = Mutex::new((0, 0));
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let times: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or("")
        .split_whitespace()
        .skip(1)
        .filter_map(|t| t.parse().ok())
        .collect();
    let total: u64 = times.iter().take(8).sum();
    let idle = times.get(3).unwrap_or(&0) + times.get(4).unwrap_or(&0);
    let mut last = lock(&LAST);
    let (all, unused) = (total.saturating_sub(last.0), idle.saturating_sub(last.1));
    *last = (total, idle);
    #[expect(clippy::cast_precision_loss, reason = "a percentage needs no 53 bits")]
    let busy = 100.0 * all.saturating_sub(unused) as f64 / all.max(1) as f64;
    (busy * 100.0).round() / 100.0
}

/// Returns the number of processes that the kernel killed for want of memory since its boot.
fn oom_kills() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Makes the answer of `GET /metrics`.
pub(crate) fn snapshot() -> serde_json::Value {
    let memory = memory();
    let (disk_used, disk_total) = rustix::fs::statvfs("/")
        .map_or((0, 0), |s| ((s.f_blocks - s.f_bfree) * s.f_frsize, s.f_blocks * s.f_frsize));
    serde_json::json!({
        "ts": crate::clock::unix_seconds(),
        "cpu_count": std::thread::available_parallelism().map_or(1, usize::from),
        "cpu_used_pct": cpu_percent(),
        "mem_total": memory.total,
        "mem_used": memory.used,
        "mem_cache": memory.cache,
        "mem_total_mib": memory.total >> 20,
        "mem_used_mib": memory.used >> 20,
        "disk_used": disk_used,
        "disk_total": disk_total,
        "oom_kills": oom_kills(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_parsed_in_bytes() {
        let text = "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  400 kB\nCached: 7 kB\n";
        let want = Memory { total: 1_024_000, used: 614_400, cache: 7168 };
        assert_eq!(parse_memory(text), want);
        assert_eq!(parse_memory(""), Memory::default());
    }
}
