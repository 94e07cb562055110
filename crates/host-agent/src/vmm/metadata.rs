//! The metadata service, for drivers whose VMM has none. The protocol is version 2 of Firecracker's
//! MMDS, at the same address. A guest gets a session token by a `PUT` of `/latest/api/token`. With
//! the token it reads everything else by `GET`. The listener is inside the capsule's namespace, so
//! only the guest that it belongs to can ask.

use super::Metadata;
use crate::network::namespace::Namespace;
use crate::network::plan::METADATA;
use crate::sys;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use daemon::lock;
use hop::{Body, Handler, Limits};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use serde_json::Value;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, Semaphore};

/// Path at which a guest asks for a token.
const TOKEN_PATH: &str = "/latest/api/token";
/// Headers that present a token; the second is AWS's name.
const TOKEN: [&str; 2] = ["x-metadata-token", "x-aws-ec2-metadata-token"];
/// Headers with a token's lifetime, in seconds; the second is AWS's name.
const TTL: [&str; 2] = ["x-metadata-token-ttl-seconds", "x-aws-ec2-metadata-token-ttl-seconds"];
const TTL_MAX: u64 = 21_600;
/// Limits on the agent's resources that a hostile guest may use.
const LIMITS: Limits = Limits { connections: 16, per_network: 16, head_bytes: 8 * 1024 };

/// Delay before another attempt to accept a connection, after a failure.
const AGAIN: Duration = Duration::from_millis(50);
/// Least average time between the requests of one guest.
const STEP: Duration = Duration::from_millis(5);
/// Time by which a guest's requests may be ahead of [`STEP`].
const BURST: Duration = Duration::from_millis(500);

/// The service of one machine. A namespace has at most one, which all handles of its machine share.
#[derive(Clone)]
pub(super) struct Service(Arc<Guest>);

impl Service {
    /// Replaces the guest's metadata. Tokens that were given out before are not valid any more.
    ///
    /// # Errors
    /// Fails when the kernel gives no randomness.
    pub(super) fn set(&self, metadata: &Metadata) -> io::Result<()> {
        *lock(&self.0.about) = Arc::new(About::new(metadata)?);
        Ok(())
    }
}

/// Serves one machine, in the namespace of its capsule, until the namespace is closed.
pub(super) fn serve(namespace: &Namespace, metadata: &Metadata) -> io::Result<Service> {
    let listener = namespace.run(|| TcpListener::bind((METADATA, 80)))?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (guest, inside) = (Arc::new(Guest::new(metadata)?), namespace.clone());
    let service = Service(Arc::clone(&guest));
    namespace.tasks().spawn(async move {
        let places = Arc::new(Semaphore::new(LIMITS.connections));
        loop {
            // The semaphore is never closed.
            let place = Arc::clone(&places).acquire_owned().await.ok();
            let Ok((stream, peer)) = listener.accept().await else {
                tokio::time::sleep(AGAIN).await;
                continue;
            };
            let Ok(stream) = inside.hold(stream) else { return };
            let (guest, tasks) = (Arc::clone(&guest), inside.tasks().clone());
            inside.tasks().spawn(async move {
                hop::serve_stream(stream, peer, guest, LIMITS, tasks).await;
                drop(place);
            });
        }
    });
    Ok(service)
}

/// Metadata of a guest under one identity.
struct About {
    data: Value,
    /// Key that signs tokens. Tokens of an earlier service or identity are not valid.
    key: [u8; 32],
}

impl About {
    fn new(metadata: &Metadata) -> io::Result<Self> {
        Ok(Self { data: metadata.json(), key: sys::random()? })
    }
}

/// State of the service for one guest.
struct Guest {
    about: std::sync::Mutex<Arc<About>>,
    since: Instant,
    /// Time of the next request, if all come in equal steps. The request that waits for its time
    /// holds the lock, and other requests wait for the lock, in order.
    due: Mutex<Instant>,
}

