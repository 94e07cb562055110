//! Detection of machines that have ended. Either the VMM reports the end, or the guest's processors
//! have stopped for good while the VMM lives on. A kernel that halts does the latter, and no VMM
//! reports it.
//!
//! A live kernel wakes a processor every second, since envd's first process asks for that. Each
//! packet that the host sends wakes a processor too. Four signs together, for several seconds, make
//! a guest count as halted:
//! - No vCPU thread ran.
//! - Every thread of the VMM slept.
//! - The VMM says that it runs the guest.
//! - envd took no connection.
//!
//! ```text
//!  Running ── still for 4 s ──▶ suspect ── 4 signs for 5 s ──▶ halted ──┐
//!     │          ▲ any sign of life: from the start                     ▼
//!     └── the VMM ends, or says that the guest ended ─────────────▶ `lost`: Dead
//! ```
//! So a slow guest never counts as halted. A guest that is frozen or waits for room does not count
//! as halted either. A starved or stopped VMM does not make its guest count as halted.

#[cfg(test)]
mod tests;

use super::boot::Ready;
use super::host::Host;
use super::registry::Running;
use super::registry::transitions::EndOutcome;
use super::{chain, logs};
use crate::guest::Guest;
use crate::vmm::{Machine, Threads, VmmRecord};
use daemon::{blocking, lock};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use types::CapsuleId;

/// Period of the cheap checks of every running guest.
const LOOK: Duration = Duration::from_secs(2);
/// Checks without a sign of life after which a guest is examined.
const SUSPICIOUS: u32 = 2;
/// Period of the checks of an examination, and time limit of each question to VMM or guest.
const EXAMINE: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 1000 });
/// Checks without a sign of life after which an examined guest is halted.
const HALTED: u32 = 5;
/// Most checks of one examination. A check proves nothing if a thread of the VMM did not sleep.
const EXAMINE_MOST: u32 = 10;
/// Guests that are examined at once.
const SUSPECTS: usize = 16;
/// Reason that is recorded for a guest that this module finds halted.
pub(super) const REASON: &str = "the guest ended: its vCPUs are halted";

/// State of each running machine at the last check.
type Watched = HashMap<CapsuleId, Watch>;

struct Watch {
    record: VmmRecord,
    threads: Option<Threads>,
    waits: Option<Vec<u64>>,
    /// Checks since the processors last ran.
    still: u32,
}

impl Watch {
    fn new(machine: &dyn Machine) -> Self {
        Self { record: machine.record(), threads: machine.vcpus(), waits: None, still: 0 }
    }

    /// Checks the machine, and reports whether it is to be examined.
    fn look(&mut self) -> bool {
        let waits = self.threads.as_ref().and_then(Threads::waits);
        self.still = if waits.is_some() && waits == self.waits { self.still + 1 } else { 0 };
        self.waits = waits;
        self.still >= SUSPICIOUS
    }
}

/// Reports whether a guest's processors have stopped for good. Takes up to a second for a live
/// guest, and some seconds for a halted guest.
pub(super) async fn is_halted(machine: &dyn Machine, guest: &Guest) -> bool {
    let Some(threads) = machine.vcpus() else { return false };
    let Some(first) = threads.waits() else { return false };
    if !runs(machine).await {
        return false;
    }
    let (mut still, gone) = (0, guest.gone());
    tokio::pin!(gone);
    for _ in 0..EXAMINE_MOST {
        let knock = async { tokio::join!(guest.answers(EXAMINE), tokio::time::sleep(EXAMINE)).0 };
        tokio::select! {
            () = &mut gone => return false,
            answered = knock => if answered { return false },
        }
        if threads.waits().as_ref() != Some(&first) {
            return false;
        }
        still += u32::from(threads.all_sleep());
        if still == HALTED {
            // The VMM is asked last, since a guest that was stopped meanwhile is not halted.
            return runs(machine).await;
        }
    }
    false
}

/// Reports whether the VMM answers and runs the guest.
async fn runs(machine: &dyn Machine) -> bool {
    matches!(tokio::time::timeout(EXAMINE, machine.is_stopped()).await, Ok(Ok(false)))
}

