//! Idle contexts: they take next to no processor time, and touch little memory. `tests/long`
//! watches them for a minute (`WRENN_IDLE_SEC`).

use crate::Server;
use serde_json::json;
use std::fs;
use std::time::Duration;

/// Parts of a core that an idle interpreter and its kernels may take, in thousandths.
const SHARE: u64 = 2;
/// Milliseconds of a tick, the unit of `/proc/PID/stat`.
const TICK_MS: u64 = 10;
/// Most memory that the idle processes may touch, in KiB. Node's collector and bash read some of
/// theirs, so less than this is changed.
const TOUCHED_KIB: u64 = 4096;
/// Time after which the work of the starts is over.
const SETTLE: Duration = Duration::from_secs(5);

/// Returns the processor time of a process so far, in ticks.
fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let mut next = || fields.next().unwrap().parse::<u64>().unwrap();
    next() + next()
}

/// Returns the private writable memory that a process has touched since [`forget`], in KiB. The sum
/// has all memory that the process has changed.
fn touched_kib(pid: i32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (mut is_own, mut sum) = (false, 0);
    for line in maps.lines() {
        let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
        if !first.ends_with(':') {
            is_own = rest.starts_with("rw-p") || rest.starts_with("rwxp");
        } else if is_own && first == "Referenced:" {
            sum += rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        }
    }
    sum
}

/// Has the kernel forget which memory a process has touched.
fn forget(pid: i32) {
    fs::write(format!("/proc/{pid}/clear_refs"), "1").unwrap();
}

#[tokio::test]
async fn idle_contexts_take_no_processor_time_and_touch_little_memory() {
    let warm = ["python", "javascript", "typescript", "bash"];
    let server = Server::with(json!({ "warm": warm })).await;
    for language in warm {
        server.run_in(language, "1").await;
    }
    tokio::time::sleep(SETTLE).await;
    let mut pids = server.processes();
    assert!(pids.len() > warm.len(), "four kernels and the fork server: {pids:?}");
    pids.push(server.pid());
    let before: Vec<u64> = pids.iter().copied().map(ticks).collect();
    pids.iter().copied().for_each(forget);
    let seconds = u64::try_from(tests::rounds("WRENN_IDLE_SEC", 15)).unwrap();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    // Each process's time is rounded down at both ends, by less than a tick.
    let used: u64 = pids.iter().zip(before).map(|(pid, before)| ticks(*pid) - before).sum();
    let rounded = u64::try_from(pids.len()).unwrap();
    let used_ms = used.saturating_sub(rounded) * TICK_MS;
    assert!(used_ms < SHARE * seconds, "{used} ticks in {seconds} s by {pids:?}");
    let touched: Vec<u64> = pids.iter().copied().map(touched_kib).collect();
    assert!(touched.iter().sum::<u64>() <= TOUCHED_KIB, "KiB of {pids:?}: {touched:?}");
}
