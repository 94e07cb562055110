//! Steps that pauses and snapshots of a running capsule share: the guest writes its data to its
//! disk, and a silent guest is judged.

use super::host::Host;
use super::lifetime::now_ms;
use super::record::CapsuleRecord;
use super::{Error, liveness};
use crate::context::AgentContext;
use crate::guest::Guest;
use crate::snapshot::Manifest;
use crate::vmm::Machine;
use types::CapsuleId;

/// Mode of a pause: the parts of the capsule that it saves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PauseMode {
    /// The disk, after the guest has written its data to it.
    Disk,
    /// Memory, devices and disk.
    Memory,
    /// Memory, devices and disk, even of a guest whose agent is silent.
    Frozen,
}

impl PauseMode {
    pub(super) fn has_memory(self) -> bool {
        match self {
            Self::Disk => false,
            Self::Memory | Self::Frozen => true,
        }
    }
}

/// Asks a guest to write the data in its memory to its disk. A guest that is merely slow is no
/// error, unless only its disk is saved.
///
/// # Errors
/// [`Error::Silent`] when the guest's agent answers nothing. [`Error::Unsaved`] when only the
/// disk is to be saved and the agent fails. [`Error::Ended`] when the guest is halted.
pub(super) async fn quiesce(
    host: &Host,
    record: &CapsuleRecord,
    machine: &dyn Machine,
    guest: &Guest,
    mode: PauseMode,
) -> Result<(), Error> {
    let asked = guest.quiesce(&record.envd_token, !mode.has_memory());
    let answered = if mode.has_memory() {
        // An agent that writes late does no harm, so most pauses ask once.
        guest.unless_silent(asked).await
    } else if guest.responds().await {
        // An agent that freezes its disk late would stop a guest that runs on.
        Some(asked.await)
    } else {
        None
    };
    match answered {
        Some(Ok(())) => return Ok(()),
        Some(Err(error)) if !mode.has_memory() => {
            return Err(Error::Unsaved(error));
        }
        Some(Err(error)) => {
            tracing::warn!(
                id = %record.id, %error,
                "the guest could not write its unsaved data to its disk"
            );
            if guest.responds().await {
                return Ok(());
            }
        }
        None => {}
    }
    judge_silent(host, record.id, machine, guest, mode).await
}

/// Decides whether a guest whose agent is silent may be saved.
///
/// # Errors
/// Fails like [`quiesce`].
pub(super) async fn judge_silent(
    host: &Host,
    id: CapsuleId,
    machine: &dyn Machine,
    guest: &Guest,
    mode: PauseMode,
) -> Result<(), Error> {
    if liveness::is_halted(machine, guest).await {
        return Err(Error::Ended(liveness::REASON.to_owned()));
    }
    // A guest that waits for room cannot answer, and answers again when it is brought back.
    let saves = match mode {
        PauseMode::Frozen => true,
        PauseMode::Memory => host.registry.waits_for_room(id) || machine.waits_for_room(),
        PauseMode::Disk => false,
    };
    if !saves {
        return Err(Error::Silent);
    }
    tracing::warn!(%id, "capturing a guest whose envd does not answer");
    Ok(())
}

/// Returns the manifest of a new snapshot of a capsule, without any data yet.
pub(super) fn manifest(context: &AgentContext, record: &CapsuleRecord) -> Manifest {
    Manifest {
        fingerprint: context.driver.fingerprint(),
        system: record.system.clone(),
        template: record.template.clone(),
        version: record.version.clone(),
        team: Some(record.team.clone()),
        resources: record.resources,
        placeholders: record.placeholders,
        taken_at_ms: now_ms(),
        memory: None,
        state: None,
        disk: None,
        envd_token: Some(record.envd_token.clone()),
    }
}