/// Marks a capsule as running, and watches for its machine's end.
pub(super) fn run(host: &Host, id: CapsuleId, ready: Ready) {
    let Ready { running, kind, life } = ready;
    let machine = Arc::clone(&running.machine);
    host.registry.set_running(id, running, kind, life);
    watch_end(host, id, machine);
}

/// Begins to check all running guests.
pub(super) fn watch_liveness(host: &Host) {
    let (this, watched) = (host.clone(), Arc::<Mutex<Watched>>::default());
    host.context.tasks.every(LOOK, move || {
        let (this, watched) = (this.clone(), Arc::clone(&watched));
        async move { look_at_all(&this, watched).await }
    });
}

async fn look_at_all(host: &Host, watched: Arc<Mutex<Watched>>) {
    let running: Vec<(CapsuleId, Arc<dyn Machine>)> = {
        let capsules = host.registry.lock();
        // A guest that waits for room stands still for that reason, and would take a place
        // among the suspects.
        let runs =
            capsules.iter().filter(|(_, capsule)| capsule.is_running() && !capsule.usage.waits);
        runs.filter_map(|(id, c)| Some((*id, Arc::clone(&c.running.as_ref()?.machine)))).collect()
    };
    let look = move || {
        let mut watched = lock(&watched);
        let mut before = std::mem::take(&mut *watched);
        let mut suspects = Vec::new();
        for (id, machine) in running {
            let known = before.remove(&id).filter(|watch| watch.record == machine.record());
            let mut watch = known.unwrap_or_else(|| Watch::new(&*machine));
            if watch.look() {
                suspects.push(id);
            }
            watched.insert(id, watch);
        }
        Ok(suspects)
    };
    let suspects = blocking(look).await.unwrap_or_default();
    let examined = suspects.into_iter().take(SUSPECTS).map(|id| examine(host, id));
    futures::future::join_all(examined).await;
}

/// Ends a capsule whose guest turns out to be halted.
async fn examine(host: &Host, id: CapsuleId) {
    let Ok(Some(Running { machine, guest })) = host.registry.machine(id) else { return };
    if is_halted(&*machine, &guest).await {
        lost(host, id, &machine.record(), REASON.to_owned()).await;
    }
}

/// Begins to wait for the end of a capsule's machine.
fn watch_end(host: &Host, id: CapsuleId, machine: Arc<dyn Machine>) {
    let this = host.clone();
    host.context.tasks.spawn(async move {
        let reason = tokio::select! {
            reason = machine.ended() => reason,
            () = this.context.tasks.stopping() => return,
        };
        let record = machine.record();
        // A network is removed only when nobody holds it, so this handle must not outlive the
        // machine.
        drop(machine);
        lost(&this, id, &record, reason).await;
    });
}

/// Notes that a machine ended by itself, and removes the rest of it.
///
/// When an operation works on the machine, the operation decides the capsule's state. If the
/// capsule counts as running after that operation, it is dead, since its machine has ended.
pub(super) async fn lost(host: &Host, id: CapsuleId, record: &VmmRecord, reason: String) {
    let outcome = match host.registry.note_end(id, record, &reason) {
        EndOutcome::Busy(lock) => {
            drop(lock.lock().await);
            host.registry.note_end(id, record, &reason)
        }
        outcome @ (EndOutcome::Dead(_) | EndOutcome::Nothing) => outcome,
    };
    let EndOutcome::Dead(machine) = outcome else { return };
    tracing::warn!(%id, reason, log_tail = machine.log_tail(), "a machine ended");
    metrics::counter!("wrenn_machines_lost_total").increment(1);
    host.changes.note();
    // The guest's last words are saved first. After that, the process need not hold the guest's
    // memory.
    let _ = machine.console().await;
    logs::died(host, id, &*machine, &reason).await;
    if let Err(error) = machine.kill().await {
        tracing::warn!(%id, error = chain(&error), "cannot end the machine of an ended guest");
    }
}
