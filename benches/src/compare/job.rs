//! The job that each runtime does, its times, and its runs one after another and at once.

use std::thread;
use std::time::{Duration, Instant};

/// Program whose output proves that Python ran.
const PYTHON: [&str; 3] = ["python3", "-c", "print(6 * 7)"];
const ANSWER: &str = "42\n";
/// Number of the first job at once. Earlier numbers are those of jobs one after another.
const AT_ONCE: usize = 100_000;
/// Reasons of failures that are printed for each run.
const SHOWN: usize = 3;

/// A way to run programs apart from this machine.
pub(super) trait Runtime: Sync {
    fn name(&self) -> String;
    /// The border between a program and this machine, in words.
    fn isolation(&self) -> String;
    /// Memory that each sandbox takes from the machine, in MiB.
    fn need_mib(&self) -> u64;
    /// Starts a sandbox. No other one has its number.
    fn start(&self, number: usize) -> Result<Box<dyn Sandbox + '_>, String>;
    /// Ends the runtime itself.
    fn end(self: Box<Self>);
}

/// A started sandbox.
pub(super) trait Sandbox {
    /// Runs a program to its end. Returns its output.
    fn run(&self, command: &[&str]) -> Result<String, String>;
    fn stop(self: Box<Self>) -> Result<(), String>;
}

/// Times of a job.
pub(super) struct Job {
    /// From the start until `true` has ended.
    pub first: Duration,
    pub python: Duration,
    pub stop: Duration,
}

/// Times of all jobs of a run.
pub(super) struct Outcome {
    pub jobs: Vec<Job>,
    pub failed: usize,
    pub all: Duration,
}

/// Returns how many sandboxes fit into three quarters of the available memory, at least one.
pub(super) fn held(need_mib: u64) -> usize {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap();
    let kib: u64 = line.split_whitespace().next().unwrap().parse().unwrap();
    usize::try_from((kib >> 10) * 3 / 4 / need_mib).unwrap().max(1)
}

/// Runs jobs one after another.
pub(super) fn in_turn(runtime: &dyn Runtime, count: usize) -> Outcome {
    let began = Instant::now();
    // A thread of its own may wait for a runtime's asynchronous work.
    let jobs = thread::scope(|scope| {
        let all = scope.spawn(|| (0..count).map(|number| job(runtime, number)).collect());
        all.join().unwrap()
    });
    outcome(jobs, began.elapsed())
}

/// Runs jobs at once, each in a thread.
pub(super) fn at_once(runtime: &dyn Runtime, count: usize) -> Outcome {
    let began = Instant::now();
    let jobs = thread::scope(|scope| {
        let numbers = (0..count).map(|number| AT_ONCE + number);
        let threads: Vec<_> =
            numbers.map(|number| scope.spawn(move || job(runtime, number))).collect();
        let ended = threads.into_iter().map(thread::ScopedJoinHandle::join);
        ended.map(|job| job.unwrap_or_else(|_| Err("the job panicked".to_owned()))).collect()
    });
    outcome(jobs, began.elapsed())
}

fn outcome(all_jobs: Vec<Result<Job, String>>, all: Duration) -> Outcome {
    let (mut jobs, mut failed) = (Vec::new(), 0);
    for job in all_jobs {
        match job {
            Ok(job) => jobs.push(job),
            Err(reason) => {
                if failed < SHOWN {
                    println!("failed: {reason}");
                }
                failed += 1;
            }
        }
    }
    Outcome { jobs, failed, all }
}

fn job(runtime: &dyn Runtime, number: usize) -> Result<Job, String> {
    let began = Instant::now();
    let sandbox = runtime.start(number)?;
    let ran = programs(&*sandbox, began);
    let since = Instant::now();
    let stopped = sandbox.stop();
    let stop = since.elapsed();
    let (first, python) = ran?;
    stopped?;
    Ok(Job { first, python, stop })
}

/// Runs both programs. Returns the time since `began` to the end of the first, and the time of the
/// second.
fn programs(sandbox: &dyn Sandbox, began: Instant) -> Result<(Duration, Duration), String> {
    sandbox.run(&["true"])?;
    let first = began.elapsed();
    let since = Instant::now();
    let said = sandbox.run(&PYTHON)?;
    let python = since.elapsed();
    if said == ANSWER { Ok((first, python)) } else { Err(format!("Python said {said:?}")) }
}
