//! Access to one repository: its registry and mirrors, and the answers to their challenges.
//!
//! Nothing is sent before a registry asks for it. A login is for one registry. Mirrors, other
//! origins and redirects never get it.

use crate::challenge::{self, Challenge};
use crate::ecr;
use crate::error::{Error, Result};
use crate::login::Login;
use crate::reference::Reference;
use crate::secret::{Secret, scrub};
use crate::settings::{Mirror, Settings};
use crate::transport::{Answer, Request, Sender, Transport, api_host, media_type};
use rand::Rng;
use reqwest::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;
use zeroize::Zeroizing;

/// Largest answer of a token server, in bytes.
const TOKEN_MAX: u64 = 64 * 1024;
/// Largest body of an error that is read, in bytes.
const ERROR_MAX: u64 = 8 * 1024;
/// Most characters of a registry's own text in an error.
const TEXT_MAX: usize = 300;
/// Life of a token that gives none, by Docker's token specification.
const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// Longest life of a token or password that is believed.
const TOKEN_LIFE_MAX: Duration = Duration::from_secs(12 * 3600);
/// First wait before a further try. Later ones are twice as long each.
const RETRY_FIRST: Duration = Duration::from_millis(250);

/// Credentials that a pull used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// None: everybody may read the image.
    Anonymous,
    /// The login in the operator's settings.
    Operator,
    /// The login that the caller gave. Another caller has to prove its own access.
    Caller,
}

/// The repository at a registry or a mirror.
pub(crate) struct Endpoint {
    /// Name in settings and errors.
    registry: String,
    base: Url,
    repository: String,
    http: bool,
    login: Option<(Login, Proof)>,
    /// Value of `Authorization` that the registry took, and the end of its life.
    granted: Mutex<Option<(Secret, Instant)>>,
    login_used: AtomicBool,
}

#[derive(Deserialize)]
struct Token {
    token: Option<Secret>,
    access_token: Option<Secret>,
    expires_in: Option<u64>,
}

#[derive(Default, Deserialize)]
struct Failures {
    #[serde(default)]
    errors: Vec<Failure>,
}

#[derive(Default, Deserialize)]
struct Failure {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// Makes the endpoints of an image: its mirrors in order, then its registry.
///
/// # Errors
/// Returns `Settings` for a rewrite that makes a bad name, and `Login` for an unusable login.
pub(crate) fn endpoints(
    settings: &Settings,
    reference: &Reference,
    login: Option<Login>,
) -> Result<Vec<Endpoint>> {
    let target = settings.rewritten(reference)?;
    if let Some(login) = &login {
        login.check(reference.registry())?;
    }
    let mut all = Vec::new();
    for mirror in settings.registry(target.registry()).map_or(&[][..], |own| &own.mirrors) {
        if let Some(mirror) = Mirror::parse(mirror) {
            let repository = mirror.repository(target.repository());
            all.push(Endpoint::new(settings, &mirror.host, repository, None)?);
        }
    }
    // The caller's login is for the registry that the caller named, and for no other in its place.
    let own = login.filter(|_| target.registry() == reference.registry());
    let repository = target.repository().to_owned();
    all.push(Endpoint::new(settings, target.registry(), repository, own)?);
    Ok(all)
}

impl Endpoint {
    fn new(
        settings: &Settings,
        registry: &str,
        repository: String,
        login: Option<Login>,
    ) -> Result<Self> {
        let own = settings.registry(registry);
        let http = own.is_some_and(|own| own.http);
        let scheme = if http { "http" } else { "https" };
        let base = Url::parse(&format!("{scheme}://{}/v2/", api_host(registry))).map_err(|_| {
            crate::settings::wrong(&format!("registries.\"{registry}\""), "its host is malformed")
        })?;
        let default =
            || own.and_then(|own| own.login.clone()).map(|login| (login, Proof::Operator));
        let login = login.map(|login| (login, Proof::Caller)).or_else(default);
        let (granted, login_used) = (Mutex::new(None), AtomicBool::new(false));
        Ok(Self {
            registry: registry.to_owned(),
            base,
            repository,
            http,
            login,
            granted,
            login_used,
        })
    }

