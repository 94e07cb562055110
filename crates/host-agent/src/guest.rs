//! The agent's way to a guest: connections dialled from inside the capsule's namespace, a
//! pool of them per capsule (so that none can serve another), the count of what is under way,
//! and envd's first words.

use crate::network::plan::GUEST;
use crate::sys;
use bytes::Bytes;
use daemon::{Signal, Tasks, Wait};
use futures::FutureExt;
use hop::{Body, Dial, Drained, Failed, Place, Pool, Refused, Stream, Tracker};
use http::{Request, Response, header};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

const DIAL: Duration = Duration::from_secs(5);
/// Between two looks at a guest that does not answer yet.
const POLL: Duration = Duration::from_millis(10);
/// Connections that rest, for each port of a guest.
const RESTING: usize = 64;

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
    pool: Arc<Pool<Dialer>>,
    cut: Signal,
    tracker: Tracker,
    /// Requests under way at once.
    most: u32,
}

/// What envd is told before anyone is let in.
pub(crate) struct Identity {
    pub hostname: String,
    pub token: String,
    pub envs: BTreeMap<String, String>,
    pub user: Option<&'static str>,
}

impl Guest {
    /// The guest at `route`, for at most `most` requests at once.
    pub(crate) fn new(route: Route, most: u32, tasks: Tasks) -> Self {
        let cut = Signal::default();
        let dialer = Dialer { route, cut: cut.clone() };
        let pool = Arc::new(Pool::new(dialer, RESTING, tasks));
        Self { pool, cut, tracker: Tracker::default(), most }
    }

    /// A place among the requests under way. There is always one for envd, so that a capsule
    /// whose ports are flooded still obeys its owner.
    ///
    /// # Errors
    /// When there is none, or none is given any more.
    pub(crate) fn acquire(&self, port: u16) -> Result<Place, Refused> {
        self.tracker.acquire(if port == protocol::ENVD_PORT { u32::MAX } else { self.most })
    }

    /// The connections to the guest's ports.
    pub(crate) fn pool(&self) -> &Pool<Dialer> {
        &self.pool
    }

    /// Refuses whoever comes from now on, waits for those under way for as long as `grace`, and
    /// ends every connection that is left with an error; tells how many requests that ended.
    pub(crate) async fn drain(&self, grace: Duration) -> u64 {
        let drained = self.tracker.drain(tokio::time::sleep(grace)).await;
        self.close();
        if let Drained::Left(count) = drained { count } else { 0 }
    }

    /// Ends every connection with an error, at once and for good. A machine that is gone sends no
    /// end of its own, so that whoever reads from it would wait for ever.
    pub(crate) fn close(&self) {
        self.tracker.shut();
        self.cut.give();
        self.pool.clear();
    }

    /// Sends a request to envd.
    async fn ask(
        &self,
        method: &str,
        path: &'static str,
        body: Bytes,
    ) -> Result<Response<Body>, Failed> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "envd")
            .header(header::CONTENT_LENGTH, body.len())
            .body(Body::from(body));
        let request = request.unwrap_or_default();
        Ok(self.pool.send(&protocol::ENVD_PORT, request).await?.answer)
    }

    /// Waits until envd answers.
    pub(crate) async fn wait_healthy(&self) {
        loop {
            let asked = self.ask("GET", "/health", Bytes::new());
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
        let answer = self.ask("POST", "/init", Bytes::from(body.to_string())).await;
        let status = answer.map_err(|failed| io::Error::other(failed.error))?.status();
        if status.is_success() {
            return Ok(());
        }
        Err(io::Error::other(format!("envd answered {status} to /init")))
    }
}

/// Opens connections to a guest's ports.
pub(crate) struct Dialer {
    route: Route,
    cut: Signal,
}

impl Dial for Dialer {
    type To = u16;

    async fn dial(&self, port: &u16) -> io::Result<Box<dyn Stream>> {
        let mut cut = self.cut.wait();
        let stream = tokio::select! {
            stream = tokio::time::timeout(DIAL, self.route.dial(*port)) => stream,
            () = &mut cut => return Err(reset()),
        };
        let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        Ok(Box::new(GuestStream { stream, cut }))
    }
}

fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

/// A connection to a guest, which ends with it.
struct GuestStream {
    stream: TcpStream,
    cut: Wait,
}

impl GuestStream {
    /// Whoever has to wait, waits for the guest's end too.
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
    /// A guest that is gone acknowledges no goodbye: the socket would wait for it for minutes
    /// and hold the namespace meanwhile. So it is closed at once, without one.
    fn drop(&mut self) {
        if self.cut.is_given() {
            let _ = rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO));
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
