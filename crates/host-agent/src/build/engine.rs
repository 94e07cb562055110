//! The table of builds, and the tasks that carry them out. A build lives in this process: an agent
//! that starts finds the folders of earlier builds, and ends those without an end as failed.

use super::cache::Index;
use super::events::{Event, Kind};
use super::files::{self, Files};
use super::finish::{Finished, layer_of};
use super::folders::{self, Folders};
use super::layer::{self, Layer};
use super::log::Log;
use super::parts::{BaseVersion, Builder, Guests, Images, PullOptions};
use super::prepare::{self, Ready};
use super::run::{self, Stack, Walk};
use super::start::VersionLog;
use super::versions::Listed;
use super::{FINALIZE, Failure, start};
use crate::capsule::{Error, io_error};
use crate::config::System;
use crate::context::AgentContext;
use crate::{room, storage};
use daemon::{Tasks, lock};
use futures::Stream;
use recipe::BuildSpec;
use registry::Login;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio_util::sync::CancellationToken;
use types::{BuildId, CapsuleId, TeamId};

/// Longest wait of a reader for an event.
const WATCH: Duration = Duration::from_secs(20);
/// Time for a guest to close its disk after the last step.
const CLOSE: Duration = Duration::from_secs(300);
/// Time for this after a cancel, which ends within two seconds.
const CLOSE_CANCELLED: Duration = Duration::from_millis(1500);
/// Longest wait of a capsule's removal for the end of its build, and the time between two looks.
const RELEASE: Duration = Duration::from_secs(2);
const RELEASE_LOOK: Duration = Duration::from_millis(10);
/// Time for the capsule of a prepared build to appear.
const CAPSULE: Duration = Duration::from_secs(600);
/// Longest time of a build, in seconds.
const WITHIN_MAX: u32 = 24 * 3600;
/// Time between two removals of unused files.
const CLEAN: Duration = Duration::from_secs(3600);
/// Room that an upload claims on the host's disk.
const CLAIM: u64 = 64 << 20;
/// Message of a build that a caller ended.
const CANCELLED: &str = "the build was canceled";
/// Message of a build whose agent ended.
const RESTARTED: &str = "the host restarted";

/// Request to begin a build.
pub(crate) struct BeginRequest {
    pub id: BuildId,
    pub team: TeamId,
    /// Name of the template.
    pub template: String,
    pub spec: BuildSpec,
    /// Templates that the recipe names.
    pub templates: HashMap<String, BaseVersion>,
    /// Logins by host. They are never written down.
    pub logins: Vec<(String, Login)>,
    /// Most bytes of the team's layers and images on this host.
    pub most_bytes: Option<u64>,
}

/// Parts that all builds share.
pub(super) struct Shared {
    pub folders: Folders,
    pub files: Files,
    pub index: Mutex<Index>,
    pub images: Box<dyn Images>,
    pub guests: Box<dyn Guests>,
    pub system: System,
    tasks: Tasks,
}

/// Builds of this host. A clone is the same table.
#[derive(Clone)]
pub(crate) struct Builds {
    context: Arc<AgentContext>,
    shared: Arc<Shared>,
    table: Arc<Mutex<HashMap<BuildId, Arc<Build>>>>,
}

/// A build of this process, or the events of an earlier one.
struct Build {
    log: Arc<Log>,
    cancel: CancellationToken,
    begun: Instant,
    /// Capsule for the steps. The sender is used once, for a build that waits for its capsule.
    capsule: Mutex<Option<tokio::sync::oneshot::Sender<CapsuleId>>>,
    /// Capsule that runs the steps.
    runs_in: Mutex<Option<CapsuleId>>,
}

