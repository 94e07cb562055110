//! The boot of a capsule, in phases. Each phase is a type, and each step consumes the phase before
//! it. An [`Origin`] is the source of the machine: an image, a saved disk, or a whole saved
//! machine.
//!
//! ```text
//!           prepare            launch           initialize             complete
//!  record ───────────▶ Prepared ──────▶ Launched ─────────▶ Initialized ────────▶ Ready
//!          disk ∥ network      machine   ▲  guest answers,    │    record: Running
//!            └─ copy and check of a      │  has its identity  │
//!               saved disk ──────────────┼─────────┘          ▼
//!                                        └─── take_over ── made ahead of its capsule
//! ```
//! A phase owns the handles of its parts, and a step that fails drops them with its phase. So no
//! handle holds the network when the caller calls `teardown`, which goes by the record alone. The
//! record names each part before a failure is returned, and says `Running` only for [`Ready`].

mod disk;
pub(super) mod parts;

use super::lifetime::{Lifetime, now_ms};
use super::record::{CapsuleRecord, Phase};
use super::registry::{Running, StartKind};
use super::start::Commands;
use super::template_snapshot::PendingTemplateSnapshot;
use super::{Error, files, io_error, until};
use crate::builders::{BuilderDisks, NoLog, StartLog};
use crate::context::AgentContext;
use crate::guest::{Guest, Identity};
use crate::log::LogMode;
use crate::network::Network;
use crate::placeholder;
use crate::snapshot::{Layers, Snapshot};
use crate::version::Version;
use crate::vmm::{Disks, Machine, Spec};
use daemon::stage;
use disk::{PendingDisk, ready_and_checked};
use parts::ClaimedSave;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use types::{Egress, hex};

/// Histograms of the stages of creates, and of resumes from memory.
pub(super) const BOOT_STAGES: &str = "wrenn_boot_stage_seconds";
const RESUME_STAGES: &str = "wrenn_resume_stage_seconds";
/// Time limit for a guest that boots to answer. An emulated guest on a busy machine takes a while.
const READY: Duration = Duration::from_secs(90);
/// Time limit for a restored guest to answer. It answered before it was saved and does not boot.
const READY_AGAIN: Duration = Duration::from_secs(60);
/// Time limit for a ready guest to answer. A create whose ready guest is silent can still make
/// another machine.
const READY_TAKEN: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 15 });
/// Time that a version's commands may take beside the time within which it must become ready.
const COMMANDS_BESIDE: Duration = Duration::from_secs(60);

/// Source of a capsule's machine.
pub(super) enum Origin {
    /// The template's image and an empty disk. The booted machine may become a template snapshot.
    Image(Option<PendingTemplateSnapshot>),
    /// The disks that a build has chosen for its builder, and an empty disk.
    Builder(BuilderDisks),
    /// A saved disk, on which a kernel boots.
    Disk(Snapshot),
    /// A whole saved machine, for the same capsule to continue.
    Resume(Snapshot),
    /// A whole saved machine, for another capsule to begin from.
    Fork(Snapshot),
    /// A machine that was made ahead. Its envd expects this token.
    Ready(String),
}

impl Origin {
    fn snapshot(&self) -> Option<&Snapshot> {
        match self {
            Self::Image(_) | Self::Builder(_) | Self::Ready(_) => None,
            Self::Disk(snapshot) | Self::Resume(snapshot) | Self::Fork(snapshot) => Some(snapshot),
        }
    }

