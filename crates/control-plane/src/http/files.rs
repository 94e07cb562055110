//! Files of a capsule: contents streamed through as they come, the rest by envd's RPC.

use super::capsules::capsule_id;
use super::json;
use crate::app::App;
use crate::auth::Caller;
use crate::capsules;
use crate::error::{Error, Result};
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, Request, State};
use axum::response::Response;
use connectrpc::client::HttpClient;
use http::{HeaderMap, HeaderName, StatusCode, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use protocol::filesystem as wire;
use std::sync::Arc;

/// Headers of a caller that envd may see.
const PASSED: [HeaderName; 5] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::RANGE,
    header::ACCEPT_ENCODING,
];

#[derive(serde::Deserialize)]
pub(crate) struct File {
    path: String,
    user: Option<String>,
}

impl File {
    fn query(&self) -> Result<String> {
        check_path("path", &self.path)?;
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let user = self.user.as_deref().map(|u| format!("&username={}", encode(u)));
        Ok(format!("/files?path={}{}", encode(&self.path), user.unwrap_or_default()))
    }
}

fn check_path(field: &'static str, path: &str) -> Result<()> {
    if path.is_empty() || path.len() > 4095 || path.contains('\0') {
        return Err(Error::invalid(field, "must be 1 to 4095 bytes without a NUL"));
    }
    Ok(())
}

fn passed(from: &HeaderMap) -> HeaderMap {
    PASSED.iter().filter_map(|name| Some((name.clone(), from.get(name)?.clone()))).collect()
}

pub(crate) async fn read(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Query(file): Query<File>,
    headers: HeaderMap,
) -> Result<Response> {
    let query = file.query()?;
    let capsule = capsules::running(&app, caller, capsule_id(&id)?).await?;
    let mut request = Request::new(Body::empty());
    *request.headers_mut() = passed(&headers);
    let token = &capsule.envd_token;
    let answer = app.agent.forward(capsule.id(), token, &query, request).await?;
    let range = answer.status() == StatusCode::RANGE_NOT_SATISFIABLE;
    if !answer.status().is_success() && !range {
        return Err(refused(answer.status()));
    }
    let (head, body) = answer.into_parts();
    Ok(Response::from_parts(head, Body::new(body)))
}

pub(crate) async fn write(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Query(file): Query<File>,
    request: Request,
) -> Result<StatusCode> {
    let query = file.query()?;
    let capsule = capsules::running(&app, caller, capsule_id(&id)?).await?;
    let (head, body) = request.into_parts();
    let mut request = Request::new(body);
    *request.method_mut() = http::Method::POST;
    *request.headers_mut() = passed(&head.headers);
    let octets = header::HeaderValue::from_static("application/octet-stream");
    request.headers_mut().insert(header::CONTENT_TYPE, octets);
    let token = &capsule.envd_token;
    let answer = app.agent.forward(capsule.id(), token, &query, request).await?;
    if answer.status().is_success() {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(refused(answer.status()))
}

fn refused(status: StatusCode) -> Error {
    match status.as_u16() {
        404 => Error::NotFound("file"),
        507 => Error::DiskFull,
        400 => Error::invalid("path", "does not name a regular file"),
        401 => Error::invalid("user", "is no account of the capsule"),
        403 => Error::invalid("path", "may not be written"),
        502 | 503 => Error::HostUnavailable,
        other => Error::Internal(anyhow::anyhow!("envd answered {other}")),
    }
}

async fn client(
    app: &App,
    caller: Caller,
    id: &str,
) -> Result<protocol::filesystem::FilesystemClient<HttpClient>> {
    let capsule = capsules::running(app, caller, capsule_id(id)?).await?;
    Ok(app.agent.files(capsule.id(), &capsule.envd_token))
}

pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<api::EntryList>> {
    let asked: api::PathRequest = json(&body)?;
    check_path("path", &asked.path)?;
    let request = wire::ListDirRequest {
        path: asked.path,
        depth: asked.depth.unwrap_or(1),
        ..Default::default()
    };
    let answer = client(&app, caller, &id).await?.list_dir(request).await;
    let entries = answer.map_err(|e| Error::from_guest(&e))?.into_owned().entries;
    Ok(Json(api::EntryList { entries: entries.into_iter().map(shown).collect() }))
}

pub(crate) async fn stat(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<api::EntryResult>> {
    let asked: api::PathRequest = json(&body)?;
    check_path("path", &asked.path)?;
    let request = wire::StatRequest { path: asked.path, ..Default::default() };
    let answer = client(&app, caller, &id).await?.stat(request).await;
    let entry = answer.map_err(|e| Error::from_guest(&e))?.into_owned().entry;
    Ok(Json(api::EntryResult { entry: shown(entry.into_option().unwrap_or_default()) }))
}

pub(crate) async fn mkdir(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<(StatusCode, Json<api::EntryResult>)> {
    let asked: api::PathRequest = json(&body)?;
    check_path("path", &asked.path)?;
    let request = wire::MakeDirRequest { path: asked.path, ..Default::default() };
    let answer = client(&app, caller, &id).await?.make_dir(request).await;
    let entry = answer.map_err(|e| Error::from_guest(&e))?.into_owned().entry;
    let entry = shown(entry.into_option().unwrap_or_default());
    Ok((StatusCode::CREATED, Json(api::EntryResult { entry })))
}

pub(crate) async fn rename(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<api::EntryResult>> {
    let asked: api::MoveRequest = json(&body)?;
    check_path("source", &asked.source)?;
    check_path("destination", &asked.destination)?;
    let request = wire::MoveRequest {
        source: asked.source,
        destination: asked.destination,
        ..Default::default()
    };
    let answer = client(&app, caller, &id).await?.r#move(request).await;
    let entry = answer.map_err(|e| Error::from_guest(&e))?.into_owned().entry;
    Ok(Json(api::EntryResult { entry: shown(entry.into_option().unwrap_or_default()) }))
}

pub(crate) async fn remove(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<StatusCode> {
    let asked: api::PathRequest = json(&body)?;
    check_path("path", &asked.path)?;
    let request = wire::RemoveRequest { path: asked.path, ..Default::default() };
    let answer = client(&app, caller, &id).await?.remove(request).await;
    answer.map_err(|e| Error::from_guest(&e))?;
    Ok(StatusCode::NO_CONTENT)
}

fn shown(entry: wire::EntryInfo) -> api::Entry {
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
