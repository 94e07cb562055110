//! Pools of connections, by destination. Idle connections are kept for the next request to their
//! destination. Each pool has its own, so that none can serve another pool's requests.
//!
//! ```text
//!  Pool::send ─▶ IdlePool::take ── none is open ──▶ send_alone: Dial::dial, Connection::open
//!                      │                               ▲       │
//!                      ▼    fails: nothing was taken,  │       │
//!               Connection::send ──────────────────────┘       │
//!                      │    or a safe request was lost         ▼
//!                      │    on a stale connection       Connection::send
//!                      ▼                                       │
//!                    answer ◀──────────────────────────────────┘
//!                      ├ status 101 ─▶ Switched: a tunnel, which never returns to the pool
//!                      └ otherwise ──▶ Exchange: the body passes
//!                                       ├ read to its end, reusable ─▶ IdlePool::put ─▶ idle
//!                                       └ dropped before, broken, or beyond `most` ─▶ closed
//!
//!  idle ─▶ closed   after a minute, by `sweep`; by `forget` or `clear`; or by the server
//! ```
//! `Pool::send` returns any other failure and closes the connection. gRPC requests share a single
//! HTTP/2 connection to each destination instead (`send_shared`).

use crate::body::{Body, Stalled};
use crate::connection::{self, Exchange, HEAD_MAX, Stream, Switched};
use crate::timed::Timed;
use crate::timer::SILENCE;
use bytes::Bytes;
use daemon::{Tasks, lock};
use http::{Method, Request, Response, StatusCode, Version, header};
use http_body::Body as _;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Rest after which a connection may have been closed by its server. Servers close idle connections
/// after a second or more.
const STALE: Duration = Duration::from_millis(500);
/// Time between two pings of an idle HTTP/2 connection.
const PING: Duration = Duration::from_secs(30);

type Connection = connection::Connection<Body>;
type IdlePool = connection::IdlePool<Body>;

/// Opens connections to destinations.
pub trait Dial: Send + Sync + 'static {
    /// Name of a destination.
    type To: Hash + Eq + Clone + Send + Sync + 'static;

    /// Opens a connection.
    fn dial(&self, to: &Self::To) -> impl Future<Output = io::Result<Box<dyn Stream>>> + Send;
}

/// Reasons why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no connection could be opened")]
    Dial(#[source] io::Error),
    /// The connection ended before an answer, closed by either side.
    #[error("the connection ended without an answer")]
    Closed(#[source] hyper::Error),
    #[error("the server sent nothing for {} s", SILENCE.as_secs())]
    IdleTimeout(#[source] hyper::Error),
    #[error("the answer is not valid HTTP")]
    InvalidResponse(#[source] hyper::Error),
    #[error("the server switched the protocol without a request")]
    UnexpectedUpgrade,
    #[error("the caller's access was revoked")]
    Ended,
    /// The request's own body failed: it is malformed or too slow, or its sender has gone. The
    /// destination is not at fault.
    #[error("the request body could not be read")]
    Request(#[source] hyper::Error),
}

/// The reason why there is no answer, and the request, when nothing of it was sent.
#[derive(Debug)]
pub struct Failed {
    pub error: Error,
    pub request: Option<Request<Body>>,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, request: None }
    }
}

impl Error {
    /// Reports whether the request's own body made no progress for too long.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        matches!(self, Self::Request(error) if Stalled::is_cause_of(error))
    }

    fn of(error: hyper::Error) -> Self {
        if error.is_parse() {
            return Self::InvalidResponse(error);
        }
        if error.is_user() {
            return Self::Request(error);
        }
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(at) = cause {
            if at.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::TimedOut) {
                return Self::IdleTimeout(error);
            }
            cause = at.source();
        }
        Self::Closed(error)
    }
}

/// An answer, and the connection if the answer switched protocols.
pub struct Sent {
    /// Status, headers and body.
    pub answer: Response<Body>,
    /// The connection, with status 101 alone.
    pub switched: Option<Switched>,
}

