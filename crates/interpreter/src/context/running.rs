//! The execution under way, and the schedule by which it is asked to stop. Pure but for the log.

use super::Job;
use std::time::Duration;
use tokio::time::Instant;

/// Time between two interrupts.
const ROUND: Duration = Duration::from_secs(1);
/// Time that code has to react to interrupts. Afterwards the kernel is killed if others wait.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Interrupts within that time.
const ROUNDS: u32 = 10;
/// Time that a kernel runs after an interrupt though its clients are too far behind.
const HANDLE: Duration = Duration::from_millis(250);

/// The execution under way.
pub(super) struct Running {
    pub job: Job,
    /// Number of the run.
    pub run: u64,
    /// Time at which the code must have ended.
    pub deadline: Option<Instant>,
    /// Set once the kernel took the code.
    pub is_counted: bool,
    pub is_timed_out: bool,
    /// Traceback of the error that the deadline's interrupt caused.
    pub traceback: String,
    pub stopping: Option<Stopping>,
}

/// The schedule of interrupts.
#[derive(Debug)]
pub(super) struct Stopping {
    began: Instant,
    /// Interrupts so far.
    rounds: u32,
    /// Time at which the kernel is held again.
    hold: Option<Instant>,
}

/// A step of the schedule.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    Interrupt(u32),
    Hold,
}

impl Running {
    pub(super) fn new(job: Job, run: u64) -> Self {
        let deadline = job.request.timeout.and_then(|limit| Instant::now().checked_add(limit));
        Self {
            job,
            run,
            deadline,
            is_counted: false,
            is_timed_out: false,
            traceback: String::new(),
            stopping: None,
        }
    }

    /// Time of the next step. `is_awaited` is set if another execution waits.
    pub(super) fn due(&self, is_awaited: bool) -> Option<Instant> {
        let deadline = self.deadline.filter(|_| !self.is_timed_out);
        let stopping = self.stopping.as_ref();
        let patience = stopping.filter(|_| is_awaited || self.has_open_deadline());
        let times = [
            deadline,
            stopping.and_then(Stopping::due),
            patience.map(|stopping| stopping.began + PATIENCE),
        ];
        times.into_iter().flatten().min()
    }

    /// Reports whether a client still waits for the end of code that had a deadline.
    pub(super) fn has_open_deadline(&self) -> bool {
        self.is_timed_out && self.job.execution.ended().is_none()
    }

    pub(super) fn is_past_deadline(&self, now: Instant) -> bool {
        !self.is_timed_out && self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Reports whether the code has ignored interrupts for too long.
    pub(super) fn is_past_patience(&self, now: Instant) -> bool {
        self.stopping.as_ref().is_some_and(|stopping| stopping.began + PATIENCE <= now)
    }
}

impl Stopping {
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, rounds: 0, hold: None }
    }

    fn due(&self) -> Option<Instant> {
        let round = (self.rounds < ROUNDS).then(|| self.began + ROUND * self.rounds);
        [round, self.hold].into_iter().flatten().min()
    }

    /// Takes a step whose time has come.
    pub(super) fn step(&mut self, now: Instant) -> Option<Due> {
        if self.hold.is_some_and(|at| at <= now) {
            self.hold = None;
            return Some(Due::Hold);
        }
        if self.due().is_none_or(|at| at > now) {
            return None;
        }
        Some(self.round(now))
    }

    /// Takes the next interrupt at once.
    pub(super) fn round(&mut self, now: Instant) -> Due {
        self.rounds += 1;
        self.hold = Some(now + HANDLE);
        Due::Interrupt(self.rounds - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupts_come_each_second_and_a_hold_follows_each() {
        let began = Instant::now();
        let mut stopping = Stopping::new(began);
        let mut steps = Vec::new();
        while let Some(at) = stopping.due() {
            assert!(steps.len() < 40);
            let step = stopping.step(at).unwrap();
            steps.push((u64::try_from((at - began).as_millis()).unwrap(), step));
            assert!(stopping.step(at).is_none_or(|step| step == Due::Hold));
        }
        let rounds = (0..10).flat_map(|round: u32| {
            let at = u64::from(round) * 1000;
            [(at, Due::Interrupt(round)), (at + 250, Due::Hold)]
        });
        assert_eq!(steps, rounds.collect::<Vec<_>>());
    }
}