    /// Returns the histogram of the stages from here.
    fn stages(&self) -> &'static str {
        if matches!(self.kind(), StartKind::Resumed) { RESUME_STAGES } else { BOOT_STAGES }
    }

    /// Returns the kind of a start from here.
    fn kind(&self) -> StartKind {
        match self {
            Self::Image(_) | Self::Builder(_) | Self::Disk(_) => StartKind::Booted,
            // A ready machine has the memory of a template snapshot.
            Self::Fork(_) | Self::Ready(_) => StartKind::Forked,
            Self::Resume(_) => StartKind::Resumed,
        }
    }

    /// Returns the disks of a builder.
    fn builder(&self) -> Option<&BuilderDisks> {
        match self {
            Self::Builder(disks) => Some(disks),
            Self::Image(_) | Self::Disk(_) | Self::Resume(_) | Self::Fork(_) | Self::Ready(_) => {
                None
            }
        }
    }

    /// Returns the token that envd of a machine that stood still expects.
    fn token(&self) -> Option<String> {
        if let Self::Ready(token) = self {
            return Some(token.clone());
        }
        self.snapshot()?.manifest.envd_token.clone()
    }

    /// Reports whether envd answered before the machine stood still.
    fn has_answered(&self) -> bool {
        matches!(self, Self::Ready(_)) || self.layers().is_some()
    }

    /// Reports whether a capsule begins from its template, with or without a template snapshot. No
    /// program of the template runs in such a capsule's disk yet.
    fn is_template(&self) -> bool {
        match self {
            Self::Image(_) => true,
            // Only a template snapshot belongs to no team.
            Self::Fork(snapshot) => snapshot.manifest.team.is_none(),
            Self::Builder(_) | Self::Disk(_) | Self::Resume(_) | Self::Ready(_) => false,
        }
    }

    /// Returns the layers of the saved memory; none when a kernel is booted.
    fn layers(&self) -> Option<Layers> {
        match self {
            Self::Image(_) | Self::Builder(_) | Self::Disk(_) | Self::Ready(_) => None,
            Self::Resume(snapshot) => snapshot.manifest.memory.clone(),
            Self::Fork(snapshot) => {
                let all = snapshot.manifest.memory.clone()?.all;
                Some(Layers { shared: all.len(), all })
            }
        }
    }
}

/// Reader of the output of start and ready commands.
pub(super) type Log<'a> = &'a dyn StartLog;

/// Inputs of all phases of a boot.
struct Boot<'a> {
    context: &'a AgentContext,
    record: &'a mut CapsuleRecord,
    origin: Origin,
    cancel: &'a CancellationToken,
    log: Log<'a>,
    /// The capsule's folder.
    dir: PathBuf,
}

/// A capsule with disk, saved memory and network, and without a machine.
struct Prepared<'a> {
    boot: Boot<'a>,
    disks: Option<Disks>,
    pending: Option<PendingDisk>,
    saved: Option<ClaimedSave>,
    network: Option<Network>,
}

/// A capsule with a machine, whose guest may not answer yet.
struct Launched<'a> {
    boot: Boot<'a>,
    machine: Arc<dyn Machine>,
    guest: Guest,
    pending: Option<PendingDisk>,
    /// True for a restored machine, which stands still.
    restored: bool,
}

/// A capsule whose guest has its identity. The record on the disk does not say so yet.
struct Initialized<'a> {
    record: &'a mut CapsuleRecord,
    running: Running,
    kind: StartKind,
    dir: PathBuf,
}

/// A capsule whose guest answers.
pub(super) struct Ready {
    pub running: Running,
    /// Origin of the machine; `None` when an earlier agent process started it.
    pub kind: Option<StartKind>,
    pub life: Lifetime,
}

/// Makes all parts of a capsule. On failure, or when `cancel` is cancelled, the caller removes
/// them.
pub(super) async fn boot(
    context: &AgentContext,
    record: &mut CapsuleRecord,
    origin: Origin,
    cancel: &CancellationToken,
    log: Log<'_>,
) -> Result<Ready, Error> {
    let metric = origin.stages();
    let boot = Boot::new(context, record, origin, cancel, log);
    let prepared = stage(metric, "prepared", Box::pin(boot.prepare())).await?;
    let launch = if prepared.saved.is_some() { "restored" } else { "booted" };
    let launched = stage(metric, launch, Box::pin(prepared.launch())).await?;
    launched.settle(metric).await
}

/// Makes a machine from a template snapshot, ahead of the capsule that will have it. The guest gets
/// the record's token. The record stays `Starting`, so that the next agent removes the machine.
pub(super) async fn boot_ahead(
    context: &AgentContext,
    record: &mut CapsuleRecord,
    snapshot: Snapshot,
    cancel: &CancellationToken,
) -> Result<Running, Error> {
    let boot = Boot::new(context, record, Origin::Fork(snapshot), cancel, &NoLog);
    let initialized = boot.prepare().await?.launch().await?.initialize().await?;
    Ok(initialized.running)
}

