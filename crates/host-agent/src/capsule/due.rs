//! Actions on capsules whose time is over, or that were idle for long. `lifetime` decides, and this
//! module pauses or ends the capsules.
//!
//! ```text
//!  due ── Kill ──▶ expire
//!   └──── Pause, PauseDisk ──▶ pause ── the guest's agent refuses, twice ──▶ pause as it is
//! ```

use super::capture::PauseMode;
use super::expire::expire;
use super::host::Host;
use super::lifetime::Due;
use super::pause::pause;
use super::{Error, chain};
use std::time::{Duration, Instant};
use types::CapsuleId;

/// Period of the checks for capsules whose time is over.
const LIFE: Duration = Duration::from_millis(250);
/// Due pauses that may fail because of the guest's agent. The next pause saves the guest as it is.
const SILENT_TRIES: u32 = 2;
/// Delay before another pause of a capsule whose time is over, after its agent refused a pause.
const SILENT_AGAIN: Duration = Duration::from_secs(5);

/// Begins to check all running capsules.
pub(super) fn watch_due(host: &Host) {
    let this = host.clone();
    host.context.tasks.every(LIFE, move || {
        let this = this.clone();
        async move { end_those_due(&this) }
    });
}

/// Pauses or ends the capsules whose time is over. A failed attempt loses nothing and is repeated.
fn end_those_due(host: &Host) {
    for (id, due) in host.registry.take_due() {
        let this = host.clone();
        host.context.tasks.spawn(async move {
            let done = match due {
                Due::Kill => expire(&this, id).await,
                Due::PauseDisk | Due::Pause | Due::Nothing => pause_due(&this, id, due).await,
            };
            match done {
                Ok(()) => tracing::info!(%id, what = ?due, "applied a capsule's timeout"),
                Err(error) => {
                    tracing::error!(
                        %id, what = ?due, error = chain(&error),
                        "cannot apply a capsule's timeout"
                    );
                }
            }
            this.changes.note();
        });
    }
}

/// Pauses a capsule whose time is over. After some pauses that the guest's agent refused, the
/// guest is saved as it is. So no guest runs for ever.
pub(super) async fn pause_due(host: &Host, id: CapsuleId, due: Due) -> Result<(), Error> {
    let tries = host.registry.change(id, |capsule| capsule.silent_tries).unwrap_or(0);
    let paused = pause(host, id, None, pause_mode(due, tries)).await;
    let refused = matches!(paused, Err(Error::Silent | Error::Unsaved(_)));
    host.registry.change(id, |capsule| {
        capsule.silent_tries = if refused { tries + 1 } else { 0 };
        if refused {
            capsule.due_after = Instant::now() + SILENT_AGAIN;
        }
    });
    paused
}

/// Returns the mode of a due pause after `silent_tries` pauses in a row that failed because of the
/// guest's agent. Pure.
fn pause_mode(due: Due, silent_tries: u32) -> PauseMode {
    if silent_tries >= SILENT_TRIES {
        return PauseMode::Frozen;
    }
    match due {
        Due::PauseDisk => PauseMode::Disk,
        Due::Pause | Due::Kill | Due::Nothing => PauseMode::Memory,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_agent_delays_due_pause_but_does_not_prevent_it() {
        for (due, wanted) in [(Due::Pause, PauseMode::Memory), (Due::PauseDisk, PauseMode::Disk)] {
            assert_eq!(pause_mode(due, 0), wanted);
            assert_eq!(pause_mode(due, SILENT_TRIES - 1), wanted);
            assert_eq!(pause_mode(due, SILENT_TRIES), PauseMode::Frozen);
        }
    }
}
