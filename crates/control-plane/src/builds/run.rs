//! Runs builds on the replica that leads. Each build under way has one runner, which reads the row,
//! does one act and reads again. `decide` chooses the act, and says who goes on after a death.
//!
//! The host keeps a build's events until it is told to forget them. A single transaction stores
//! events with the number of the last, so no line is lost or doubled.

mod capture;
mod decide;
mod end;
mod events;
mod place;
mod wire;

use crate::app::App;
use crate::builds::changes::BuildListener;
use crate::capsules::BuildCapsule;
use crate::db::build_logs::Level;
use crate::db::build_runs::{Around, Files, Line};
use crate::db::builds::{Build, BuildState};
use crate::db::capsules::Capsule;
use crate::error::{Error, Result};
use crate::{capsules, db, registries};
use decide::{End, Next, Progress};
use futures::FutureExt;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use std::collections::HashSet;
use std::time::Duration;
use time::OffsetDateTime;
use types::{BuildId, CapsuleId, HostId};

/// Longest time between two looks at the builds, or at a build's row.
const LOOK: Duration = Duration::from_secs(5);
/// Time before another attempt after an error.
const RETRY: Duration = Duration::from_secs(1);
/// Time before another attempt when no host has room.
const ROOM: Duration = Duration::from_secs(3);
/// Longest wait for room.
const ROOM_MAX: Duration = Duration::from_secs(600);
/// Time within which the host tells events that precede an answer of its own.
const REST: Duration = Duration::from_millis(100);

/// Passes a failpoint.
fn failpoint(name: &'static str) -> Result<()> {
    daemon::failpoint(name).map_err(|error| Error::Internal(error.into()))
}

/// Runs all builds under way, for as long as this replica leads.
pub(crate) async fn rounds(app: &App) {
    tokio::join!(run_all(app), sweep_all(app));
}

/// Removes what ended builds left, again and again.
async fn sweep_all(app: &App) {
    loop {
        if let Err(error) = end::sweep(app).await {
            tracing::warn!(%error, "cannot remove the capsules that builds left");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Keeps one runner for each build under way.
async fn run_all(app: &App) {
    let mut listener = app.build_changes.listen();
    let mut running = FuturesUnordered::new();
    let mut known = HashSet::new();
    loop {
        let look = async {
            let found = db::build_runs::list_under_way(&app.db).await;
            found.unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot list the builds under way");
                Vec::new()
            })
        };
        let mut look = std::pin::pin!(look);
        let found = loop {
            tokio::select! {
                found = &mut look => break found,
                Some(id) = running.next(), if !running.is_empty() => drop(known.remove(&id)),
            }
        };
        for id in found {
            if known.insert(id) {
                running.push(run(app, id));
            }
        }
        let mut due = std::pin::pin!(tokio::time::sleep(LOOK));
        loop {
            tokio::select! {
                () = &mut due => break,
                // The runner of a known build hears of its changes itself.
                change = listener.next() => if change.is_none_or(|id| !known.contains(&id)) {
                    break;
                },
                Some(id) = running.next(), if !running.is_empty() => drop(known.remove(&id)),
            }
        }
    }
}

/// Runs one build to its end.
async fn run(app: &App, id: BuildId) -> BuildId {
    let listener = app.build_changes.listen();
    let progress = Progress::default();
    let (creating, refused) = (None, Vec::new());
    let mut runner = Runner { app, id, listener, progress, creating, refused, waited: false };
    loop {
        match Box::pin(runner.act()).await {
            Ok(true) => {}
            Ok(false) => return id,
            Err(error) => {
                tracing::warn!(%id, error = ?error, "cannot go on with a build");
                runner.pause().await;
            }
        }
    }
}

/// Runner of one build.
struct Runner<'a> {
    app: &'a App,
    id: BuildId,
    listener: BuildListener,
    progress: Progress,
    /// Create of a capsule under way. It goes on when the runner is dropped.
    creating: Option<BoxFuture<'static, Result<Capsule>>>,
    /// Hosts that refused the build or did not answer.
    refused: Vec<HostId>,
    /// Set once the log says that the build waits for room.
    waited: bool,
}

