//! Takes requests in: HTTP/1.1, and HTTP/2 from who speaks it without asking (gRPC, a proxy in
//! front). A client that is slow, that sends too large a head, or that comes with too many others
//! is turned away at once.

use crate::body::{Body, Held};
use crate::pace::{Over, Pace, Watch};
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
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use types::ClientNetwork;

/// How long requests under way may take once a shutdown began.
const DRAIN: Duration = Duration::from_secs(5);
/// How long to wait when the process has no descriptor left for another connection.
const EXHAUSTED: Duration = Duration::from_millis(100);
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How often a silent HTTP/2 client is asked whether it is still there.
const PING: Duration = Duration::from_secs(60);
/// Bytes that an HTTP/2 client may send on one stream, and on one connection, before somebody reads
/// them. An adaptive window would let an idle reader hold 16 MiB for each connection.
const STREAM_WINDOW: u32 = 512 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Answer to a client that comes with too many others.
const CROWDED: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n\
    connection: close\r\ncontent-length: 0\r\n\r\n";

/// Grade of trust in a peer when its connection is accepted. The grade decides on the share of the
/// listener's connections that the peer's network may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    /// Nothing is known about the peer.
    Stranger,
    /// The network belongs to a host, or somebody there has shown a credential.
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
    /// Answers one of a client at an address.
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

/// What clients may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once. An eighth is kept back from strangers.
    pub connections: usize,
    /// Connections at once of one network of strangers: an IPv4 address or an IPv6 /64.
    pub per_network: usize,
    /// Bytes of a request's head; of headers, it may have 100, hyper's default.
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

/// The connections of one listener.
#[derive(Clone)]
struct Places {
    shares: Shares<Holder>,
    limits: Limits,
}

impl Places {
    fn take(&self, peer: SocketAddr, standing: Standing) -> Result<Share<Holder>, Full> {
        let holder = (ClientNetwork::from(peer.ip()), standing);
        self.shares.take(holder, 1, self.limits.bounds(standing))
    }
}

/// The TLS configuration that the next handshake goes by.
pub type Tls = watch::Receiver<Arc<ServerConfig>>;

/// Serves until the shutdown, and then what is under way for a while.
pub fn serve<H: Handler>(listener: TcpListener, handler: H, limits: Limits, tasks: &Tasks) {
    run(listener, None, handler, limits, tasks);
}

/// As [`serve`], over TLS; each handshake goes by the configuration that is current when it
/// begins.
pub fn serve_tls<H: Handler>(
    listener: TcpListener,
    tls: Tls,
    handler: H,
    limits: Limits,
    tasks: &Tasks,
) {
    run(listener, Some(tls), handler, limits, tasks);
}

/// Serves one connection that was accepted elsewhere, until the shutdown or its end.
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

fn run<H: Handler>(
    listener: TcpListener,
    tls: Option<Tls>,
    handler: H,
    limits: Limits,
    tasks: &Tasks,
) {
    let (handler, at) = (Arc::new(handler), tasks.clone());
    let places = Places { shares: Shares::default(), limits };
    let builder = Arc::new(builder(limits));
    tasks.spawn(async move {
        let accepting = async {
            loop {
                let (stream, peer) = accept(&listener).await;
                let standing = handler.standing(peer.ip());
                let place = match places.take(peer, standing) {
                    Ok(place) => place,
                    Err(full) => {
                        refuse(stream, peer, full, tls.is_none());
                        continue;
                    }
                };
                let (handler, builder) = (Arc::clone(&handler), Arc::clone(&builder));
                let (places, stopping, tls) = (places.clone(), at.clone(), tls.clone());
                at.spawn(async move {
                    let _ = stream.set_nodelay(true);
                    let Some(tls) = tls else {
                        let held = Box::new(place);
                        return connection(stream, peer, handler, &builder, held, stopping).await;
                    };
                    let Some(stream) = secured(stream, peer, &tls).await else { return };
                    let vouched = stream.get_ref().1.peer_certificates().is_some();
                    let place = match vouched {
                        // A peer with a certificate is trusted, so it gives its place in the
                        // network's share back.
                        true => places.take(peer, Standing::Trusted).unwrap_or(place),
                        false => place,
                    };
                    connection(stream, peer, handler, &builder, Box::new(place), stopping).await;
                });
            }
        };
        tokio::select! {
            () = accepting => {}
            () = at.stopping() => {}
        }
    });
}

