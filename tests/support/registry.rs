//! Registry of container images in the test's process. It records requests, and may demand logins.

use crate::oci::{INDEX, Image, MANIFEST, digest, named};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Token that a bearer login gets.
const TOKEN: &str = "registry-token-7f3c";

#[derive(Default)]
struct Inner {
    blobs: HashMap<String, Vec<u8>>,
    /// Documents by `REPOSITORY:TAG` and `REPOSITORY@DIGEST`, each with its media type.
    manifests: HashMap<String, (&'static str, Vec<u8>)>,
    /// Value of `Authorization` that the registry takes, and the challenge. Absent: anyone reads.
    login: Option<(String, String)>,
    /// Value of `Authorization` at the token server.
    token_login: String,
    requests: Vec<String>,
}

/// A running registry, which ends with the test.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Mutex<Inner>>,
    port: u16,
}

impl Registry {
    /// Starts a registry on this machine's loopback. It has a thread of its own, so it answers while
    /// the test waits for a command.
    ///
    /// # Panics
    /// When it cannot listen there.
    #[must_use]
    pub fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let this = Self { inner: Arc::default(), port };
        let app = Router::new().fallback(handle).with_state(this.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        std::thread::spawn(move || {
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                axum::serve(listener, app).await
            })
        });
        this
    }

    fn with<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        change(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the registry's host, as references and settings name it.
    #[must_use]
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns a reference of an image here.
    #[must_use]
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.host())
    }

    /// Writes an operator's settings, which permit plain HTTP here. The registry is the mirror of
    /// Docker Hub too. Returns the file's path for `WRENN_REGISTRIES`.
    ///
    /// # Panics
    /// When the file cannot be written.
    #[must_use]
    pub fn settings(&self, dir: &std::path::Path) -> String {
        let host = self.host();
        let text = format!(
            "rewrites = [{{ from = \"docker.io/\", to = \"{host}/\" }}]\n\
             [registries.\"{host}\"]\nhttp = true\nprivate = true\n"
        );
        let file = dir.join("registries.toml");
        std::fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    }

    /// Puts an image under a name such as `app:v1`, in place of an earlier one. Returns the
    /// manifest's digest.
    pub fn push(&self, name: &str, image: &Image) -> String {
        let manifest = self.upload(name, image);
        self.name(name, MANIFEST, manifest)
    }

    /// Puts an index of images for several architectures under a name.
    pub fn push_index(&self, name: &str, images: &[Image]) -> String {
        let entry = |image: &Image| {
            let mut entry = named(MANIFEST, &self.upload(name, image));
            entry["platform"] = json!({ "os": "linux", "architecture": image.architecture() });
            entry
        };
        let manifests: Vec<Value> = images.iter().map(entry).collect();
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
        self.name(name, INDEX, index.to_string().into_bytes())
    }

    /// Stores an image's blobs, and its manifest by digest alone.
    fn upload(&self, name: &str, image: &Image) -> Vec<u8> {
        let (manifest, blobs) = image.documents();
        let repository = name.split(':').next().unwrap_or(name);
        self.with(|inner| {
            inner.blobs.extend(blobs.into_iter().map(|blob| (digest(&blob), blob)));
            let key = format!("{repository}@{}", digest(&manifest));
            inner.manifests.insert(key, (MANIFEST, manifest.clone()));
        });
        manifest
    }

    fn name(&self, name: &str, kind: &'static str, document: Vec<u8>) -> String {
        let (repository, tag) = name.split_once(':').unwrap_or((name, "latest"));
        let digest = digest(&document);
        self.with(|inner| {
            let by_digest = format!("{repository}@{digest}");
            inner.manifests.insert(by_digest, (kind, document.clone()));
            inner.manifests.insert(format!("{repository}:{tag}"), (kind, document));
        });
        digest
    }

    /// Demands a login by Basic.
    pub fn demand_basic(&self, user: &str, password: &str) {
        let login = basic(user, password);
        self.with(|inner| inner.login = Some((login, "Basic realm=\"test\"".to_owned())));
    }

    /// Demands a token, which the registry itself gives for a login.
    pub fn demand_bearer(&self, user: &str, password: &str) {
        let realm = format!("http://{}/token", self.host());
        let challenge = format!("Bearer realm=\"{realm}\",service=\"test\"");
        self.with(|inner| {
            inner.token_login = basic(user, password);
            inner.login = Some((format!("Bearer {TOKEN}"), challenge));
        });
    }

    /// Returns the requests since the last call, as method and path.
    #[must_use]
    pub fn take_requests(&self) -> Vec<String> {
        self.with(|inner| std::mem::take(&mut inner.requests))
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

async fn handle(State(registry): State<Registry>, request: Request) -> Response {
    let (path, headers) = (request.uri().path(), request.headers());
    registry.with(|inner| {
        inner.requests.push(format!("{} {path}", request.method()));
        inner.answer(path, headers)
    })
}

impl Inner {
    fn answer(&self, path: &str, headers: &HeaderMap) -> Response {
        let sent = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        if path == "/token" {
            return match sent == Some(self.token_login.as_str()) {
                true => axum::Json(json!({ "token": TOKEN, "expires_in": 300 })).into_response(),
                false => StatusCode::UNAUTHORIZED.into_response(),
            };
        }
        if let Some((login, challenge)) = &self.login
            && sent != Some(login)
        {
            let challenge = [(header::WWW_AUTHENTICATE, challenge.clone())];
            return (StatusCode::UNAUTHORIZED, challenge, failure("UNAUTHORIZED")).into_response();
        }
        let missing = || (StatusCode::NOT_FOUND, failure("MANIFEST_UNKNOWN")).into_response();
        let Some(rest) = path.strip_prefix("/v2/") else { return missing() };
        if let Some((_, wanted)) = rest.split_once("/blobs/") {
            return self
                .blobs
                .get(wanted)
                .map_or_else(missing, |blob| blob.clone().into_response());
        }
        let Some((repository, name)) = rest.split_once("/manifests/") else { return missing() };
        let separator = if name.contains(':') { '@' } else { ':' };
        let found = self.manifests.get(&format!("{repository}{separator}{name}"));
        found.map_or_else(missing, |(kind, document)| {
            let kind = (header::CONTENT_TYPE, (*kind).to_owned());
            let name = header::HeaderName::from_static("docker-content-digest");
            ([kind, (name, digest(document))], document.clone()).into_response()
        })
    }
}

fn failure(code: &str) -> String {
    json!({ "errors": [{ "code": code, "message": code, "detail": null }] }).to_string()
}
