//! A registry inside the test's process, which records each request and misbehaves as asked.

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, StreamExt};
use registry::Digest;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub method: Method,
    /// Path and query.
    pub target: String,
    pub headers: HeaderMap,
    pub body: String,
}

/// Behaviour for one blob or manifest, by digest or tag.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The connection ends after so many bytes, as often as this.
    Cut { after: usize, times: u32 },
    /// Nothing comes after so many bytes.
    Stall { after: usize },
    /// Zeros without an end.
    Endless,
    /// Other contents.
    Instead(Vec<u8>),
    /// A redirect with this status.
    Redirect(u16, String),
    /// Contents whole, although a range was asked for, after one cut.
    NoRange { after: usize, times: u32 },
    /// An error with a status and a text, so often, with `Retry-After: 0`.
    Status { status: u16, times: u32, code: &'static str, text: String },
    /// An error 429 with a wait that is too long.
    Later,
    /// An HTML page.
    Page,
    /// No digest in the header.
    NoDigest,
}

#[derive(Default)]
struct Inner {
    blobs: HashMap<String, Vec<u8>>,
    manifests: HashMap<String, (String, Vec<u8>)>,
    faults: HashMap<String, Fault>,
    /// `WWW-Authenticate` headers. Empty: everybody may read.
    challenges: Vec<String>,
    /// Values of `Authorization` that are taken.
    taken: Vec<String>,
    /// Answer to `/token`, and the value of `Authorization` that it takes.
    token: Option<(String, Option<String>)>,
    /// Answer to POST on `/`, as ECR's API.
    ecr: Option<String>,
    /// Makes errors repeat the request's `Authorization`.
    echo: bool,
    seen: Vec<Seen>,
}

/// A running registry, which ends with the test.
#[derive(Clone)]
pub(crate) struct Fake {
    inner: Arc<Mutex<Inner>>,
    port: u16,
}

impl Fake {
    #[allow(clippy::disallowed_methods, reason = "the server ends with the test's runtime")]
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let fake = Self { inner: Arc::default(), port };
        let app = Router::new().fallback(handle).with_state(fake.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        fake
    }

    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.host())
    }

    fn with<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        change(&mut self.inner.lock().unwrap())
    }

    pub(crate) fn put_blob(&self, bytes: &[u8]) {
        let digest = Digest::sha256(bytes).to_string();
        self.with(|inner| inner.blobs.insert(digest, bytes.to_vec()));
    }

    pub(crate) fn put_manifest(&self, repository: &str, tag: &str, kind: &str, bytes: &[u8]) {
        let digest = Digest::sha256(bytes).to_string();
        self.with(|inner| {
            for name in [tag, &digest] {
                let contents = (kind.to_owned(), bytes.to_vec());
                inner.manifests.insert(format!("{repository}/{name}"), contents);
            }
        });
    }

    pub(crate) fn fault(&self, name: impl ToString, fault: Fault) {
        self.with(|inner| inner.faults.insert(name.to_string(), fault));
    }

    /// Demands credentials by these challenges, and takes these values of `Authorization`.
    pub(crate) fn demand(&self, challenges: &[String], taken: &[&str]) {
        self.with(|inner| {
            inner.challenges = challenges.to_vec();
            inner.taken = taken.iter().map(|&value| value.to_owned()).collect();
        });
    }

    /// Serves a token at `/token`, to all or to those with a value of `Authorization`.
    pub(crate) fn token(&self, answer: &str, only: Option<&str>) {
        self.with(|inner| inner.token = Some((answer.to_owned(), only.map(str::to_owned))));
    }

    pub(crate) fn ecr(&self, token: &str) {
        self.with(|inner| inner.ecr = Some(token.to_owned()));
    }

    pub(crate) fn echo(&self) {
        self.with(|inner| inner.echo = true);
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.with(|inner| inner.seen.clone())
    }

    /// Returns the requests since the last call, as method and target.
    pub(crate) fn taken(&self) -> Vec<String> {
        let seen = self.with(|inner| std::mem::take(&mut inner.seen));
        seen.iter().map(|seen| format!("{} {}", seen.method, seen.target)).collect()
    }

    fn answer(&self, seen: Seen) -> Response {
        self.with(|inner| {
            inner.seen.push(seen.clone());
            inner.answer(&seen)
        })
    }
}

