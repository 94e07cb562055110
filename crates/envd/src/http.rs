//! The list of envd's routes, and the small handlers.

mod archive;
mod budget;
mod build;
mod files;
mod form;
mod linger;
mod listener;
mod log;
mod ports;
mod processes;

pub(crate) use listener::Server;

use crate::code_server::supervise;
use crate::console::console;
use crate::epoch::{self, Epoch};
use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::metadata::About;
use crate::peer::Peer;
use crate::process::log::Mode;
use crate::{auth, clock, helpers, jobs, metrics, profile, rpc, sys, users};
use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::response::{IntoResponse, Response};
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
    let build = guest.build.as_ref().map_or_else(build::none, |_| build::routes());
    Router::new()
        .merge(build)
        .route("/helpers", post(provide_helpers))
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
        .route(protocol::log::PATH, get(log::read).post(log::set_mode))
        .route(protocol::PORTS, get(ports::list))
        .route(protocol::CONNECT_PORT, post(ports::connect))
        .route(protocol::PROCESSES, get(processes::processes))
        .route(protocol::SIGNAL, post(processes::signal))
        .route(protocol::TERMINALS, get(processes::terminals))
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

async fn health(State(guest): State<Arc<Guest>>) -> Response {
    let version = [("x-envd-version", protocol::ENVD_VERSION)];
    let answer = (StatusCode::NO_CONTENT, version).into_response();
    match &guest.build {
        Some(root) => build::tell_root(root, answer),
        None => answer,
    }
}

