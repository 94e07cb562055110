//! `…/files/archive`: a capsule's file or folder as a tar archive, streamed both ways. Modes, times
//! and links are kept.

use super::contents::{self, File, passed};
use super::extract::{Path, Query};
use crate::app::App;
use crate::auth::Caller;
use crate::error::{Error, Result};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use http::{HeaderValue, Method, StatusCode, header};
use std::sync::Arc;

/// Route of envd.
const ROUTE: &str = "/files/archive";

/// Reads a file or a folder as a tar archive. The archive's only top-level entry has the path's
/// last name. Links are kept as links. FIFOs, sockets and devices are left out.
#[utoipa::path(
    operation_id = "get_archive",
    get, path = "/v1/capsules/{id}/files/archive", tag = "files",
    params(("id" = String, Path, description = "Id or name of the capsule"), File),
    responses(
        (status = 200, description = "Tar archive of the path", content_type = "application/x-tar"),
        (status = 501, description = "The capsule's envd is too old", body = api::ErrorBody),
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
    // A guest may send anything. These headers keep a browser from running it under the platform's
    // name.
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}

/// Unpacks a tar archive into a folder, which is created if it is missing. Modes, times and links
/// are kept. All entries belong to the account. Devices and entries that lead out of the folder are
/// refused. Entries before a refused entry stay.
#[utoipa::path(
    operation_id = "put_archive",
    put, path = "/v1/capsules/{id}/files/archive", tag = "files",
    params(("id" = String, Path, description = "Id or name of the capsule"), File),
    request_body(content_type = "application/x-tar"),
    responses(
        (status = 204), (status = 507, description = "The capsule's disk is full", body = api::ErrorBody),
        (status = 501, description = "The capsule's envd is too old", body = api::ErrorBody),
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
    let answer = contents::ask(app, caller, id, (file, ROUTE), request).await?;
    if !answer.headers().contains_key(protocol::ARCHIVE) {
        return Err(unmarked(answer.status()));
    }
    match answer.status().is_success() {
        true => Ok(answer),
        false => Err(contents::refused(answer).await),
    }
}

/// Explains an answer that lacks the mark of envd's route. The function is pure.
fn unmarked(status: StatusCode) -> Error {
    match status.as_u16() {
        502..=504 => Error::GuestUnavailable,
        _ => Error::NotSupported(
            "an archive of a capsule with an outdated envd (pause it, then resume it with `memory` \
             false)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_agent_route_is_reported_as_not_supported() {
        let code = |status| unmarked(StatusCode::from_u16(status).unwrap()).code();
        assert_eq!(code(404), "not_supported");
        assert_eq!(code(200), "not_supported");
        assert_eq!(code(502), "guest_unavailable");
    }
}
