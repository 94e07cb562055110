//! `…/files/archive`: a file or a folder of a capsule as a tar archive, streamed both ways. Modes,
//! times and links are kept.

use super::contents::{File, passed};
use super::extract::{Path, Query, capsule_id};
use crate::app::App;
use crate::auth::Caller;
use crate::capsules;
use crate::error::{Error, Result};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use std::sync::Arc;
use std::time::Duration;

/// envd's route.
const ROUTE: &str = "/files/archive";
/// Bytes of envd's own error that are read.
const ERROR_MAX: usize = 16 * 1024;
/// Time that envd may take to send its own error.
const ERROR_TIME: Duration = Duration::from_secs(5);

/// Read a file or a folder as a tar archive; its one entry at the top has the path's last name.
/// Links are kept as links. FIFOs, sockets and devices are left out.
#[utoipa::path(
    operation_id = "get_archive",
    get, path = "/v1/capsules/{id}/files/archive", tag = "files",
    params(("id" = String, Path, description = "Id of the capsule"), File),
    responses(
        (status = 200, description = "the archive", content_type = "application/x-tar"),
        (status = 501, description = "the capsule's agent is too old", body = api::ErrorBody),
        (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Query(file): Query<File>,
) -> Result<Response> {
    let answer = ask(&app, caller, &id, &file, Request::new(Body::empty())).await?;
    let (_, body) = answer.into_parts();
    let mut response = Response::new(body);
    // A guest may send anything: never what a browser would run, or keep, for our own name.
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}

/// Unpack a tar archive below a folder, which is made when it is missing. Modes, times and links
/// are kept; everything belongs to the account. Entries that lead out of the folder and devices are
/// refused, and what came before them stays.
#[utoipa::path(
    operation_id = "put_archive",
    put, path = "/v1/capsules/{id}/files/archive", tag = "files",
    params(("id" = String, Path, description = "Id of the capsule"), File),
    request_body(content_type = "application/x-tar"),
    responses(
        (status = 204), (status = 507, description = "disk full", body = api::ErrorBody),
        (status = 501, description = "the capsule's agent is too old", body = api::ErrorBody),
        (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn put(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Query(file): Query<File>,
    request: Request,
) -> Result<StatusCode> {
    let (head, body) = request.into_parts();
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    *request.headers_mut() = passed(&head.headers);
    let tar = HeaderValue::from_static("application/x-tar");
    request.headers_mut().insert(header::CONTENT_TYPE, tar);
    ask(&app, caller, &id, &file, request).await.map(|_| StatusCode::NO_CONTENT)
}

/// Sends a request to envd's route, and returns an answer that is a success.
async fn ask(
    app: &App,
    caller: Caller,
    id: &str,
    file: &File,
    request: Request,
) -> Result<Response> {
    let target = file.target(ROUTE)?;
    let capsule = capsules::awake(app, caller, capsule_id(id)?).await?;
    let answer = app
        .agent_of(&capsule)?
        .forward(capsule.id(), &capsule.envd_token, &target, request)
        .await?;
    let answer = answer.map(Body::new);
    if answer.status().is_success() && answer.headers().contains_key(protocol::ARCHIVE) {
        return Ok(answer);
    }
    let (head, body) = answer.into_parts();
    let text = tokio::time::timeout(ERROR_TIME, Limited::new(body, ERROR_MAX).collect()).await;
    let text = text.ok().and_then(|text| Some(text.ok()?.to_bytes())).unwrap_or_default();
    Err(refused(head.status, &head.headers, &text))
}

/// Turns a refusal by envd, or by the agent on the way there, into an error for a caller.
fn refused(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Error {
    if matches!(status.as_u16(), 502 | 503) && !headers.contains_key(protocol::ARCHIVE) {
        return Error::GuestUnavailable;
    }
    if !headers.contains_key(protocol::ARCHIVE) {
        return Error::NotSupported(
            "an archive by this capsule's agent, which is too old (resume the capsule with \
             `memory` false to replace it),",
        );
    }
    let message = || {
        let text: Option<Told> = serde_json::from_slice(body).ok();
        text.map_or_else(|| "was refused by the guest".to_owned(), |told| told.message)
    };
    match status.as_u16() {
        401 => Error::invalid("user", "is no account of the capsule"),
        404 => Error::NotFound("file"),
        400..=499 => Error::invalid("the guest refused it:", message()),
        502..=504 => Error::GuestUnavailable,
        507 => Error::DiskFull,
        other => Error::Internal(anyhow::anyhow!("envd answered {other}: {}", message())),
    }
}

/// envd's form of an error.
#[derive(serde::Deserialize)]
struct Told {
    message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_without_the_route_is_told_from_a_file_that_is_missing() {
        let old = HeaderMap::new();
        let mut new = HeaderMap::new();
        new.insert(protocol::ARCHIVE, HeaderValue::from_static("1"));
        let code = |status, headers: &HeaderMap| {
            refused(StatusCode::from_u16(status).unwrap(), headers, b"{}").code()
        };
        assert_eq!(code(404, &old), "not_supported");
        assert_eq!(code(200, &old), "not_supported");
        assert_eq!(code(502, &old), "guest_unavailable");
        assert_eq!(code(404, &new), "not_found");
        assert_eq!(code(400, &new), "invalid_request");
        assert_eq!(code(504, &new), "guest_unavailable");
        assert_eq!(code(507, &new), "disk_full");
        let told = refused(StatusCode::BAD_REQUEST, &new, br#"{"message":"x is a device"}"#);
        assert!(told.to_string().contains("x is a device"), "{told}");
    }
}