/// Turns a connection away. A waiting client would not be served sooner, and would hold a place in
/// the system's queue that others need.
fn refuse(stream: TcpStream, peer: SocketAddr, full: Full, plain: bool) {
    let whose = match full {
        Full::All => "all",
        Full::Each => "network",
    };
    metrics::counter!("wrenn_connections_refused_total", "full" => whose).increment(1);
    tracing::debug!(%peer, whose, "a connection is one too many");
    if let (true, Ok(mut stream)) = (plain, stream.into_std()) {
        // Neither call blocks. The bytes that have come are read, since a close with unread bytes
        // takes the answer away.
        let _ = stream.write(CROWDED);
        let _ = stream.read(&mut [0; 4096]);
    }
}

fn builder(limits: Limits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    // The connection itself bounds the time of a head, from its first byte.
    let mut http1 = builder.http1();
    http1.timer(TokioTimer::new()).header_read_timeout(None);
    // A head has to fit into the buffer that requests are read by.
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
                tracing::error!(%error, "accepting a connection");
                tokio::time::sleep(EXHAUSTED).await;
            }
        }
    }
}

/// Whether an accept failed for the client's sake, not ours.
fn is_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// A connection once the client has shown who it is, if it can.
async fn secured(
    stream: TcpStream,
    peer: SocketAddr,
    tls: &Tls,
) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
    let config = Arc::clone(&tls.borrow());
    let handshake = TlsAcceptor::from(config).accept(stream);
    match tokio::time::timeout(HANDSHAKE, handshake).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            let why = error.get_ref().and_then(|why| why.downcast_ref::<rustls::Error>());
            match why {
                // One that should show who it is, and did not.
                Some(
                    rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented,
                ) => {
                    tracing::warn!(%peer, %error, "a client was refused");
                }
                // Whoever finds the port may speak what they like to it.
                _ => tracing::debug!(%peer, %error, "a client was refused"),
            }
            None
        }
        Err(_) => None,
    }
}

/// Serves a connection to its end. `place` lives as long as the connection, also after a switch of
/// protocols.
async fn connection<H: Handler>(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    peer: SocketAddr,
    handler: Arc<H>,
    builder: &Builder<TokioExecutor>,
    place: Held,
    stopping: Tasks,
) {
    let pace: Arc<Pace> = Arc::default();
    pace.hold(place);
    let mut watch = Watch::new(Arc::clone(&pace));
    let io = TokioIo::new(Timed::accepted(stream, Arc::clone(&pace)));
    let tasks = stopping.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let shared = request.version() == http::Version::HTTP_2;
        let busy = pace.request(shared);
        let (handler, pace) = (Arc::clone(&handler), Arc::clone(&pace));
        let (head, body) = request.into_parts();
        let alone = (!shared).then_some((&tasks, &pace));
        let (body, answered) = Body::taken(body, &head.headers, alone);
        let request = Request::from_parts(head, body);
        async move {
            let mut answer = handler.handle(request, peer).await;
            if let Some(answered) = answered {
                answered.set();
            }
            if answer.status() == StatusCode::SWITCHING_PROTOCOLS
                && let Some(held) = answer.body_mut().take_held()
            {
                pace.hold(held);
            }
            Ok::<_, Infallible>(answer.map(|body| body.answering(busy)))
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
                tracing::debug!(%peer, error, "a connection ended");
            }
            return;
        }
        over = over => {
            tracing::debug!(%peer, ?over, "a connection took too long");
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
