//! The server's end. It accepts HTTP/1.1, and HTTP/2 from clients that speak it without
//! negotiation, such as gRPC or a proxy in front.
//!
//! Limits of time and size end connections of slow clients and of clients with large heads. A
//! connection beyond the limits is refused at once.

use crate::activity::{Activity, Held, Over, Watch};
use crate::body::Body;
use crate::read_ahead::ReadAhead;
use crate::shares::{Bounds, Full, Share, Shares};
use crate::timed::Timed;
use daemon::Tasks;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustls::ServerConfig;
use std::convert::Infallible;
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use types::ClientNetwork;

/// Time for requests under way once a shutdown has begun.
const DRAIN: Duration = Duration::from_secs(5);
/// Time to wait when the process has no descriptor left for another connection.
const EXHAUSTED: Duration = Duration::from_millis(100);
/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time between two pings of a silent HTTP/2 client.
const PING: Duration = Duration::from_secs(60);
/// Bytes that an HTTP/2 client may send on a stream, and on a connection, before the handler reads
/// them. An adaptive window would let an idle reader hold 16 MiB for each connection.
const STREAM_WINDOW: u32 = 512 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Answer to a connection beyond the limits.
const CROWDED: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n\
    connection: close\r\ncontent-length: 0\r\n\r\n";

/// Grade of trust in a peer when its connection is accepted. The grade decides on the share of the
/// listener's connections that the peer's network may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    /// The peer is unknown.
    Stranger,
    /// The network belongs to a host, or a client from there has shown a credential.
    Known,
    /// The peer is on this machine, or its certificate is good. A proxy on this machine has the
    /// connections of many clients.
    Trusted,
}

impl Standing {
    /// Returns the standing of an address about which nothing else is known.
    #[must_use]
    pub fn of(peer: IpAddr) -> Self {
        if peer.to_canonical().is_loopback() { Self::Trusted } else { Self::Stranger }
    }
}

/// Answers requests.
pub trait Handler: Send + Sync + 'static {
    /// Answers a request of the client at `peer`.
    fn handle(
        self: &Arc<Self>,
        request: Request<Body>,
        peer: SocketAddr,
    ) -> impl Future<Output = Response<Body>> + Send;

    /// Returns the standing of a peer.
    fn standing(&self, peer: IpAddr) -> Standing {
        Standing::of(peer)
    }
}

/// Answer to a request, once it is there.
type Answering = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// Handler of any type. By this type, hyper's server is compiled once, in this crate. Otherwise
/// each crate would compile it again for each of its handlers.
trait AnyHandler: Send + Sync {
    fn answer(self: Arc<Self>, request: Request<Body>, peer: SocketAddr) -> Answering;

    fn standing_of(&self, peer: IpAddr) -> Standing;
}

impl<H: Handler> AnyHandler for H {
    fn answer(self: Arc<Self>, request: Request<Body>, peer: SocketAddr) -> Answering {
        Box::pin(async move { self.handle(request, peer).await })
    }

    fn standing_of(&self, peer: IpAddr) -> Standing {
        self.standing(peer)
    }
}

/// Limits of a listener's clients.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most connections at once. An eighth is kept back from strangers.
    pub connections: usize,
    /// Most connections at once of a network of strangers: an IPv4 address or an IPv6 /64.
    pub per_network: usize,
    /// Most bytes of a request's head. A head may have 100 headers, hyper's default.
    pub head_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 16_384, per_network: 1024, head_bytes: 64 * 1024 }
    }
}

impl Limits {
    /// Returns the bounds of a network with a standing, and of all together.
    #[must_use]
    pub fn bounds(&self, standing: Standing) -> Bounds {
        let of = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let (all, each) = (of(self.connections), of(self.per_network));
        match standing {
            Standing::Stranger => Bounds { all: all - all / 8, each },
            Standing::Known => Bounds { all, each: each.max(all / 2) },
            Standing::Trusted => Bounds { all, each: all },
        }
    }
}

