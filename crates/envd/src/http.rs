//! The list of envd's routes, and the small handlers.

mod archive;
mod budget;
mod files;
mod form;
mod linger;
mod listener;
mod ports;

pub(crate) use listener::Server;

use crate::console::console;
use crate::epoch::{self, Epoch};
use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::peer::Peer;
use crate::{auth, clock, jobs, metrics, profile, rpc, sys, users};
use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use http::{HeaderMap, StatusCode};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tower_http::cors::CorsLayer;

/// Largest body of `/init`, in bytes.
const INIT_MAX: usize = 1 << 20;
/// Time limit for the file that shows the template's `PATH`.
const SHOW: Duration = Duration::from_secs(2);

/// Makes the router of all of envd's HTTP.
pub(crate) fn router(guest: Arc<Guest>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(figures))
        .route("/envs", get(envs))
        .route("/init", post(initialize).layer(DefaultBodyLimit::max(INIT_MAX)))
        .route("/snapshot/prepare", post(prepare))
        .route(
            "/files",
            get(files::download).post(files::upload).layer(DefaultBodyLimit::disable()),
        )
        .route("/files/compose", post(files::compose))
        .route(protocol::PORTS, get(ports::list))
        .route(protocol::CONNECT_PORT, post(ports::connect))
        .route(
            "/files/archive",
            get(archive::download).post(archive::upload).layer(DefaultBodyLimit::disable()),
        )
        .fallback_service(rpc::service(&guest))
        .layer(middleware::from_fn_with_state(Arc::clone(&guest), budget::admit))
        .layer(middleware::from_fn_with_state(Arc::clone(&guest), auth::require_token))
        .layer(CorsLayer::permissive())
        .layer(middleware::map_request(linger::read_rest))
        .with_state(guest)
}

async fn health() -> impl IntoResponse {
    (StatusCode::NO_CONTENT, [("x-envd-version", protocol::ENVD_VERSION)])
}

async fn figures(State(guest): State<Arc<Guest>>) -> Result<Json<serde_json::Value>> {
    // A guest may cover the folders that the figures come from, so their read is a job.
    guest.jobs.looks.run(jobs::LIMIT, || Ok(Json(metrics::snapshot()))).await
}

async fn envs(State(guest): State<Arc<Guest>>) -> Json<BTreeMap<String, String>> {
    Json(guest.settings().envs)
}

/// Body of `/init`. Unknown fields are ignored, since other agents send them.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Init {
    access_token: Option<String>,
    env_vars: Option<BTreeMap<String, String>>,
    default_user: Option<String>,
    default_workdir: Option<String>,
    /// Value of `PATH` in the template. Login shells get it too.
    template_path: Option<String>,
    hostname: Option<String>,
    #[serde(default, with = "time::serde::rfc3339::option")]
    timestamp: Option<time::OffsetDateTime>,
    epoch: Option<Epoch>,
}

/// Sets token, defaults, environment, host name and clock. Once a token is set, only callers that
/// know it may call again.
async fn initialize(
    State(guest): State<Arc<Guest>>,
    ConnectInfo(host): ConnectInfo<Peer>,
    headers: HeaderMap,
    body: axum::body::Bytes,
) -> Result<StatusCode> {
    let init: Init = if body.is_empty() {
        serde_json::from_str("{}").map_err(|e| Error::invalid(e.to_string()))?
    } else {
        serde_json::from_slice(&body).map_err(|e| Error::invalid(format!("body: {e}")))?
    };
    check_caller(&guest, &headers, &init)?;
    let adopting = Arc::clone(&guest);
    // In a guest, even these files may be replaced, or covered by a mount.
    let adopt = move || adopt(&adopting, init, host.address);
    let init = guest.jobs.host.run(jobs::LIMIT, adopt).await?;
    // Another caller may have set a token meanwhile.
    check_caller(&guest, &headers, &init)?;
    if guest.in_guest && init.epoch.is_some() {
        guest.metadata.ask(&guest.jobs.looks);
    }
    if let Some(path) = &init.template_path {
        show_path(&guest, path.clone()).await;
    }
    guest.change(|settings| {
        let token = init.access_token.filter(|t| !t.is_empty());
        settings.token = token.or(settings.token.take());
        settings.default_user = init.default_user.unwrap_or(settings.default_user.clone());
        settings.default_workdir = init.default_workdir.or(settings.default_workdir.take());
        settings.template_path = init.template_path.or(settings.template_path.take());
        settings.envs.extend(init.env_vars.unwrap_or_default());
    });
    Ok(StatusCode::NO_CONTENT)
}