/// Gives a machine that was made ahead to the capsule of `record`, whose folder it already has. Its
/// envd expects `token`.
pub(super) async fn take_over(
    context: &AgentContext,
    record: &mut CapsuleRecord,
    Running { machine, guest }: Running,
    token: String,
    cancel: &CancellationToken,
) -> Result<Ready, Error> {
    let boot = Boot::new(context, record, Origin::Ready(token), cancel, &NoLog);
    Launched { boot, machine, guest, pending: None, restored: true }.settle(BOOT_STAGES).await
}

impl<'a> Boot<'a> {
    fn new(
        context: &'a AgentContext,
        record: &'a mut CapsuleRecord,
        origin: Origin,
        cancel: &'a CancellationToken,
        log: Log<'a>,
    ) -> Self {
        let dir = files::folder(context, record.id);
        Self { context, record, origin, cancel, log, dir }
    }

    /// Returns the version whose commands run before the guest has its identity. The machine is
    /// saved after them, for capsules with any settings.
    fn started_version(&self) -> Option<&Version> {
        let from_image = matches!(self.origin, Origin::Image(_));
        let version = self.record.version.as_ref().filter(|_| from_image)?;
        (version.has_commands() && !version.start_each).then_some(version)
    }

    /// Returns the rules for outgoing connections until the guest has its identity. Commands that
    /// run before have the rules of a build.
    fn first_egress(&self) -> Egress {
        match self.started_version() {
            Some(_) => Egress::default(),
            None => self.record.egress.clone(),
        }
    }

    /// Writes the record, then makes the disk and opens the saved memory, beside the network.
    async fn prepare(self) -> Result<Prepared<'a>, Error> {
        let egress = self.first_egress();
        let (context, record) = (self.context, &mut *self.record);
        files::store(record, &self.dir).await?;
        daemon::failpoint("boot.begun").map_err(io_error("a failpoint failed"))?;
        let (source, layers) = (self.origin.snapshot(), self.origin.layers());
        record.base_layers = layers.clone().unwrap_or_default();
        (record.system, record.placeholders) = match (source, &layers) {
            (Some(Snapshot { manifest, .. }), Some(_)) => {
                (manifest.system.clone(), manifest.placeholders)
            }
            _ => (context.config.system(), placeholder::COUNT),
        };
        // All run side by side. All end before a failure of any is returned, so no part is
        // forgotten.
        let written: &CapsuleRecord = record;
        let disks = async {
            if !context.driver.boots_images() {
                return Ok((None, None));
            }
            let builder = self.origin.builder();
            let made = parts::disks(context, written, &self.dir, source, builder, self.cancel);
            let (disks, pending) = made.await?;
            Ok::<_, Error>((Some(disks), pending))
        };
        let saved = async {
            let (Some(snapshot), Some(layers)) = (source, &layers) else { return Ok(None) };
            let saved = parts::saved(context, &written.team, snapshot, layers, &self.dir);
            saved.await.map(Some)
        };
        let network = parts::wire(context, &egress, written, &self.dir);
        let (disks, saved, network) = tokio::join!(disks, saved, network);
        let network = network?;
        record.slot = network.as_ref().map(|network| network.slot);
        let (disks, pending) = disks?;
        let saved = saved?;
        daemon::failpoint("boot.wired").map_err(io_error("a failpoint failed"))?;
        Ok(Prepared { boot: self, disks, pending, saved, network })
    }
}

impl<'a> Prepared<'a> {
    /// Restores or boots the machine.
    async fn launch(self) -> Result<Launched<'a>, Error> {
        let Self { boot, disks, mut pending, saved, network } = self;
        let context = boot.context;
        let (tap, namespace) = network.map_or((None, None), |n| (n.tap, Some(n.namespace)));
        let guard = parts::guard(context, namespace.as_ref(), &boot.first_egress()).await?;
        let at = namespace.clone();
        let spec = parts::spec(context, boot.record, boot.dir.clone())?;
        let spec = Spec { disks, tap, namespace: at, ..spec };
        let restored = saved.is_some();
        let machine: Arc<dyn Machine> = Arc::from(match saved {
            // The driver writes too, so the claim lives until the driver is done.
            Some(ClaimedSave { saved, claim: _claim }) => {
                context.driver.restore(spec, saved).await?
            }
            None => {
                // A kernel that boots reads its disk at once.
                if let Some(pending) = &mut pending {
                    pending.check().await?;
                }
                context.driver.boot(spec).await?
            }
        });
        boot.record.machine = Some(machine.record());
        let route = parts::route(&*machine, namespace)?;
        let guest = parts::guest(context, boot.record, route).guarded(guard);
        Ok(Launched { boot, machine, guest, pending, restored })
    }
}