/// Connections to a single destination.
struct Endpoint {
    idle: Arc<IdlePool>,
    /// The only HTTP/2 connection to the destination, opened at the first need.
    shared: Arc<tokio::sync::Mutex<Option<SendRequest<Body>>>>,
}

/// A pool of connections.
pub struct Pool<D: Dial> {
    dialer: D,
    endpoints: Mutex<HashMap<D::To, Endpoint>>,
    most: usize,
    title_case: bool,
    tasks: Tasks,
}

impl<D: Dial> Pool<D> {
    /// Makes an empty pool that keeps at most `most` idle connections to each destination.
    pub fn new(dialer: D, most: usize, tasks: Tasks) -> Self {
        Self { dialer, endpoints: Mutex::default(), most, title_case: false, tasks }
    }

    /// Makes HTTP/1.1 requests carry header names as `Content-Type` rather than `content-type`.
    /// Some programs compare names byte for byte, against RFC 9110, 5.1.
    #[must_use]
    pub fn with_title_case(self) -> Self {
        Self { title_case: true, ..self }
    }

    fn endpoint<T>(&self, to: &D::To, of: impl Fn(&Endpoint) -> T) -> T {
        let mut endpoints = lock(&self.endpoints);
        if let Some(endpoint) = endpoints.get(to) {
            return of(endpoint);
        }
        let idle = Arc::new(IdlePool::new(self.most));
        of(endpoints.entry(to.clone()).or_insert(Endpoint { idle, shared: Arc::default() }))
    }

    /// Returns the pool's dialer.
    pub fn dialer(&self) -> &D {
        &self.dialer
    }

    /// Closes the connections that have rested for too long or were closed by the other side.
    pub fn sweep(&self) {
        let mut endpoints = lock(&self.endpoints);
        endpoints.retain(|_, endpoint| {
            endpoint.idle.sweep();
            let unused = endpoint.idle.is_empty() && Arc::strong_count(&endpoint.idle) == 1;
            let shared = endpoint
                .shared
                .try_lock()
                .map_or(true, |shared| shared.as_ref().is_some_and(|sender| !sender.is_closed()));
            !unused || shared
        });
    }

    /// Closes the idle connections to a destination. Connections in use are not kept afterwards.
    pub fn forget(&self, to: &D::To) {
        lock(&self.endpoints).remove(to);
    }

    /// Closes every idle connection. Connections in use are not kept afterwards.
    pub fn clear(&self) {
        lock(&self.endpoints).clear();
    }

    /// Opens a connection outside the pool, for a single user.
    ///
    /// # Errors
    /// Returns an error when no connection can be opened.
    pub async fn dial(&self, to: &D::To) -> io::Result<Switched> {
        Ok(Switched { read: Bytes::new(), stream: self.dialer.dial(to).await? })
    }

    /// Sends a request, whose URI becomes the first line's target. gRPC uses HTTP/2, which its
    /// servers speak without negotiation. Everything else uses HTTP/1.1.
    ///
    /// The other side may have closed an idle connection meanwhile. If it took nothing of the
    /// request, a fresh connection sends the request again. A safe request without a body is sent
    /// again, too, when it was lost on a long-idle connection.
    ///
    /// # Errors
    /// Returns the reason why there is no answer. Returns the request too, when nothing of it was
    /// sent.
    pub async fn send(&self, to: &D::To, mut request: Request<Body>) -> Result<Sent, Failed> {
        // Opening a connection is boxed, so that a request on an idle connection moves little
        // memory.
        if is_grpc(&request) {
            return Box::pin(self.send_shared(to, request)).await;
        }
        *request.version_mut() = Version::HTTP_11;
        let idle = self.endpoint(to, |endpoint| Arc::clone(&endpoint.idle));
        if let Some(mut connection) = idle.take() {
            let stale = connection.since.elapsed() > STALE;
            let spare = if stale { spare(&request) } else { None };
            let sent = connection.send(request).await;
            let mut failed = match sent {
                Ok(answer) => return Ok(finish(answer, connection, idle)),
                Err(failed) => failed,
            };
            request = match (failed.take_message(), spare) {
                (Some(request), _) => request,
                (None, Some(spare)) if is_lost(failed.error()) => spare,
                (None, _) => return Err(Error::of(failed.into_error()).into()),
            };
        }
        Box::pin(self.send_alone(to, request, idle)).await
    }

