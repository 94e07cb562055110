//! The end of a capsule whose time is over.

use super::host::Host;
use super::logs::{self, LifecycleEvent};
use super::record::{CapsuleRecord, Phase};
use super::{Error, files, teardown};
use std::time::Duration;
use types::CapsuleId;

/// Ends a capsule whose time is over. The host lists it as expired until it is removed.
pub(super) async fn expire(host: &Host, id: CapsuleId) -> Result<(), Error> {
    let lock = host.registry.capsule_lock(id)?;
    let _guard = lock.lock().await;
    let Some(running) = host.registry.begin_expire(id) else { return Ok(()) };
    running.guest.drain(Duration::ZERO).await;
    // The network is removed only when nobody holds it.
    drop(running);
    let dir = files::folder(&host.context, id);
    if let Some(mut record) = CapsuleRecord::load(&dir) {
        record.phase = Phase::Expired;
        logs::end(host, &record, LifecycleEvent::Expired);
        teardown::release(&host.context, &mut record).await?;
    }
    host.registry.change(id, |capsule| capsule.memory_mib = 0);
    Ok(())
}
