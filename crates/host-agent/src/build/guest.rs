//! The guest of a build: the routes that envd serves in a builder, and programs by envd's process
//! service. Every answer is a guest's, so it is bounded and never trusted.

use super::parts::{Builder, CopySource, Output, Refused, Root, Stream};
use crate::capsule::manager::Manager;
use crate::guest::program::{Event, Program};
use crate::guest::{Guest, Identity};
use crate::log::LogMode;
use bytes::Bytes;
use connectrpc::{ConnectError, ErrorCode};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use hop::Body;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::Frame;
use recipe::resolve::{self, CopyWork, RunWork};
use recipe::steps::Mount;
use recipe::{Dialect, e2b};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use types::CapsuleId;

/// Time for a guest to begin a step's root. The guest first writes the step before to its disk.
const ROOT: Duration = Duration::from_secs(300);
/// Time between two looks for a new root.
const LOOK: Duration = Duration::from_millis(10);
/// Time limit of one look.
const LOOK_MAX: Duration = Duration::from_secs(2);
/// Time limit of routes that answer at once.
const CALL: Duration = Duration::from_secs(60);
/// Longest wait for the end of a machine that is killed.
const KILL: Duration = Duration::from_secs(1);
/// Most tries to set up a root.
const TRIES: u32 = 5;
/// Most bytes of an answer.
const ANSWER_MAX: usize = 64 * 1024;
/// Bytes of an archive that are read at once.
const CHUNK: usize = 256 * 1024;
/// Header of `/health` with the number of the root's folder.
const ROOT_HEADER: &str = "x-wrenn-root";
/// Header of `/health` with the reason why a root was not made.
const ERROR_HEADER: &str = "x-wrenn-root-error";

/// The guest of a build's capsule.
pub(super) struct HostBuilder {
    pub manager: Manager,
    pub capsule: CapsuleId,
    pub guest: Guest,
    pub token: String,
}