    /// Returns the registry's name.
    pub(crate) fn registry(&self) -> &str {
        &self.registry
    }

    /// Returns the credentials that requests used so far.
    pub(crate) fn proof(&self) -> Proof {
        match &self.login {
            Some((_, proof)) if self.login_used.load(Ordering::Relaxed) => *proof,
            Some(_) | None => Proof::Anonymous,
        }
    }

    pub(crate) fn sender<'a>(&'a self, image: &'a str, deadline: Instant) -> Sender<'a> {
        Sender { registry: &self.registry, http: self.http, image, deadline }
    }

    /// Makes a request for a manifest (`manifests`) or a blob (`blobs`).
    ///
    /// # Errors
    /// Returns `Protocol` if the parts make no URL.
    pub(crate) fn request(&self, method: Method, kind: &str, name: &str) -> Result<Request> {
        let path = format!("{}/{kind}/{name}", self.repository);
        let url = self.base.join(&path).map_err(|_| Error::Protocol {
            registry: self.registry.clone(),
            why: "the repository makes no URL".to_owned(),
        })?;
        Ok(Request { method, ..Request::get(url, "address") })
    }

    /// Sends a request, answers its challenge, and tries again after failures that may pass.
    /// `tries` is the most tries. Returns the answer with whatever status it has at last, except 401
    /// and 403.
    ///
    /// # Errors
    /// Returns `AccessDenied`, and errors of connections and of the guard.
    pub(crate) async fn ask(
        &self,
        transport: &Transport,
        request: Request,
        tries: u32,
        by: &Sender<'_>,
    ) -> Result<Response> {
        let mut tried = 0;
        loop {
            tried += 1;
            let outcome = self.ask_once(transport, request.clone(), by).await;
            let wait = match &outcome {
                Ok(response) if is_busy(response.status()) => retry_after(response),
                Err(error) if error.is_transient() => None,
                Ok(_) | Err(_) => return outcome,
            };
            let most = Duration::from_millis(transport.settings().limits.retry_after_max_ms);
            if tried >= tries || wait.is_some_and(|wait| wait > most) {
                return outcome;
            }
            let wait = wait.unwrap_or_default().max(backoff(tried));
            tracing::debug!(registry = self.registry, tried, ?wait, "asks a registry again");
            transport.wait(wait, by).await?;
        }
    }

