//! Interrupts of the execution under way: when they begin, their rounds, and the kill of a kernel
//! that ignores them. The schedule itself is `running`'s.

use super::actor::Actor;
use super::death;
use super::running::{Due, PATIENCE, Stopping};
use tokio::time::Instant;

impl Actor {
    /// Interrupts one execution or the one under way, or drops one that waits.
    pub(super) fn interrupt(&mut self, id: Option<&str>) -> bool {
        match id {
            Some(id) if !self.is_running(id) => {
                let before = self.queue.len();
                self.drop_queued(id);
                self.queue.len() != before
            }
            _ => {
                self.stop();
                self.running.is_some()
            }
        }
    }

    /// Begins to interrupt the run, or interrupts it once more.
    pub(super) fn stop(&mut self) {
        let Some(running) = &mut self.running else { return };
        let now = Instant::now();
        let due = running.stopping.get_or_insert_with(|| Stopping::new(now)).round(now);
        self.carry_out(&due);
    }

    /// Does what the time demands.
    pub(super) fn act(&mut self, now: Instant) {
        let Some(running) = &mut self.running else { return };
        if running.is_past_deadline(now) {
            running.is_timed_out = true;
            return self.stop();
        }
        if running.is_past_patience(now) {
            if !self.queue.is_empty() {
                return self.kill();
            }
            if running.has_open_deadline() {
                return running.end_at_deadline(false);
            }
        }
        let due = running.stopping.as_mut().and_then(|stopping| stopping.step(now));
        if let Some(due) = due {
            self.carry_out(&due);
        }
    }

    /// Takes a step of the schedule.
    fn carry_out(&mut self, due: &Due) {
        match due {
            Due::Interrupt(round) => {
                // A kernel that stands still could not react.
                self.hold(false);
                if let Some(kernel) = self.phase.kernel() {
                    kernel.interrupt(*round);
                }
            }
            Due::Hold => {
                let is_behind = self.running.as_ref().is_some_and(|r| r.job.execution.is_held());
                self.hold(is_behind);
            }
        }
    }

    /// Stops the kernel, or lets it go on.
    pub(super) fn hold(&mut self, held: bool) {
        if let Some(kernel) = self.phase.kernel()
            && self.held != held
        {
            self.held = held;
            kernel.hold(held);
        }
    }

    /// Kills a kernel that ignores interrupts, for the executions that wait.
    fn kill(&mut self) {
        let failure = death::killed(PATIENCE.as_secs());
        self.fail_running(&failure);
        self.notice = Some(failure);
        self.start();
    }
}
