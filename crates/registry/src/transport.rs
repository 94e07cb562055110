//! Requests to registries, and their redirects. Each request has limits of time and size, and each
//! of its URLs is checked by the guard. Credentials never follow a redirect to another origin.

use crate::error::{Error, Result};
use crate::guard::{Public, authority, is_private_literal};
use crate::secret::Secret;
use crate::settings::{RegistrySettings, Settings, read_pem, wrong};
use bytes::Bytes;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE,
};
use reqwest::{Method, Response, StatusCode, Url};
use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use types::NoPublicAddress;

/// Host of Docker Hub's API. Its references name `docker.io`.
pub(crate) const DOCKER_HUB_API: &str = "registry-1.docker.io";
/// Time limit of a connection, with its handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Most redirects of a request.
const REDIRECTS_MAX: usize = 5;

/// Clients by host, and the settings that decide about URLs.
pub(crate) struct Transport {
    settings: Arc<Settings>,
    /// Client for hosts without settings, which connects to public addresses alone.
    public: reqwest::Client,
    /// Clients for hosts with settings. A client certificate is shown to its host alone.
    own: BTreeMap<String, reqwest::Client>,
}

/// A request to be sent.
#[derive(Clone)]
pub(crate) struct Request {
    pub method: Method,
    pub url: Url,
    /// Part of an error that says whose URL it is, such as `redirect`.
    pub what: &'static str,
    pub headers: HeaderMap,
    pub authorization: Option<Secret>,
    pub body: Option<Secret>,
}

impl Request {
    pub(crate) fn get(url: Url, what: &'static str) -> Self {
        let (method, headers) = (Method::GET, HeaderMap::new());
        Self { method, url, what, headers, authorization: None, body: None }
    }

    pub(crate) fn accept(mut self, types: &'static str) -> Self {
        self.headers.insert(ACCEPT, HeaderValue::from_static(types));
        self
    }

    /// Asks for the bytes from an offset on.
    pub(crate) fn from(mut self, offset: u64) -> Self {
        if let Ok(range) = HeaderValue::from_str(&format!("bytes={offset}-")) {
            self.headers.insert(RANGE, range);
        }
        self
    }
}

/// The sender of a request, as its errors and limits need it.
#[derive(Clone, Copy)]
pub(crate) struct Sender<'a> {
    /// Name of the registry.
    pub registry: &'a str,
    /// Set if the operator permits plain HTTP for the registry itself.
    pub http: bool,
    /// Image of the pull, for errors.
    pub image: &'a str,
    pub deadline: Instant,
}

/// An answer, with a mark if it came from the origin that was asked.
pub(crate) struct Answer {
    pub response: Response,
    pub from_own_origin: bool,
}

