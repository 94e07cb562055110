//! The port at which envd serves HTTP/1. Programs of the guest reach it too. Their connections are
//! limited, since any program could otherwise take the descriptors and memory that the host needs.

use crate::peer::Peer;
use crate::sys;
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
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};

/// Most connections of the guest's programs at once. Further ones are closed.
const PROGRAMS: usize = 256;
/// Time in which a program must send the head of a request.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// Most bytes of a program's request that envd holds before it handles the request.
const PROGRAM_BUFFER: usize = 16 * 1024;

/// Time from a request until free memory is given back, so that a burst is followed by one trim.
const TRIM_DELAY: Duration = Duration::from_secs(5);

/// The server of envd's port.
pub(crate) struct Server {
    router: Router,
    /// Address of the host. `None` on an ordinary machine, where nothing is limited. Root in a
    /// guest may take this address, which harms only that guest.
    host: Option<IpAddr>,
    places: usize,
}

impl Server {
    pub(crate) fn new(router: Router, host: Option<IpAddr>) -> Self {
        Self { router, host, places: PROGRAMS }
    }

    /// Accepts every connection of the host, and a limited number of others. Never returns.
    pub(crate) async fn serve(self, mut listener: TcpListener) {
        let places = Arc::new(Semaphore::new(self.places));
        let router = TowerToHyperService::new(self.router);
        let used = Arc::new(Notify::new());
        tokio::spawn(trim_after_use(Arc::clone(&used)));
        loop {
            let (stream, address) = Listener::accept(&mut listener).await;
            let is_host = self.host.is_none_or(|host| host == address.ip());
            let permit = match is_host {
                true => None,
                false => match Arc::clone(&places).try_acquire_owned() {
                    Ok(permit) => Some(Arc::new(permit)),
                    Err(_) => continue,
                },
            };
            let peer = Peer { address, permit };
            tokio::spawn(serve_connection(stream, router.clone(), peer, Arc::clone(&used)));
        }
    }
}

/// Gives free memory back to the kernel after requests. By itself, the allocator keeps the memory of
/// the busiest moment. An idle guest is never woken by this.
async fn trim_after_use(used: Arc<Notify>) {
    loop {
        used.notified().await;
        tokio::time::sleep(TRIM_DELAY).await;
        let _ = tokio::task::spawn_blocking(sys::trim_memory).await;
    }
}

async fn serve_connection(
    stream: TcpStream,
    router: TowerToHyperService<Router>,
    peer: Peer,
    used: Arc<Notify>,
) {
    // With Nagle's algorithm, a stream's last small piece would wait for the acknowledgement of the
    // piece before.
    let _ = stream.set_nodelay(true);
    let mut builder = http1::Builder::new();
    if peer.is_program() {
        builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME);
        builder.max_buf_size(PROGRAM_BUFFER);
    }
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer.clone()));
        used.notify_one();
        router.call(request)
    });
    // A broken connection is a matter of the other side.
    let _ = builder.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::extract::ConnectInfo;
    use axum::routing::get;
    use std::net::Ipv4Addr;
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpSocket;

    const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

    async fn serve_at_a_port(places: usize) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let at = listener.local_addr().unwrap();
        let told = async |ConnectInfo(peer): ConnectInfo<Peer>| peer.is_program().to_string();
        let server =
            Server { router: Router::new().route("/", get(told)), host: Some(HOST), places };
        tokio::spawn(server.serve(listener));
        at
    }

    /// Sends a request. Returns the open connection with the answer's last word.
    async fn ask(stream: TcpStream) -> (TcpStream, String) {
        let mut stream = stream;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut answer = vec![0; 4096];
        let read = stream.read(&mut answer).await.unwrap();
        let text = String::from_utf8_lossy(&answer[..read]).into_owned();
        let last = text.rsplit("\r\n").next().unwrap_or_default().to_owned();
        (stream, last)
    }

    #[tokio::test]
    async fn connections_beyond_the_limit_are_closed_except_the_hosts() {
        let at = serve_at_a_port(1).await;
        let (first, told) = ask(TcpStream::connect(at).await.unwrap()).await;
        assert_eq!(told, "true");
        let mut second = TcpStream::connect(at).await.unwrap();
        assert_eq!(second.read(&mut [0]).await.unwrap_or(0), 0);
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(HOST, 0)).unwrap();
        let (_host, told) = ask(socket.connect(at).await.unwrap()).await;
        assert_eq!(told, "false");
        drop(first);
        // The place is free once the server has seen the end.
        for _ in 0..500 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let mut third = TcpStream::connect(at).await.unwrap();
            third.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            if third.read(&mut [0]).await.is_ok_and(|read| read == 1) {
                return;
            }
        }
        panic!("the place of a closed connection is not free again");
    }

    #[tokio::test]
    async fn http2_preface_is_refused() {
        let at = serve_at_a_port(1).await;
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{answer:?}");
    }
}
