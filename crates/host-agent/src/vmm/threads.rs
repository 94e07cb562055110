//! The threads of a VMM process, read from `/proc`. They tell whether a guest's processors ran
//! between two readings. `capsule/liveness.rs` draws the conclusions.

use std::path::PathBuf;

/// The threads of one VMM process that run its guest's processors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Threads {
    pid: i32,
    vcpus: Vec<i32>,
}

/// State of a thread, from `/proc`.
struct Thread {
    /// True when the thread waits for an event, and neither for a processor nor for a disk.
    sleeps: bool,
    /// Count of times that the thread has begun to wait.
    waits: u64,
}

impl Threads {
    /// Finds the threads whose names begin with `prefix`. Returns `None` if there are none.
    pub(crate) fn find(pid: i32, prefix: &str) -> Option<Self> {
        let is_vcpu = |tid: &i32| {
            let name = std::fs::read_to_string(dir(pid, *tid).join("comm")).unwrap_or_default();
            name.starts_with(prefix)
        };
        let vcpus: Vec<i32> = all(pid).filter(is_vcpu).collect();
        (!vcpus.is_empty()).then_some(Self { pid, vcpus })
    }

    /// Returns each vCPU thread's count of waits, if all of them wait now.
    ///
    /// Equal answers at two times mean that no processor of the guest ran in between.
    pub(crate) fn waits(&self) -> Option<Vec<u64>> {
        let waits = |tid: &i32| {
            let thread = read(self.pid, *tid)?;
            thread.sleeps.then_some(thread.waits)
        };
        self.vcpus.iter().map(waits).collect()
    }

    /// Reports whether every thread of the process sleeps. A process that is starved, stopped, or
    /// waits for a disk has a thread that does not sleep.
    pub(crate) fn all_sleep(&self) -> bool {
        all(self.pid).all(|tid| read(self.pid, tid).is_some_and(|thread| thread.sleeps))
    }
}

fn dir(pid: i32, tid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/task/{tid}"))
}

fn all(pid: i32) -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Reports whether a thread of the process may still run code of the process. A thread that has
/// begun to exit runs none.
pub(super) fn any_runs(pid: i32) -> bool {
    let runs = |tid| {
        let stat = std::fs::read_to_string(dir(pid, tid).join("stat"));
        // A thread whose file is missing has ended.
        stat.is_ok_and(|stat| !exits(&stat))
    };
    all(pid).any(runs)
}

/// Reads from the text of `/proc/PID/task/TID/stat` (`proc(5)`) if the thread exits: the kernel's
/// flag `PF_EXITING` in the ninth field.
fn exits(stat: &str) -> bool {
    const PF_EXITING: u32 = 0x4;
    // The name in the second field may hold spaces and brackets.
    let flags = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(6));
    flags.and_then(|flags| flags.parse::<u32>().ok()).is_some_and(|flags| flags & PF_EXITING != 0)
}

fn read(pid: i32, tid: i32) -> Option<Thread> {
    parse(&std::fs::read_to_string(dir(pid, tid).join("status")).ok()?)
}

/// Reads the text of `/proc/PID/task/TID/status` (`proc(5)`).
fn parse(status: &str) -> Option<Thread> {
    let field = |name: &str| {
        let mut values = status.lines().filter_map(|line| line.strip_prefix(name));
        values.next().map(str::trim)
    };
    let sleeps = field("State:")?.starts_with('S');
    Some(Thread { sleeps, waits: field("voluntary_ctxt_switches:")?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// Starts a thread of this name that wakes at each message and answers it.
    fn thread(name: &str) -> (Sender<()>, Receiver<()>) {
        let ((wake, woken), (answer, answered)) = (channel(), channel());
        let run = move || {
            while woken.recv().is_ok() {
                answer.send(()).unwrap();
            }
        };
        std::thread::Builder::new().name(name.to_owned()).spawn(run).unwrap();
        (wake, answered)
    }

    /// Waits until the threads sleep.
    fn settled(threads: &Threads) -> Vec<u64> {
        loop {
            if let Some(waits) = threads.waits() {
                return waits;
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn vcpus_that_ran_between_readings_are_detected() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let started: Vec<_> = ["fc_vcpu 0", "fc_vcpu 1"].map(thread).into();
        let threads = loop {
            let found = Threads::find(pid, "fc_vcpu ");
            if let Some(found) = found.filter(|found| found.vcpus.len() == 2) {
                break found;
            }
        };
        let before = settled(&threads);
        assert_eq!(threads.waits(), Some(before.clone()));
        for (wake, answered) in &started {
            wake.send(()).unwrap();
            answered.recv().unwrap();
            assert_ne!(settled(&threads), before);
        }
        assert_eq!(Threads::find(pid, "no such thread"), None);
    }

    #[test]
    fn thread_exits_only_with_the_flag_of_the_kernel() {
        let stat = |flags: u32| format!("7 (a) b c) R 1 7 7 0 -1 {flags} 12 0 0 0");
        assert!(exits(&stat(0x0040_0004)));
        assert!(!exits(&stat(0x0040_0040)));
        assert!(!exits("7 (x) R 1"));
        assert!(any_runs(i32::try_from(std::process::id()).unwrap()));
    }

    #[test]
    fn only_thread_in_state_s_counts_as_sleeping() {
        let status = |state: &str| {
            format!(
                "Name:\tx\nState:\t{state}\nvoluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t9\n"
            )
        };
        let read = |state: &str| parse(&status(state)).map(|thread| (thread.sleeps, thread.waits));
        assert_eq!(read("S (sleeping)"), Some((true, 7)));
        for state in
            ["R (running)", "D (disk sleep)", "T (stopped)", "t (tracing stop)", "Z (zombie)"]
        {
            assert_eq!(read(state), Some((false, 7)), "{state}");
        }
        assert!(parse("Name:\tx\n").is_none());
    }
}
