//! Servers in the guest. envd lists them, and connects the host to servers on the loopback, which
//! the host cannot reach by itself.

mod relay;
mod table;

pub(crate) use relay::relay;
pub(crate) use table::{Listener, listeners};

use crate::error::{Error, Result};
use connectrpc::ErrorCode;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Addresses of the loopback, in the order of attempts.
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
/// Time in which a program must accept a connection. The host waits for 5 s.
const LIMIT: Duration = Duration::from_secs(4);
/// Time without an answer after which the second address is tried beside the first.
const STAGGER: Duration = Duration::from_millis(100);
/// Connections at once between the host and the loopback. Each takes two of envd's 65,536
/// descriptors. The host limits the requests under way.
const RELAYS: usize = 8192;

/// The guest's ports, as the host is served.
pub(crate) struct Ports {
    /// Port at which envd itself serves.
    own: u16,
    relays: Arc<Semaphore>,
}

impl Ports {
    /// Makes the state of a guest whose envd serves at the port `own`.
    pub(crate) fn new(own: u16) -> Self {
        Self { own, relays: Arc::new(Semaphore::new(RELAYS)) }
    }

    /// Returns the port at which envd itself serves.
    pub(crate) fn own(&self) -> u16 {
        self.own
    }

    /// Connects to a server on the loopback. The caller keeps the returned place as long as the
    /// connection lasts.
    ///
    /// # Errors
    /// Returns `not_found` when nothing listens or the port is envd's own. Returns
    /// `deadline_exceeded` when no program accepts in time, and `unavailable` when every place is
    /// taken.
    pub(crate) async fn connect(&self, port: u16) -> Result<(TcpStream, OwnedSemaphorePermit)> {
        if port == self.own || port == protocol::ENVD_PORT {
            return Err(Error::not_found("the port belongs to envd"));
        }
        let place = Arc::clone(&self.relays).try_acquire_owned();
        let place = place.map_err(|_| {
            let message = "too many connections to the guest's loopback are open";
            Error::new(ErrorCode::Unavailable, message)
        })?;
        match timeout(LIMIT, dial(port)).await {
            Ok(Some(stream)) => Ok((stream, place)),
            Ok(None) => Err(Error::not_found(format!("nothing listens on port {port}"))),
            Err(_) => {
                let message = format!("no program accepts a connection to port {port}");
                Err(Error::new(ErrorCode::DeadlineExceeded, message))
            }
        }
    }
}

/// Connects to the loopback. A server with a full queue leaves a connection without an answer. It
/// must not hide a server on the other address.
async fn dial(port: u16) -> Option<TcpStream> {
    let [first, second] = LOOPBACK.map(|address| connect(address, port));
    let mut first = pin!(first);
    let second = pin!(second);
    match timeout(STAGGER, first.as_mut()).await {
        Ok(Some(stream)) => return Some(stream),
        Ok(None) => return second.await,
        Err(_) => {}
    }
    tokio::select! {
        Some(stream) = first => Some(stream),
        Some(stream) = second => Some(stream),
        else => None,
    }
}

/// Connects to an address of the loopback. Returns `None` when nothing listens there.
async fn connect(address: IpAddr, port: u16) -> Option<TcpStream> {
    let stream = TcpStream::connect((address, port)).await.ok()?;
    // Without a listener, the kernel may pick this very port for the near end. The connection is
    // then joined with itself.
    if stream.local_addr().ok() == stream.peer_addr().ok() {
        relay::reset(&stream);
        return None;
    }
    // Small pieces must not wait for the acknowledgement of earlier pieces.
    let _ = stream.set_nodelay(true);
    Some(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use tokio::net::{TcpListener, TcpSocket};

    async fn listen(address: IpAddr) -> (TcpListener, u16) {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    /// Makes a server whose queue is full, with the connections in the queue.
    fn full_server() -> (TcpListener, Vec<std::net::TcpStream>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(LOOPBACK[0], 0)).unwrap();
        let listener = socket.listen(1).unwrap();
        let at = listener.local_addr().unwrap();
        let connect = || std::net::TcpStream::connect_timeout(&at, STAGGER).ok();
        (listener, std::iter::from_fn(connect).collect())
    }

    #[tokio::test]
    async fn server_is_reached_while_the_queue_at_the_other_address_is_full() {
        let (full, _queue) = full_server();
        let port = full.local_addr().unwrap().port();
        let listener = TcpListener::bind((LOOPBACK[1], port)).await.unwrap();
        let (stream, _place) = Ports::new(1).connect(port).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), listener.local_addr().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn full_accept_queue_without_another_server_is_an_error() {
        let (full, _queue) = full_server();
        let port = full.local_addr().unwrap().port();
        let error = Ports::new(1).connect(port).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::DeadlineExceeded, "{error}");
    }

    #[tokio::test]
    async fn server_on_either_loopback_address_is_reached() {
        let ports = Ports::new(1);
        for address in LOOPBACK {
            let (listener, port) = listen(address).await;
            let (stream, _place) = ports.connect(port).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap(), listener.local_addr().unwrap());
        }
    }

    #[tokio::test]
    async fn port_without_server_and_envd_port_are_not_found() {
        let (listener, port) = listen(LOOPBACK[0]).await;
        let own = Ports::new(port);
        assert_eq!(own.connect(port).await.unwrap_err().code, ErrorCode::NotFound);
        assert_eq!(own.connect(protocol::ENVD_PORT).await.unwrap_err().code, ErrorCode::NotFound);
        drop(listener);
        let closed = Ports::new(1).connect(port).await.unwrap_err();
        assert_eq!(closed.code, ErrorCode::NotFound);
    }

    #[tokio::test]
    async fn connection_beyond_the_limit_is_refused_until_another_ends() {
        let ports = Ports { own: 1, relays: Arc::new(Semaphore::new(1)) };
        let (_listener, port) = listen(LOOPBACK[0]).await;
        let first = ports.connect(port).await.unwrap();
        assert_eq!(ports.connect(port).await.unwrap_err().code, ErrorCode::Unavailable);
        drop(first);
        drop(ports.connect(port).await.unwrap());
    }
}