    /// Sends a request on a connection that is opened for it.
    async fn send_alone(
        &self,
        to: &D::To,
        request: Request<Body>,
        idle: Arc<IdlePool>,
    ) -> Result<Sent, Failed> {
        let stream = match self.dialer.dial(to).await {
            Ok(stream) => stream,
            Err(error) => {
                return Err(Failed { error: Error::Dial(error), request: Some(request) });
            }
        };
        let mut connection = Connection::open(stream, self.title_case).await.map_err(Error::of)?;
        let sent = connection.send(request).await;
        let answer = sent.map_err(|failed| Error::of(failed.into_error()))?;
        Ok(finish(answer, connection, idle))
    }

    async fn send_shared(&self, to: &D::To, request: Request<Body>) -> Result<Sent, Failed> {
        let shared = self.endpoint(to, |endpoint| Arc::clone(&endpoint.shared));
        let mut sender = {
            let mut slot = shared.lock().await;
            match slot.as_ref().filter(|sender| !sender.is_closed()) {
                Some(sender) => sender.clone(),
                None => match self.open_shared(to).await {
                    Ok(opened) => slot.insert(opened).clone(),
                    Err(error) => return Err(Failed { error, request: Some(request) }),
                },
            }
        };
        sender.ready().await.map_err(Error::of)?;
        let answer = sender.send_request(request).await.map_err(Error::of)?;
        Ok(Sent { answer: answer.map(Body::from), switched: None })
    }

    async fn open_shared(&self, to: &D::To) -> Result<SendRequest<Body>, Error> {
        let stream = self.dialer.dial(to).await.map_err(Error::Dial)?;
        let io = TokioIo::new(Timed::dialled(stream));
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).keep_alive_interval(PING).adaptive_window(true);
        builder.max_header_list_size(u32::try_from(HEAD_MAX).unwrap_or(u32::MAX));
        let (sender, connection) = builder.handshake(io).await.map_err(Error::of)?;
        self.tasks.spawn(async move {
            // The caller that waits for an answer gets the error.
            let _ = connection.await;
        });
        Ok(sender)
    }
}

/// Copies a request that may be sent twice: it changes nothing (RFC 9110, 9.2.1) and has no body.
/// Returns `None` for any other request.
fn spare(request: &Request<Body>) -> Option<Request<Body>> {
    let safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if !safe || !request.body().is_end_stream() {
        return None;
    }
    let mut spare = Request::new(Body::empty());
    *spare.method_mut() = request.method().clone();
    *spare.uri_mut() = request.uri().clone();
    *spare.headers_mut() = request.headers().clone();
    Some(spare)
}

/// Reports whether a connection ended without any part of an answer.
fn is_lost(error: &hyper::Error) -> bool {
    error.is_incomplete_message() || error.is_closed() || error.is_canceled()
}

fn finish(
    answer: Response<hyper::body::Incoming>,
    connection: Box<Connection>,
    idle: Arc<IdlePool>,
) -> Sent {
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Sent { answer: answer.map(|_| Body::empty()), switched: connection.switched() };
    }
    let answer = answer.map(|body| Body::exchange(Exchange::new(body, connection, idle)));
    Sent { answer, switched: None }
}

/// Reports whether a request is gRPC over HTTP/2. Its content type is `application/grpc`, perhaps
/// with a suffix, but not `application/grpc-web`.
fn is_grpc<B>(request: &Request<B>) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE).map(http::HeaderValue::as_bytes);
    let rest = kind.and_then(|kind| kind.strip_prefix(b"application/grpc"));
    request.version() == Version::HTTP_2
        && rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}
