//! The pull of a running guest's output: of the console each second, or more rarely while it is
//! quiet, and of envd's log once there is any, at most each second. Every amount is bounded, since a
//! guest chooses it.

use super::{LifecycleEvent, admits, append, note};
use crate::capsule::State;
use crate::capsule::host::Host;
use crate::capsule::registry::Running;
use crate::guest::Guest;
use crate::guest::log::LogAnswer;
use crate::log::{Advance, Budget, CapsuleLog, Console, Entry, LogMode, Source, now_ms};
use crate::vmm::{Machine, VmmRecord};
use daemon::blocking;
use protocol::log::{COMMAND_MAX, Kind, LINE_MAX, Query};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use types::{CapsuleId, hex};

/// Least time between two pulls.
const PERIOD: Duration = Duration::from_secs(1);
/// Looks at a console without output after which only each so many is made. A look at a machine
/// costs more than a sleep, and most guests' consoles are quiet.
const QUIET: u32 = 5;
/// Longest time between two pulls of a guest that does not answer.
const REST_MAX: Duration = Duration::from_secs(15);
/// Time for which envd waits for output.
const WAIT: Duration = Duration::from_secs(15);
/// Most bytes that one pull adds, with the costs of its lines. A console adds at most 64 KiB more.
const PULL_MAX: usize = (1 << 20) - (64 << 10);
/// Most bytes that one read of a console adds, with the costs of its lines.
const CONSOLE_MAX: usize = 256 << 10;
/// Time limit of a read of a console.
const CONSOLE: Duration = Duration::from_secs(5);
/// Last bytes of a console by which the next machine or agent finds its position.
const LAST: usize = 48;
/// Greatest age of a line by the guest's clock, in milliseconds.
const AGE_MAX_MS: u64 = 3600 * 1000;
/// Most bytes that a mark of the guest stands for.
const DROPPED_MAX: u64 = 1 << 40;

/// Follower of one machine's output.
pub(super) struct Follower {
    pub host: Host,
    pub id: CapsuleId,
    /// Token that envd expects.
    pub token: String,
    pub machine: VmmRecord,
    pub log: Arc<CapsuleLog>,
}

/// Status of the followed machine.
enum Now {
    Runs(Running),
    /// An operation decides whether the machine runs on, or the log has no output for now.
    Waits,
    Ended,
}

/// Result of a pull of envd's log.
pub(super) enum Pulled {
    /// This envd has no log.
    NoLog,
    /// Count of programs that the guest's kernel ended so far, if known.
    Read(Option<u64>),
}

impl Follower {
    /// Follows the output until the machine ends, or the agent does.
    pub(super) async fn run(self, begins: Option<LifecycleEvent>) {
        match begins {
            Some(event) => note(&self.host, &self.log, &event).await,
            None => self.tell().await,
        }
        let stop = self.host.context.tasks.stop_signal().wait();
        let follow = async { tokio::join!(self.follow_console(), self.follow_process()) };
        tokio::select! {
            ((), ()) = follow => {}
            () = stop => {}
        }
    }

    /// Tells envd the output that the log has. An earlier agent may have died before it did.
    async fn tell(&self) {
        let Now::Runs(Running { guest, .. }) = self.now() else { return };
        let mode = self.host.registry.log_mode(self.id).unwrap_or(LogMode::None);
        let told = guest.set_log_mode(&self.token, mode).await;
        told.unwrap_or_else(|error| self.failed(&error));
    }

    fn now(&self) -> Now {
        let Ok(Some(running)) = self.host.registry.machine(self.id) else { return Now::Ended };
        if running.machine.record() != self.machine {
            return Now::Ended;
        }
        match self.host.registry.state(self.id) {
            Some(State::Running) if self.host.registry.log_mode(self.id) == Some(LogMode::None) => {
                Now::Waits
            }
            Some(State::Running) => Now::Runs(running),
            Some(State::Pausing) => Now::Waits,
            _ => Now::Ended,
        }
    }

