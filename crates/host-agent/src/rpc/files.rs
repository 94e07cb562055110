//! Uploads of context files over HTTP: `PUT /builds/files/{team}/{hash}`, and `HEAD` to ask for one.
//! The control plane has authorized each request. Bodies are streamed to the disk.

use crate::build::engine::Builds;
use crate::build::files::Error;
use crate::capsule::chain;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing;
use types::TeamId;

/// Returns the routes of uploads.
pub(crate) fn routes(builds: Builds) -> Router {
    let methods = routing::head(find).put(store);
    Router::new().route("/builds/files/{team}/{hash}", methods).with_state(builds)
}

fn read(team: &str, hash: &str) -> Result<TeamId, Box<Response>> {
    let refused = |why: &str| Box::new((StatusCode::BAD_REQUEST, why.to_owned()).into_response());
    if !recipe::steps::is_hash(hash) {
        return Err(refused("the hash has 64 lower-case hexadecimal digits"));
    }
    team.parse().map_err(|_| refused("the team is no id"))
}

async fn find(
    State(builds): State<Builds>,
    Path((team, hash)): Path<(String, String)>,
) -> Response {
    let team = match read(&team, &hash) {
        Ok(team) => team,
        Err(refused) => return *refused,
    };
    match builds.files().find(team, &hash) {
        Some(bytes) => {
            (StatusCode::OK, [(header::CONTENT_LENGTH, bytes.to_string())]).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn store(
    State(builds): State<Builds>,
    Path((team, hash)): Path<(String, String)>,
    body: Body,
) -> Response {
    let team = match read(&team, &hash) {
        Ok(team) => team,
        Err(refused) => return *refused,
    };
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
