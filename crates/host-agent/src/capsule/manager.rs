//! The facade of this folder: the calls that `rpc.rs` and `proxy.rs` make. It only composes; each
//! operation has a file of its own. An operation runs as a task of its own, so it continues when
//! its caller disconnects.
//!
//! ```text
//!  rpc.rs, proxy.rs ──▶ Manager ──▶ operation ──▶ registry: lock, table, state
//!                          │            └───────▶ boot, settle, teardown: the capsule's parts
//!                          └─ new: folders ─▶ adopt ─▶ watchers
//! ```

#[cfg(test)]
mod tests;

use super::builder::{self, CopiedDisks};
use super::capture::PauseMode;
use super::fetch::Placed;
use super::host::Host;
use super::lifetime::Lifetime;
use super::record::CapsuleRecord;
use super::registry::{Listed, RunningCapsule, Started};
use super::resume::ResumeRequest;
use super::snapshots::SnapshotSize;
use super::store::Stored;
use super::stored_snapshot::StoredSnapshot;
use super::{
    Error, adopt, create, destroy, disk_pressure, due, fetch, files, liveness, logs, pause, ready,
    remake, resume, settings, sizes, snapshots, template_snapshot, upkeep, upload, versions,
};
use crate::context::AgentContext;
use crate::guest::{Guest, Permits, Purpose};
use crate::log::{LogMode, Page, Query};
use crate::{snapshot, version};
use protocol::Refusal;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use types::{BuildId, CapsuleId, Egress, SnapshotId};

/// All capsules of this machine.
#[derive(Clone)]
pub(crate) struct Manager {
    host: Host,
}

/// Start of the agent.
impl Manager {
    /// Makes a manager and adopts the capsules that an earlier agent left; see `adopt.rs`.
    pub(crate) async fn new(
        context: Arc<AgentContext>,
        stored: Option<Arc<Stored>>,
    ) -> Result<Self, Error> {
        let host = Host::new(context, stored);
        let context = &host.context;
        files::make_folders(context)?;
        snapshot::sweep(&context.config.snapshots());
        let mut outdated = Vec::new();
        if context.driver.boots_images() {
            outdated = template_snapshot::sweep(context);
            version::sweep(&context.config);
        }
        adopt::adopt_all(&host).await?;
        // Networks of adopted capsules have their numbers now.
        if let Some(networks) = &host.context.networks {
            networks.spawn_refill(&host.context.tasks);
        }
        upload::spawn_uploads(&host);
        logs::upkeep::spawn(&host);
        disk_pressure::watch_disk(&host).await;
        liveness::watch_liveness(&host);
        upkeep::spawn_trim(&host);
        due::watch_due(&host);
        remake::spawn(&host, outdated);
        ready::refill::spawn(&host);
        Ok(Self { host })
    }
}

/// Operations on capsules.
impl Manager {
    /// Makes a capsule. A capsule that runs or is being made gets the answer of its first creation.
    pub(crate) async fn create(
        &self,
        record: CapsuleRecord,
        from: create::Source,
    ) -> Result<Started, Error> {
        create::create(&self.host, record, from).await
    }

    /// Pauses a capsule; a paused capsule is success. `generation` is the command's, or `None` for
    /// the agent's own pauses.
    ///
    /// # Errors
    /// [`Error::Silent`] when the guest's agent does not answer, unless the guest is saved
    /// regardless. [`Error::Stopping`] when the capsule is to be removed. The capsule then runs on.
    pub(crate) async fn pause(
        &self,
        id: CapsuleId,
        generation: Option<u64>,
        mode: PauseMode,
    ) -> Result<(), Error> {
        pause::pause(&self.host, id, generation, mode).await
    }

    /// Resumes a paused capsule. A running capsule gets the answer of its last start.
    pub(crate) async fn resume(&self, request: ResumeRequest) -> Result<Started, Error> {
        resume::resume(&self.host, request).await
    }

    /// Fetches a capsule that was paused on another host, and lists it as paused on this host.
    pub(crate) async fn fetch_capsule(
        &self,
        team: &str,
        id: CapsuleId,
        tree: &StoredSnapshot,
        placed: Placed,
    ) -> Result<(), Error> {
        fetch::capsule(&self.host, team, id, tree, placed).await
    }