impl Builds {
    /// Finds the layers, files and builds of an earlier agent.
    ///
    /// # Errors
    /// Fails when the folders cannot be made or read.
    pub(crate) fn open(
        context: Arc<AgentContext>,
        images: Box<dyn Images>,
        guests: Box<dyn Guests>,
    ) -> io::Result<Self> {
        let folders = Folders::make(&context.config.dir)?;
        folders.sweep();
        let files = Files::open(folders.files())?;
        let index = Mutex::new(load_index(&folders));
        let (system, tasks) = (context.config.system(), context.tasks.clone());
        let shared = Arc::new(Shared { folders, files, index, images, guests, system, tasks });
        let builds = Self { context: Arc::clone(&context), table: Arc::default(), shared };
        builds.adopt()?;
        let shared = Arc::clone(&builds.shared);
        context.tasks.every(CLEAN, move || {
            let shared = Arc::clone(&shared);
            async move {
                let cleaned = daemon::blocking(move || {
                    shared.clean(SystemTime::now());
                    Ok(())
                });
                let _ = cleaned.await;
            }
        });
        Ok(builds)
    }

    /// Ends the builds of an earlier agent.
    fn adopt(&self) -> io::Result<()> {
        for dir in folders::entries(&self.shared.folders.builds()) {
            let known = folders::named::<BuildId>(&dir).filter(|_| Log::exists(&dir));
            // A folder without events is of a build that nobody was told of, or that was forgotten.
            let Some(id) = known else {
                self.shared.folders.remove(&dir)?;
                continue;
            };
            let log = Log::open(&dir)?;
            if !log.is_ended() {
                // A version whose build has no end is no one's.
                self.shared.drop_version(id);
                log.fail(Failure::finalize(RESTARTED));
            }
            self.shared.clear(id);
            lock(&self.table).insert(id, Arc::new(Build::new(log).0));
        }
        Ok(())
    }

    /// Begins a build. A build that has begun is success.
    ///
    /// # Errors
    /// Fails for a recipe that breaks a rule, and when the build's folder cannot be made.
    pub(crate) fn begin(&self, request: BeginRequest) -> Result<(), Error> {
        let invalid = |why: String| Error::Invalid(format!("spec: {why}"));
        request.spec.recipe.check().map_err(|error| invalid(error.to_string()))?;
        if !(1..=WITHIN_MAX).contains(&request.spec.within_sec) {
            return Err(invalid(format!("within_sec must be 1 to {WITHIN_MAX}")));
        }
        let id = request.id;
        let (build, capsule) = {
            let mut table = lock(&self.table);
            if table.contains_key(&id) {
                return Ok(());
            }
            let dir = self.shared.folders.build(id);
            let made = folders::empty(&dir).and_then(|()| folders::sync_parent(&dir));
            let log = made.and_then(|()| Log::open(&dir));
            let (build, capsule) = Build::new(log.map_err(io_error("cannot begin a build"))?);
            let build = Arc::new(build);
            table.insert(id, Arc::clone(&build));
            (build, capsule)
        };
        let this = self.clone();
        self.shared.tasks.spawn(async move {
            let task = Task { shared: &this.shared, request: &request, build: &build };
            Box::pin(task.run(capsule)).await;
            this.remove_forgotten(id);
        });
        Ok(())
    }

    /// Gives a prepared build its capsule. A build whose steps run, or that has ended, is success.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown build.
    pub(crate) fn run(&self, id: BuildId, capsule: CapsuleId) -> Result<(), Error> {
        let build = self.find(id)?;
        let waiting = lock(&build.capsule).take();
        if waiting.is_some() {
            *lock(&build.runs_in) = Some(capsule);
        }
        // A build that waits no longer has ended, and its events tell the reason.
        let _ = waiting.map(|waiting| waiting.send(capsule));
        Ok(())
    }

    /// Returns the events after `seen`. Waits some seconds for one.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown build.
    pub(crate) async fn watch(&self, id: BuildId, seen: u64) -> Result<Vec<Event>, Error> {
        let build = self.find(id)?;
        let events = tokio::select! {
            events = build.log.watch(seen, WATCH) => events,
            () = self.shared.tasks.stopping() => Ok(Vec::new()),
        };
        events.map_err(io_error("cannot read the events of a build"))
    }

