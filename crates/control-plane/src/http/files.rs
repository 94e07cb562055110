//! Files of a capsule. This module serves everything but their contents by envd's RPC;
//! `contents.rs` streams the contents.

use super::contents::check_path;
use super::extract::{Json as Body, Path, Query, capsule_id};
use super::passive::Passive;
use crate::agent::Agent;
use crate::app::App;
use crate::auth::Caller;
use crate::capsules;
use crate::db::capsules::Capsule;
use crate::error::{Error, Result};
use axum::Json;
use axum::extract::State;
use connectrpc::ConnectError;
use http::StatusCode;
use protocol::filesystem as wire;
use protocol::filesystem::FilesystemClient;
use std::sync::Arc;

async fn client(app: &App, caller: Caller, id: &str) -> Result<FilesystemClient<Agent>> {
    let capsule = capsules::awake(app, caller, capsule_id(id)?).await?;
    Ok(app.agent_of(&capsule)?.files(capsule.id, &capsule.envd_token))
}

/// The files of one capsule, for a read.
struct Reader<'a> {
    app: &'a App,
    capsule: Capsule,
    client: FilesystemClient<Agent>,
    passive: bool,
}

impl<'a> Reader<'a> {
    async fn of(app: &'a App, caller: Caller, id: &str, passive: bool) -> Result<Self> {
        let capsule = capsules::readable(app, caller, capsule_id(id)?, passive).await?;
        let agent = app.agent_of(&capsule)?;
        let agent = if passive { agent.passive() } else { agent };
        let client = agent.files(capsule.id, &capsule.envd_token);
        Ok(Self { app, capsule, client, passive })
    }

    async fn explain(&self, error: &ConnectError) -> Error {
        let error = Error::from_guest(error);
        capsules::classify_read(self.app, &self.capsule, self.passive, error).await
    }
}

/// Lists a directory, with parents before their children.
#[utoipa::path(
    operation_id = "list_files",
    post, path = "/v1/capsules/{id}/files/list", tag = "files", request_body = api::ListRequest,
    params(("id" = String, Path, description = "Id or name of the capsule"), Passive),
    responses((status = 200, body = api::EntryList), (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody))
)]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Query(Passive { passive }): Query<Passive>,
    Body(asked): Body<api::ListRequest>,
) -> Result<Json<api::EntryList>> {
    check_path("path", &asked.path)?;
    let request = wire::ListDirRequest {
        path: asked.path,
        depth: asked.depth.unwrap_or(1),
        ..Default::default()
    };
    let reader = Reader::of(&app, caller, &id, passive).await?;
    let entries = match reader.client.list_dir(request).await {
        Ok(answer) => answer.into_owned().entries,
        Err(error) => return Err(reader.explain(&error).await),
    };
    Ok(Json(api::EntryList { entries: entries.into_iter().map(to_api).collect() }))
}

/// Returns the properties of a path.
#[utoipa::path(
    operation_id = "stat_file",
    post, path = "/v1/capsules/{id}/files/stat", tag = "files", request_body = api::PathRequest,
    params(("id" = String, Path, description = "Id or name of the capsule"), Passive),
    responses((status = 200, body = api::EntryResult), (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody))
)]
pub(crate) async fn stat(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Query(Passive { passive }): Query<Passive>,
    Body(asked): Body<api::PathRequest>,
) -> Result<Json<api::EntryResult>> {
    check_path("path", &asked.path)?;
    let request = wire::StatRequest { path: asked.path, ..Default::default() };
    let reader = Reader::of(&app, caller, &id, passive).await?;
    let entry = match reader.client.stat(request).await {
        Ok(answer) => answer.into_owned().entry,
        Err(error) => return Err(reader.explain(&error).await),
    };
    Ok(Json(api::EntryResult { entry: to_api(entry.into_option().unwrap_or_default()) }))
}

/// Creates a directory and its parents.
#[utoipa::path(
    operation_id = "make_directory",
    post, path = "/v1/capsules/{id}/files/mkdir", tag = "files", request_body = api::PathRequest,
    params(("id" = String, Path, description = "Id or name of the capsule")),
    responses((status = 201, body = api::EntryResult), (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody))
)]
pub(crate) async fn mkdir(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(asked): Body<api::PathRequest>,
) -> Result<(StatusCode, Json<api::EntryResult>)> {
    check_path("path", &asked.path)?;
    let request = wire::MakeDirRequest { path: asked.path, ..Default::default() };
    let answer = client(&app, caller, &id).await?.make_dir(request).await;
    let entry = answer.map_err(|e| Error::from_guest(&e))?.into_owned().entry;
    let entry = to_api(entry.into_option().unwrap_or_default());
    Ok((StatusCode::CREATED, Json(api::EntryResult { entry })))
}

/// Moves a path. Missing parents of the destination are created.
#[utoipa::path(
    operation_id = "move_file",
    post, path = "/v1/capsules/{id}/files/move", tag = "files", request_body = api::MoveRequest,
    params(("id" = String, Path, description = "Id or name of the capsule")),
    responses((status = 200, body = api::EntryResult), (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody))
)]
pub(crate) async fn rename(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(asked): Body<api::MoveRequest>,
) -> Result<Json<api::EntryResult>> {
    check_path("source", &asked.source)?;
    check_path("destination", &asked.destination)?;
    let request = wire::MoveRequest {
        source: asked.source,
        destination: asked.destination,
        ..Default::default()
    };
    let answer = client(&app, caller, &id).await?.r#move(request).await;
    let entry = answer.map_err(|e| Error::from_guest(&e))?.into_owned().entry;
    Ok(Json(api::EntryResult { entry: to_api(entry.into_option().unwrap_or_default()) }))
}

/// Removes a path and everything below it. A missing path counts as removed.
#[utoipa::path(
    operation_id = "remove_file",
    post, path = "/v1/capsules/{id}/files/remove", tag = "files", request_body = api::PathRequest,
    params(("id" = String, Path, description = "Id or name of the capsule")),
    responses((status = 204), (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody))
)]
pub(crate) async fn remove(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(asked): Body<api::PathRequest>,
) -> Result<StatusCode> {
    check_path("path", &asked.path)?;
    let request = wire::RemoveRequest { path: asked.path, ..Default::default() };
    let answer = client(&app, caller, &id).await?.remove(request).await;
    answer.map_err(|e| Error::from_guest(&e))?;
    Ok(StatusCode::NO_CONTENT)
}

fn to_api(entry: wire::EntryInfo) -> api::Entry {
    let kind = match entry.r#type.as_known() {
        Some(wire::FileType::FILE_TYPE_FILE) => "file",
        Some(wire::FileType::FILE_TYPE_DIRECTORY) => "directory",
        Some(wire::FileType::FILE_TYPE_SYMLINK) => "symlink",
        Some(wire::FileType::FILE_TYPE_UNSPECIFIED) | None => "other",
    };
    api::Entry {
        name: entry.name,
        path: entry.path,
        r#type: kind.to_owned(),
        size: entry.size,
        mode: entry.mode,
        permissions: entry.permissions,
        owner: entry.owner,
        group: entry.group,
        modified_at: entry.modified_time.into_option().map_or(0, |t| t.seconds),
        symlink_target: entry.symlink_target,
    }
}