async fn handle(State(fake): State<Fake>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap_or_default();
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str()).to_owned();
    fake.answer(Seen {
        method: parts.method,
        target,
        headers: parts.headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

impl Inner {
    fn answer(&mut self, seen: &Seen) -> Response {
        let path = seen.target.split('?').next().unwrap_or("");
        let authorization = seen.headers.get("authorization").and_then(|value| value.to_str().ok());
        if path == "/token" {
            return self.serve_token(authorization);
        }
        if path == "/"
            && let Some(token) = &self.ecr
        {
            let body = format!(r#"{{"authorizationData": [{{"authorizationToken": "{token}"}}]}}"#);
            return body.into_response();
        }
        let is_taken = authorization.is_some_and(|value| self.taken.iter().any(|one| one == value));
        if !self.challenges.is_empty() && !is_taken {
            let repeated = if self.echo { authorization.unwrap_or("") } else { "no" };
            let mut response = failure(401, "UNAUTHORIZED", repeated);
            for challenge in &self.challenges {
                response.headers_mut().append("www-authenticate", challenge.parse().unwrap());
            }
            return response;
        }
        if let Some(name) = path.strip_prefix("/storage/") {
            return self.serve_blob(seen, name);
        }
        let Some(rest) = path.strip_prefix("/v2/") else { return failure(404, "", "no path") };
        if let Some((_, digest)) = rest.split_once("/blobs/") {
            return self.serve_blob(seen, digest);
        }
        match rest.split_once("/manifests/") {
            Some((repository, name)) => self.serve_manifest(seen, repository, name),
            None => failure(404, "", "no path"),
        }
    }

    fn serve_token(&self, authorization: Option<&str>) -> Response {
        match &self.token {
            Some((_, Some(only))) if authorization != Some(only) => {
                let repeated = if self.echo { authorization.unwrap_or("") } else { "no" };
                failure(401, "UNAUTHORIZED", repeated)
            }
            Some((answer, _)) => answer.clone().into_response(),
            None => failure(404, "", "no token"),
        }
    }

    fn serve_manifest(&mut self, seen: &Seen, repository: &str, name: &str) -> Response {
        let known = self.manifests.keys().any(|key| key.starts_with(&format!("{repository}/")));
        let Some((kind, bytes)) = self.manifests.get(&format!("{repository}/{name}")).cloned()
        else {
            let code = if known { "MANIFEST_UNKNOWN" } else { "NAME_UNKNOWN" };
            return failure(404, code, "not here");
        };
        if let Some(response) = self.misbehave(seen, name, &bytes) {
            return response;
        }
        let mut response = (StatusCode::OK, bytes.clone()).into_response();
        response.headers_mut().insert("content-type", kind.parse().unwrap());
        if !matches!(self.faults.get(name), Some(Fault::NoDigest)) {
            let digest = Digest::sha256(&bytes).to_string();
            response.headers_mut().insert("docker-content-digest", digest.parse().unwrap());
        }
        response
    }

    fn serve_blob(&mut self, seen: &Seen, digest: &str) -> Response {
        let Some(bytes) = self.blobs.get(digest).cloned() else {
            return failure(404, "BLOB_UNKNOWN", "no blob");
        };
        // A redirect is for the registry's own path; the storage serves.
        let at_storage = seen.target.starts_with("/storage/");
        if !at_storage && let Some(response) = self.misbehave(seen, digest, &bytes) {
            return response;
        }
        match range(seen) {
            Some(from) => {
                let value = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                let headers = [("content-range", value)];
                (StatusCode::PARTIAL_CONTENT, headers, bytes[from..].to_vec()).into_response()
            }
            None => bytes.into_response(),
        }
    }

    fn misbehave(&mut self, seen: &Seen, name: &str, bytes: &[u8]) -> Option<Response> {
        let fault = self.faults.get_mut(name)?;
        let from = range(seen).unwrap_or(0);
        Some(match fault {
            Fault::Cut { times: 0, .. } | Fault::NoDigest => return None,
            Fault::Status { times: 0, .. } => return None,
            Fault::Cut { after, times } => {
                *times -= 1;
                cut(bytes, from, *after, range(seen).is_some())
            }
            Fault::NoRange { times: 0, .. } => bytes.to_vec().into_response(),
            Fault::NoRange { after, times } => {
                *times -= 1;
                cut(bytes, 0, *after, false)
            }
            Fault::Stall { after } => {
                let start = stream::iter([Ok::<_, io::Error>(bytes[..*after].to_vec())]);
                let body = Body::from_stream(start.chain(stream::pending()));
                ([("content-length", bytes.len().to_string())], body).into_response()
            }
            Fault::Endless => {
                let zeros = stream::repeat_with(|| Ok::<_, io::Error>(vec![0u8; 65536]));
                Body::from_stream(zeros).into_response()
            }
            Fault::Instead(other) => other.clone().into_response(),
            Fault::Redirect(status, to) => {
                let status = StatusCode::from_u16(*status).unwrap();
                (status, [("location", to.clone())], "moved").into_response()
            }
            Fault::Status { status, times, code, text } => {
                *times -= 1;
                let mut response = failure(*status, code, text);
                response.headers_mut().insert("retry-after", "0".parse().unwrap());
                response
            }
            Fault::Later => {
                let mut response = failure(429, "TOOMANYREQUESTS", "the limit of pulls is reached");
                response.headers_mut().insert("retry-after", "3600".parse().unwrap());
                response
            }
            Fault::Page => {
                let headers = [("content-type", "text/html; charset=utf-8")];
                (headers, "<html>please log in</html>").into_response()
            }
        })
    }
}

/// Answers with bytes from an offset on, and ends the connection after some.
fn cut(bytes: &[u8], from: usize, after: usize, is_range: bool) -> Response {
    let end = (from + after).min(bytes.len());
    let part = stream::iter([
        Ok(bytes[from..end].to_vec()),
        Err(io::Error::from(io::ErrorKind::ConnectionReset)),
    ]);
    // The error comes later than the bytes, so that these reach the client.
    let part = part.then(async |item| {
        if item.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        item
    });
    let mut response = Body::from_stream(part).into_response();
    let headers = response.headers_mut();
    headers.insert("content-length", (bytes.len() - from).into());
    if is_range {
        let value = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
        headers.insert("content-range", value.parse().unwrap());
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    response
}

fn range(seen: &Seen) -> Option<usize> {
    let value = seen.headers.get("range")?.to_str().ok()?;
    value.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

fn failure(status: u16, code: &str, message: &str) -> Response {
    let body = serde_json::json!({"errors": [{"code": code, "message": message}]}).to_string();
    let headers = [("content-type", "application/json")];
    (StatusCode::from_u16(status).unwrap(), headers, body).into_response()
}