    /// Ends a capsule; an unknown capsule is success. The capsule's remains are removed after the
    /// answer. With `newest`, a capsule of a later generation stays, and the answer is
    /// [`Error::Stale`].
    pub(crate) async fn destroy(&self, id: CapsuleId, newest: Option<u64>) -> Result<(), Error> {
        destroy::destroy(&self.host, id, newest).await
    }

    /// Counts as activity.
    ///
    /// # Errors
    /// Fails for an unknown capsule, and for a capsule that is neither running nor paused.
    pub(crate) async fn touch(&self, id: CapsuleId) -> Result<(), Error> {
        settings::touch(&self.host, id).await
    }

    /// Sets a capsule's lifetime, and counts as activity. Returns the milliseconds until the
    /// lifetime ends; `None` is never.
    ///
    /// # Errors
    /// Fails like [`Self::touch`], after a command of a later generation, and on disk errors.
    pub(crate) async fn set_lifetime(
        &self,
        id: CapsuleId,
        generation: u64,
        life: Lifetime,
    ) -> Result<Option<u64>, Error> {
        settings::set_lifetime(&self.host, id, generation, life).await
    }

    /// Changes a capsule's rules for outgoing connections. On return, these rules or later ones are
    /// in force.
    pub(crate) async fn set_egress(&self, id: CapsuleId, egress: Egress) -> Result<(), Error> {
        settings::set_egress(&self.host, id, egress).await
    }

    /// Changes the output that a capsule's log has, from the return on.
    ///
    /// # Errors
    /// Fails like [`Self::touch`], on disk errors, and when the guest's agent does not answer.
    pub(crate) async fn set_logs(&self, id: CapsuleId, mode: LogMode) -> Result<(), Error> {
        settings::set_logs(&self.host, id, mode).await
    }
}

/// Snapshots.
impl Manager {
    /// Takes a snapshot of a capsule, which stays as it is. A complete snapshot of this id is
    /// success. Without `memory`, only the disk is saved.
    pub(crate) async fn snapshot(
        &self,
        id: CapsuleId,
        to: SnapshotId,
        memory: bool,
    ) -> Result<SnapshotSize, Error> {
        snapshots::take(&self.host, id, to, memory).await
    }

    /// Removes a snapshot. Capsules that began from it keep the data that they need. An unknown
    /// snapshot is success.
    pub(crate) async fn remove_snapshot(&self, id: SnapshotId) -> Result<(), Error> {
        snapshots::remove(&self.host, id).await
    }

    /// Lists the snapshots on this host that belong to no capsule.
    pub(crate) fn snapshots(&self) -> Vec<SnapshotId> {
        files::snapshots(&self.host.context)
    }

    /// Returns the bytes on disk of each snapshot, by its id, as of the last count.
    pub(crate) fn snapshot_sizes(&self) -> HashMap<String, u64> {
        sizes::snapshot_sizes(&self.host)
    }

    /// Lists the numbers of a capsule's own snapshots, complete or not.
    pub(crate) fn numbers(&self, id: CapsuleId) -> Vec<u64> {
        files::numbers(&self.host.context, id)
    }

    /// Lists the snapshots of this host that the store has too.
    pub(crate) fn stored_snapshots(&self) -> Vec<SnapshotId> {
        upload::stored_snapshots(&self.host)
    }

    /// Removes a snapshot from the store.
    pub(crate) async fn forget_snapshot(&self, team: &str, id: SnapshotId) -> Result<(), Error> {
        upload::forget_snapshot(&self.host, team, id).await
    }

    /// Removes a capsule's snapshots from the store: all of them or, with `stays`, the other ones
    /// with no higher number.
    pub(crate) async fn prune_stored(
        &self,
        team: &str,
        id: CapsuleId,
        stays: Option<&StoredSnapshot>,
    ) -> Result<(), Error> {
        upload::prune_stored(&self.host, team, id, stays).await
    }
}

/// Versions of templates, and disks for the build engine.
impl Manager {
    /// Ends a builder's machine, and moves its disk to `disk.ext4` in its build's folder. The
    /// capsule is then to be removed like any other.
    pub(crate) async fn take_disk(&self, id: CapsuleId) -> Result<PathBuf, Error> {
        builder::take_disk(&self.host, id).await
    }

    /// Ends a builder's machine at once. The capsule is then to be removed like any other.
    pub(crate) async fn end_builder(&self, id: CapsuleId) -> Result<(), Error> {
        builder::end(&self.host, id).await
    }

