//! Builds against a platform of the tests, whose logs break off, end or get lost.

use super::*;
use crate::cli::{Cli, Command, Template};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use clap::Parser;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

/// A platform that plays recorded events. Each connection to the log gets the next script, and is
/// cut after it.
#[derive(Default)]
struct Platform {
    scripts: Mutex<Vec<String>>,
    /// `Last-Event-ID` of each connection to the log.
    resumed: Mutex<Vec<Option<String>>>,
    /// Paths, and bodies of builds.
    requests: Mutex<Vec<(String, Value)>>,
    /// Uploads by hash, with their number of bytes.
    files: Mutex<Vec<(String, usize)>>,
    /// Answer to `GET /v1/builds/{id}`.
    build: Mutex<Value>,
    cancelled: tokio::sync::Notify,
}

fn line(seq: u64, text: &str) -> String {
    let at = "2026-11-30T12:00:00Z";
    format!("id: {seq}\ndata: {}\n\n", json!({"seq": seq, "at": at, "level": "info", "text": text}))
}

fn build(status: &str) -> Value {
    let error = (status == "error").then(|| json!({"message": "exit status 2", "step": "1"}));
    json!({
        "id": build_of(), "template": "web", "tags": ["default"], "status": status, "step": 1,
        "steps": 1, "error": error, "vcpus": 1, "memory_mib": 512, "disk_mib": 1024, "bytes": 0,
        "created_at": "2026-11-30T12:00:00Z",
    })
}

fn build_of() -> String {
    types::BuildId::from(uuid::Uuid::nil()).to_string()
}

fn end(status: &str) -> String {
    format!("event: end\ndata: {}\n\n", build(status))
}

type Shared = State<Arc<Platform>>;

