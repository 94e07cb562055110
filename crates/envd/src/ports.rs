//! Servers in the guest. They are listed, and the host is connected to those on the loopback, which
//! it cannot reach by itself.

mod relay;
mod table;

pub(crate) use relay::relay;
pub(crate) use table::{Listener, listeners};

use crate::error::{Error, Result};
use connectrpc::ErrorCode;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Addresses of the loopback, in the order in which they are tried.
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
/// Time that a program may take to take a connection. The host waits for 5 s.
const LIMIT: Duration = Duration::from_secs(4);
/// Connections at once between the host and the loopback. Each takes two of the 65,536 descriptors
/// that envd may have, and the host limits the requests under way.
const RELAYS: usize = 8192;

/// The guest's ports, as the host is served.
pub(crate) struct Ports {
    /// The port at which envd itself serves.
    own: u16,
    relays: Arc<Semaphore>,
}

impl Ports {
    /// Serves the host, which reaches envd at the port `own`.
    pub(crate) fn new(own: u16) -> Self {
        Self { own, relays: Arc::new(Semaphore::new(RELAYS)) }
    }

    /// Returns the port at which envd itself serves.
    pub(crate) fn own(&self) -> u16 {
        self.own
    }

    /// Connects to a server on the loopback. The connection keeps the returned place.
    ///
    /// # Errors
    /// `not_found` when nobody listens or the port is envd's own. `deadline_exceeded` when the
    /// program takes no connection in time, and `unavailable` when every place is taken.
    pub(crate) async fn connect(&self, port: u16) -> Result<(TcpStream, OwnedSemaphorePermit)> {
        if port == self.own || port == protocol::ENVD_PORT {
            return Err(Error::not_found("the port is envd's own"));
        }
        let place = Arc::clone(&self.relays).try_acquire_owned();
        let place = place.map_err(|_| {
            let message = "too many connections to the guest's loopback are open";
            Error::new(ErrorCode::Unavailable, message)
        })?;
        match tokio::time::timeout(LIMIT, dial(port)).await {
            Ok(Some(stream)) => Ok((stream, place)),
            Ok(None) => Err(Error::not_found(format!("nothing listens on port {port}"))),
            Err(_) => {
                let message = format!("no program takes a connection to port {port}");
                Err(Error::new(ErrorCode::DeadlineExceeded, message))
            }
        }
    }
}

async fn dial(port: u16) -> Option<TcpStream> {
    for address in LOOPBACK {
        let Ok(stream) = TcpStream::connect((address, port)).await else { continue };
        // Where nobody listens, the kernel may pick the port itself as the near end's, and joins
        // the connection with itself.
        if stream.local_addr().ok() == stream.peer_addr().ok() {
            relay::reset(&stream);
            continue;
        }
        // Small pieces must not wait for the acknowledgement of earlier ones.
        let _ = stream.set_nodelay(true);
        return Some(stream);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn listen(address: IpAddr) -> (TcpListener, u16) {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
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
    async fn port_without_a_server_and_envds_own_port_are_not_found() {
        let (listener, port) = listen(LOOPBACK[0]).await;
        let own = Ports::new(port);
        assert_eq!(own.connect(port).await.unwrap_err().code, ErrorCode::NotFound);
        assert_eq!(own.connect(protocol::ENVD_PORT).await.unwrap_err().code, ErrorCode::NotFound);
        drop(listener);
        let closed = Ports::new(1).connect(port).await.unwrap_err();
        assert_eq!(closed.code, ErrorCode::NotFound);
    }

    #[tokio::test]
    async fn connection_beyond_the_places_is_refused_until_another_ends() {
        let ports = Ports { own: 1, relays: Arc::new(Semaphore::new(1)) };
        let (_listener, port) = listen(LOOPBACK[0]).await;
        let first = ports.connect(port).await.unwrap();
        assert_eq!(ports.connect(port).await.unwrap_err().code, ErrorCode::Unavailable);
        drop(first);
        drop(ports.connect(port).await.unwrap());
    }
}