/// Makes the programs that ready commands of SDKs call, for images without them.
async fn provide_helpers(State(guest): State<Arc<Guest>>) -> Result<Json<serde_json::Value>> {
    Ok(Json(serde_json::json!({ "path": helpers::provide(&guest).await? })))
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
    /// The guest's facts about itself in the new epoch; `None` to ask the metadata service.
    metadata: Option<About>,
    /// Output that the log has: `none`, `background` or `all`.
    logs: Option<String>,
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
    if init.epoch.as_ref().is_some_and(Epoch::is_fresh) {
        // Clients of the guest that was copied are not this guest's. Their code goes on here.
        guest.code.prepare(false).await;
    }
    let adopting = Arc::clone(&guest);
    // In a guest, even these files may be replaced, or covered by a mount.
    let adopt = move || adopt(&adopting, init, host.address);
    let init = guest.jobs.host.run(jobs::LIMIT, adopt).await?;
    // Another caller may have set a token meanwhile.
    check_caller(&guest, &headers, &init)?;
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
    // The interpreter follows in turn. So its answer to the epoch means that it has these settings,
    // and no request meets an earlier token.
    supervise::tell_settings(&guest);
    if let Some(epoch) = &init.epoch {
        guest.code.begin_epoch(epoch.is_fresh()).await;
        let log = guest.processes.log();
        log.begin_epoch(epoch.id(), epoch.is_fresh());
        // A host that says nothing reads no log.
        log.set_mode(Mode::parse(init.logs.as_deref().unwrap_or_default()));
    }
    // A step of a build is no capsule that could ask for itself.
    if guest.in_guest && guest.build.is_none() && init.epoch.is_some() {
        match init.metadata {
            Some(about) => guest.metadata.tell(about, &guest.jobs.looks),
            None => guest.metadata.ask(&guest.jobs.looks),
        }
    }
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
    let root = guest.build.clone();
    let write = move || {
        let written = match root {
            Some(root) => root.show_path(&profile::script(&path)),
            None => profile::write(profile::FOLDER.as_ref(), &path),
        };
        if let Err(error) = written {
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
    guest.code.prepare(prepare.warm).await;
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

    #[tokio::test]
    async fn interpreter_has_the_settings_before_the_epoch_is_answered() {
        let (guest, told) = (Guest::new(None, 0), Arc::new(std::sync::Mutex::new(Vec::new())));
        let (queue, mut orders) = tokio::sync::mpsc::channel(8);
        guest.code.set_queue(Some(queue));
        let noted = Arc::clone(&told);
        tokio::spawn(async move {
            while let Some(order) = orders.recv().await {
                noted.lock().unwrap().push(order.message);
            }
        });
        let at = serve(guest).await;
        let epoch = r#"{"accessToken":"new","epoch":{"entropy":"AA==","fresh":true}}"#;
        let answer = ask(at, "POST /init", epoch).await;
        assert!(answer.starts_with("http/1.1 204"), "{answer}");
        let told = told.lock().unwrap();
        let has_token = told.iter().position(|order| order["settings"]["token"] == "new");
        let has_epoch = told.iter().position(|order| order["epoch"]["fresh"] == true);
        assert!(has_token.is_some() && has_token < has_epoch, "{told:?}");
    }

    /// Serves a guest at a port of this machine.
    async fn serve(guest: Guest) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(Server::new(router(Arc::new(guest)), None).serve(listener));
        at
    }

    /// Sends a request with a body. Returns the head of the answer in lower case.
    async fn ask(at: SocketAddr, line: &str, body: &str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(at).await.unwrap();
        let length = body.len();
        let text = format!(
            "{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.to_lowercase()
    }

    #[tokio::test]
    async fn routes_of_builds_answer_not_found_in_a_normal_guest() {
        let at = serve(Guest::new(None, 0)).await;
        for line in [
            "POST /build/root",
            "POST /build/copy",
            "POST /build/folder",
            "POST /build/user",
            "POST /build/mounts",
            "DELETE /build/mounts",
            "PUT /build/script?name=x",
        ] {
            let answer = ask(at, line, "{}").await;
            assert!(answer.starts_with("http/1.1 404"), "{line}: {answer}");
        }
        let health = ask(at, "GET /health", "").await;
        assert!(health.starts_with("http/1.1 204") && !health.contains("x-wrenn-root"), "{health}");
        let helpers = ask(at, "POST /helpers", "").await;
        assert!(helpers.ends_with("{\"path\":\"/usr/bin\"}"), "{helpers}");
    }

    #[tokio::test]
    async fn neutral_root_tells_its_number_and_takes_no_files() {
        let dir = tempfile::tempdir().unwrap();
        let outside = crate::root::Root::open(dir.path()).unwrap();
        let tell = std::fs::File::create(dir.path().join("told")).unwrap();
        let why = Some("the root 4: no\nfolder".to_owned());
        let root = crate::build::Build::new(0, outside, tell, None, why);
        let mut guest = Guest::new(None, 0);
        guest.build = Some(Arc::new(root));
        let at = serve(guest).await;
        let health = ask(at, "GET /health", "").await;
        assert!(health.contains("x-wrenn-root: 0\r\n"), "{health}");
        assert!(health.contains("x-wrenn-root-error: the root 4: no folder\r\n"), "{health}");
        let folder = r#"{"path": "/x", "owner": "0:0"}"#;
        let copy = concat!(
            r#"{"from": null, "files": null, "sources": [], "inline": [], "dest": "/x", "#,
            r#""into": false, "owner": "0:0", "mode": null, "unpack": false, "dialect": "e2b"}"#
        );
        for (line, body) in [
            ("POST /build/folder", folder),
            ("POST /build/user", r#"{"name": "app", "create": true}"#),
            ("POST /build/mounts", r#"{"tmpfs": [{"target": "/x"}]}"#),
            ("PUT /build/script?name=x", "text"),
            ("POST /build/copy", copy),
        ] {
            let answer = ask(at, line, body).await;
            assert!(answer.contains("this is the neutral root"), "{line}: {answer}");
        }
        let root = ask(at, "POST /build/root", r#"{"folder": 1, "lower": "x"}"#).await;
        assert!(root.starts_with("http/1.1 400") && root.contains("lower"), "{root}");
        assert_eq!(std::fs::read(dir.path().join("told")).unwrap(), b"");
    }
}
