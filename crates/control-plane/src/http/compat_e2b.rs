//! E2B's API over the functions of this system's own API, so that E2B's SDKs work unchanged. Its
//! routes are absent from the OpenAPI document; `docs/e2b.md` lists them.

mod builds;
mod lifecycle;
mod list;
mod logs;
mod names;
mod request;
mod sandboxes;
mod snapshots;
mod stats;
mod tags;
mod templates;
mod uploads;
mod wire;

use super::routes::Routes;
use super::rules::{CHANGE, CHANGE_ALL, POLL, READ, READ_ALL};
use crate::auth::rule::Rule;
pub(super) use crate::e2b::{concurrent, serves};
use crate::error::Error;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use serde::Serialize;
use types::CapsuleId;
use types::ids::ENCODED_LEN;

/// Header with the position of the next page. The last page has none.
const NEXT_TOKEN: HeaderName = HeaderName::from_static("x-next-token");
/// Header that tells a client whether it may repeat a failed request.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("should-retry");

/// Adds the routes of E2B's API.
pub(super) fn register(routes: Routes) -> Routes {
    routes
        .post("/sandboxes", CHANGE, sandboxes::create_v1)
        .get("/sandboxes", READ, list::all)
        .post("/v2/sandboxes", CHANGE, sandboxes::create)
        .get("/v2/sandboxes", READ, list::page)
        .get("/sandboxes/{id}", READ, sandboxes::get)
        .delete("/sandboxes/{id}", CHANGE, sandboxes::kill)
        .post("/sandboxes/{id}/connect", CHANGE, sandboxes::connect)
        .post("/v2/sandboxes/{id}/connect", CHANGE, sandboxes::connect)
        .post("/sandboxes/{id}/timeout", CHANGE, lifecycle::timeout)
        .post("/sandboxes/{id}/refreshes", CHANGE, lifecycle::refresh)
        .post("/sandboxes/{id}/pause", CHANGE, lifecycle::pause)
        .post("/sandboxes/{id}/resume", CHANGE, lifecycle::resume)
        .post("/sandboxes/{id}/fork", CHANGE, lifecycle::fork)
        .post("/sandboxes/{id}/snapshots", CHANGE, snapshots::create)
        .put("/sandboxes/{id}/network", CHANGE, lifecycle::network)
        .get("/sandboxes/{id}/metrics", READ, stats::of_one)
        .get("/sandboxes/metrics", READ, stats::of_many)
        .get("/teams/{id}/metrics", READ_ALL, stats::of_team)
        .get("/teams/{id}/metrics/max", READ_ALL, stats::most_of_team)
        .get("/sandboxes/{id}/logs", READ, logs::v1)
        .get("/v2/sandboxes/{id}/logs", READ, logs::v2)
        .get("/teams", Rule::Anyone, templates::teams)
        .get("/snapshots", READ_ALL, snapshots::page)
        .get("/templates", READ_ALL, templates::list)
        .get("/v2/templates", READ_ALL, templates::page)
        .get("/templates/{id}", READ, templates::get)
        .delete("/templates/{id}", CHANGE, templates::delete)
        .patch("/v2/templates/{id}", CHANGE, templates::change)
        .patch("/templates/{id}", CHANGE, templates::change_v1)
        .get("/templates/aliases/{alias}", READ_ALL, templates::alias)
        .post("/templates/tags", CHANGE, tags::assign)
        .delete("/templates/tags", CHANGE, tags::remove)
        .get("/templates/{id}/tags", READ, tags::list)
        .post("/v3/templates", CHANGE, builds::declare)
        .get("/templates/{id}/files/{hash}", CHANGE, uploads::ask)
        .put("/templates/{id}/files/{hash}", Rule::Open, uploads::put)
        .post("/v2/templates/{id}/builds/{build}", CHANGE, builds::start)
        .get("/templates/{id}/builds/{build}/status", POLL, builds::status)
        .get("/templates/{id}/builds/{build}/logs", READ, builds::logs)
        .post("/templates", CHANGE, || missing(FORMER))
        .post("/v2/templates", CHANGE, || missing(FORMER))
        .post("/templates/{id}", CHANGE, || missing(FORMER))
        .post("/templates/{id}/builds/{build}", CHANGE, || missing(FORMER))
        .post("/volumes", CHANGE_ALL, || missing("a volume"))
        .get("/volumes", READ_ALL, || missing("a volume"))
        .post("/secrets", CHANGE_ALL, || missing("a platform secret"))
        .get("/secrets", READ_ALL, || missing("a platform secret"))
}