/// Holder of a connection.
type Holder = (ClientNetwork, Standing);

/// Limiter of a listener's connections, by network and standing.
#[derive(Clone)]
struct ConnectionLimiter {
    shares: Shares<Holder>,
    limits: Limits,
}

impl ConnectionLimiter {
    fn take(&self, peer: SocketAddr, standing: Standing) -> Result<Share<Holder>, Full> {
        let holder = (ClientNetwork::from(peer.ip()), standing);
        self.shares.take(holder, 1, self.limits.bounds(standing))
    }
}

/// Source of the TLS configuration for the next handshake.
pub type Tls = watch::Receiver<Arc<ServerConfig>>;

/// Serves until the shutdown. Requests under way then get some time to end.
pub fn serve<H: Handler>(listener: TcpListener, handler: H, limits: Limits, tasks: &Tasks) {
    run(listener, None, Arc::new(handler), limits, tasks);
}

/// Serves over TLS, like [`serve`]. Each handshake uses the configuration that is current when it
/// begins.
pub fn serve_tls<H: Handler>(
    listener: TcpListener,
    tls: Tls,
    handler: H,
    limits: Limits,
    tasks: &Tasks,
) {
    run(listener, Some(tls), Arc::new(handler), limits, tasks);
}

/// Serves a connection that was accepted elsewhere, until the shutdown or its end.
pub async fn serve_stream<H: Handler>(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    peer: SocketAddr,
    handler: Arc<H>,
    limits: Limits,
    tasks: Tasks,
) {
    // The caller accepted the stream and has counted it.
    connection(stream, peer, handler, &builder(limits), Box::new(()), tasks).await;
}

fn run(
    listener: TcpListener,
    tls: Option<Tls>,
    handler: Arc<dyn AnyHandler>,
    limits: Limits,
    tasks: &Tasks,
) {
    let at = tasks.clone();
    let limiter = ConnectionLimiter { shares: Shares::default(), limits };
    let builder = Arc::new(builder(limits));
    tasks.spawn(async move {
        let accepting = async {
            loop {
                let (stream, peer) = accept(&listener).await;
                let standing = handler.standing_of(peer.ip());
                let share = match limiter.take(peer, standing) {
                    Ok(share) => share,
                    Err(full) => {
                        refuse(stream, peer, full, tls.is_none());
                        continue;
                    }
                };
                let (handler, builder) = (Arc::clone(&handler), Arc::clone(&builder));
                let (limiter, stopping, tls) = (limiter.clone(), at.clone(), tls.clone());
                at.spawn(async move {
                    let _ = stream.set_nodelay(true);
                    let Some(tls) = tls else {
                        let held = Box::new(share);
                        return connection(stream, peer, handler, &builder, held, stopping).await;
                    };
                    let Some(stream) = secured(stream, peer, &tls).await else { return };
                    let vouched = stream.get_ref().1.peer_certificates().is_some();
                    let share = match vouched {
                        // A peer with a certificate is trusted, so it no longer counts in its
                        // network's share.
                        true => limiter.take(peer, Standing::Trusted).unwrap_or(share),
                        false => share,
                    };
                    connection(stream, peer, handler, &builder, Box::new(share), stopping).await;
                });
            }
        };
        tokio::select! {
            () = accepting => {}
            () = at.stopping() => {}
        }
    });
}

/// Refuses a connection. A waiting client would not be served sooner, and would hold a place in the
/// system's queue that others need.
fn refuse(stream: TcpStream, peer: SocketAddr, full: Full, plain: bool) {
    let whose = match full {
        Full::All => "all",
        Full::Each => "network",
    };
    metrics::counter!("wrenn_connections_refused_total", "full" => whose).increment(1);
    tracing::debug!(%peer, whose, "refused a connection: the limit is reached");
    if let (true, Ok(mut stream)) = (plain, stream.into_std()) {
        // Neither call blocks. Received bytes are read, since a close with unread bytes makes the
        // client lose the answer.
        let _ = stream.write(CROWDED);
        let _ = stream.read(&mut [0; 4096]);
    }
}