    async fn ask_once(
        &self,
        transport: &Transport,
        mut request: Request,
        by: &Sender<'_>,
    ) -> Result<Response> {
        request.authorization = self.known().await;
        let sent_first = request.authorization.clone();
        let Answer { response, from_own_origin } = transport.send(request.clone(), by).await?;
        match response.status() {
            StatusCode::FORBIDDEN => return Err(self.denied(transport, response, by).await),
            StatusCode::UNAUTHORIZED if from_own_origin => {}
            StatusCode::UNAUTHORIZED => return Err(self.denied(transport, response, by).await),
            _ => return Ok(response),
        }
        let values = response.headers().get_all(WWW_AUTHENTICATE);
        let challenges =
            challenge::parse(values.iter().map(reqwest::header::HeaderValue::as_bytes));
        request.authorization = self.grant(transport, challenges, sent_first, by).await?;
        if request.authorization.is_none() {
            return Err(self.denied(transport, response, by).await);
        }
        let response = transport.send(request, by).await?.response;
        match response.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let error = self.denied(transport, response, by).await;
                *self.granted.lock().await = None;
                Err(error)
            }
            _ => Ok(response),
        }
    }

    /// Returns what the registry took before, while it lives.
    async fn known(&self) -> Option<Secret> {
        let granted = self.granted.lock().await;
        granted
            .as_ref()
            .filter(|(_, until)| Instant::now() < *until)
            .map(|(header, _)| header.clone())
    }

    /// Answers the first challenge that can be met. `refused` is the header that led to it.
    async fn grant(
        &self,
        transport: &Transport,
        challenges: Vec<Challenge>,
        refused: Option<Secret>,
        by: &Sender<'_>,
    ) -> Result<Option<Secret>> {
        let mut granted = self.granted.lock().await;
        // Another request may have answered the challenge meanwhile.
        if let Some((header, until)) = granted.as_ref()
            && refused.as_ref().map(Secret::expose) != Some(header.expose())
            && Instant::now() < *until
        {
            return Ok(Some(header.clone()));
        }
        let mut next = None;
        for challenge in challenges {
            next = match challenge {
                Challenge::Bearer { realm, service, scope } => {
                    self.bearer(transport, (&realm, service, scope), by).await?
                }
                Challenge::Basic => self.basic(transport, by).await?,
            };
            if next.is_some() {
                break;
            }
        }
        granted.clone_from(&next);
        Ok(next.map(|(header, _)| header))
    }

    async fn basic(
        &self,
        transport: &Transport,
        by: &Sender<'_>,
    ) -> Result<Option<(Secret, Instant)>> {
        let Some((login, _)) = &self.login else { return Ok(None) };
        let pair = match login {
            Login::Aws { .. } => ecr::basic(transport, login, by).await?,
            Login::Password { .. } | Login::Gcp { .. } | Login::IdentityToken { .. } => {
                match login.basic() {
                    Some(pair) => pair,
                    None => return Ok(None),
                }
            }
        };
        self.login_used.store(true, Ordering::Relaxed);
        let header = Secret::from(format!("Basic {}", pair.expose()));
        Ok(Some((header, Instant::now() + TOKEN_LIFE_MAX)))
    }

    /// Asks the token server of a challenge. The server is a registry's choice, so the guard checks
    /// it. The login needs an encrypted connection or the operator's permission.
    async fn bearer(
        &self,
        transport: &Transport,
        (realm, service, scope): (&str, Option<String>, Option<String>),
        by: &Sender<'_>,
    ) -> Result<Option<(Secret, Instant)>> {
        let what = "token server (realm)";
        let malformed = Error::Url { registry: self.registry.clone(), what, why: "it is no URL" };
        let mut url = Url::parse(realm).map_err(|_| malformed)?;
        transport.check(&url, what, by)?;
        // A wider scope than a pull is not asked for, whatever the challenge says.
        let scope = scope
            .filter(|scope| scope.starts_with("repository:") && scope.ends_with(":pull"))
            .unwrap_or_else(|| format!("repository:{}:pull", self.repository));
        let login = self.login.as_ref().map(|(login, _)| login);
        let mut request = if let Some(Login::IdentityToken { token }) = login {
            self.login_used.store(true, Ordering::Relaxed);
            url.set_fragment(None);
            let body = refresh(token, service.as_deref(), &scope);
            let mut request = Request::get(url, what);
            let form =
                reqwest::header::HeaderValue::from_static("application/x-www-form-urlencoded");
            request.headers.insert(reqwest::header::CONTENT_TYPE, form);
            Request { method: Method::POST, body: Some(body), ..request }
        } else {
            if let Some(service) = &service {
                url.query_pairs_mut().append_pair("service", service);
            }
            url.query_pairs_mut().append_pair("scope", &scope);
            Request::get(url, what)
        };
        if let Some(pair) = login.and_then(Login::basic) {
            self.login_used.store(true, Ordering::Relaxed);
            request.authorization = Some(Secret::from(format!("Basic {}", pair.expose())));
        }
        let response = self.token_answer(transport, request, by).await?;
        match response.status().as_u16() {
            200 => {}
            // Token servers answer 400 to a login of a wrong form, too.
            400 | 401 | 403 => return Err(self.denied(transport, response, by).await),
            _ => return Err(self.status(transport, response, by).await),
        }
        let body =
            transport.body(response, ("the answer of the token server", TOKEN_MAX), by).await?;
        let body = Zeroizing::new(body.to_vec());
        let without = || Error::Protocol {
            registry: self.registry.clone(),
            why: "its token server gives no token".to_owned(),
        };
        let parsed: Token = serde_json::from_slice(&body).map_err(|_| without())?;
        let is_full = |token: &Secret| !token.expose().is_empty();
        let token = parsed.token.filter(is_full).or(parsed.access_token.filter(is_full));
        let token = token.ok_or_else(without)?;
        // The life counts from here, since the two clocks may differ.
        let life = parsed.expires_in.map_or(TOKEN_LIFE, Duration::from_secs).min(TOKEN_LIFE_MAX);
        Ok(Some((Secret::from(format!("Bearer {}", token.expose())), Instant::now() + life)))
    }

    /// Sends the request for a token, and again while its server is busy.
    async fn token_answer(
        &self,
        transport: &Transport,
        request: Request,
        by: &Sender<'_>,
    ) -> Result<Response> {
        let limits = &transport.settings().limits;
        let mut tried = 0;
        loop {
            tried += 1;
            let response = transport.send(request.clone(), by).await?.response;
            let wait = retry_after(&response).unwrap_or_default().max(backoff(tried));
            let too_long = wait > Duration::from_millis(limits.retry_after_max_ms);
            if !is_busy(response.status()) || tried >= limits.tries || too_long {
                return Ok(response);
            }
            transport.wait(wait, by).await?;
        }
    }

    /// Makes an error of an answer that is none of the expected ones. Reads its text.
    pub(crate) async fn status(
        &self,
        transport: &Transport,
        response: Response,
        by: &Sender<'_>,
    ) -> Error {
        let status = response.status();
        let registry = self.registry.clone();
        let is_html = media_type(&response).is_some_and(|kind| kind == "text/html");
        let (codes, text) = self.failures(transport, response, by).await;
        let image = by.image.to_owned();
        match status {
            StatusCode::NOT_FOUND if codes.iter().any(|code| code == "NAME_UNKNOWN") => {
                Error::RepositoryNotFound { image }
            }
            StatusCode::NOT_FOUND if is_html && codes.is_empty() => {
                let why = "it answers with a page (404, text/html)".to_owned();
                Error::NotARegistry { registry, why }
            }
            StatusCode::NOT_FOUND => Error::ImageNotFound { image },
            StatusCode::TOO_MANY_REQUESTS => Error::TooManyRequests { registry, text },
            _ => Error::Status { registry, status: status.as_u16(), text },
        }
    }

    async fn denied(&self, transport: &Transport, response: Response, by: &Sender<'_>) -> Error {
        let (_, text) = self.failures(transport, response, by).await;
        let login = match &self.login {
            None => format!("; no login is known (`registries.\"{}\".login`)", self.registry),
            Some((_, Proof::Operator)) => {
                format!("; the login is that of the settings for '{}'", self.registry)
            }
            Some(_) => "; the login is the one that was given".to_owned(),
        };
        Error::AccessDenied { image: by.image.to_owned(), hint: format!("{login}{text}") }
    }

    /// Reads the codes and the text of an error's body, without any secret that it repeats.
    async fn failures(
        &self,
        transport: &Transport,
        response: Response,
        by: &Sender<'_>,
    ) -> (Vec<String>, String) {
        let body = transport.body(response, ("an error", ERROR_MAX), by).await.unwrap_or_default();
        let parsed: Failures = serde_json::from_slice(&body).unwrap_or_default();
        let mut secrets = self.login.as_ref().map_or_else(Vec::new, |(login, _)| login.secrets());
        if let Ok(granted) = self.granted.try_lock()
            && let Some((header, _)) = granted.as_ref()
        {
            let value = header.expose();
            secrets.push(value.split_once(' ').map_or(value, |(_, value)| value).into());
        }
        let text = parsed.errors.first().map_or("", |failure| failure.message.as_str());
        let text = scrub(text, &secrets);
        let text: String = text.chars().filter(|c| !c.is_control()).take(TEXT_MAX).collect();
        let text = if text.is_empty() { text } else { format!(": {text}") };
        (parsed.errors.into_iter().map(|failure| failure.code).collect(), text)
    }
}

