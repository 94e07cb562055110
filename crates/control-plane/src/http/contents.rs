//! Contents of files. They are streamed at any size, and never held in full.

use super::extract::{Json, Path, Query, capsule_id};
use super::passive::Passive;
use crate::app::App;
use crate::auth::Caller;
use crate::capsules;
use crate::error::{Error, Result, printable};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use std::sync::Arc;
use std::time::Duration;

/// Route of envd.
const ROUTE: &str = "/files";
/// Bytes that are read of an error from envd.
const ERROR_MAX: usize = 16 * 1024;
/// Time that envd may take to send an error.
const ERROR_TIME: Duration = Duration::from_secs(5);

/// Request headers that are passed on to envd.
const PASSED: [HeaderName; 5] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::RANGE,
    header::ACCEPT_ENCODING,
];
/// Response headers of envd that are passed on to a caller.
const RETURNED: [HeaderName; 6] = [
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::CONTENT_RANGE,
    header::CONTENT_DISPOSITION,
    header::ACCEPT_RANGES,
    header::VARY,
];
/// Longest path in bytes, as in Linux without the final NUL.
const PATH_MAX: usize = 4095;

#[derive(serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct File {
    /// Absolute path, or path relative to the home of the account.
    path: String,
    /// User account in the guest that owns the file. The default is the guest's default account.
    user: Option<String>,
    /// True for a passive read.
    #[serde(skip)]
    passive: bool,
}

/// Query of a read, with the fields of [`File`] and those of [`Passive`].
#[derive(serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ReadFile {
    /// Absolute path, or path relative to the home of the account.
    path: String,
    /// User account in the guest that owns the file. The default is the guest's default account.
    user: Option<String>,
    /// True to read without side effects. The request then does not resume a paused capsule: the
    /// answer is 409 `capsule_paused`. A passive request does not count as activity.
    #[serde(default)]
    passive: bool,
}

impl File {
    /// Returns the target of a request to envd: a route of envd with the file in its query.
    pub(super) fn target(&self, route: &str) -> Result<String> {
        check_path("path", &self.path)?;
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let user = self.user.as_deref().map(|u| format!("&username={}", encode(u)));
        Ok(format!("{route}?path={}{}", encode(&self.path), user.unwrap_or_default()))
    }
}

pub(super) fn check_path(field: &'static str, path: &str) -> Result<()> {
    if path.is_empty() || path.len() > PATH_MAX || path.contains('\0') {
        return Err(Error::invalid(field, "must be 1 to 4095 bytes without NUL characters"));
    }
    Ok(())
}