impl Runner<'_> {
    /// Reads the row and does one act. Returns `false` when the build has ended.
    async fn act(&mut self) -> Result<bool> {
        let Some(build) = db::builds::find(&self.app.db, self.id).await? else { return Ok(false) };
        if build.state != BuildState::Building {
            end::clear(self.app, &build).await;
            return Ok(false);
        }
        let around = db::build_runs::around(&self.app.db, self.id).await?;
        let Some(around) = around else { return Ok(false) };
        self.progress.creating = self.creating.is_some();
        match decide::next(&build, &around, &self.progress) {
            Next::End(end) => self.end(&build, &around, &end).await?,
            Next::Capture(source) => Box::pin(self.capture(&build, &around, source)).await?,
            Next::Place => self.place(&build, &around).await?,
            Next::Begin(host) => self.begin(&build, &around, host).await?,
            Next::Create(host, id) => self.create(&build, &around, host, id)?,
            Next::RunSteps(host, capsule) => self.run_steps(&build, &around, host, capsule).await?,
            Next::Replan => self.replan(&build).await?,
            Next::Watch(host) => Box::pin(self.watch(&build, &around, host)).await?,
            Next::Complete(host) => self.complete(&build, &around, host).await?,
        }
        Ok(true)
    }

    async fn end(&mut self, build: &Build, around: &Around, end: &End) -> Result<()> {
        tracing::info!(id = %self.id, reason = end.reason().message, "a build failed");
        end::fail(self.app, build, &around.template, end).await.map(|_| ())
    }

    /// Waits before another attempt. A build that is to end waits no longer.
    async fn pause(&mut self) {
        // Without the database, nothing else bounds the attempts.
        if self.ends_within(RETRY).await.is_err() {
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Waits until a build is to end, or this time is over. Returns whether it is to end.
    async fn ends_within(&mut self, limit: Duration) -> Result<bool> {
        let mut over = std::pin::pin!(tokio::time::sleep(limit));
        loop {
            tokio::select! {
                () = &mut over => return Ok(false),
                change = self.listener.next() => {
                    let own = change.is_none_or(|id| id == self.id);
                    if own && db::build_runs::is_ending(&self.app.db, self.id).await? {
                        return Ok(true);
                    }
                }
            }
        }
    }

    async fn capture(&mut self, build: &Build, around: &Around, source: CapsuleId) -> Result<()> {
        let (at, row) = (self.app.clone(), build.clone());
        // The snapshot goes on when the build is cancelled, and is then removed as an unnamed one.
        let work = async move { capture::capture(&at, &row, source).await };
        let tasks = self.app.tasks.clone();
        let mut taking = std::pin::pin!(tasks.detached(work));
        let limit = decide::limit(build).saturating_sub(around.age());
        let taken = tokio::select! {
            taken = &mut taking => taken.unwrap_or(Err(Error::HostUnavailable))?,
            ends = self.ends_within(limit) => return ends.map(|_| ()),
        };
        match taken {
            Ok(files) => end::complete(self.app, build, &around.template, &files).await.map(|_| ()),
            Err(end) => self.end(build, around, &end).await,
        }
    }

    async fn place(&mut self, build: &Build, around: &Around) -> Result<()> {
        match place::choose(self.app, build, around, &self.refused).await {
            Ok(Ok(host)) => {
                failpoint("control.build.place")?;
                db::build_runs::place(&self.app.db, build, host).await?;
                failpoint("control.build.placed")
            }
            Ok(Err(end)) => self.end(build, around, &end).await,
            Err(Error::NoCapacity(why)) => {
                // A host that refused may have room again.
                self.refused.clear();
                self.wait_for_room(build, around, why).await
            }
            Err(error) => Err(error),
        }
    }

    /// Waits for room on a host, and tells so in the log. Ends a build that waited too long.
    async fn wait_for_room(&mut self, build: &Build, around: &Around, why: String) -> Result<()> {
        if around.age() > ROOM_MAX {
            return self.end(build, around, &End::because(format!("no capacity: {why}"))).await;
        }
        if !self.waited {
            self.waited = true;
            let text = format!("Waiting for a host: {why}");
            let at = OffsetDateTime::now_utc();
            let line = Line { at, level: Level::Info, step: None, text };
            db::build_runs::say(&self.app.db, self.id, &line).await?;
        }
        self.ends_within(ROOM).await.map(|_| ())
    }

    /// Begins the build on its host, which gets the logins. The first event of the host removes them.
    /// Until then, the build may have to begin again, perhaps on another host.
    async fn begin(&mut self, build: &Build, around: &Around, host: HostId) -> Result<()> {
        let logins = registries::of_build(self.app, build).await?;
        let limits = self.app.directory.limits(build.team_id).await?;
        let most = limits.template_mib.map(|mib| mib.get().saturating_mul(1 << 20));
        let request = wire::begin(build, &around.template, logins, most)?;
        failpoint("control.build.begin")?;
        match self.app.agent(host).begin_build(request).await {
            Ok(()) => {
                failpoint("control.build.begun")?;
                self.progress.begun = true;
                Ok(())
            }
            Err(error @ (Error::HostUnavailable | Error::NoCapacity(_))) => {
                if matches!(error, Error::HostUnavailable) {
                    self.app.fleet.suspect(host);
                }
                self.refused.push(host);
                tracing::info!(id = %self.id, %host, %error, "a host did not begin a build");
                self.place(build, around).await
            }
            Err(error) => {
                let message = error.to_string();
                let step = Some("base".to_owned());
                let reason = db::builds::Reason { message, step, output: Vec::new() };
                self.end(build, around, &End::Failed(reason)).await
            }
        }
    }

    /// Begins to create the capsule that the row names.
    fn create(
        &mut self,
        build: &Build,
        around: &Around,
        host: HostId,
        id: CapsuleId,
    ) -> Result<()> {
        failpoint("control.build.create")?;
        let wanted = BuildCapsule {
            id,
            host,
            template: around.template.clone(),
            isolation: around.isolation,
            lasts: decide::limit(build).saturating_sub(around.age()),
        };
        let (at, row, tasks) = (self.app.clone(), build.clone(), self.app.tasks.clone());
        let work = async move { capsules::start_for_build(&at, &row, wanted).await };
        let create = async move {
            let made = tasks.detached(work).await;
            made.unwrap_or(Err(Error::HostUnavailable))
        };
        self.creating = Some(create.boxed());
        Ok(())
    }

    /// Judges a create that has ended.
    async fn created(
        &mut self,
        build: &Build,
        around: &Around,
        host: HostId,
        made: Result<Capsule>,
    ) -> Result<()> {
        failpoint("control.build.created")?;
        let error = match made {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        // The host may have told the reason in its events.
        let build = &self.rest(build, host).await?;
        if build.reason.is_some() || build.cancelled || build.state != BuildState::Building {
            return Ok(());
        }
        let starts = build.provenance.is_some();
        if let Error::NoCapacity(why) = error {
            self.wait_for_room(build, around, why).await?;
            return self.name_capsule(build).await;
        }
        if matches!(error, Error::HostUnavailable | Error::DatabaseUnavailable) {
            self.progress.lost_capsules += 1;
            return Ok(());
        }
        // Another runner was faster.
        if matches!(error, Error::Conflict(_)) {
            return Ok(());
        }
        self.end(build, around, &End::of_create(error, starts)).await
    }

    async fn replan(&mut self, build: &Build) -> Result<()> {
        self.progress.lost_capsules += 1;
        self.name_capsule(build).await
    }

    async fn name_capsule(&mut self, build: &Build) -> Result<()> {
        let fresh = Some(CapsuleId::new());
        db::build_runs::plan_capsule(&self.app.db, build, fresh).await?;
        Ok(())
    }

    async fn run_steps(
        &mut self,
        build: &Build,
        around: &Around,
        host: HostId,
        capsule: CapsuleId,
    ) -> Result<()> {
        failpoint("control.build.run")?;
        match self.app.agent(host).run_build(self.id, capsule).await {
            Ok(()) => {
                self.progress.ran = true;
                failpoint("control.build.running")
            }
            Err(error @ (Error::HostUnavailable | Error::DatabaseUnavailable)) => Err(error),
            Err(error) => {
                // The steps may have ended before this call.
                let now = self.rest(build, host).await?;
                if now.events_seen > build.events_seen {
                    return Ok(());
                }
                let why = format!("the host cannot run the steps: {error}");
                self.end(&now, around, &End::because(why)).await
            }
        }
    }

    /// Waits for events, and stores them. Returns early when the row is to be read again.
    async fn watch(&mut self, build: &Build, around: &Around, host: HostId) -> Result<()> {
        let agent = self.app.agent(host);
        let mut events = std::pin::pin!(agent.watch_build(self.id, build.events_seen));
        let mut creating = self.creating.take();
        let create = async {
            match &mut creating {
                Some(create) => create.await,
                None => std::future::pending().await,
            }
        };
        let (heard, made) = tokio::select! {
            heard = &mut events => (Some(heard), None),
            made = create => (None, Some(made)),
            _ = self.ends_within(LOOK) => (None, None),
        };
        if let Some(made) = made {
            return self.created(build, around, host, made).await;
        }
        self.creating = creating;
        match heard {
            Some(Ok(events)) if events.is_empty() => {
                // An agent that ends answers at once.
                tokio::time::sleep(REST).await;
                Ok(())
            }
            Some(Ok(events)) => self.store(build, around, events).await,
            Some(Err(Error::NotFound(_))) if build.events_seen == 0 => {
                self.progress.begun = false;
                Ok(())
            }
            Some(Err(Error::NotFound(_))) => {
                let why = "the host no longer knows the build; build again";
                self.end(build, around, &End::because(why)).await
            }
            Some(Err(error)) => Err(error),
            None => Ok(()),
        }
    }

    /// Stores events in one transaction.
    async fn store(
        &mut self,
        build: &Build,
        around: &Around,
        events: Vec<protocol::host::BuildEvent>,
    ) -> Result<()> {
        let batch = match events::collect(build, events, CapsuleId::new) {
            Ok(batch) => batch,
            Err(broken) => {
                return self.end(build, around, &End::because(broken.to_string())).await;
            }
        };
        failpoint("control.build.events")?;
        db::build_runs::store(&self.app.db, build, &batch).await?;
        failpoint("control.build.stored")
    }

    /// Stores the events that precede an answer of the host, and returns the row after them.
    async fn rest(&mut self, build: &Build, host: HostId) -> Result<Build> {
        let mut build = build.clone();
        loop {
            let agent = self.app.agent(host);
            let watching = agent.watch_build(self.id, build.events_seen);
            let events = match tokio::time::timeout(REST, watching).await {
                Ok(Ok(events)) if !events.is_empty() => events,
                Ok(_) | Err(_) => break,
            };
            let Ok(batch) = events::collect(&build, events, CapsuleId::new) else { break };
            let stored = db::build_runs::store(&self.app.db, &build, &batch).await?;
            let now = db::builds::find(&self.app.db, self.id).await?;
            build = now.ok_or(Error::NotFound("build"))?;
            if !stored {
                break;
            }
        }
        Ok(build)
    }

    async fn complete(&mut self, build: &Build, around: &Around, host: HostId) -> Result<()> {
        // The last lines come before the status, or readers would miss them. Without a start
        // command, `Built` is the last event.
        let build = match build.capsule_id {
            Some(_) => self.rest(build, host).await?,
            None => build.clone(),
        };
        let files = Files::Host(host);
        end::complete(self.app, &build, &around.template, &files).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests;