/// Makes the form by which an identity token is exchanged for an access token.
fn refresh(token: &Secret, service: Option<&str>, scope: &str) -> Secret {
    // The URL's only task is the encoding of its query.
    let Ok(mut url) = Url::parse("https://localhost/") else { return Secret::from("") };
    let _ = url
        .query_pairs_mut()
        .append_pair("grant_type", "refresh_token")
        .append_pair("client_id", "wrenn")
        .append_pair("service", service.unwrap_or(""))
        .append_pair("scope", scope)
        .append_pair("refresh_token", token.expose());
    Secret::from(url.query().unwrap_or_default())
}

fn is_busy(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 500 | 502 | 503 | 504)
}

/// Reads the wait that an answer asks for, in its form of seconds. A date is not read, since the
/// clocks may differ.
fn retry_after(response: &Response) -> Option<Duration> {
    let value = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    value.trim().parse().ok().map(Duration::from_secs)
}

/// Returns the wait after a number of tries, twice as long each time. Chance makes it up to half
/// shorter or longer, so that callers that failed together do not return together.
fn backoff(tried: u32) -> Duration {
    let full = RETRY_FIRST.saturating_mul(1 << tried.saturating_sub(1).min(6));
    full.mul_f64(rand::rng().random_range(0.5..1.5))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_grows_and_stays_bounded() {
        for tried in 0..100 {
            let wait = backoff(tried);
            assert!(
                wait >= RETRY_FIRST / 2 && wait <= Duration::from_secs(24),
                "{tried}: {wait:?}"
            );
        }
        assert!(backoff(4) > backoff(1));
    }

    #[test]
    fn identity_token_is_encoded_in_its_form() {
        let body = refresh(&"a+b&c".into(), Some("s"), "repository:a:pull");
        let want = "grant_type=refresh_token&client_id=wrenn&service=s\
            &scope=repository%3Aa%3Apull&refresh_token=a%2Bb%26c";
        assert_eq!(body.expose(), want);
    }

    #[test]
    fn login_of_the_caller_is_for_the_registry_it_named() {
        let json = r#"{"registries": {
            "a.example": {"mirrors": ["m.example"],
                "login": {"type": "password", "username": "op", "password": "pppp"}}},
            "rewrites": [{"from": "b.example/", "to": "a.example/"}]}"#;
        let settings: Settings = serde_json::from_str(json).unwrap();
        let settings = settings.normalized().unwrap();
        let login = || Some(Login::Password { username: "me".into(), password: "qqqq".into() });
        let logins = |text: &str, login| {
            let all = endpoints(&settings, &text.parse().unwrap(), login).unwrap();
            let proofs =
                all.into_iter().map(|end| (end.registry, end.login.map(|(_, proof)| proof)));
            proofs.collect::<Vec<_>>()
        };
        let own = ("a.example".to_owned(), Some(Proof::Caller));
        let default = ("a.example".to_owned(), Some(Proof::Operator));
        let mirror = ("m.example".to_owned(), None);
        assert_eq!(logins("a.example/x", login()), [mirror.clone(), own]);
        assert_eq!(logins("a.example/x", None), [mirror.clone(), default.clone()]);
        assert_eq!(logins("b.example/x", login()), [mirror, default]);
    }
}
