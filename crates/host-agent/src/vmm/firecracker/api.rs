//! Firecracker's API: HTTP over a socket in the machine's root. Each request has a time limit that
//! fits its work. A failed request's error holds Firecracker's own message.

use super::files::SOCKET;
use crate::vmm::socket;
use daemon::Tasks;
use hop::{Body, Dial, Failed, Pool, Stream};
use http::{Method, Request, header};
use http_body_util::{BodyExt, Limited};
use serde_json::Value;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time limit for requests that Firecracker handles at once.
pub(super) const PROMPT: Duration = Duration::from_secs(60);
/// Most bytes of an answer that are read.
const ANSWER_MAX: usize = 1 << 20;
/// Idle connections in the pool, for each machine.
const RESTING: usize = 1;

/// Connections to the machines of one agent.
pub(crate) struct Api(Pool<Sockets>);

struct Sockets;

impl Dial for Sockets {
    /// Root of the machine.
    type To = PathBuf;

    async fn dial(&self, root: &PathBuf) -> io::Result<Box<dyn Stream>> {
        Ok(Box::new(socket::connect(root, SOCKET).await?))
    }
}

impl Api {
    pub(super) fn new(tasks: Tasks) -> Self {
        Self(Pool::new(Sockets, RESTING, tasks))
    }

    /// Forgets the connections to a machine that has ended.
    pub(super) fn forget(&self, root: &Path) {
        self.0.forget(&root.to_owned());
    }

    pub(super) async fn get(&self, root: &Path, path: &str) -> io::Result<Value> {
        self.ask(root, Method::GET, path, None, PROMPT).await
    }

    pub(super) async fn put(&self, root: &Path, path: &str, body: Value) -> io::Result<()> {
        self.put_for(root, path, body, PROMPT).await
    }

    /// Sends a request like [`Self::put`], for work that may take as long as `limit`.
    pub(super) async fn put_for(
        &self,
        root: &Path,
        path: &str,
        body: Value,
        limit: Duration,
    ) -> io::Result<()> {
        self.ask(root, Method::PUT, path, Some(body), limit).await.map(|_| ())
    }

    pub(super) async fn patch(&self, root: &Path, path: &str, body: Value) -> io::Result<()> {
        self.ask(root, Method::PATCH, path, Some(body), PROMPT).await.map(|_| ())
    }

    async fn ask(
        &self,
        root: &Path,
        method: Method,
        path: &str,
        body: Option<Value>,
        limit: Duration,
    ) -> io::Result<Value> {
        let what = format!("{method} {path}");
        let asked = tokio::time::timeout(limit, self.exchange(root, method, path, body)).await;
        let (status, answer) = asked
            .unwrap_or_else(|_| Err(io::Error::other(format!("no answer in {limit:?}"))))
            .map_err(|error| io::Error::new(error.kind(), format!("{what}: {error}")))?;
        read(&what, status, &answer)
    }

    async fn exchange(
        &self,
        root: &Path,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> io::Result<(http::StatusCode, Vec<u8>)> {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONTENT_LENGTH, body.len())
            .body(Body::from(body))
            .map_err(io::Error::other)?;
        let answer = match self.0.send(&root.to_owned(), request).await {
            Ok(sent) => sent.answer,
            Err(Failed { error: hop::Error::Dial(error), .. }) => return Err(error),
            Err(failed) => return Err(io::Error::other(failed.error)),
        };
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_MAX)
            .collect()
            .await
            .map_err(io::Error::other)?;
        Ok((status, body.to_bytes().to_vec()))
    }
}

/// Reads the answer to a request.
pub(super) fn read(what: &str, status: http::StatusCode, answer: &[u8]) -> io::Result<Value> {
    if status.is_success() {
        let empty = answer.is_empty();
        return if empty { Ok(Value::Null) } else { Ok(serde_json::from_slice(answer)?) };
    }
    let said = serde_json::from_slice::<Value>(answer).unwrap_or_default();
    let said = said["fault_message"].as_str().unwrap_or("no reason").to_owned();
    Err(io::Error::other(format!("{what}: {status}: {said}")))
}
