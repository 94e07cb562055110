//! Upkeep of the logs: old lines go, and closed segments go to the store, under the team's
//! namespace. So a log is readable after its capsule moved to another host, or its host is gone.

use super::is_living;
use crate::capsule::host::Host;
use crate::capsule::store::{Stored, failure};
use crate::capsule::{Error, chain, io_error};
use crate::log::{Pending, SegmentRef};
use daemon::blocking;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Period of the removal of old lines, in checks for room.
const RETIRE: u64 = 10;
/// Period of the checks for room. Without room, lines are removed at once.
const CHECK: Duration = Duration::from_secs(60);
/// Period of the checks for segments to send.
const SEND: Duration = Duration::from_secs(60);
/// Name of the segment's file in its folder in the store.
pub(super) const FILE: &str = "segment";

/// Begins the upkeep, which goes on until the process ends.
pub(in crate::capsule) fn spawn(host: &Host) {
    let this = host.clone();
    let mut checks: u64 = 0;
    host.context.tasks.every(CHECK, move || {
        let context = Arc::clone(&this.context);
        let is_due = checks.is_multiple_of(RETIRE) || !context.room.has_spare();
        checks += 1;
        async move {
            if !is_due {
                return;
            }
            let retired = blocking(move || {
                context.logs.retire(&|id| is_living(&context, id));
                Ok(())
            });
            if let Err(error) = retired.await {
                tracing::error!(%error, "cannot remove old lines of logs");
            }
        }
    });
    let Some(stored) = host.stored.clone() else { return };
    let this = host.clone();
    host.context.tasks.every(SEND, move || {
        let (this, stored) = (this.clone(), Arc::clone(&stored));
        async move {
            tokio::select! {
                () = Box::pin(send_all(&this, &stored)) => {}
                () = this.context.tasks.stopping() => {}
            }
        }
    });
}

/// Sends missing segments to the store, and removes segments there that this host has removed. Does
/// nothing while the platform does not count this host as a member.
async fn send_all(host: &Host, stored: &Stored) {
    let context = Arc::clone(&host.context);
    let Pending { unsent, gone } =
        blocking(move || Ok(context.logs.pending())).await.unwrap_or_default();
    if (unsent.is_empty() && gone.is_empty()) || !host.context.standing.confirm().await {
        return;
    }
    for segment in gone {
        if let Err(error) = lose(host, stored, &segment).await {
            tracing::warn!(
                id = %segment.id, error = chain(&error),
                "cannot remove a segment of a log from the store"
            );
        }
    }
    for segment in &unsent {
        if let Err(error) = send(host, stored, segment).await {
            tracing::warn!(
                id = %segment.id, error = chain(&error),
                "cannot upload a segment of a log to the store"
            );
        }
    }
}

/// Removes a segment from the store that this host has removed.
async fn lose(host: &Host, stored: &Stored, segment: &SegmentRef) -> Result<(), Error> {
    stored.store.remove(&segment.team, &segment.stored_name()).await.map_err(failure)?;
    let (context, of) = (Arc::clone(&host.context), segment.clone());
    let marked = blocking(move || context.logs.mark_lost(&of)).await;
    marked.map_err(io_error("cannot note that the store lost a segment"))
}

/// Sends a closed segment to the store.
pub(super) async fn send(host: &Host, stored: &Stored, segment: &SegmentRef) -> Result<(), Error> {
    let Some(from) = host.context.logs.file(segment) else { return Ok(()) };
    let name = segment.stored_name();
    let aside = stored.dir.join(format!("log-{}", segment.span.name()));
    let to = aside.clone();
    match blocking(move || set_aside(&from, &to)).await {
        // The segment was removed since it was listed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        set => set.map_err(io_error("cannot set a segment aside for its upload"))?,
    }
    let sent = stored.store.put(&segment.team, &name, &aside).await;
    let _ = fs::remove_dir_all(&aside);
    sent.map_err(failure)?;
    let (context, of) = (Arc::clone(&host.context), segment.clone());
    let marked = blocking(move || context.logs.mark_sent(&of)).await;
    match marked.map_err(io_error("cannot mark a segment as sent"))? {
        true => Ok(()),
        // The segment was erased while it was sent.
        false => stored.store.remove(&segment.team, &name).await.map_err(failure),
    }
}

/// Links a segment into a folder of its own, so that it outlives its first name.
fn set_aside(from: &Path, to: &Path) -> io::Result<()> {
    match fs::remove_dir_all(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => fs::create_dir_all(to)?,
    }
    fs::hard_link(from, to.join(FILE)).inspect_err(|_| {
        let _ = fs::remove_dir(to);
    })
}