/// Reads a file. `Range` and gzip are supported.
#[utoipa::path(
    operation_id = "get_file",
    get, path = "/v1/capsules/{id}/files", tag = "files",
    params(("id" = String, Path, description = "Id or name of the capsule"), ReadFile),
    responses(
        (status = 200, description = "Contents of the file", content_type = "application/octet-stream"),
        (status = 206, description = "Requested range of the file"),
        (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Query(read): Query<ReadFile>,
    headers: HeaderMap,
) -> Result<Response> {
    let file = File { path: read.path, user: read.user, passive: read.passive };
    download(&app, caller, &id, &file, &headers).await
}

/// Reads a file whose path is in the request body.
#[utoipa::path(
    operation_id = "read_file",
    post, path = "/v1/capsules/{id}/files/read", tag = "files", request_body = api::PathRequest,
    params(("id" = String, Path, description = "Id or name of the capsule"), Passive),
    responses(
        (status = 200, description = "Contents of the file", content_type = "application/octet-stream"),
        (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn read(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Query(Passive { passive }): Query<Passive>,
    headers: HeaderMap,
    Json(asked): Json<api::PathRequest>,
) -> Result<Response> {
    let mut headers = headers;
    // The headers describe the body of this request, and the request to envd has none.
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::CONTENT_TYPE);
    let file = File { path: asked.path, user: None, passive };
    download(&app, caller, &id, &file, &headers).await
}

/// Writes the request body to a file. Missing parent directories are created.
#[utoipa::path(
    operation_id = "put_file",
    put, path = "/v1/capsules/{id}/files", tag = "files",
    params(("id" = String, Path, description = "Id or name of the capsule"), File),
    request_body(content_type = "application/octet-stream"),
    responses(
        (status = 204), (status = 507, description = "The capsule's disk is full", body = api::ErrorBody),
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
    upload(&app, caller, &id, &file, passed(&head.headers), body).await
}

/// Writes a file from a form with the part `path`, followed by the part `file`.
#[utoipa::path(
    operation_id = "write_file",
    post, path = "/v1/capsules/{id}/files/write", tag = "files",
    params(("id" = String, Path, description = "Id or name of the capsule")),
    request_body(content_type = "multipart/form-data"),
    responses(
        (status = 204), (status = 507, description = "The capsule's disk is full", body = api::ErrorBody),
        (status = "4XX", body = api::ErrorBody), (status = "5XX", body = api::ErrorBody),
    )
)]
pub(crate) async fn write(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    request: Request,
) -> Result<StatusCode> {
    let wrong = |e: multer::Error| match hop::Stalled::is_cause_of(&e) {
        true => Error::BodyTooSlow,
        false => Error::invalid("body", format!("is invalid: {e}")),
    };
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let boundary = multer::parse_boundary(kind.unwrap_or("")).map_err(wrong)?;
    let mut form = multer::Multipart::new(request.into_body().into_data_stream(), boundary);
    let mut file = None;
    while let Some(mut part) = form.next_field().await.map_err(wrong)? {
        match part.name() {
            Some("path") => {
                let mut path = Vec::new();
                while let Some(chunk) = part.chunk().await.map_err(wrong)? {
                    path.extend_from_slice(&chunk);
                    if path.len() > PATH_MAX {
                        break;
                    }
                }
                let path = String::from_utf8(path);
                let path = path.map_err(|_| Error::invalid("path", "must be UTF-8"))?;
                file = Some(File { path, user: None, passive: false });
            }
            Some("file") => {
                let first = || Error::invalid("path", "must come before the part `file`");
                let file = file.ok_or_else(first)?;
                let body = Body::from_stream(part);
                return upload(&app, caller, &id, &file, HeaderMap::new(), body).await;
            }
            _ => return Err(Error::invalid("body", "may only have the parts `path` and `file`")),
        }
    }
    Err(Error::invalid("file", "is required"))
}

pub(super) fn passed(from: &HeaderMap) -> HeaderMap {
    PASSED.iter().filter_map(|name| Some((name.clone(), from.get(name)?.clone()))).collect()
}

async fn download(
    app: &App,
    caller: Caller,
    id: &str,
    file: &File,
    headers: &HeaderMap,
) -> Result<Response> {
    let mut request = Request::new(Body::empty());
    *request.headers_mut() = passed(headers);
    let answer = ask(app, caller, id, (file, ROUTE), request).await?;
    let range = answer.status() == StatusCode::RANGE_NOT_SATISFIABLE;
    if !answer.status().is_success() && !range {
        return Err(refused(answer).await);
    }
    let (head, body) = answer.into_parts();
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    // A guest may send anything. These headers keep a browser from running it under the platform's
    // name.
    let headers = response.headers_mut();
    headers.extend(RETURNED.iter().filter_map(|n| Some((n.clone(), head.headers.get(n)?.clone()))));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}

