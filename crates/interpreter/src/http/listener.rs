//! Connections at the interpreter's port. The guest's own programs reach it too, so connections
//! and heads of requests are limited.

use super::router;
use crate::contexts::Contexts;
use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::serve::Listener;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Most connections of the guest's programs, and most of all others. Further ones are closed.
const CONNECTIONS: usize = 256;
/// Time in which a client must send the head of a request.
const HEAD_TIME: Duration = Duration::from_secs(30);

/// Serves the port. Never returns.
pub(crate) async fn serve(mut listener: TcpListener, contexts: Arc<Contexts>) {
    let router = TowerToHyperService::new(router(contexts));
    let (own, others) =
        (Arc::new(Semaphore::new(CONNECTIONS)), Arc::new(Semaphore::new(CONNECTIONS)));
    loop {
        let (stream, peer) = Listener::accept(&mut listener).await;
        let places = if peer.ip().is_loopback() { &own } else { &others };
        let Ok(place) = Arc::clone(places).try_acquire_owned() else { continue };
        let router = router.clone();
        tokio::spawn(async move {
            serve_connection(stream, peer, router).await;
            drop(place);
        });
    }
}

async fn serve_connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: TowerToHyperService<Router>,
) {
    // With Nagle's algorithm, a stream's last small piece would wait for an acknowledgement.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        router.call(request)
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME);
    // A broken connection is a matter of the other side.
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}