/// Builds as older clients ask for them, with an image that Docker pushed.
const FORMER: &str = "a template build of this client's version (update the SDK or the CLI of E2B: \
    the present ones send the steps to the platform)";

async fn missing(what: &'static str) -> Error {
    Error::NotSupported(what)
}

/// Writes an error in E2B's form. E2B's clients repeat failed requests unless a header forbids it.
/// Requests that may have had an effect therefore get that header.
pub(super) fn refuse(method: &Method, error: &Error, status: StatusCode) -> Response {
    let (status, message) = worded(error).unwrap_or_else(|| (status, error.by_former_name()));
    let body = wire::Error { code: status.as_u16(), message };
    let mut answer = (status, axum::Json(body)).into_response();
    let harmless = matches!(
        error,
        Error::TooManyRequests(..)
            | Error::TooManyAtOnce(_)
            | Error::TooManyBuilds(_)
            | Error::Overloaded
            | Error::NoCapacity(_)
    );
    if !method.is_safe() && !harmless {
        answer.headers_mut().insert(SHOULD_RETRY, HeaderValue::from_static("false"));
    }
    answer
}

/// Words errors about templates as E2B's service does.
fn worded(error: &Error) -> Option<(StatusCode, String)> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "all others are worded alike")]
    match error {
        Error::NameReserved(name) => {
            Some((StatusCode::FORBIDDEN, format!("Alias '{name}' already used")))
        }
        Error::NoVersion { template, tag } => {
            let message = format!("Template '{template}' with tag '{tag}' not found");
            Some((StatusCode::NOT_FOUND, message))
        }
        Error::TemplateInUse { name, kinds, .. } => {
            let capsules = |kind: &str| kinds.iter().any(|used| used == kind);
            let what = match (capsules("running"), capsules("paused")) {
                (true, _) => "running sandboxes",
                (false, true) => "paused sandboxes",
                (false, false) => "snapshots, builds or templates",
            };
            let message =
                format!("cannot delete template '{name}' because there are {what} using it");
            Some((StatusCode::BAD_REQUEST, message))
        }
        _ => None,
    }
}

/// Makes a page of rows, of which there is one extra unless the page is the last. A header then
/// holds the position of the next page.
fn paged<R, T: From<R> + Serialize>(
    mut rows: Vec<R>,
    limit: usize,
    token: fn(&R) -> String,
) -> Response {
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).map(token);
    let shown: Vec<T> = rows.into_iter().map(T::from).collect();
    let mut answer = axum::Json(shown).into_response();
    if let Some(next) = next.and_then(|next| HeaderValue::from_str(&next).ok()) {
        answer.headers_mut().insert(NEXT_TOKEN, next);
    }
    answer
}

/// Parses a sandbox's id. Clients of earlier versions append an id of their own.
fn sandbox_id(text: &str) -> Result<CapsuleId, Error> {
    let end = (CapsuleId::PREFIX.len() + ENCODED_LEN).min(text.len());
    let (id, rest) = text.split_at_checked(end).unwrap_or((text, ""));
    let id = if rest.is_empty() || rest.starts_with('-') { id } else { text };
    super::extract::capsule_id(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_id_suffix_of_sandbox_id_is_ignored() {
        let id = CapsuleId::new();
        assert_eq!(sandbox_id(&id.to_string()).unwrap(), id);
        assert_eq!(sandbox_id(&format!("{id}-6532622b")).unwrap(), id);
        for wrong in ["", "é", "i123", &format!("{id}0"), &format!("{id}é")] {
            assert!(sandbox_id(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn e2b_paths_are_distinguished_from_native_paths() {
        let routes = register(Routes::default());
        assert!(routes.rules().routes().all(|(_, path)| serves(path)));
        for ours in ["/", "/v1/capsules", "/health", "/v1/snapshots", "/sandboxes2", "/docs"] {
            assert!(!serves(ours), "{ours}");
        }
        assert!(serves("/v3/templates/x") && serves("/snapshots") && serves("/teams/x/metrics"));
        for envds in [
            "/files",
            "/process.Process/Start",
            "/filesystem.Filesystem/Stat",
            "/health",
            "/metrics",
            "/envs",
            "/init",
        ] {
            assert!(!serves(envds), "{envds}");
        }
    }
}
