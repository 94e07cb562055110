//! Freezing and thawing the guest of a running capsule. The guest stands still only for want of
//! room on the host's disk, or while an operation works on it. [`freeze`] notes that a thaw is
//! owed, and [`thaw`] clears the note when it succeeds. `disk_pressure` retries the owed thaws.

use super::host::Host;
use super::usage::AGAIN;
use crate::guest::Guest;
use crate::vmm::{self, Machine};
use types::CapsuleId;

/// Stops a running capsule's guest. From here on a thaw is owed, even when this fails. A VMM
/// that did not answer in time may still stop the guest.
pub(super) async fn freeze(
    host: &Host,
    id: CapsuleId,
    machine: &dyn Machine,
) -> Result<(), vmm::Error> {
    host.registry.change(id, |capsule| capsule.usage.thaw_owed = true);
    machine.freeze().await
}

/// Thaws a running capsule's guest. If this fails, a thaw is owed, even when the VMM stopped
/// the guest by itself.
pub(super) async fn thaw(
    host: &Host,
    id: CapsuleId,
    machine: &dyn Machine,
) -> Result<(), vmm::Error> {
    host.registry.change(id, |capsule| capsule.usage.thaw_owed = true);
    machine.thaw().await?;
    host.registry.change(id, |capsule| {
        (capsule.usage.waits, capsule.usage.thaw_owed) = (false, false);
    });
    Ok(())
}

/// Thaws a guest that is owed a thaw, before the guest is asked for something.
pub(super) async fn thaw_if_owed(
    host: &Host,
    id: CapsuleId,
    machine: &dyn Machine,
) -> Result<(), vmm::Error> {
    match host.registry.change(id, |capsule| capsule.usage.thaw_owed) {
        Some(true) => thaw(host, id, machine).await,
        Some(false) | None => Ok(()),
    }
}

/// Sets the clock of a thawed guest and thaws its file system, once its agent answers. Gives up
/// when the guest's connections are cut, as each pause and each end does. Does nothing while an
/// earlier call for the same guest still tries.
pub(super) fn refresh_later(host: &Host, id: CapsuleId, guest: Guest, token: String) {
    let Some(held) = guest.become_refresher() else { return };
    let tasks = host.context.tasks.clone();
    host.context.tasks.spawn(async move {
        let _held = held;
        let refreshed = async {
            while guest.refresh(&token).await.is_err() {
                tokio::time::sleep(AGAIN).await;
            }
        };
        tokio::select! {
            () = refreshed => tracing::info!(%id, "a silent guest answers again"),
            () = guest.gone() => {}
            () = tasks.stopping() => {}
        }
    });
}