    /// Ends a build's work. An unknown build is success.
    pub(crate) fn cancel(&self, id: BuildId) {
        if let Ok(build) = self.find(id) {
            build.cancel.cancel();
        }
    }

    /// Ends the build that runs in a capsule, since the capsule is to be removed. Waits some seconds
    /// until the build's finished steps are kept.
    pub(crate) async fn release(&self, capsule: CapsuleId) {
        let build = {
            let table = lock(&self.table);
            let mut builds = table.values();
            builds.find(|build| *lock(&build.runs_in) == Some(capsule)).cloned()
        };
        let Some(build) = build.filter(|build| !build.log.is_ended()) else { return };
        build.cancel.cancel();
        let ended = async {
            while !build.log.is_ended() {
                tokio::time::sleep(RELEASE_LOOK).await;
            }
        };
        // A build that takes longer loses its steps with its capsule.
        let _ = tokio::time::timeout(RELEASE, ended).await;
    }

    /// Forgets a build. An unknown build is success.
    ///
    /// # Errors
    /// Fails when the build's folder cannot be removed.
    pub(crate) fn forget(&self, id: BuildId) -> Result<(), Error> {
        let build = lock(&self.table).remove(&id);
        if let Some(build) = build {
            build.cancel.cancel();
        }
        self.shared.guests.withdraw(id);
        let dir = self.shared.folders.build(id);
        self.shared.folders.remove(&dir).map_err(io_error("cannot forget a build"))
    }

    /// Lists the builds that are not forgotten.
    pub(crate) fn list(&self) -> Vec<BuildId> {
        lock(&self.table).keys().copied().collect()
    }

    /// Lists the versions on this host.
    pub(crate) fn versions(&self) -> Vec<Listed> {
        self.shared.versions()
    }

    /// Returns the uploaded archives.
    pub(crate) fn files(&self) -> &Files {
        &self.shared.files
    }

    /// Stores an archive of a team's files.
    ///
    /// # Errors
    /// Fails when the body is refused or broken, and when the disk has no room.
    pub(crate) async fn store_files<E: std::fmt::Display>(
        &self,
        team: TeamId,
        hash: &str,
        body: impl Stream<Item = Result<bytes::Bytes, E>>,
    ) -> Result<u64, files::Error> {
        let no_room = |error: room::NoRoom| files::Error::NoRoom(error.0);
        // The size is unknown yet. Archives under way are few, and small against the reserve.
        let _claim = self.context.room.claim(CLAIM).map_err(no_room)?;
        self.shared.files.store(team, hash, body).await
    }

    /// Removes what a build made after it was forgotten.
    fn remove_forgotten(&self, id: BuildId) {
        let table = lock(&self.table);
        if !table.contains_key(&id)
            && let Err(error) = self.shared.folders.remove(&self.shared.folders.build(id))
        {
            tracing::warn!(%error, %id, "cannot remove the folder of a forgotten build");
        }
    }

    fn find(&self, id: BuildId) -> Result<Arc<Build>, Error> {
        let found = lock(&self.table).get(&id).cloned();
        found.ok_or_else(|| Error::NotFound(format!("build {id}")))
    }
}

/// Reads the descriptions of all layers. Unreadable ones are left out, and go when they are unused.
fn load_index(folders: &Folders) -> Index {
    let mut index = Index::default();
    for dir in folders::entries(&folders.layers()) {
        let Some(team) = folders::named::<TeamId>(&dir) else { continue };
        for dir in folders::entries(&dir) {
            match Layer::load(&dir) {
                Ok(layer) if folders::named(&dir) == Some(layer.id) => index.add(team, layer),
                _ => tracing::warn!(dir = %dir.display(), "cannot read a layer"),
            }
        }
    }
    index
}

type Capsule = tokio::sync::oneshot::Receiver<CapsuleId>;

