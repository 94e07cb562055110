//! `filesystem.Filesystem`: reads and changes. Watches are in `watch`.

use super::watch::{self, Fetched};
use crate::error::{Error, Result};
use crate::filesystem::entry::{self, Entry, Kind};
use crate::filesystem::{self as domain, LONG};
use crate::guest::Guest;
use crate::jobs::LIMIT;
use crate::paths::Caller;
use crate::users::User;
use connectrpc::{RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream};
use protocol::filesystem as wire;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The service of a guest.
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
        // A large tree takes long. The removal goes on when its caller has gone.
        self.at(&ctx, request.path, LONG, remove).await?;
        Response::ok(wire::RemoveResponse::default())
    }

    async fn watch_dir(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, wire::WatchDirRequest>,
    ) -> ServiceResult<ServiceStream<wire::WatchDirResponse>> {
        let wish = watch::Wish {
            path: request.path.to_owned(),
            recursive: request.recursive,
            include_entry: request.include_entry,
            allow_network: request.allow_network_mounts,
        };
        watch::stream_events(&self.0, &ctx, wish).await
    }

    async fn create_watcher(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, wire::CreateWatcherRequest>,
    ) -> ServiceResult<wire::CreateWatcherResponse> {
        let wish = watch::Wish {
            path: request.path.to_owned(),
            recursive: request.recursive,
            include_entry: request.include_entry,
            allow_network: request.allow_network_mounts,
        };
        watch::create(&self.0, &ctx, wish).await
    }

    async fn get_watcher_events(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, wire::GetWatcherEventsRequest>,
    ) -> ServiceResult<Fetched> {
        watch::fetch(&self.0, request.watcher_id).await
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
    /// Runs work on a caller's path as a job, and waits for at most `limit`.
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
}

/// Converts an entry to its wire form.
pub(super) fn shown(entry: Entry) -> wire::EntryInfo {
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
