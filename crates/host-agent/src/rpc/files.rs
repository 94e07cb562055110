//! Uploads of context files over HTTP: `PUT /builds/files/{team}/{hash}`, with `HEAD` to ask for one
//! and `DELETE` to remove it. The control plane has authorized each request. Bodies are streamed to
//! the disk.

use crate::build::engine::Builds;
use crate::build::files::Error;
use crate::capsule::chain;
use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing;
use types::TeamId;

/// Returns the routes of uploads.
pub(crate) fn routes(builds: Builds) -> Router {
    let methods = routing::head(find).put(store).delete(remove);
    Router::new().route("/builds/files/{team}/{hash}", methods).with_state(builds)
}

/// The archive that a request's path names.
struct Archive {
    team: TeamId,
    hash: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Archive {
    type Rejection = (StatusCode, String);

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let path = Path::<(String, String)>::from_request_parts(parts, state).await;
        let Path((team, hash)) = path.map_err(|error| (error.status(), error.body_text()))?;
        let refused = |why: &str| (StatusCode::BAD_REQUEST, why.to_owned());
        if !recipe::steps::is_hash(&hash) {
            return Err(refused("the hash has 64 lower-case hexadecimal digits"));
        }
        let team: TeamId = team.parse().map_err(|_| refused("the team is no id"))?;
        Ok(Self { team, hash })
    }
}

async fn find(State(builds): State<Builds>, Archive { team, hash }: Archive) -> Response {
    match builds.files().find(team, &hash) {
        Some(bytes) => {
            (StatusCode::OK, [(header::CONTENT_LENGTH, bytes.to_string())]).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn remove(State(builds): State<Builds>, Archive { team, hash }: Archive) -> Response {
    match builds.files().remove(team, &hash) {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => {
            tracing::warn!(%team, hash, error = chain(&error), "cannot remove an archive of files");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn store(
    State(builds): State<Builds>,
    Archive { team, hash }: Archive,
    body: Body,
) -> Response {
    let Err(error) = builds.store_files(team, &hash, body.into_data_stream()).await else {
        return StatusCode::NO_CONTENT.into_response();
    };
    let text = chain(&error);
    tracing::warn!(%team, hash, error = text, "refused an archive of files");
    let status = match error {
        Error::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Error::Idle => StatusCode::REQUEST_TIMEOUT,
        Error::Body(_) => StatusCode::BAD_REQUEST,
        Error::NoRoom(_) => StatusCode::INSUFFICIENT_STORAGE,
        Error::Io(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, text).into_response()
}
