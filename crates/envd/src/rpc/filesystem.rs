//! `filesystem.Filesystem`: look, change, watch.

use super::stream::{Tick, Timing, stream};
use crate::error::{Error, Result};
use crate::filesystem::entry::{self, Entry, Kind};
use crate::filesystem::watch::{Change, Event, Watcher};
use crate::filesystem::{self as domain, LONG};
use crate::guest::Guest;
use crate::jobs::LIMIT;
use crate::paths::{self, Caller};
use crate::users::User;
use connectrpc::{RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream};
use protocol::filesystem as wire;
use protocol::filesystem::__buffa::oneof::watch_dir_response::Event as WatchEvent;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;

/// The service, over the guest it serves.
pub(super) struct Files(pub Arc<Guest>);

#[allow(refining_impl_trait, reason = "concrete types read better than the trait's opaque ones")]
impl wire::Filesystem for Files {
    async fn stat(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, wire::StatRequest>,
    ) -> ServiceResult<wire::StatResponse> {
        let stat = |_: &User, path: &Path| entry::stat(path);
        let entry = shown(self.at(&ctx, request.path, LIMIT, stat).await?).into();
        Response::ok(wire::StatResponse { entry, ..Default::default() })
    }

    async fn make_dir(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, wire::MakeDirRequest>,
    ) -> ServiceResult<wire::MakeDirResponse> {
        let make = |user: &User, path: &Path| {
            domain::make_dir(path, user)?;
            entry::stat(path)
        };
        let entry = shown(self.at(&ctx, request.path, LIMIT, make).await?).into();
        Response::ok(wire::MakeDirResponse { entry, ..Default::default() })
    }

    async fn r#move(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, wire::MoveRequest>,
    ) -> ServiceResult<wire::MoveResponse> {
        let caller = Caller::of(&self.0, ctx.headers(), None);
        let destination = request.destination.to_owned();
        let rename = move |user: &User, source: &Path| {
            let destination = caller.resolve(&destination, user)?;
            domain::rename(source, &destination, user)?;
            entry::stat(&destination)
        };
        let entry = shown(self.at(&ctx, request.source, LIMIT, rename).await?).into();
        Response::ok(wire::MoveResponse { entry, ..Default::default() })
    }

    async fn list_dir(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, wire::ListDirRequest>,
    ) -> ServiceResult<wire::ListDirResponse> {
        let depth = request.depth;
        let list = move |_: &User, path: &Path| domain::list(path, depth);
        let entries = self.at(&ctx, request.path, LIMIT, list).await?;
        let entries = entries.into_iter().map(shown).collect();
        Response::ok(wire::ListDirResponse { entries, ..Default::default() })
    }

    async fn remove(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, wire::RemoveRequest>,
    ) -> ServiceResult<wire::RemoveResponse> {
        let remove = |_: &User, path: &Path| {
            if path == Path::new("/") {
                return Err(Error::invalid("path must not be the root"));
            }
            domain::remove(path)
        };
        // A large tree takes long. The removal goes on when its caller has left.
        self.at(&ctx, request.path, LONG, remove).await?;
        Response::ok(wire::RemoveResponse::default())
    }

    async fn watch_dir(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, wire::WatchDirRequest>,
    ) -> ServiceResult<ServiceStream<wire::WatchDirResponse>> {
        let (_, path) = self.resolve(&ctx, request.path)?;
        let mut watcher = Watcher::new(path, request.recursive, request.allow_network_mounts)?;
        watcher.include_entry = request.include_entry;
        let events = follow(watcher)?;
        let wrap = |event| wire::WatchDirResponse { event: Some(event), ..Default::default() };
        let first = wrap(wire::watch_dir_response::StartEvent::default().into());
        let render = move |tick| match tick {
            Tick::Event(event) => (wrap(WatchEvent::Filesystem(Box::new(event))), false),
            Tick::KeepAlive => (wrap(wire::watch_dir_response::KeepAlive::default().into()), false),
        };
        Response::stream_ok(stream(first, events, Timing::of(&ctx), render))
    }

    async fn create_watcher(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, wire::CreateWatcherRequest>,
    ) -> ServiceResult<wire::CreateWatcherResponse> {
        let (_, path) = self.resolve(&ctx, request.path)?;
        let mut watcher = Watcher::new(path, request.recursive, request.allow_network_mounts)?;
        watcher.include_entry = request.include_entry;
        let watcher_id = self.0.watchers.insert(watcher)?;
        Response::ok(wire::CreateWatcherResponse { watcher_id, ..Default::default() })
    }

    async fn get_watcher_events(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, wire::GetWatcherEventsRequest>,
    ) -> ServiceResult<wire::GetWatcherEventsResponse> {
        let watcher = self.0.watchers.get(request.watcher_id)?;
        let mut watcher = watcher.lock().unwrap_or_else(PoisonError::into_inner);
        let events = watcher.drain();
        let events = events.into_iter().map(|e| told(&watcher, e)).collect();
        Response::ok(wire::GetWatcherEventsResponse { events, ..Default::default() })
    }

    async fn remove_watcher(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, wire::RemoveWatcherRequest>,
    ) -> ServiceResult<wire::RemoveWatcherResponse> {
        self.0.watchers.remove(request.watcher_id)?;
        Response::ok(wire::RemoveWatcherResponse::default())
    }
}

