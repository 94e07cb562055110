//! The port at which envd serves. Programs of the guest reach it too. Their connections are
//! limited, or any program could take the descriptors and the memory that the host's need.

use axum::serve::Listener;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections of the guest's programs at once. Further ones are closed.
const PROGRAMS: usize = 256;

/// The other side of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub address: SocketAddr,
    /// Place of a program's connection.
    _place: Option<Arc<OwnedSemaphorePermit>>,
}

/// Takes every connection of the host, and a limited number of others.
pub(crate) struct LimitedListener {
    listener: TcpListener,
    /// Address of the host. `None` on an ordinary machine, where nothing is limited.
    host: Option<IpAddr>,
    places: Arc<Semaphore>,
}

impl LimitedListener {
    pub(crate) fn new(listener: TcpListener, host: Option<IpAddr>) -> Self {
        Self { listener, host, places: Arc::new(Semaphore::new(PROGRAMS)) }
    }

    /// Finds a place for a connection. `None` when it must be closed.
    fn admit(&self, address: SocketAddr) -> Option<Peer> {
        if self.host.is_none_or(|host| host == address.ip()) {
            return Some(Peer { address, _place: None });
        }
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        Some(Peer { address, _place: Some(Arc::new(place)) })
    }
}

impl Listener for LimitedListener {
    type Io = TcpStream;
    type Addr = Peer;

    async fn accept(&mut self) -> (TcpStream, Peer) {
        loop {
            let (stream, address) = Listener::accept(&mut self.listener).await;
            if let Some(peer) = self.admit(address) {
                return (stream, peer);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Ok(Peer { address: self.listener.local_addr()?, _place: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpSocket;

    #[tokio::test]
    async fn connections_beyond_the_places_are_closed_and_the_hosts_are_taken() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let at = listener.local_addr().unwrap();
        let host = IpAddr::from([127, 0, 0, 2]);
        let mut limited = LimitedListener::new(listener, Some(host));
        limited.places = Arc::new(Semaphore::new(1));
        let _program = TcpStream::connect(at).await.unwrap();
        let first = limited.accept().await;
        let mut second = TcpStream::connect(at).await.unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(host, 0)).unwrap();
        let _host = socket.connect(at).await.unwrap();
        assert_eq!(limited.accept().await.1.address.ip(), host);
        assert_eq!(second.read(&mut [0]).await.unwrap(), 0);
        drop(first);
        let third = TcpStream::connect(at).await.unwrap();
        assert_eq!(limited.accept().await.1.address, third.local_addr().unwrap());
    }
}