impl<'a> Launched<'a> {
    /// Brings the guest to its epoch, and writes down that the capsule runs.
    async fn settle(self, metric: &'static str) -> Result<Ready, Error> {
        let initialized = stage(metric, "epoch", Box::pin(self.initialize())).await?;
        stage(metric, "ready", Box::pin(initialized.complete())).await
    }

    /// Lets the guest run, and waits until it answers and has its identity. The record names the
    /// machine before any failure is returned.
    async fn initialize(self) -> Result<Initialized<'a>, Error> {
        let Self { boot, machine, guest, mut pending, restored } = self;
        let Boot { context, record, origin, cancel, log, dir } = boot;
        let mut identity = parts::identity(context, record);
        if restored {
            identity.old_token = origin.token();
        }
        identity.fresh = !matches!(origin, Origin::Resume(_));
        let kind = origin.kind();
        // The record of a machine that was made ahead names it already.
        let is_named = matches!(origin, Origin::Ready(_));
        let named: &CapsuleRecord = record;
        let noting = async {
            if is_named {
                return Ok(());
            }
            files::note(named, &dir).await?;
            daemon::failpoint("boot.machine").map_err(io_error("a failpoint failed"))
        };
        let answering =
            Answering { context, record: named, machine: &machine, guest: &guest, dir: &dir, log };
        let beginning = async {
            if let Some(pending) = &mut pending {
                pending.fill().await?;
            }
            let begun = Box::pin(answering.begin_life(restored, identity, origin));
            ready_and_checked(begun, pending).await
        };
        beside(noting, async { until(cancel, Box::pin(beginning)).await? }).await?;
        Ok(Initialized { record, running: Running { machine, guest }, kind, dir })
    }
}

impl Initialized<'_> {
    /// Writes down that the capsule runs.
    async fn complete(self) -> Result<Ready, Error> {
        let Self { record, running, kind, dir } = self;
        record.phase = Phase::Running;
        record.life.begin(now_ms());
        files::store(record, &dir).await?;
        daemon::failpoint("boot.ready").map_err(io_error("a failpoint failed"))?;
        Ok(Ready { running, kind: Some(kind), life: record.life.clone() })
    }
}

/// Waits for some work, and for a step beside it that is never left unfinished. A failure of the
/// step ends the work, and precedes a failure of the work.
async fn beside(
    step: impl Future<Output = Result<(), Error>>,
    work: impl Future<Output = Result<(), Error>>,
) -> Result<(), Error> {
    tokio::pin!(step, work);
    tokio::select! {
        done = &mut step => {
            done?;
            work.await
        }
        done = &mut work => {
            step.await?;
            done
        }
    }
}

/// A guest that is to answer, with what its identity depends on.
struct Answering<'a> {
    context: &'a AgentContext,
    record: &'a CapsuleRecord,
    machine: &'a Arc<dyn Machine>,
    guest: &'a Guest,
    dir: &'a Path,
    log: Log<'a>,
}