impl Build {
    fn new(log: Log) -> (Self, Capsule) {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let capsule = Mutex::new(Some(sender));
        let (log, cancel, begun) = (Arc::new(log), CancellationToken::new(), Instant::now());
        (Self { log, cancel, begun, capsule, runs_in: Mutex::default() }, receiver)
    }
}

impl Shared {
    /// Removes everything of a build but its events.
    fn clear(&self, id: BuildId) {
        let dir = self.folders.build(id);
        for name in ["pins", "files", "upper", "layer", "version", storage::DISK] {
            if let Err(error) = self.folders.remove(&dir.join(name)) {
                tracing::warn!(%error, %id, name, "cannot remove a folder of a build");
            }
        }
    }

    /// Removes the version of a build that failed after its version was made.
    fn drop_version(&self, id: BuildId) {
        if let Err(error) = self.folders.remove(&self.folders.version(id)) {
            tracing::warn!(%error, %id, "cannot remove the version of a failed build");
        }
    }
}

/// A build at work.
struct Task<'a> {
    shared: &'a Shared,
    request: &'a BeginRequest,
    build: &'a Build,
}

impl Task<'_> {
    /// Carries the build out, and writes its end.
    async fn run(&self, capsule: Capsule) {
        let id = self.request.id;
        let ended = match self.prepare().await {
            Ok(ready) => {
                let ended = Box::pin(self.build(&ready, capsule)).await;
                self.shared.guests.withdraw(id);
                ended
            }
            Err(failure) => Err(failure),
        };
        self.shared.clear(id);
        let passed = daemon::failpoint("build.end");
        let passed = passed.map_err(|error| Failure::finalize(error.to_string()));
        match ended.and_then(|finished| passed.map(|()| finished)) {
            Ok(finished) => self.end(finished),
            Err(failure) => {
                tracing::info!(%id, step = failure.step, error = failure.message, "a build failed");
                self.shared.drop_version(id);
                self.build.log.fail(failure);
            }
        }
    }

    fn end(&self, finished: Finished) {
        let Finished { provenance, bytes, starts } = finished;
        if starts {
            let log = VersionLog::new(Arc::clone(&self.build.log), self.build.begun);
            self.shared.guests.listen(self.request.id, Arc::new(log));
        } else {
            start::note_finished(&self.build.log, self.build.begun);
        }
        match serde_json::to_string(&provenance) {
            Ok(provenance) => self.build.log.end(Kind::Built { provenance, bytes, starts }),
            Err(error) => self.build.log.fail(Failure::finalize(error.to_string())),
        }
    }

    fn left(&self) -> Duration {
        let within = Duration::from_secs(self.request.spec.within_sec.into());
        within.saturating_sub(self.build.begun.elapsed())
    }

    /// Waits for work, unless the build is cancelled or takes too long. `phase` is the part of the
    /// build that the message names.
    async fn bounded<T>(
        &self,
        phase: &str,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let within = self.request.spec.within_sec;
        tokio::select! {
            biased;
            () = self.build.cancel.cancelled() => Err(Failure::finalize(CANCELLED)),
            done = tokio::time::timeout(self.left(), work) => done.unwrap_or_else(|_| {
                let why = format!("the build took over {within} s; it ended in the phase `{phase}`");
                Err(Failure::finalize(why))
            }),
            () = self.shared.tasks.stopping() => Err(Failure::finalize(RESTARTED)),
        }
    }

    async fn prepare(&self) -> Result<Ready, Failure> {
        let Task { shared, request, build } = self;
        build.log.phase("image");
        let options = PullOptions {
            pull: request.spec.pull,
            team: request.team,
            logins: request.logins.clone(),
            cancel: build.cancel.child_token(),
        };
        let preparing = prepare::prepare(shared, request, &options, &build.log);
        let ready = self.bounded("image", Box::pin(preparing)).await?;
        daemon::failpoint("build.prepared").map_err(|e| Failure::base(e.to_string()))?;
        let needs_capsule = ready.schedule.needs_guest;
        if needs_capsule {
            shared.guests.offer(request.id, ready.builder_drives());
        }
        let steps = ready.plan.stages.last().map_or(&[][..], |stage| &stage.steps);
        let steps = steps.iter().filter(|step| step.number > 0).count();
        let steps = u32::try_from(steps).unwrap_or(u32::MAX);
        build.log.event(Kind::Prepared { needs_capsule, steps });
        Ok(ready)
    }

    /// Runs the steps, and makes the version.
    async fn build(&self, ready: &Ready, capsule: Capsule) -> Result<Finished, Failure> {
        let builder = match ready.schedule.needs_guest {
            true => Some(self.bounded("capsule", self.wait(capsule)).await?),
            false => None,
        };
        self.build.log.phase("steps");
        let stack = self.steps(ready, builder.as_deref()).await?;
        let request = self.request;
        let shared = self.shared;
        if self.build.cancel.is_cancelled() {
            return Err(Failure::finalize(CANCELLED));
        }
        shared.install_version(request, ready, &stack)
    }

    async fn wait(&self, capsule: Capsule) -> Result<Box<dyn Builder>, Failure> {
        let id = tokio::time::timeout(CAPSULE, capsule).await;
        let id = id.ok().and_then(Result::ok).ok_or_else(|| {
            Failure::base(format!("no capsule came for the build in {} s", CAPSULE.as_secs()))
        })?;
        self.shared.guests.open(self.request.id, id).map_err(Failure::base)
    }

    /// Runs the steps, keeps the finished ones, and ends the guest.
    async fn steps(&self, ready: &Ready, builder: Option<&dyn Builder>) -> Result<Stack, Failure> {
        let (request, log) = (self.request, &self.build.log);
        let dir = self.shared.folders.build(request.id);
        let place = (run::files(&dir), request.id);
        let mut walk = Walk::new(ready, &request.spec.recipe, log, builder, place);
        let ran = self.bounded("steps", Box::pin(walk.run())).await;
        // A build that is cancelled or too slow ends in the step that runs.
        let at = std::mem::take(&mut walk.at);
        let ran = ran.map_err(|failure| match failure.step == FINALIZE {
            true => Failure { step: at, ..failure },
            false => failure,
        });
        let (done, unfinished) = (std::mem::take(&mut walk.done), walk.unfinished);
        let Some(builder) = builder else { return ran };
        let kept = match layer_of(request.id, done) {
            Some(layer) => {
                log.phase("layer");
                self.keep(builder, layer, unfinished).await
            }
            None => Ok(()),
        };
        // A guest that did not close its disk in time may be hostile, and nobody needs it any more.
        builder.kill().await;
        match (kept, ran) {
            (Ok(()), ran) => ran,
            (Err(error), Ok(_)) => {
                Err(Failure::finalize(format!("cannot keep the disk of the build: {error}")))
            }
            (Err(error), Err(failure)) => {
                tracing::warn!(id = %request.id, %error, "cannot keep the steps of a failed build");
                Err(failure)
            }
        }
    }

    /// Ends the guest, and makes its disk a layer.
    async fn keep(
        &self,
        builder: &dyn Builder,
        layer: Layer,
        unfinished: Option<u32>,
    ) -> io::Result<()> {
        let (shared, request) = (self.shared, self.request);
        let staged = shared.folders.build(request.id).join("layer");
        folders::empty(&staged)?;
        daemon::failpoint("build.close")?;
        let disk = layer::disk(&staged);
        let late = async {
            tokio::select! {
                () = self.build.cancel.cancelled() => tokio::time::sleep(CLOSE_CANCELLED).await,
                () = shared.tasks.stopping() => tokio::time::sleep(CLOSE_CANCELLED).await,
                () = tokio::time::sleep(CLOSE) => {}
            }
            io::Error::new(io::ErrorKind::TimedOut, "the guest did not close its disk")
        };
        tokio::select! {
            closed = builder.close(unfinished, &disk) => closed?,
            error = late => return Err(error),
        }
        shared.install_layer(request.team, &staged, layer)
    }
}