impl Handler for Guest {
    async fn handle(self: &Arc<Self>, request: Request<Body>, _: SocketAddr) -> Response<Body> {
        self.turn().await;
        self.answer(request.method(), request.uri().path(), request.headers(), self.since.elapsed())
    }
}

impl Guest {
    fn new(metadata: &Metadata) -> io::Result<Self> {
        let (since, due) = (Instant::now(), Mutex::new(Instant::now()));
        let about = std::sync::Mutex::new(Arc::new(About::new(metadata)?));
        Ok(Self { about, since, due })
    }

    fn about(&self) -> Arc<About> {
        Arc::clone(&lock(&self.about))
    }

    /// Delays a request, so that a guest which asks all the time costs the host no more than
    /// others. A request that is given up while it waits takes no time from others.
    async fn turn(&self) {
        let mut due = self.due.lock().await;
        tokio::time::sleep(due.saturating_duration_since(Instant::now())).await;
        *due = after(*due, Instant::now());
    }

    fn answer(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        now: Duration,
    ) -> Response<Body> {
        match *method {
            Method::PUT => self.token(path, headers, now),
            Method::GET => self.read(path, headers, now),
            Method::PATCH => {
                let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "Use GET or PUT.".to_owned());
                let allowed = header::HeaderValue::from_static("GET, PUT");
                answer.headers_mut().insert(header::ALLOW, allowed);
                answer
            }
            _ => text(StatusCode::NOT_IMPLEMENTED, "Unsupported HTTP method.".to_owned()),
        }
    }

    fn token(&self, path: &str, headers: &HeaderMap, now: Duration) -> Response<Body> {
        let bad = |said: &str| text(StatusCode::BAD_REQUEST, said.to_owned());
        if path.trim_end_matches('/') != TOKEN_PATH {
            return missing(path);
        }
        // A forwarded request does not come from the guest's own program.
        if headers.contains_key("x-forwarded-for") {
            return bad("X-Forwarded-For is not allowed here.");
        }
        let Some(ttl) = one_of(headers, TTL) else {
            return bad("Set the token's lifetime in X-metadata-token-ttl-seconds.");
        };
        let ttl = ttl.parse().ok().filter(|ttl| (1..=TTL_MAX).contains(ttl));
        let Some(ttl) = ttl else {
            return bad("X-metadata-token-ttl-seconds must be between 1 and 21600.");
        };
        text(StatusCode::OK, self.sign(now.as_secs() + ttl))
    }

    /// Returns a token that expires at second `end` of this service.
    fn sign(&self, end: u64) -> String {
        let end = end.to_be_bytes();
        let mut token = end.to_vec();
        token.extend_from_slice(blake3::keyed_hash(&self.about().key, &end).as_bytes());
        URL_SAFE_NO_PAD.encode(token)
    }

    fn knows(&self, token: &str, now: Duration) -> bool {
        let Ok(bytes) = URL_SAFE_NO_PAD.decode(token) else { return false };
        let Some((end, signature)) = bytes.split_first_chunk::<8>() else { return false };
        let Ok(signature) = <[u8; 32]>::try_from(signature) else { return false };
        // The comparison takes constant time.
        blake3::keyed_hash(&self.about().key, end) == signature
            && u64::from_be_bytes(*end) > now.as_secs()
    }

    fn read(&self, path: &str, headers: &HeaderMap, now: Duration) -> Response<Body> {
        let unknown = |said: &str| text(StatusCode::UNAUTHORIZED, said.to_owned());
        let Some(token) = one_of(headers, TOKEN) else {
            return unknown("Send a session token in X-metadata-token.");
        };
        if !self.knows(token, now) {
            return unknown("The session token is not valid.");
        }
        let about = self.about();
        let Some(value) = about.data.pointer(path.trim_end_matches('/')) else {
            return missing(path);
        };
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
        if accept.is_some_and(|accept| accept.contains("application/json")) {
            let mut answer = text(StatusCode::OK, value.to_string());
            let json = header::HeaderValue::from_static("application/json");
            answer.headers_mut().insert(header::CONTENT_TYPE, json);
            return answer;
        }
        match value {
            Value::String(value) => text(StatusCode::OK, value.clone()),
            Value::Object(values) => {
                let name = |(name, value): (&String, &Value)| match value.is_object() {
                    true => format!("{name}/"),
                    false => name.clone(),
                };
                let names: Vec<String> = values.iter().map(name).collect();
                text(StatusCode::OK, names.join("\n"))
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
                text(StatusCode::NOT_IMPLEMENTED, "Request this resource as JSON.".to_owned())
            }
        }
    }
}

