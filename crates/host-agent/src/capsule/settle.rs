//! The completion of a pause whose snapshot is complete, by its own agent or the next one.

use super::record::{CapsuleRecord, Phase};
use super::{Error, files, io_error, teardown};
use crate::context::AgentContext;
use crate::snapshot;

/// Snapshots of its own that a capsule keeps.
const RETAINED: u64 = 2;

/// Completes a pause whose snapshot is complete. Removes the machine and old snapshots, and updates
/// the record.
pub(super) async fn settle(
    context: &AgentContext,
    record: &mut CapsuleRecord,
    number: u64,
) -> Result<(), Error> {
    record.base_layers = snapshot::Layers::default();
    (record.phase, record.last) = (Phase::Paused, number);
    teardown::release(context, record).await?;
    daemon::failpoint("pause.settled").map_err(io_error("a failpoint failed"))?;
    let snapshots = files::snapshots_dir(&files::folder(context, record.id));
    let names = snapshot::sweep(&snapshots);
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    for old in numbers.iter().rev().skip(usize::try_from(RETAINED).unwrap_or(2)) {
        if let Err(error) = snapshot::remove(&snapshots.join(old.to_string())) {
            tracing::warn!(id = %record.id, old, %error, "cannot remove an old snapshot");
        }
    }
    Ok(())
}