impl HostBuilder {
    async fn send(&self, method: Method, path: &str, body: Body) -> Result<Bytes, Refused> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "envd")
            .header(protocol::ACCESS_TOKEN, &self.token)
            .body(body)
            .map_err(|error| Refused::Guest(error.to_string()))?;
        let sent = Box::pin(self.guest.pool().send(&protocol::ENVD_PORT, request)).await;
        let answer = sent.map_err(|failed| silent(&failed.error))?.answer;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
        let body = body.map_err(|error| silent(&*error))?.to_bytes();
        match status.is_success() {
            true => Ok(body),
            false => Err(refusal(status, &body)),
        }
    }

    /// Calls a route that answers at once.
    async fn call(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, Refused> {
        let called = tokio::time::timeout(CALL, self.send(method, path, Body::from(body)));
        let late = || Refused::Guest(format!("the guest did not answer {path} in time"));
        called.await.unwrap_or_else(|_| Err(late()))
    }

    async fn post(&self, path: &str, body: Value) -> Result<Bytes, Refused> {
        self.call(Method::POST, path, body.to_string().into()).await
    }

    /// Begins a root, and gives its server the capsule's token. Ends with the machine.
    async fn enter(&self, next: Value, folder: u32, path: Option<String>) -> Result<(), Refused> {
        let ended = || Refused::Guest("the build's capsule has ended".to_owned());
        tokio::select! {
            entered = self.change_root(next, folder, path) => entered,
            () = self.guest.gone() => Err(ended()),
        }
    }

    async fn change_root(
        &self,
        next: Value,
        folder: u32,
        path: Option<String>,
    ) -> Result<(), Refused> {
        self.post("/build/root", next).await?;
        self.guest.pool().clear();
        let begun = Instant::now();
        while !self.is_there(folder).await? {
            if begun.elapsed() > ROOT {
                return Err(Refused::Guest("the guest did not begin the step in time".to_owned()));
            }
            tokio::time::sleep(LOOK).await;
        }
        let identity = Identity {
            // The root's `/etc/hosts` has this name.
            hostname: "capsule".to_owned(),
            token: self.token.clone(),
            old_token: None,
            envs: BTreeMap::new(),
            user: None,
            workdir: None,
            path,
            metadata: None,
            logs: LogMode::None,
            fresh: false,
        };
        let mut tries = 0;
        loop {
            let set = tokio::time::timeout(CALL, self.guest.initialize(&identity)).await;
            let set = set.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            tries += 1;
            match set {
                Ok(()) => return Ok(()),
                Err(error) if tries == TRIES => return Err(silent(&error)),
                // A guest on a busy machine may take too long to set its clock.
                Err(error) => tracing::debug!(%error, "a step's root is not set up yet"),
            }
        }
    }

    /// Reports whether the server of a root answers.
    async fn is_there(&self, folder: u32) -> Result<bool, Refused> {
        let request = Request::builder().uri("/health").header(header::HOST, "envd");
        let request = request.body(Body::empty()).unwrap_or_default();
        let asked = Box::pin(self.guest.pool().send(&protocol::ENVD_PORT, request));
        let Ok(Ok(sent)) = tokio::time::timeout(LOOK_MAX, asked).await else { return Ok(false) };
        let header = |name: &str| {
            let value = sent.answer.headers().get(name)?;
            Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        match (sent.answer.status().is_success(), header(ERROR_HEADER)) {
            (false, _) => Ok(false),
            (true, Some(why)) => {
                Err(Refused::Guest(format!("the guest cannot begin the step: {why}")))
            }
            (true, None) => Ok(header(ROOT_HEADER) == Some(folder.to_string())),
        }
    }

    async fn program(&self, work: &RunWork, output: Output<'_>) -> Result<i32, Refused> {
        if !work.mounts.is_empty() {
            self.post("/build/mounts", mounts(&work.mounts)).await?;
        }
        let argv = match &work.program {
            resolve::Program::Argv(argv) => argv.clone(),
            resolve::Program::Script(text) => vec![self.script(text).await?],
        };
        let program = Program {
            argv,
            envs: work.env.clone(),
            user: Some(work.user.clone()),
            cwd: Some(work.workdir.clone()),
            ..Program::default()
        };
        let mut events =
            self.guest.start(&self.token, program).await.map_err(|error| not_run(&error))?;
        let status = loop {
            match events.next().await {
                Some(Ok(Event::Stdout(bytes))) => output(Stream::Stdout, &bytes),
                Some(Ok(Event::Stderr(bytes))) => output(Stream::Stderr, &bytes),
                Some(Ok(Event::Exit(status))) => break status,
                Some(Err(error)) => return Err(not_run(&error)),
                None => return Err(Refused::Guest("the output broke off".to_owned())),
            }
        };
        if !work.mounts.is_empty() {
            self.call(Method::DELETE, "/build/mounts", Bytes::new()).await?;
        }
        Ok(status)
    }

    /// Writes a script outside of the step's files, and returns its path.
    async fn script(&self, text: &str) -> Result<String, Refused> {
        #[derive(serde::Deserialize)]
        struct Written {
            path: String,
        }
        let body = text.to_owned().into();
        let answer = self.call(Method::PUT, "/build/script?name=run", body).await?;
        let written: Result<Written, _> = serde_json::from_slice(&answer);
        written.map(|written| written.path).map_err(|error| silent(&error))
    }

    async fn place(
        &self,
        work: &CopyWork,
        dialect: Dialect,
        source: CopySource,
    ) -> Result<(), Refused> {
        let wrong = |error: serde_json::Error| Refused::Guest(error.to_string());
        let mut order = serde_json::to_value(work).map_err(wrong)?;
        order["dialect"] = serde_json::to_value(dialect).map_err(wrong)?;
        if let CopySource::Stack { lower, image } = &source {
            order["origin"] = json!({ "lower": lower.to_string(), "image": image });
        }
        let line = Bytes::from(format!("{order}\n"));
        let body = match source {
            CopySource::Archive(path) => archive(line, &path).map_err(|error| {
                Refused::Guest(format!("the uploaded files cannot be read: {error}"))
            })?,
            CopySource::Inline | CopySource::Stack { .. } => {
                let plain = Full::new(line).map_err(|never| match never {});
                Body::boxed(plain)
            }
        };
        self.send(Method::POST, "/build/copy", body).await.map(drop)
    }

    async fn end(&self, remove: Option<u32>, to: &Path) -> io::Result<()> {
        let next = json!({ "folder": 0, "remove": remove.into_iter().collect::<Vec<u32>>() });
        self.enter(next, 0, None).await.map_err(io::Error::other)?;
        self.guest.quiesce(&self.token, true).await?;
        let taken = self.manager.take_disk(self.capsule).await;
        let taken = taken.map_err(|error| io::Error::other(crate::capsule::chain(&error)))?;
        fs::rename(taken, to)
    }
}

/// Returns a body of a line and the contents of a file.
fn archive(line: Bytes, path: &Path) -> io::Result<Body> {
    let file = Arc::new(File::open(path)?);
    let size = file.metadata()?.len();
    let parts = futures::stream::unfold((file, 0_u64), move |(file, at)| async move {
        let length = usize::try_from((size - at).min(CHUNK as u64)).unwrap_or(CHUNK);
        if length == 0 {
            return None;
        }
        let from = Arc::clone(&file);
        let read = daemon::blocking(move || {
            let mut chunk = vec![0; length];
            from.read_exact_at(&mut chunk, at)?;
            Ok(Bytes::from(chunk))
        });
        Some((read.await, (file, at + length as u64)))
    });
    let line = futures::stream::once(async { Ok(line) });
    Ok(Body::boxed(StreamBody::new(line.chain(parts).map(|part| part.map(Frame::data)))))
}

/// Returns the body of a request for mounts. A cache is an empty folder.
fn mounts(all: &[Mount]) -> Value {
    let (mut tmpfs, mut cache) = (Vec::new(), Vec::new());
    for mount in all {
        match mount {
            Mount::Tmpfs { target, size } => tmpfs.push(json!({"target": target, "size": size})),
            Mount::Cache { target, .. } => cache.push(json!({ "target": target })),
        }
    }
    json!({ "tmpfs": tmpfs, "cache": cache })
}

fn silent(error: &(dyn std::error::Error + '_)) -> Refused {
    Refused::Guest(format!("the guest does not answer as it should: {error}"))
}

/// Reads envd's error of a route.
fn refusal(status: StatusCode, body: &[u8]) -> Refused {
    #[derive(serde::Deserialize)]
    struct Told {
        message: String,
    }
    let told = serde_json::from_slice(body).map(|told: Told| told.message);
    let message = told.unwrap_or_else(|_| format!("the guest answered {status}"));
    match status {
        StatusCode::UNAUTHORIZED => Refused::User(message),
        status if status.is_client_error() || status == StatusCode::INSUFFICIENT_STORAGE => {
            Refused::Work(message)
        }
        _ => Refused::Guest(message),
    }
}

/// Reads envd's error of a program.
fn not_run(error: &ConnectError) -> Refused {
    let message = error.message.clone().unwrap_or_else(|| "the program did not start".to_owned());
    let is_of_work = matches!(
        error.code,
        ErrorCode::InvalidArgument | ErrorCode::NotFound | ErrorCode::PermissionDenied
    );
    if error.code == ErrorCode::Unauthenticated {
        Refused::User(message)
    } else if is_of_work {
        Refused::Work(message)
    } else {
        Refused::Guest(message)
    }
}

impl Builder for HostBuilder {
    fn begin<'a>(&'a self, root: &'a Root) -> BoxFuture<'a, Result<(), Refused>> {
        let lower = root.lower.to_string();
        let next = json!({ "folder": root.folder, "lower": lower, "image": root.image });
        self.enter(next, root.folder, root.path.clone()).boxed()
    }

    fn run<'a>(
        &'a self,
        work: &'a RunWork,
        output: Output<'a>,
    ) -> BoxFuture<'a, Result<i32, Refused>> {
        self.program(work, output).boxed()
    }

    fn copy<'a>(
        &'a self,
        work: &'a CopyWork,
        dialect: Dialect,
        source: CopySource,
    ) -> BoxFuture<'a, Result<(), Refused>> {
        self.place(work, dialect, source).boxed()
    }

    fn make_folder<'a>(
        &'a self,
        path: &'a str,
        owner: &'a str,
    ) -> BoxFuture<'a, Result<(), Refused>> {
        let folder = json!({ "path": path, "owner": owner });
        async move { self.post("/build/folder", folder).await.map(drop) }.boxed()
    }

    fn make_user<'a>(
        &'a self,
        name: &'a str,
        dialect: Dialect,
    ) -> BoxFuture<'a, Result<(), Refused>> {
        let sudo = dialect == Dialect::E2b && name == e2b::USER;
        let user = json!({ "name": name, "create": true, "sudo": sudo });
        async move { self.post("/build/user", user).await.map(drop) }.boxed()
    }

    fn close<'a>(&'a self, remove: Option<u32>, to: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        self.end(remove, to).boxed()
    }

    fn kill(&self) -> BoxFuture<'_, ()> {
        async move {
            let killed = tokio::time::timeout(KILL, self.manager.end_builder(self.capsule));
            // The platform removes the capsule too, and a slow end goes on by itself.
            if let Ok(Err(error)) = killed.await {
                let error = crate::capsule::chain(&error);
                tracing::debug!(id = %self.capsule, error, "cannot end a builder's machine");
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_of_a_guest_keeps_its_text_and_kind() {
        let body = br#"{"code": 401, "message": "invalid username: 'x'"}"#;
        let user = refusal(StatusCode::UNAUTHORIZED, body);
        assert_eq!(user, Refused::User("invalid username: 'x'".to_owned()));
        let work = refusal(StatusCode::BAD_REQUEST, br#"{"message": "no"}"#);
        assert_eq!(work, Refused::Work("no".to_owned()));
        let guest = refusal(StatusCode::BAD_GATEWAY, b"<html>");
        assert!(matches!(guest, Refused::Guest(_)));
    }

    #[test]
    fn mounts_are_sorted_by_kind() {
        let all = [
            Mount::Tmpfs { target: "/t".to_owned(), size: Some(1) },
            Mount::Cache { target: "/c".to_owned(), id: None },
        ];
        let wanted = json!({"tmpfs": [{"target": "/t", "size": 1}], "cache": [{"target": "/c"}]});
        assert_eq!(mounts(&all), wanted);
    }

    #[tokio::test]
    async fn body_of_a_copy_is_its_order_and_the_archive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, vec![7; CHUNK + 5]).unwrap();
        let body = archive(Bytes::from("{}\n"), &path).unwrap();
        let body = body.collect().await.unwrap().to_bytes();
        assert_eq!(body.len(), CHUNK + 8);
        assert!(body.starts_with(b"{}\n\x07"));
    }
}