async fn logs(State(platform): Shared, headers: HeaderMap) -> Response {
    let id = headers.get("last-event-id").map(|id| id.to_str().unwrap().to_owned());
    platform.resumed.lock().unwrap().push(id);
    let script = {
        let mut scripts = platform.scripts.lock().unwrap();
        if scripts.is_empty() { String::new() } else { scripts.remove(0) }
    };
    if script == "busy" {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    if script == "refused" {
        return StatusCode::FORBIDDEN.into_response();
    }
    if script == "until cancelled" {
        let wait = async move {
            platform.cancelled.notified().await;
            Ok::<_, std::io::Error>(end("error"))
        };
        return Body::from_stream(futures::stream::once(wait)).into_response();
    }
    script.into_response()
}

async fn make(State(platform): Shared, axum::Json(body): axum::Json<Value>) -> Response {
    platform.requests.lock().unwrap().push(("build".to_owned(), body));
    (StatusCode::CREATED, axum::Json(build("building"))).into_response()
}

async fn cancel(State(platform): Shared) -> Response {
    platform.requests.lock().unwrap().push(("cancel".to_owned(), Value::Null));
    platform.cancelled.notify_one();
    axum::Json(build("building")).into_response()
}

async fn look(State(platform): Shared, Path(hash): Path<String>) -> StatusCode {
    let files = platform.files.lock().unwrap();
    let is_known = files.iter().any(|(known, _)| *known == hash);
    if is_known { StatusCode::OK } else { StatusCode::NOT_FOUND }
}

async fn put(State(platform): Shared, Path(hash): Path<String>, body: Bytes) -> Response {
    platform.files.lock().unwrap().push((hash.clone(), body.len()));
    axum::Json(json!({"hash": hash, "bytes": body.len()})).into_response()
}

async fn show(State(platform): Shared) -> Response {
    axum::Json(platform.build.lock().unwrap().clone()).into_response()
}

/// Runs `work` with a client of the platform.
async fn with<T>(platform: &Arc<Platform>, work: impl AsyncFnOnce(&Client) -> T) -> T {
    let routes = Router::new()
        .route("/v1/builds", post(make))
        .route("/v1/builds/{id}", get(show))
        .route("/v1/builds/{id}/logs", get(logs))
        .route("/v1/builds/{id}/cancel", post(self::cancel))
        .route("/v1/builds/files/{hash}", get(look).put(put))
        .with_state(Arc::clone(platform));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let api = cli::Api { url: Some(url), api_key: Some("key".to_owned()), in_team: None };
    let client = Client::new(&api, std::path::Path::new("/nonexistent")).unwrap();
    tokio::select! {
        result = work(&client) => result,
        served = axum::serve(listener, routes).into_future() => panic!("{served:?}"),
    }
}

fn platform(scripts: &[String]) -> Arc<Platform> {
    let platform = Platform::default();
    *platform.scripts.lock().unwrap() = scripts.to_vec();
    *platform.build.lock().unwrap() = build("building");
    Arc::new(platform)
}

/// Watches the build until its end, without a Ctrl-C. Returns its status, or the error.
async fn watched(platform: &Arc<Platform>) -> Result<String, String> {
    with(platform, async |client| {
        let never = async || std::future::pending().await;
        let (built, _) = watch(client, &build_of(), (Form::Human, true), never)
            .await
            .map_err(|error| error.to_string())?;
        Ok(built.unwrap().status)
    })
    .await
}

#[tokio::test]
async fn cut_log_goes_on_after_its_last_line() {
    let first = [line(1, "FROM debian"), line(2, "[builder 1/1] RUN x [0a1b2c3d]")].concat();
    let half = line(3, "[builder 1/1] [stdout]: half");
    let scripts = [
        first,
        half[..half.len() / 2].to_owned(),
        "busy".to_owned(),
        [line(2, "again"), line(3, "[builder 1/1] [stdout]: whole"), end("ready")].concat(),
    ];
    let platform = platform(&scripts);
    assert_eq!(watched(&platform).await.unwrap(), "ready");
    let resumed = platform.resumed.lock().unwrap().clone();
    let two = Some("2".to_owned());
    assert_eq!(resumed, [None, two.clone(), two.clone(), two]);
}

#[tokio::test]
async fn failed_build_is_the_commands_error() {
    let platform = platform(&[[line(1, "[builder 1/1] RUN x"), end("error")].concat()]);
    let error = watched(&platform).await.unwrap_err();
    assert_eq!(error, "the build failed in step 1: exit status 2 (build_failed)");
}

#[tokio::test]
async fn end_that_got_lost_is_found_by_the_build() {
    let platform = platform(&[line(1, "FROM debian"), String::new()]);
    *platform.build.lock().unwrap() = build("ready");
    assert_eq!(watched(&platform).await.unwrap(), "ready");
}

#[tokio::test]
async fn refused_log_ends_the_command() {
    let platform = platform(&["refused".to_owned()]);
    let error = watched(&platform).await.unwrap_err();
    assert!(error.contains("403"), "{error}");
}

#[tokio::test]
async fn first_interrupt_cancels_and_waits_for_the_end() {
    let platform = platform(&["until cancelled".to_owned()]);
    let (built, code) = with(&platform, async |client| {
        let mut presses = 0;
        let once = async || {
            presses += 1;
            if presses > 1 {
                std::future::pending::<()>().await;
            }
        };
        watch(client, &build_of(), (Form::Human, true), once).await.unwrap()
    })
    .await;
    assert!(built.is_none() && code == ExitCode::from(130));
    assert_eq!(platform.requests.lock().unwrap()[0].0, "cancel");
}

#[tokio::test]
async fn second_interrupt_leaves_at_once() {
    let platform = platform(&[": wait\n\n".to_owned()]);
    let (built, code) = with(&platform, async |client| {
        watch(client, &build_of(), (Form::Human, true), async || {}).await.unwrap()
    })
    .await;
    assert!(built.is_none() && code == ExitCode::from(130));
}

#[tokio::test]
async fn build_uploads_only_missing_files_and_sends_the_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_str().unwrap().to_owned();
    std::fs::write(folder.path().join("Dockerfile"), "FROM debian\nCOPY a /\nCOPY b /\n").unwrap();
    std::fs::write(folder.path().join("a"), vec![7; 1 << 20]).unwrap();
    std::fs::write(folder.path().join("b"), "b").unwrap();
    let platform = platform(&[end("ready"), end("ready")]);
    for _ in 0..2 {
        let words = ["wrenn", "template", "build", "web:v1", &dir, "--tag", "prod", "-e", "A=b"];
        let more = ["--start", "serve", "--memory", "1024", "--plain"];
        let cli = Cli::try_parse_from(words.into_iter().chain(more)).unwrap();
        let Command::Template(Template::Build(wanted)) = cli.command else { panic!("not build") };
        let code = with(&platform, async |client| super::build(*wanted, client, Form::Human).await);
        assert_eq!(code.await.unwrap(), ExitCode::SUCCESS);
    }
    let files = platform.files.lock().unwrap().clone();
    assert_eq!(files.len(), 2, "the second build finds both");
    assert!(files[0].1 > 1 << 20);
    let (_, body) = platform.requests.lock().unwrap()[0].clone();
    assert_eq!((&body["name"], &body["tags"]), (&json!("web:v1"), &json!(["prod"])));
    assert_eq!((&body["start"], &body["memory_mib"]), (&json!("serve"), &json!(1024)));
    assert_eq!(body["env"], json!({"A": "b"}));
    let step = &body["recipe"]["stages"][0]["steps"][0];
    assert_eq!(step["copy"]["files"], json!(files[0].0));
    let read: api::CreateBuild = serde_json::from_value(body).unwrap();
    let recipe: recipe::Recipe = serde_json::from_value(read.recipe.unwrap()).unwrap();
    recipe.check().unwrap();
}

#[test]
fn name_of_a_build_is_a_name_with_or_without_a_tag() {
    for good in ["web", "Web.1:v1"] {
        assert!(reference(good).is_ok(), "{good}");
    }
    for bad in ["", "team/web", "web:", "web:V1", &format!("web@{}", build_of())] {
        assert!(reference(bad).is_err(), "{bad}");
    }
}