impl Transport {
    pub(crate) fn new(settings: Arc<Settings>) -> Result<Self> {
        // Programs that run this crate install the same provider. A second one has no effect.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let idle = settings.limits.idle();
        let failed = |e: reqwest::Error| wrong("registries", &explain(&e));
        let public = builder(idle).dns_resolver(Arc::new(Public)).build().map_err(failed)?;
        let mut own = BTreeMap::new();
        for (host, registry) in &settings.registries {
            own.insert(api_host(host).to_owned(), own_client(host, registry, idle)?);
        }
        Ok(Self { settings, public, own })
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns the settings for a URL's host, if there are any.
    fn settings_of(&self, host: &str) -> Option<&RegistrySettings> {
        self.settings.registry(if host == DOCKER_HUB_API {
            crate::reference::DOCKER_HUB
        } else {
            host
        })
    }

    /// Checks a URL: its scheme, and its address if it is a literal one.
    ///
    /// # Errors
    /// Returns `Url`, `NotEncrypted` or `PrivateAddress`.
    pub(crate) fn check(&self, url: &Url, what: &'static str, by: &Sender<'_>) -> Result<()> {
        let registry = by.registry.to_owned();
        let host = authority(url);
        if url.host_str().is_none_or(str::is_empty)
            || !url.username().is_empty()
            || url.password().is_some()
        {
            let why = "it has no host, or it has a user or a password";
            return Err(Error::Url { registry, what, why });
        }
        match url.scheme() {
            "https" => {}
            "http" if by.http || self.settings_of(&host).is_some_and(|own| own.http) => {}
            "http" => return Err(Error::NotEncrypted { registry, what, host }),
            _ => return Err(Error::Url { registry, what, why: "its scheme is not https" }),
        }
        if is_private_literal(url) && !self.is_private_permitted(&host) {
            return Err(Error::PrivateAddress { registry, what, host });
        }
        Ok(())
    }

    fn is_private_permitted(&self, host: &str) -> bool {
        self.settings_of(host).is_some_and(|own| own.private)
    }

    /// Sends a request and follows its redirects. The answer's body is not read yet.
    ///
    /// # Errors
    /// Returns errors of the guard, of connections, and of the protocol. A status is no error.
    pub(crate) async fn send(&self, request: Request, by: &Sender<'_>) -> Result<Answer> {
        let origin = request.url.origin();
        let Request { method, mut url, mut what, headers, mut authorization, body } = request;
        let mut hops = 0;
        let mut from_own_origin = true;
        loop {
            self.check(&url, what, by)?;
            let host = authority(&url);
            let client = self.own.get(&host).unwrap_or(&self.public);
            let mut asked = client.request(method.clone(), url.clone()).headers(headers.clone());
            if let Some(secret) = &authorization {
                asked = asked.header(AUTHORIZATION, header(secret, by.registry)?);
            }
            if let Some(body) = &body {
                asked = asked.body(body.expose().to_owned());
            }
            let sent = timeout_at(by.deadline, asked.send()).await;
            let response = match sent {
                Err(_) => return Err(self.timed_out(by)),
                Ok(Err(error)) => return Err(self.failed(&error, what, &host, by)),
                Ok(Ok(response)) => response,
            };
            if !is_redirect(response.status()) || body.is_some() {
                return Ok(Answer { response, from_own_origin });
            }
            let failed =
                |why| Error::Url { registry: by.registry.to_owned(), what: "redirect", why };
            hops += 1;
            if hops > REDIRECTS_MAX {
                return Err(failed("it is the sixth in a row"));
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let location = location.ok_or_else(|| failed("it names no place"))?;
            url = url.join(location).map_err(|_| failed("its place is no URL"))?;
            what = "redirect";
            if url.origin() != origin {
                from_own_origin = false;
                // The secret does not come back either, if a later redirect leads home again.
                authorization = None;
            }
        }
    }

    /// Reads a body that is small by its nature.
    ///
    /// # Errors
    /// Returns `TooLarge` as soon as the limit is passed, and errors of connections.
    pub(crate) async fn body(
        &self,
        mut response: Response,
        (what, limit): (&str, u64),
        by: &Sender<'_>,
    ) -> Result<Bytes> {
        let too_large = || Error::TooLarge { what: what.to_owned(), limit };
        if response.content_length().is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let mut whole = Vec::new();
        while let Some(chunk) = self.chunk(&mut response, by).await? {
            if whole.len() as u64 + chunk.len() as u64 > limit {
                return Err(too_large());
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.into())
    }

    /// Reads the next bytes of a body.
    ///
    /// # Errors
    /// Returns errors of connections.
    pub(crate) async fn chunk(
        &self,
        response: &mut Response,
        by: &Sender<'_>,
    ) -> Result<Option<Bytes>> {
        let host = authority(response.url());
        match timeout_at(by.deadline, response.chunk()).await {
            Err(_) => Err(self.timed_out(by)),
            Ok(Err(error)) => Err(self.failed(&error, "body", &host, by)),
            Ok(Ok(chunk)) => Ok(chunk),
        }
    }

    /// Waits before a further try.
    ///
    /// # Errors
    /// Returns `TimedOut` when the pull's time would end first.
    pub(crate) async fn wait(&self, wait: Duration, by: &Sender<'_>) -> Result<()> {
        if Instant::now() + wait >= by.deadline {
            tokio::time::sleep_until(by.deadline).await;
            return Err(self.timed_out(by));
        }
        tokio::time::sleep(wait).await;
        Ok(())
    }

    fn timed_out(&self, by: &Sender<'_>) -> Error {
        Error::TimedOut { image: by.image.to_owned(), limit: self.settings.limits.pull() }
    }

    fn failed(
        &self,
        error: &reqwest::Error,
        what: &'static str,
        host: &str,
        by: &Sender<'_>,
    ) -> Error {
        let (registry, host) = (by.registry.to_owned(), host.to_owned());
        if is_guarded(error) {
            return Error::PrivateAddress { registry, what, host };
        }
        if error.is_timeout() && !error.is_connect() {
            return Error::Stalled { registry, host, limit: self.settings.limits.idle() };
        }
        let mut why = explain(error);
        if why.contains("UnknownIssuer") || why.contains("certificate") {
            why.push_str(&format!("; its authority may be set as `registries.\"{host}\".ca_file`"));
        } else if why.contains("InvalidContentType") || why.contains("corrupt message") {
            why.push_str(&format!(
                "; it may speak plain HTTP, which `registries.\"{host}\".http = true` permits"
            ));
        }
        Error::Unreachable { registry, host, why }
    }
}

/// Returns the host that a registry's API is at.
pub(crate) fn api_host(registry: &str) -> &str {
    if registry == crate::reference::DOCKER_HUB { DOCKER_HUB_API } else { registry }
}

fn builder(idle: Duration) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(idle)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .user_agent(concat!("wrenn/", env!("CARGO_PKG_VERSION")))
}

/// Makes the client of a host with settings.
fn own_client(host: &str, registry: &RegistrySettings, idle: Duration) -> Result<reqwest::Client> {
    let field = |name: &str| format!("registries.\"{host}\".{name}");
    let mut own = builder(idle);
    if !registry.private {
        own = own.dns_resolver(Arc::new(Public));
    }
    if let Some(path) = &registry.ca_file {
        let pem = read_pem(&field("ca_file"), path)?;
        let roots = reqwest::Certificate::from_pem_bundle(&pem)
            .map_err(|e| wrong(&field("ca_file"), &explain(&e)))?;
        if roots.is_empty() {
            return Err(wrong(&field("ca_file"), "it holds no certificate"));
        }
        own = own.tls_certs_merge(roots);
    }
    if let Some(path) = &registry.client_certificate {
        let mut pem = zeroize::Zeroizing::new(read_pem(&field("client_certificate"), path)?);
        if let Some(key) = &registry.client_key {
            let key = zeroize::Zeroizing::new(read_pem(&field("client_key"), key)?);
            pem.push(b'\n');
            pem.extend_from_slice(&key);
        }
        let identity = reqwest::Identity::from_pem(&pem).map_err(|_| {
            wrong(&field("client_certificate"), "it is no certificate with its key")
        })?;
        own = own.identity(identity);
    } else if registry.client_key.is_some() {
        return Err(wrong(&field("client_key"), "it needs `client_certificate`"));
    }
    own.build().map_err(|e| wrong(&field("ca_file"), &explain(&e)))
}

/// Makes a header's value that no log shows.
fn header(secret: &Secret, registry: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(secret.expose()).map_err(|_| Error::Login {
        registry: registry.to_owned(),
        why: "a token or password of it fits in no header",
    })?;
    value.set_sensitive(true);
    Ok(value)
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Returns an answer's media type in lower case, without parameters.
pub(crate) fn media_type(response: &Response) -> Option<String> {
    let value = response.headers().get(CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next()?.trim().to_ascii_lowercase())
}

fn is_guarded(error: &reqwest::Error) -> bool {
    let mut source = error.source();
    while let Some(inner) = source {
        if inner.is::<NoPublicAddress>() {
            return true;
        }
        source = inner.source();
    }
    false
}

/// Joins the messages of an error and its sources. URLs are left out, since their queries may be
/// credentials.
fn explain(error: &reqwest::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut source = error.source();
    while let Some(inner) = source {
        let text = inner.to_string();
        if parts.last() != Some(&text) {
            parts.push(text);
        }
        source = inner.source();
    }
    if parts.is_empty() { "the request failed".to_owned() } else { parts.join(": ") }
}
