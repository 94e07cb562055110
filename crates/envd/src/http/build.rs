//! The routes of a builder: roots of steps, files, users, and mounts. A normal guest has none of
//! them.

use super::archive::with_body;
use crate::build::copy::{self, Copied, Order};
use crate::build::scratch::{self, Mounts};
use crate::build::{Build, NEXT, Next, accounts};
use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::jobs;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{DefaultBodyLimit, Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, post, put};
use axum::{Json, Router};
use connectrpc::ErrorCode;
use http::{HeaderName, HeaderValue, StatusCode, header};
use hyper::body::{Frame, SizeHint};
use std::convert::Infallible;
use std::io::BufReader;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// Header of `/health` with the number of the root's folder.
const ROOT: HeaderName = HeaderName::from_static("x-wrenn-root");
/// Header of `/health` with the reason why the root that was asked for is not there.
const ROOT_ERROR: HeaderName = HeaderName::from_static("x-wrenn-root-error");
/// Largest script, in bytes.
const SCRIPT_MAX: usize = 4 << 20;
/// Largest body of the other routes, in bytes.
const BODY_MAX: usize = 1 << 20;
/// Time in which the last answer of a root is sent.
const LAST_ANSWER: Duration = Duration::from_secs(2);
/// Longest reason in a header, in bytes.
const REASON_MAX: usize = 1024;

/// Returns the routes of a builder.
pub(super) fn routes() -> Router<Arc<Guest>> {
    Router::new()
        .route("/build/root", post(root))
        .route("/build/folder", post(folder))
        .route("/build/user", post(user))
        .route("/build/mounts", post(mount).delete(unmount))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .route("/build/script", put(script).layer(DefaultBodyLimit::max(SCRIPT_MAX)))
        .route("/build/copy", post(copy).layer(DefaultBodyLimit::disable()))
}

/// Returns the answer of a normal guest to all routes of a builder.
pub(super) fn none() -> Router<Arc<Guest>> {
    Router::new().route("/build/{*rest}", any(|| async { no_build() }))
}

fn no_build() -> Error {
    Error::not_found("this guest runs no build")
}

/// Adds the root's headers to the answer of `/health`. A server that is about to end is unhealthy.
pub(super) fn tell_root(build: &Build, mut answer: Response) -> Response {
    if build.is_leaving() {
        let message = "the server of this root is about to end";
        return Error::new(ErrorCode::Unavailable, message).into_response();
    }
    let headers = answer.headers_mut();
    headers.insert(ROOT, HeaderValue::from(build.folder));
    let plain = |c: char| if c.is_ascii_graphic() { c } else { ' ' };
    let reason = build.error.as_ref().map(|text| text.chars().map(plain).take(REASON_MAX));
    if let Some(reason) = reason.map(Iterator::collect::<String>)
        && let Ok(reason) = HeaderValue::from_str(reason.trim())
    {
        headers.insert(ROOT_ERROR, reason);
    }
    answer
}

fn build(guest: &Guest) -> Result<Arc<Build>> {
    guest.build.clone().ok_or_else(no_build)
}

fn parse<T: serde::de::DeserializeOwned>(body: &Bytes) -> Result<T> {
    serde_json::from_slice(body).map_err(|e| Error::invalid(format!("body: {e}")))
}

/// Runs work of a build on a thread that may block.
async fn work<T: Send + 'static>(
    guest: &Guest,
    work: impl FnOnce(&Build) -> Result<T> + Send + 'static,
) -> Result<T> {
    let build = build(guest)?;
    guest.jobs.host.run(jobs::LIMIT, move || work(&build)).await
}