    /// Copies a capsule's disk to `disk.ext4` in the folder `to`, beside links to `image.ext4` and
    /// `layer-1.ext4` and so on below it. The capsule stays as it is.
    pub(crate) async fn copy_upper(
        &self,
        id: CapsuleId,
        to: PathBuf,
    ) -> Result<CopiedDisks, Error> {
        builder::copy_upper(&self.host, id, to).await
    }

    /// Returns the guest of a build's running builder, with envd's token.
    ///
    /// # Errors
    /// Fails when the capsule runs no steps of this build, or has no machine.
    pub(crate) fn builder(&self, id: CapsuleId, build: BuildId) -> Result<(Guest, String), Error> {
        let record = files::record(&self.host.context, id)?;
        let running = self.host.registry.machine(id)?.ok_or(Error::Silent)?;
        match record.builds == Some(build) {
            true => Ok((running.guest, record.envd_token)),
            false => Err(Error::Invalid("the capsule runs no steps of this build".to_owned())),
        }
    }

    /// Fetches a template of the operator's from the store, if this host lacks it.
    pub(crate) async fn fetch_template(&self, name: &str) -> Result<(), Error> {
        fetch::template(&self.host, name).await
    }

    /// Fetches a version from its owner's part of the store, if this host lacks it.
    pub(crate) async fn fetch_version(&self, wanted: &create::VersionRef) -> Result<(), Error> {
        fetch::version(&self.host, wanted).await
    }

    /// Lists the versions of this host that the store has too.
    pub(crate) fn stored_versions(&self) -> HashSet<BuildId> {
        versions::stored(&self.host)
    }

    /// Removes a version from this host, and from its owner's part of the store. Capsules and
    /// snapshots of the version go on.
    pub(crate) async fn remove_version(&self, team: &str, id: BuildId) -> Result<(), Error> {
        versions::remove(&self.host, team, id).await
    }
}

/// Views of the capsules.
impl Manager {
    /// Lists every capsule with its state and generation.
    pub(crate) fn list(&self) -> Vec<Listed> {
        self.host.report_totals();
        self.host.registry.list()
    }

    /// Lists the running capsules, for their stats.
    pub(crate) fn running(&self) -> Vec<RunningCapsule> {
        self.host.registry.list_running()
    }

    /// Reads the record of a capsule; `None` when it is missing or unreadable.
    pub(crate) fn record(&self, id: CapsuleId) -> Option<CapsuleRecord> {
        files::record(&self.host.context, id).ok()
    }

    /// Waits until the count of unrequested changes differs from `seen`, for at most `most`;
    /// returns the count. A count from another agent process differs too, so the call returns at
    /// once.
    pub(crate) async fn wait_change(&self, seen: u64, most: Duration) -> u64 {
        self.host.changes.wait(seen, most).await
    }

    /// Returns a running capsule's guest and permits for a request, in a single step. So an
    /// operation that ends the guest knows of every request under way.
    pub(crate) fn acquire_proxy_conn(
        &self,
        id: CapsuleId,
        port: u16,
        purpose: Purpose,
    ) -> Result<(Guest, Permits), Refusal> {
        self.host.registry.acquire_proxy_conn(id, port, purpose)
    }

    /// Reports whether a capsule's guest stands still until there is room on the host's disk.
    pub(crate) fn waits_for_room(&self, id: CapsuleId) -> bool {
        self.host.registry.waits_for_room(id)
    }

    /// Reads a capsule's log, and waits at most `wait` for an entry. A capsule without a log has no
    /// entries.
    pub(crate) async fn read_log(
        &self,
        team: &str,
        id: CapsuleId,
        query: Query,
        wait: Duration,
    ) -> Result<Page, Error> {
        logs::read::read(&self.host, team, id, query, wait).await
    }

    /// Erases the log of a capsule, or all logs of a team, on this host and in the store. Unknown
    /// logs are success.
    pub(crate) async fn erase_log(&self, team: &str, id: Option<CapsuleId>) -> Result<(), Error> {
        logs::read::erase(&self.host, team, id).await
    }

    /// Returns the output of a capsule's guest on its console; empty without a machine.
    pub(crate) async fn console(&self, id: CapsuleId) -> Result<Vec<u8>, Error> {
        match self.host.registry.machine(id)? {
            Some(running) => Ok(running.machine.console().await),
            None => Ok(Vec::new()),
        }
    }
}