impl Answering<'_> {
    /// Lets a restored machine run, and waits for the guest as [`Self::wait_ready`] does. The
    /// connection to the guest is opened meanwhile.
    async fn begin_life(
        &self,
        restored: bool,
        identity: Identity,
        origin: Origin,
    ) -> Result<(), Error> {
        let ready = self.wait_ready(identity, origin);
        if !restored {
            return ready.await;
        }
        let thaw = async { self.machine.thaw().await.map_err(Error::from) };
        tokio::try_join!(thaw, ready).map(drop)
    }

    /// Waits until the guest answers and has its identity. Requests may be let in only after that.
    /// Commands of a version run before the machine is saved, or after, and have limits of their
    /// own.
    async fn wait_ready(&self, mut identity: Identity, origin: Origin) -> Result<(), Error> {
        let answers = self.context.driver.boots_images() && origin.has_answered();
        let limit = if matches!(origin, Origin::Ready(_)) {
            READY_TAKEN
        } else if answers {
            READY_AGAIN
        } else {
            READY
        };
        let version = self.record.version.as_ref().filter(|version| version.has_commands());
        let version = version.filter(|_| origin.is_template());
        let begins_from_image = matches!(origin, Origin::Image(_));
        let pending = if let Origin::Image(pending) = origin { pending } else { None };
        let saved = version.filter(|version| begins_from_image && !version.start_each);
        if let Some(version) = saved {
            let provisional = provisional(self.context, self.record);
            let begin = async {
                self.guest.wait_healthy().await;
                self.begin(answers, &provisional).await
            };
            Box::pin(self.within(limit, begin)).await?;
            self.run_commands(version, &provisional.token, &BTreeMap::new()).await?;
            identity.old_token = Some(provisional.token);
        }
        let token = identity.old_token.clone();
        let begin = async {
            if !answers {
                self.guest.wait_healthy().await;
            }
            if let Some(pending) = pending {
                let token = token.filter(|_| saved.is_some());
                pending.capture(self.context, self.machine, self.guest, self.dir, token).await;
            }
            if saved.is_some() {
                self.set_egress().await?;
            }
            self.begin(answers, &identity).await
        };
        Box::pin(self.within(limit, begin)).await?;
        match version.filter(|version| version.start_each) {
            Some(version) => self.run_commands(version, &identity.token, &self.record.envs).await,
            None => Ok(()),
        }
    }

    /// Puts the capsule's own rules for outgoing connections in force, for open ones too.
    async fn set_egress(&self) -> Result<(), Error> {
        let Some(guard) = self.guest.guard() else { return Ok(()) };
        let set = guard.set(self.record.egress.clone()).await;
        set.map_err(io_error("cannot apply the capsule's network rules"))
    }

    /// Gives the guest an identity. A guest that `answers` is first taken to answer at once.
    async fn begin(&self, answers: bool, identity: &Identity) -> Result<(), Error> {
        let Self { guest, .. } = self;
        let begun = match guest.initialize(identity).await {
            Err(error) if answers => {
                tracing::debug!(%error, "the guest does not answer yet");
                guest.wait_healthy().await;
                guest.initialize(identity).await
            }
            begun => begun,
        };
        begun.map_err(io_error("cannot begin the guest's epoch"))
    }

    /// Runs a version's commands in a guest whose envd expects `token`.
    async fn run_commands(
        &self,
        version: &Version,
        token: &str,
        envs: &BTreeMap<String, String>,
    ) -> Result<(), Error> {
        let Self { guest, log, .. } = *self;
        let helpers = match self.context.driver.boots_images() {
            true => guest.helpers(token).await.inspect_err(|error| {
                tracing::warn!(%error, "the guest has no helpers for a ready command");
            }),
            false => Err(io::ErrorKind::Unsupported.into()),
        };
        let commands = Commands { guest, token, version, envs, helpers: helpers.ok(), log };
        // The commands end in time by themselves, or with their guest.
        let limit = version.ready_within() + COMMANDS_BESIDE;
        self.within(limit, commands.run()).await
    }

    /// Waits for work with the guest, unless the machine ends or the time is over before.
    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let machine = &**self.machine;
        tokio::select! {
            done = work => done,
            reason = machine.ended() => {
                Err(Error::Died { reason, console: last_words(machine).await })
            }
            () = tokio::time::sleep(limit) => {
                let console = last_words(machine).await;
                Err(Error::GuestSilent { seconds: limit.as_secs(), console })
            }
        }
    }
}

/// Returns the identity of a guest in which a version's commands run before the machine is saved.
/// No token or variable of a capsule is in it, since other capsules begin from that machine.
fn provisional(context: &AgentContext, record: &CapsuleRecord) -> Identity {
    let envs = record.version.as_ref().map(Version::envs).unwrap_or_default();
    let token = hex::encode(&rand::random::<[u8; 32]>());
    Identity { token, envs, logs: LogMode::None, ..parts::identity(context, record) }
}

async fn last_words(machine: &dyn Machine) -> String {
    let console = machine.console().await;
    let from = console.len().saturating_sub(600);
    String::from_utf8_lossy(&console[from..]).trim().to_owned()
}

#[cfg(test)]
mod tests;