/// Ends this root and begins another. The process ends once the answer is sent.
async fn root(State(guest): State<Arc<Guest>>, body: Bytes) -> Result<Response> {
    let next: Next = parse(&body)?;
    work(&guest, move |build| {
        build.check(&next)?;
        build.leave(next)
    })
    .await?;
    let (sent, last) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let _ = tokio::time::timeout(LAST_ANSWER, last).await;
        // The connection's task flushes the answer before another task runs.
        tokio::task::yield_now().await;
        std::process::exit(NEXT);
    });
    let headers = [(header::CONNECTION, "close")];
    let mut answer = (StatusCode::NO_CONTENT, headers).into_response();
    *answer.body_mut() = Body::new(Last(Some(sent)));
    Ok(answer)
}

/// An empty body that tells when it was sent.
struct Last(Option<tokio::sync::oneshot::Sender<()>>);

impl HttpBody for Last {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        true
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(0)
    }
}

impl Drop for Last {
    fn drop(&mut self) {
        if let Some(sent) = self.0.take() {
            let _ = sent.send(());
        }
    }
}

/// Copies the files of a COPY. The body is a line of JSON, and perhaps an archive after it.
async fn copy(State(guest): State<Arc<Guest>>, request: Request) -> Result<Json<Copied>> {
    let build = build(&guest)?;
    let place = guest.jobs.archives.free_place().await?;
    let work = move |reader: archive::stream::ChunkReader| {
        let _place = place;
        let progress = reader.taken();
        let mut reader = BufReader::with_capacity(64 * 1024, reader);
        let order = Order::read(&mut reader)?;
        copy::run(&build, &order, reader, progress)
    };
    with_body(request.into_body(), work).await.map(Json)
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Folder {
    path: String,
    /// Owner of the folders that are made.
    owner: String,
}

/// Makes the folder of a WORKDIR.
async fn folder(State(guest): State<Arc<Guest>>, body: Bytes) -> Result<StatusCode> {
    let Folder { path, owner } = parse(&body)?;
    work(&guest, move |build| copy::make_folder(build, &path, &owner)).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct User {
    name: String,
    /// Set if a missing user is made.
    #[serde(default)]
    create: bool,
    /// Set if E2B's user may become root without a password, where sudo exists.
    #[serde(default)]
    sudo: bool,
}

#[derive(serde::Serialize)]
struct Made {
    made: bool,
}

/// Makes the user of a USER. A name may have a group after a colon, which has to exist.
async fn user(State(guest): State<Arc<Guest>>, body: Bytes) -> Result<Json<Made>> {
    let User { name, create, sudo } = parse(&body)?;
    let make = move |build: &Build| {
        build.step()?;
        let (user, group) = name.split_once(':').unwrap_or((&name, ""));
        let is_number = user.bytes().all(|byte| byte.is_ascii_digit());
        let made = create && !is_number && accounts::make(Path::new("/"), user, sudo)?;
        if create && !group.is_empty() {
            crate::users::get(&name)?;
        }
        Ok(Json(Made { made }))
    };
    work(&guest, make).await
}

/// Mounts for the program of the step.
async fn mount(State(guest): State<Arc<Guest>>, body: Bytes) -> Result<StatusCode> {
    let mounts: Mounts = parse(&body)?;
    work(&guest, move |build| scratch::mount_all(build, &mounts)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ends the mounts of the step's program.
async fn unmount(State(guest): State<Arc<Guest>>) -> Result<StatusCode> {
    let end = |build: &Build| {
        scratch::unmount_all(build);
        Ok(())
    };
    work(&guest, end).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(serde::Deserialize)]
struct Script {
    name: String,
}

#[derive(serde::Serialize)]
struct Written {
    path: String,
}

/// Writes a script outside of the step's files.
async fn script(
    State(guest): State<Arc<Guest>>,
    query: std::result::Result<Query<Script>, axum::extract::rejection::QueryRejection>,
    body: Bytes,
) -> Result<Json<Written>> {
    let Query(Script { name }) = query?;
    let write = move |build: &Build| scratch::write_script(build, &name, &body);
    Ok(Json(Written { path: work(&guest, write).await? }))
}