/// Returns the due time of the next request, after a request that was due at `due` and is answered
/// now.
fn after(due: Instant, now: Instant) -> Instant {
    due.max(now.checked_sub(BURST).unwrap_or(now)) + STEP
}

fn one_of<'a>(headers: &'a HeaderMap, names: [&str; 2]) -> Option<&'a str> {
    names.iter().find_map(|name| headers.get(*name)?.to_str().ok())
}

fn missing(path: &str) -> Response<Body> {
    text(StatusCode::NOT_FOUND, format!("Resource not found: {path}."))
}

fn text(status: StatusCode, said: String) -> Response<Body> {
    let mut answer = Response::new(Body::from(said));
    *answer.status_mut() = status;
    let plain = header::HeaderValue::from_static("text/plain");
    answer.headers_mut().insert(header::CONTENT_TYPE, plain);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn only_guest_that_asks_constantly_is_rate_limited() {
        let mut due = Instant::now();
        let now = due + BURST;
        for _ in 0..100 {
            assert!(due <= now);
            due = after(due, now);
        }
        for step in 0..100 {
            assert_eq!(due, now + STEP * step);
            due = after(due, due);
        }
        let later = due + Duration::from_secs(9);
        assert_eq!(after(due, later), later - BURST + STEP);
    }

    #[tokio::test]
    async fn cancelled_metadata_requests_delay_no_other() {
        let guest = Guest::new(&Metadata::default()).unwrap();
        let due = Instant::now() + Duration::from_secs(60);
        *guest.due.lock().await = due;
        for _ in 0..1000 {
            assert!(guest.turn().now_or_never().is_none());
        }
        assert_eq!(*guest.due.lock().await, due);
    }

    #[test]
    fn metadata_token_expires_on_time_and_is_valid_for_one_guest() {
        let metadata = Metadata { capsule: "cl-1".to_owned(), template: "base".to_owned() };
        let (one, other) = (Guest::new(&metadata).unwrap(), Guest::new(&metadata).unwrap());
        let token = one.sign(60);
        assert!(one.knows(&token, Duration::from_secs(59)));
        assert!(!one.knows(&token, Duration::from_secs(60)));
        assert!(!other.knows(&token, Duration::ZERO));
        for wrong in ["", "x", &token[..20], &format!("{token}A")] {
            assert!(!one.knows(wrong, Duration::ZERO), "{wrong}");
        }
    }

    #[test]
    fn replaced_metadata_is_read_with_new_tokens_alone() {
        let of = |capsule: &str| Metadata { capsule: capsule.to_owned(), ..Metadata::default() };
        let guest = Arc::new(Guest::new(&of("cl-1")).unwrap());
        let before = guest.sign(60);
        Service(Arc::clone(&guest)).set(&of("cl-2")).unwrap();
        assert!(!guest.knows(&before, Duration::ZERO));
        let mut headers = HeaderMap::new();
        headers.insert(TOKEN[0], guest.sign(60).parse().unwrap());
        assert_eq!(guest.read("/instanceID", &headers, Duration::ZERO).status(), StatusCode::OK);
        assert_eq!(guest.about().data["instanceID"], "cl-2");
    }
}
