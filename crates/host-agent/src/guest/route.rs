//! The way to a guest's ports, and the connections on it.

use crate::network::namespace::{Namespace, NamespaceStream};
use crate::network::plan::GUEST;
use daemon::Wait;
use futures::FutureExt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Way to a capsule's ports.
#[derive(Clone)]
pub(crate) enum Route {
    /// The guest's address, inside a namespace.
    Namespace(Namespace),
    /// The address of envd's port on this machine, for a driver without machines.
    Loopback(SocketAddr),
}

impl Route {
    /// Connects to a port of the guest.
    pub(super) async fn dial(&self, port: u16) -> io::Result<NamespaceStream> {
        let to = match self {
            Self::Namespace(namespace) => {
                return namespace.connect(SocketAddr::from((GUEST, port))).await;
            }
            Self::Loopback(envd) if port == protocol::ENVD_PORT => *envd,
            Self::Loopback(envd) => SocketAddr::from((envd.ip(), port)),
        };
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(NamespaceStream::outside(stream))
    }
}

pub(super) fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

/// A connection to a guest, which ends when the guest does.
pub(super) struct GuestStream {
    pub stream: NamespaceStream,
    pub cut: Wait,
}

impl GuestStream {
    /// Returns the result of an operation, or an error if the operation waits and the guest is
    /// gone.
    fn unless_gone<T>(
        &mut self,
        cx: &mut Context<'_>,
        moved: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if moved.is_pending() && self.cut.poll_unpin(cx).is_ready() {
            return Poll::Ready(Err(reset()));
        }
        moved
    }
}

impl Drop for GuestStream {
    /// Closes the connection of a gone guest at once, without a goodbye. Such a guest acknowledges
    /// no goodbye, so the socket would stay for minutes and hold the namespace.
    fn drop(&mut self) {
        if self.cut.is_triggered() {
            self.stream.abort();
        }
    }
}

impl AsyncRead for GuestStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let moved = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.unless_gone(cx, moved)
    }
}

impl AsyncWrite for GuestStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let moved = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.unless_gone(cx, moved)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let moved = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.unless_gone(cx, moved)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