async fn upload(
    app: &App,
    caller: Caller,
    id: &str,
    file: &File,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode> {
    let mut request = Request::new(body);
    *request.method_mut() = http::Method::POST;
    *request.headers_mut() = headers;
    let octets = HeaderValue::from_static("application/octet-stream");
    request.headers_mut().insert(header::CONTENT_TYPE, octets);
    let answer = ask(app, caller, id, (file, ROUTE), request).await?;
    match answer.status().is_success() {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(refused(answer).await),
    }
}

/// Sends a request about a file to a route of envd. Resumes a paused capsule that has
/// `auto_resume`, unless the read is passive.
pub(super) async fn ask(
    app: &App,
    caller: Caller,
    id: &str,
    (file, route): (&File, &str),
    request: Request,
) -> Result<Response> {
    let target = file.target(route)?;
    let capsule = capsules::readable(app, caller, capsule_id(id)?, file.passive).await?;
    let agent = app.agent_of(&capsule)?;
    let agent = if file.passive { agent.passive() } else { agent };
    let sent = agent.forward(capsule.id, &capsule.envd_token, &target, request);
    let answer = capsules::unless_silent(app, &capsule, Box::pin(sent)).await?;
    match answer.headers().get(protocol::REFUSAL).map(Error::from_envd_refusal) {
        None => Ok(answer.map(Body::new)),
        Some(error) => Err(capsules::classify_read(app, &capsule, file.passive, error).await),
    }
}

/// Turns a refusal by envd into an error for a caller. A hostile guest may write the body, so its
/// size, its time and its text are bounded.
pub(super) async fn refused(answer: Response) -> Error {
    let (head, body) = answer.into_parts();
    let text = tokio::time::timeout(ERROR_TIME, Limited::new(body, ERROR_MAX).collect()).await;
    let text = text.ok().and_then(|text| Some(text.ok()?.to_bytes())).unwrap_or_default();
    explain(head.status, &text)
}

/// Error as envd writes it.
#[derive(serde::Deserialize)]
struct Told {
    message: String,
}

/// Explains a refusal with the body `text`. The function is pure.
fn explain(status: StatusCode, text: &[u8]) -> Error {
    let told: Option<Told> = serde_json::from_slice(text).ok();
    match (status.as_u16(), told) {
        (401, None) => Error::invalid("user", "is not a user of the capsule"),
        (404, _) => Error::NotFound("file"),
        (400..=499, Some(told)) => Error::refused_by_guest(&told.message),
        (400..=499, None) => {
            Error::invalid("path", "was refused by the guest without giving a reason")
        }
        // Status 504 means that a file system of the guest does not answer.
        (502..=504, _) => Error::GuestUnavailable,
        (507, _) => Error::DiskFull,
        (other, told) => {
            let message = printable(&told.map(|told| told.message).unwrap_or_default());
            Error::Internal(anyhow::anyhow!("envd answered {other}: {message}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_error_message_is_sanitized_and_truncated() {
        let told = |status, text: &[u8]| explain(StatusCode::from_u16(status).unwrap(), text);
        let pipe = told(400, br#"{"code": 400, "message": "path is not a regular file: /p"}"#);
        let wanted = "the guest refused the request: path is not a regular file: /p";
        assert_eq!((pipe.code(), &*pipe.to_string()), ("invalid_request", wanted));
        let hostile = format!(r#"{{"message": "\u001b[2J\n{}"}}"#, "x".repeat(10_000));
        let hostile = told(403, hostile.as_bytes()).to_string();
        assert!(hostile.starts_with("the guest refused the request: [2Jxxx"), "{hostile}");
        assert!(hostile.len() < 1000, "{} bytes", hostile.len());
        for text in ["", "no JSON", r#"{"message": 1}"#] {
            let silent = told(400, text.as_bytes());
            assert_eq!(silent.code(), "invalid_request");
            assert!(silent.to_string().starts_with("path was refused"), "{silent}");
        }
    }

    #[test]
    fn envd_statuses_map_to_distinct_error_codes() {
        for (status, code) in [
            (401, "invalid_request"),
            (404, "not_found"),
            (409, "invalid_request"),
            (502, "guest_unavailable"),
            (504, "guest_unavailable"),
            (507, "disk_full"),
            (500, "internal"),
        ] {
            let error = explain(StatusCode::from_u16(status).unwrap(), b"{}");
            assert_eq!(error.code(), code, "{status}");
        }
    }
}