fn check_caller(guest: &Guest, headers: &HeaderMap, init: &Init) -> Result<()> {
    let Some(token) = guest.settings().token else { return Ok(()) };
    let given = init.access_token.as_deref().unwrap_or("");
    if auth::same(given.as_bytes(), token.as_bytes()) {
        return Ok(());
    }
    auth::check_token(guest, headers)
}

/// Shows the template's `PATH` to login shells. A folder of the guest that hangs holds up no epoch.
async fn show_path(guest: &Guest, path: String) {
    if !guest.in_guest {
        return;
    }
    let write = move || {
        if let Err(error) = profile::write(profile::FOLDER.as_ref(), &path) {
            console(&format!("envd: writing below {}: {error}", profile::FOLDER));
        }
        Ok(())
    };
    let _ = guest.jobs.looks.run(SHOW, write).await;
}

/// Applies the host's request, except for the settings, which it returns. May block.
fn adopt(guest: &Guest, mut init: Init, host: SocketAddr) -> Result<Init> {
    if let Some(path) = &init.template_path {
        profile::check(path)?;
    }
    if !guest.in_guest {
        init.default_user.as_deref().map(users::get).transpose()?;
        return Ok(init);
    }
    // Most images have no user of the name that the host gives.
    if let Some((user, why)) = init.default_user.take().map(users::or_root) {
        if let Some(why) = why {
            console(&format!("envd: root is the default user: {why}"));
        }
        init.default_user = Some(user);
    }
    epoch::thaw(guest.disk.as_ref());
    if let Some(epoch) = &init.epoch {
        epoch::begin(epoch, guest.ids.as_ref(), host)?;
    }
    if let Some(now) = init.timestamp {
        let set = clock::set(now);
        set.map_err(|e| Error::internal(format!("cannot set the clock: {e}")))?;
    }
    // A host name that cannot be set is no reason to refuse the rest.
    if let Some(name) = &init.hostname {
        let _ = sys::set_host_name(name);
    }
    Ok(init)
}

#[derive(serde::Deserialize)]
struct Prepare {
    /// Set if the disk stays frozen afterwards, as for a snapshot of the disk alone.
    #[serde(default)]
    freeze: bool,
    /// Set to run a first command. Guests that begin from this snapshot then have its files in
    /// memory.
    #[serde(default)]
    warm: bool,
}

/// Writes everything to the disk, before the guest is frozen.
async fn prepare(State(guest): State<Arc<Guest>>, body: axum::body::Bytes) -> Result<StatusCode> {
    let prepare = serde_json::from_slice::<Prepare>(&body);
    let prepare = prepare.map_err(|e| Error::invalid(format!("body: {e}")))?;
    if prepare.warm {
        let fail = |e: std::io::Error| Error::internal(format!("cannot run a first command: {e}"));
        guest.jobs.host.run(jobs::LIMIT, move || epoch::warm().map_err(fail)).await?;
    }
    epoch::quiesce(&guest, prepare.freeze).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stats_and_ports_are_served_while_every_start_hangs() {
        let guest = Arc::new(Guest::new(None, 0));
        let _hanging: Vec<_> = std::iter::from_fn(|| guest.jobs.starts.place().ok()).collect();
        assert!(figures(State(Arc::clone(&guest))).await.is_ok());
        assert!(ports::list(State(guest)).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn hanging_lookups_leave_permits_for_program_starts() {
        let guest = Arc::new(Guest::new(None, 0));
        let _hanging: Vec<_> = std::iter::from_fn(|| guest.jobs.looks.place().ok()).collect();
        let refused = figures(State(Arc::clone(&guest))).await.unwrap_err();
        assert_eq!(refused.code, connectrpc::ErrorCode::Unavailable);
        assert!(guest.jobs.starts.place().is_ok());
    }
}
