//! The removal of a capsule and of everything that the host has of it. A removal cancels the
//! operation that has the capsule's lock, so no guest delays a removal. A removal names the newest
//! generation that it may remove. A capsule of a later generation stays.
//!
//! ```text
//!  begin_destroy ──▶ wait for the lock, cancelling ──▶ Stopping ──▶ cut connections ──▶ remove
//!     │ a later generation: Stale                        │ gone meanwhile: success
//! ```

use super::host::Host;
use super::registry::Running;
use super::registry::transitions::Stop;
use super::{Error, teardown};
use std::time::Duration;
use types::CapsuleId;

/// Period in which a removal that waits for its lock cancels operations.
const AGAIN: Duration = Duration::from_millis(100);

/// Ends a capsule and removes everything that belongs to it; an unknown capsule is success. With
/// `newest`, a capsule of a later generation stays, and the answer is [`Error::Stale`].
pub(super) async fn destroy(host: &Host, id: CapsuleId, newest: Option<u64>) -> Result<(), Error> {
    let this = host.clone();
    host.detached(async move { destroy_under_lock(&this, id, newest).await }).await
}

async fn destroy_under_lock(host: &Host, id: CapsuleId, newest: Option<u64>) -> Result<(), Error> {
    let lock = host.registry.begin_destroy(id, newest)?;
    let mut next = std::pin::pin!(lock.lock());
    let _guard = loop {
        tokio::select! {
            held = &mut next => break held,
            () = tokio::time::sleep(AGAIN) => {
                host.registry.cancel_for_removal(id, &lock, newest);
            }
        }
    };
    let running = match host.registry.stop(id, &lock, newest)? {
        Stop::Gone => return Ok(()),
        Stop::Stopping(running) => running,
    };
    if let Some(Running { guest, .. }) = running {
        let cut = guest.drain(Duration::ZERO).await;
        metrics::counter!("wrenn_requests_cut_total").increment(cut);
    }
    teardown::remove(&host.context, id).await?;
    host.registry.remove(id);
    Ok(())
}
