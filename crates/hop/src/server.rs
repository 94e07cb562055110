//! Takes requests in: HTTP/1.1, and HTTP/2 from who speaks it without asking (gRPC, a proxy in
//! front). A client that is slow with its head, that sends too much of one, or that comes with
//! too many others is turned away.

use crate::body::Body;
use crate::timed::{Pace, Timed};
use daemon::Tasks;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustls::ServerConfig;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;

/// How long requests under way may take once a shutdown began.
const DRAIN: Duration = Duration::from_secs(5);
/// How long to wait when the process has no descriptor left for another connection.
const EXHAUSTED: Duration = Duration::from_millis(100);
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How often a silent HTTP/2 client is asked whether it is still there.
const PING: Duration = Duration::from_secs(60);

/// Answers requests.
pub trait Handler: Send + Sync + 'static {
    /// Answers one of a client at an address.
    fn handle(
        self: &Arc<Self>,
        request: Request<Body>,
        peer: SocketAddr,
    ) -> impl Future<Output = Response<Body>> + Send;
}

/// What clients may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once; further ones wait to be accepted.
    pub connections: usize,
    /// Bytes of a request's head; of headers, it may have 100, hyper's default.
    pub head_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 16_384, head_bytes: 64 * 1024 }
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
    connection(stream, peer, handler, &builder(limits), tasks).await;
}

fn run<H: Handler>(
    listener: TcpListener,
    tls: Option<Tls>,
    handler: H,
    limits: Limits,
    tasks: &Tasks,
) {
    let (handler, at) = (Arc::new(handler), tasks.clone());
    let places = Arc::new(Semaphore::new(limits.connections));
    let builder = Arc::new(builder(limits));
    tasks.spawn(async move {
        let accepting = async {
            loop {
                let (stream, peer, place) = accept(&listener, &places).await;
                let (handler, builder) = (Arc::clone(&handler), Arc::clone(&builder));
                let (stopping, tls) = (at.clone(), tls.clone());
                at.spawn(async move {
                    let _ = stream.set_nodelay(true);
                    match tls {
                        None => connection(stream, peer, handler, &builder, stopping).await,
                        Some(tls) => {
                            if let Some(stream) = secured(stream, peer, &tls).await {
                                connection(stream, peer, handler, &builder, stopping).await;
                            }
                        }
                    }
                    drop(place);
                });
            }
        };
        tokio::select! {
            () = accepting => {}
            () = at.stopping() => {}
        }
    });
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
    http2.timer(TokioTimer::new()).keep_alive_interval(PING).adaptive_window(true);
    http2.max_header_list_size(head).max_concurrent_streams(250);
    builder
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, Option<OwnedSemaphorePermit>) {
    loop {
        // The semaphore is never closed.
        let place = Arc::clone(places).acquire_owned().await.ok();
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer, place),
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

async fn connection<H: Handler>(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    peer: SocketAddr,
    handler: Arc<H>,
    builder: &Builder<TokioExecutor>,
    stopping: Tasks,
) {
    let pace: Arc<Pace> = Arc::default();
    let io = TokioIo::new(Timed::accepted(stream, Arc::clone(&pace)));
    let tasks = stopping.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let busy = pace.request(request.version() == http::Version::HTTP_2);
        let (handler, pace) = (Arc::clone(&handler), Arc::clone(&pace));
        // Of a stream that is one of many, the client is told that the rest is not wanted.
        let request = match request.version() {
            http::Version::HTTP_2 => request.map(Body::from),
            _ => request.map(|body| Body::taken(body, &tasks)),
        };
        async move {
            let answer = handler.handle(request, peer).await;
            if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
                pace.switched();
            }
            Ok::<_, Infallible>(answer.map(|body| body.answering(busy)))
        }
    });
    let serving = builder.serve_connection_with_upgrades(io, service);
    let mut serving = std::pin::pin!(serving);
    let mut stop = stopping.stop_signal().wait();
    tokio::select! {
        biased;
        ended = serving.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%peer, error, "a connection ended");
            }
            return;
        }
        () = &mut stop => {}
    }
    serving.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(DRAIN, serving).await;
}