fn builder(limits: Limits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    // The connection itself bounds the time of a head, from its first byte.
    let mut http1 = builder.http1();
    http1.timer(TokioTimer::new()).header_read_timeout(None);
    // A head has to fit into the buffer for reading requests.
    http1.max_buf_size(limits.head_bytes);
    let head = u32::try_from(limits.head_bytes).unwrap_or(u32::MAX);
    let mut http2 = builder.http2();
    http2.timer(TokioTimer::new()).keep_alive_interval(PING);
    http2.initial_stream_window_size(STREAM_WINDOW);
    http2.initial_connection_window_size(CONNECTION_WINDOW);
    http2.max_header_list_size(head).max_concurrent_streams(250);
    builder
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if is_clients(&error) => {}
            Err(error) => {
                tracing::error!(%error, "cannot accept a connection");
                tokio::time::sleep(EXHAUSTED).await;
            }
        }
    }
}

/// Reports whether an accept failed because of the client.
fn is_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Makes the TLS handshake. Returns `None` when it fails or takes too long.
async fn secured(
    stream: TcpStream,
    peer: SocketAddr,
    tls: &Tls,
) -> Option<tokio_rustls::server::TlsStream<ReadAhead<TcpStream>>> {
    let config = Arc::clone(&tls.borrow());
    let handshake = TlsAcceptor::from(config).accept(ReadAhead::new(stream));
    match tokio::time::timeout(HANDSHAKE, handshake).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            let why = error.get_ref().and_then(|why| why.downcast_ref::<rustls::Error>());
            match why {
                // The client should have shown a good certificate.
                Some(
                    rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented,
                ) => {
                    tracing::warn!(%peer, %error, "refused a client");
                }
                // Anybody who finds the port may send anything to it, so this is no warning.
                _ => tracing::debug!(%peer, %error, "refused a client"),
            }
            None
        }
        Err(_) => None,
    }
}

/// Serves a connection to its end. `share` lives as long as the connection, also after a switch of
/// protocols.
async fn connection(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    peer: SocketAddr,
    handler: Arc<dyn AnyHandler>,
    builder: &Builder<TokioExecutor>,
    share: Held,
    stopping: Tasks,
) {
    let activity: Arc<Activity> = Arc::default();
    activity.hold(share);
    let mut watch = Watch::new(Arc::clone(&activity));
    let io = TokioIo::new(Timed::accepted(stream, Arc::clone(&activity)));
    let tasks = stopping.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let shared = request.version() == http::Version::HTTP_2;
        let guard = activity.request(shared);
        let (handler, activity) = (Arc::clone(&handler), Arc::clone(&activity));
        let (head, body) = request.into_parts();
        let alone = (!shared).then_some((&tasks, &activity));
        let (body, answered) = Body::taken(body, &head.headers, alone);
        let request = Request::from_parts(head, body);
        async move {
            let mut answer = handler.answer(request, peer).await;
            if let Some(answered) = answered {
                answered.set();
            }
            if answer.status() == StatusCode::SWITCHING_PROTOCOLS
                && let Some(held) = answer.body_mut().take_held()
            {
                activity.hold(held);
            }
            Ok::<_, Infallible>(answer.map(|body| body.answering(guard)))
        }
    });
    let serving = builder.serve_connection_with_upgrades(io, service);
    let mut serving = std::pin::pin!(serving);
    let mut stop = stopping.stop_signal().wait();
    let over = std::future::poll_fn(|cx| watch.poll(cx));
    tokio::select! {
        biased;
        ended = serving.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%peer, error, "a connection ended with an error");
            }
            return;
        }
        over = over => {
            tracing::debug!(%peer, ?over, "closed a connection after a time limit");
            if over == Over::Head {
                return;
            }
        }
        () = &mut stop => {}
    }
    serving.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(DRAIN, serving).await;
}

#[cfg(test)]
mod tests;