impl Files {
    /// Runs work on a path that a caller names, as a job, and waits at most `limit` for it.
    async fn at<T: Send + 'static>(
        &self,
        ctx: &RequestContext,
        path: &str,
        limit: Duration,
        work: impl FnOnce(&User, &Path) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let caller = Caller::of(&self.0, ctx.headers(), None);
        let path = path.to_owned();
        let work = move || {
            let user = caller.user()?;
            work(&user, &caller.resolve(&path, &user)?)
        };
        self.0.jobs.files.run(limit, work).await
    }

    fn resolve(&self, ctx: &RequestContext, path: &str) -> Result<(User, PathBuf)> {
        let user = super::acting_user(&self.0, ctx)?;
        let workdir = self.0.settings().default_workdir;
        let path = paths::resolve(path, &user, workdir.as_deref())?;
        Ok((user, path))
    }
}

/// Carries a watcher's events until nobody listens.
fn follow(watcher: Watcher) -> Result<mpsc::Receiver<wire::FilesystemEvent>> {
    let (sender, receiver) = mpsc::channel(64);
    let mut ready = crate::sys::async_fd(watcher).map_err(|e| Error::io("watching", &e))?;
    tokio::spawn(async move {
        loop {
            let events = tokio::select! {
                () = sender.closed() => return,
                guard = ready.readable_mut() => {
                    let Ok(mut guard) = guard else { return };
                    let events = guard.get_inner_mut().drain();
                    guard.clear_ready();
                    events
                }
            };
            for event in events {
                let event = told(ready.get_ref(), event);
                if sender.send(event).await.is_err() {
                    return;
                }
            }
        }
    });
    Ok(receiver)
}

fn told(watcher: &Watcher, event: Event) -> wire::FilesystemEvent {
    let kind = match event.change {
        Change::Create => wire::EventType::EVENT_TYPE_CREATE,
        Change::Write => wire::EventType::EVENT_TYPE_WRITE,
        Change::Remove => wire::EventType::EVENT_TYPE_REMOVE,
        Change::Rename => wire::EventType::EVENT_TYPE_RENAME,
        Change::Chmod => wire::EventType::EVENT_TYPE_CHMOD,
    };
    let wanted = watcher.include_entry;
    let entry = wanted.then(|| entry::stat(&watcher.root.join(&event.name)).ok()).flatten();
    wire::FilesystemEvent {
        name: event.name.to_string_lossy().into_owned(),
        r#type: kind.into(),
        entry: entry.map(shown).into(),
        ..Default::default()
    }
}

fn shown(entry: Entry) -> wire::EntryInfo {
    let kind = match entry.kind {
        Some(Kind::File) => wire::FileType::FILE_TYPE_FILE,
        Some(Kind::Directory) => wire::FileType::FILE_TYPE_DIRECTORY,
        None if entry.is_symlink => wire::FileType::FILE_TYPE_SYMLINK,
        None => wire::FileType::FILE_TYPE_UNSPECIFIED,
    };
    let (seconds, nanos) = entry.modified;
    wire::EntryInfo {
        permissions: entry.permissions(),
        name: entry.name,
        r#type: kind.into(),
        path: entry.path.to_string_lossy().into_owned(),
        size: i64::try_from(entry.size).unwrap_or(i64::MAX),
        mode: entry.mode,
        owner: entry.owner,
        group: entry.group,
        modified_time: buffa_types::google::protobuf::Timestamp {
            seconds,
            nanos,
            ..Default::default()
        }
        .into(),
        symlink_target: entry.symlink_target,
        metadata: entry.metadata.into_iter().collect(),
        ..Default::default()
    }
}