    async fn follow_console(&self) {
        let (mut refused, mut quiet) = (0, 0_u32);
        loop {
            match self.now() {
                Now::Ended => return,
                Now::Waits => {}
                Now::Runs(Running { machine, guest }) => {
                    let seen = guest.guard().map_or(0, |guard| guard.refused());
                    // No handle of the guest outlives its use.
                    drop(guest);
                    let is_due = is_due(quiet) || self.log.is_watched() || seen > refused;
                    quiet = quiet.saturating_add(1);
                    if is_due && admits(&self.host, &self.log).await {
                        if seen > refused {
                            note(&self.host, &self.log, &LifecycleEvent::Refused(seen - refused))
                                .await;
                            refused = seen;
                        }
                        if self.look(&*machine).await {
                            quiet = 0;
                        }
                    }
                }
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// Looks at the console. Reports whether there was output.
    async fn look(&self, machine: &dyn Machine) -> bool {
        let looked = console(&self.log, machine, false).await;
        looked.unwrap_or_else(|error| {
            self.failed(&error);
            false
        })
    }

    async fn follow_process(&self) {
        let (mut rest, mut kills) = (PERIOD, None);
        loop {
            let began = Instant::now();
            match self.now() {
                Now::Ended => return,
                Now::Waits => {}
                Now::Runs(Running { machine, guest }) => {
                    drop(machine);
                    if admits(&self.host, &self.log).await {
                        match process(&self.host, &self.log, &guest, &self.token, WAIT).await {
                            Ok(Pulled::NoLog) => return,
                            Ok(Pulled::Read(now)) => {
                                rest = PERIOD;
                                self.note_kills(&mut kills, now).await;
                            }
                            Err(error) => {
                                self.failed(&error);
                                rest = (rest * 2).min(REST_MAX);
                            }
                        }
                    }
                }
            }
            tokio::time::sleep_until(began + rest).await;
        }
    }

    /// Notes programs that the guest's kernel ended since the last count.
    async fn note_kills(&self, before: &mut Option<u64>, now: Option<u64>) {
        if let (Some(before), Some(now)) = (*before, now)
            && now > before
        {
            note(&self.host, &self.log, &LifecycleEvent::OutOfMemory(now - before)).await;
        }
        *before = now.or(*before);
    }

    /// Notes a failed pull. A full disk lets the log stand still.
    fn failed(&self, error: &io::Error) {
        tracing::debug!(id = %self.id, %error, "cannot carry a guest's output to its log");
        if error.kind() == io::ErrorKind::StorageFull {
            self.log.halt();
        }
    }
}

/// Carries the output that envd has kept to a log.
///
/// # Errors
/// Fails when the guest or the disk does. The next pull then returns this output again.
pub(super) async fn process(
    host: &Host,
    log: &Arc<CapsuleLog>,
    guest: &Guest,
    token: &str,
    wait: Duration,
) -> io::Result<Pulled> {
    let _alone = log.process.lock().await;
    let of = Arc::clone(log);
    let before = blocking(move || Ok(of.position().piece)).await?;
    let query = Query {
        epoch: before.map(|(epoch, _)| epoch),
        number: before.map(|(_, number)| number),
        most: PULL_MAX,
        wait_ms: u64::try_from(wait.as_millis()).unwrap_or_default(),
    };
    let Some(body) = guest.read_log(token, &query).await? else { return Ok(Pulled::NoLog) };
    let _place = host.context.logs.place().await;
    let of = Arc::clone(log);
    let add = move || {
        let answer = LogAnswer::parse(body)?;
        let (entries, number) = entries(&answer, now_ms());
        of.append_after(before, entries, &Advance::Piece(answer.head.epoch, number))?;
        Ok(Pulled::Read(answer.head.oom_kills))
    };
    blocking(add).await
}

/// Returns the lines of an answer, and the number of its last piece. Pure.
fn entries(answer: &LogAnswer, now: u64) -> (Vec<Entry>, u64) {
    let (mut budget, mut number) = (Budget::new(PULL_MAX), answer.head.after);
    for (piece, data) in &answer.pieces {
        number = number.max(piece.number);
        let mut command = piece.command.clone();
        command.truncate(command.floor_char_boundary(COMMAND_MAX));
        let at_ms = piece.at_ms.clamp(now.saturating_sub(AGE_MAX_MS), now);
        let like = Entry::new(Source::Process, piece.kind.as_str(), at_ms, String::new());
        let like = Entry { pid: Some(piece.pid), command, ..like };
        match piece.kind {
            Kind::Stdout | Kind::Stderr | Kind::Exit => budget.add(&like, data),
            Kind::Dropped => budget.add_mark(&like, piece.dropped.min(DROPPED_MAX)),
        }
    }
    (budget.finish(Source::Process, now), number)
}

/// Reports whether a console is read after so many seconds without output, if nobody waits for a
/// line. Pure.
fn is_due(quiet: u32) -> bool {
    quiet < QUIET || quiet.is_multiple_of(QUIET)
}

/// Carries new output of a machine's console to a log. A line without an end waits for one read,
/// unless this read `is_last`. Reports whether there was output.
///
/// # Errors
/// Fails when the disk does. The next read then returns this output again.
pub(super) async fn console(
    log: &Arc<CapsuleLog>,
    machine: &dyn Machine,
    is_last: bool,
) -> io::Result<bool> {
    let mut known = log.console.lock().await;
    let looked = tokio::time::timeout(CONSOLE, machine.counted_console()).await;
    let Ok((all, written)) = looked else { return Ok(false) };
    let record = machine.record();
    let machine = (record.pid, record.started);
    let begins = written.saturating_sub(all.len() as u64);
    let before = known.clone().filter(|console| console.machine == machine);
    let (taken, lost) = match &before {
        Some(console) => (console.taken.max(begins), begins.saturating_sub(console.taken)),
        None => {
            let of = Arc::clone(log);
            let last = blocking(move || Ok(of.position().console)).await?;
            (begins + locate(&all, &last) as u64, 0)
        }
    };
    let at = usize::try_from(taken - begins).unwrap_or(usize::MAX).min(all.len());
    let stands = before.is_some_and(|console| console.written == written);
    let end = at + complete(&all[at..], stands || is_last);
    if end > at || lost > 0 {
        let now = now_ms();
        let mut budget = Budget::new(CONSOLE_MAX);
        if lost > 0 {
            budget.push(Entry::dropped(Source::Console, now, lost));
        }
        budget.add(&Entry::new(Source::Console, "", now, String::new()), &all[at..end]);
        let last = hex::encode(&all[end.saturating_sub(LAST)..end]);
        let entries = budget.finish(Source::Console, now);
        append(log, entries, Advance::Console(last)).await?;
    }
    *known = Some(Console { machine, written, taken: begins + end as u64 });
    Ok(!stands || end > at)
}

/// Moves a log to the end of a machine's console. The console's output so far is not logged.
///
/// # Errors
/// Fails when the disk does.
pub(super) async fn skip_console(log: &Arc<CapsuleLog>, machine: &dyn Machine) -> io::Result<()> {
    let mut known = log.console.lock().await;
    let looked = tokio::time::timeout(CONSOLE, machine.counted_console()).await;
    let Ok((all, written)) = looked else { return Err(io::ErrorKind::TimedOut.into()) };
    let last = hex::encode(&all[all.len().saturating_sub(LAST)..]);
    // With an entry, the position outlives the agent.
    append(log, vec![LifecycleEvent::Begun.entry()], Advance::Console(last)).await?;
    let record = machine.record();
    *known = Some(Console { machine: (record.pid, record.started), written, taken: written });
    Ok(())
}

/// Returns the bytes of complete lines; all bytes with `all`, or when the rest is too long. Pure.
fn complete(output: &[u8], all: bool) -> usize {
    let whole = output.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    if all || output.len() - whole > LINE_MAX { output.len() } else { whole }
}

/// Returns the position in a console after the last bytes that a log has. Returns the beginning if
/// they are not there. Pure.
fn locate(all: &[u8], last: &str) -> usize {
    let byte = |at: usize| u8::from_str_radix(last.get(at..at + 2)?, 16).ok();
    let last: Option<Vec<u8>> = (0..last.len()).step_by(2).map(byte).collect();
    let Some(last) = last.filter(|last| !last.is_empty()) else { return 0 };
    let found = all.windows(last.len()).rposition(|window| window == last);
    found.map_or(0, |at| at + last.len())
}

#[cfg(test)]
mod tests;
