//! Memory and processor time of the platform and of a capsule while nothing happens.

use crate::files::{mib, status_mib};
use crate::stats::Row;
use std::time::Duration;
use tests::{Platform, processes_of};

const WATCH: Duration = Duration::from_secs(20);
/// Time after which the work that follows a boot is done.
const SETTLE: Duration = Duration::from_secs(15);

pub(crate) async fn measure(platform: &Platform, id: &str) -> Vec<Row> {
    let client = platform.client();
    let envd = client.out(id, "grep VmRSS /proc/$(pgrep -o -P 1 init)/status").await;
    let envd = envd.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10;
    tokio::time::sleep(SETTLE).await;
    let machine = u32::try_from(processes_of(id)[0]).unwrap();
    let before = (ticks(machine), ticks(platform.pid()));
    tokio::time::sleep(WATCH).await;
    let share = |ticks: u64| format!("{:.2} % of a core", ticks as f64 / WATCH.as_secs_f64());
    let capsule = share(ticks(machine) - before.0);
    let ours = share(ticks(platform.pid()) - before.1);
    let memory = mib(status_mib(platform.pid(), "VmRSS"));
    vec![
        Row::value("idle: agent + control plane, resident", &memory, "≤ 60 MiB"),
        Row::value("idle: agent + control plane, processor", &ours, ""),
        Row::value("idle: envd, resident", &mib(envd), "≤ 8 MiB"),
        Row::value("idle: a capsule, processor", &capsule, "< 1 % of a core"),
    ]
}

/// Returns a process's proportional set size, in KiB (`proc_pid_smaps(5)`).
pub(crate) fn pss_kib(pid: i32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Returns a process's processor time, in hundredths of a second (`proc(5)`, fields 14 and 15).
pub(crate) fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
