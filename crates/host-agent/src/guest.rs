//! The agent's way to a guest: connections dialled from inside the capsule's namespace, a
//! pool of them per capsule (so that none can serve another), and envd's first words.

use crate::network::plan::GUEST;
use crate::sys;
use axum::body::Body;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

const DIAL: Duration = Duration::from_secs(5);
/// Between two looks at a guest that does not answer yet.
const POLL: Duration = Duration::from_millis(10);

/// Where a capsule's ports are.
#[derive(Clone)]
pub(crate) enum Route {
    /// Inside a namespace, at the guest's address.
    Namespace(Arc<File>),
    /// On this machine, for a driver without machines: envd's port there.
    Loopback(SocketAddr),
}

impl Route {
    async fn dial(&self, port: u16) -> io::Result<TcpStream> {
        let stream = match self {
            Self::Loopback(envd) if port == protocol::ENVD_PORT => TcpStream::connect(envd).await?,
            Self::Loopback(envd) => TcpStream::connect((envd.ip(), port)).await?,
            Self::Namespace(namespace) => {
                let namespace = Arc::clone(namespace);
                let socket = tokio::task::spawn_blocking(move || {
                    sys::in_namespace(&namespace, tokio::net::TcpSocket::new_v4)
                });
                let socket = socket.await.map_err(io::Error::other)??;
                socket.connect(SocketAddr::from((GUEST, port))).await?
            }
        };
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// A capsule's guest, with its pool of connections.
#[derive(Clone)]
pub(crate) struct Guest {
    client: Client<Dialer, Body>,
    gone: CancellationToken,
}

/// What envd is told before anyone is let in.
pub(crate) struct Identity {
    pub hostname: String,
    pub token: String,
    pub envs: BTreeMap<String, String>,
    pub user: Option<&'static str>,
}

impl Guest {
    pub(crate) fn new(route: Route) -> Self {
        let gone = CancellationToken::new();
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(60))
            .pool_max_idle_per_host(8)
            .build(Dialer { route, gone: gone.clone() });
        Self { client, gone }
    }

    /// Ends every connection with an error. A machine that is gone sends no end of its own, so
    /// that whoever reads from it would wait for ever.
    pub(crate) fn close(&self) {
        self.gone.cancel();
    }

    /// Sends a request whose URI names the guest's port.
    pub(crate) async fn send(
        &self,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, hyper_util::client::legacy::Error> {
        self.client.request(request).await
    }

    /// Waits until envd answers.
    pub(crate) async fn wait_healthy(&self) {
        loop {
            let asked = self.send(envd_request("GET", "/health", Bytes::new()));
            if let Ok(Ok(answer)) = tokio::time::timeout(Duration::from_secs(1), asked).await
                && answer.status().is_success()
            {
                return;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Gives envd its token, clock, name and environment.
    ///
    /// # Errors
    /// When envd cannot be asked, or refuses.
    pub(crate) async fn initialize(&self, identity: &Identity) -> io::Result<()> {
        let now = time::OffsetDateTime::now_utc();
        let now = now.format(&time::format_description::well_known::Rfc3339);
        let body = serde_json::json!({
            "accessToken": identity.token,
            "envVars": identity.envs,
            "defaultUser": identity.user,
            "hostname": identity.hostname,
            "timestamp": now.map_err(io::Error::other)?,
        });
        let request = envd_request("POST", "/init", Bytes::from(body.to_string()));
        let answer = self.send(request).await.map_err(io::Error::other)?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        Err(io::Error::other(format!("envd answered {status} to /init")))
    }
}

fn envd_request(method: &str, path: &str, body: Bytes) -> Request<Body> {
    let uri = format!("http://{GUEST}:{}{path}", protocol::ENVD_PORT);
    let mut request = Request::new(Body::from(body));
    *request.method_mut() = method.parse().unwrap_or_default();
    *request.uri_mut() = uri.parse().unwrap_or_default();
    request
}

#[derive(Clone)]
struct Dialer {
    route: Route,
    gone: CancellationToken,
}

impl tower::Service<Uri> for Dialer {
    type Response = GuestStream;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<GuestStream>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self { route, gone } = self.clone();
        Box::pin(async move {
            let port = uri.port_u16().unwrap_or(80);
            let stream = tokio::select! {
                stream = tokio::time::timeout(DIAL, route.dial(port)) => stream,
                () = gone.cancelled() => return Err(reset()),
            };
            let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
            let stream = TokioIo::new(stream);
            Ok(GuestStream { stream, token: gone.clone(), gone: Box::pin(gone.cancelled_owned()) })
        })
    }
}

fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

/// A connection to a guest, which ends with it.
pub(crate) struct GuestStream {
    stream: TokioIo<TcpStream>,
    token: CancellationToken,
    gone: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl GuestStream {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.gone.as_mut().poll(cx).is_ready() { Err(reset()) } else { Ok(()) }
    }
}

impl Drop for GuestStream {
    /// A guest that is gone acknowledges no goodbye: the socket would wait for it for minutes
    /// and hold the namespace meanwhile. So it is closed at once, without one.
    fn drop(&mut self) {
        if self.token.is_cancelled() {
            let socket = self.stream.inner();
            let _ = rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO));
        }
    }
}

impl Connection for GuestStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for GuestStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl hyper::rt::Write for GuestStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
