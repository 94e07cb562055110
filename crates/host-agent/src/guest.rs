//! The agent's way to a guest: connections dialled from inside the capsule's namespace, a
//! pool of them per capsule (so that none can serve another), the count of what is under way,
//! and envd's first words.

mod dial;

use crate::network::egress::Guard;
use crate::network::namespace::{Namespace, NamespaceStream};
use crate::network::plan::GUEST;
use crate::sys;
use base64::Engine;
use bytes::Bytes;
use daemon::{Signal, Tasks, Wait};
use dial::Dialer;
use futures::FutureExt;
use hop::{Body, Drained, Failed, Place, Pool, Refused, Tracker};
use http::{Request, Response, header};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// How far a guest's clock may be off when anyone is let in.
const CLOCK_OFF: Duration = Duration::from_millis(100);
/// And where it cannot be told better after so many tries.
const CLOCK_WRONG: Duration = Duration::from_millis(500);
const CLOCK_TRIES: u32 = 10;
/// How long a guest may take to write down what it has in memory.
const QUIESCE: Duration = Duration::from_secs(30);
/// Time after which a guest's agent counts as silent.
const SILENT: Duration = Duration::from_millis(if cfg!(test) { 500 } else { 10_000 });
/// Pause before another request to a guest that took no connection.
const RESPOND_AGAIN: Duration = Duration::from_millis(100);
/// Wait for an answer before envd is asked whether it answers at all.
const PROBE_AFTER: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 1000 });
/// Time that a guest which goes on may take to set its clock. An ended guest never does.
const REFRESH: Duration = Duration::from_secs(30);
/// Bytes of randomness that a guest begins a new epoch with.
const SEED: usize = 64;
/// Between two looks at a guest that does not answer yet.
const POLL: Duration = Duration::from_millis(10);
/// How long a guest that does not answer yet may take to take a connection, at first.
const PATIENCE: Duration = Duration::from_millis(30);
/// Connections that rest, for each port of a guest.
const RESTING: usize = 64;

/// Where a capsule's ports are.
#[derive(Clone)]
pub(crate) enum Route {
    /// Inside a namespace, at the guest's address.
    Namespace(Namespace),
    /// On this machine, for a driver without machines: envd's port there.
    Loopback(SocketAddr),
}

impl Route {
    async fn dial(&self, port: u16) -> io::Result<NamespaceStream> {
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

/// A capsule's guest, with its pool of connections.
#[derive(Clone)]
pub(crate) struct Guest {
    pool: Arc<Pool<Dialer>>,
    cut: Signal,
    tracker: Tracker,
    /// Requests under way at envd's port, and at all the others.
    counts: [Tracker; 2],
    /// Requests under way that are activity.
    active: Tracker,
    /// Limit of requests at once at envd's port; all the other ports together have the same limit.
    most: u32,
    /// Carries out what it may reach; none where it has no network.
    guard: Option<Arc<Guard>>,
    /// Held by the task that sets the clock once envd answers.
    refresher: Arc<Mutex<()>>,
}

/// A request's places among the requests under way.
#[derive(Debug)]
pub(crate) struct Places {
    _of_port: Place,
    _of_all: Place,
    _of_active: Option<Place>,
}

/// Purpose of a request to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Has the guest do something, which is activity.
    Use,
    /// Only asks how the guest is, which leaves an idle capsule idle.
    Look,
}

/// What envd is told before anyone is let in.
pub(crate) struct Identity {
    pub hostname: String,
    pub token: String,
    /// The one that it asks for, where that is another.
    pub old_token: Option<String>,
    pub envs: BTreeMap<String, String>,
    pub user: Option<&'static str>,
    /// Whether it is to be a machine of its own, and not the one that it was.
    pub fresh: bool,
}

impl Guest {
    /// The guest at `route`, whose envd expects `token`, for at most `most` requests at once.
    pub(crate) fn new(route: Route, token: &str, most: u32, tasks: Tasks) -> Self {
        let cut = Signal::default();
        let dialer = Dialer::new(route, token.into(), &cut, tasks.clone());
        let pool = Arc::new(Pool::new(dialer, RESTING, tasks).with_title_case());
        let (tracker, counts) = (Tracker::default(), <[Tracker; 2]>::default());
        let (active, refresher) = (Tracker::default(), Arc::default());
        Self { pool, cut, tracker, counts, active, most, guard: None, refresher }
    }

    /// The same, with who carries out what it may reach.
    pub(crate) fn guarded(self, guard: Option<Arc<Guard>>) -> Self {
        Self { guard, ..self }
    }

    /// Who carries out what it may reach.
    pub(crate) fn guard(&self) -> Option<Arc<Guard>> {
        self.guard.clone()
    }

    /// The same guest, which takes no requests yet, by connections that are not cut: for a guest
    /// that was cut off and goes on.
    pub(crate) fn renewed(&self, tasks: Tasks) -> Self {
        let cut = Signal::default();
        let dialer = self.pool.dialer().renewed(&cut, tasks.clone());
        let pool = Arc::new(Pool::new(dialer, RESTING, tasks).with_title_case());
        let (tracker, guard) = (self.tracker.clone(), self.guard.clone());
        let (counts, active) = (self.counts.clone(), self.active.clone());
        let (most, refresher) = (self.most, Arc::default());
        Self { pool, cut, tracker, counts, active, most, guard, refresher }
    }

    /// Lets requests in again.
    pub(crate) fn admit(&self) {
        self.tracker.reset();
    }

    /// Reports whether any activity is under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.active.count() > 0
    }

    /// Takes a place among the requests under way. envd's port has places of its own, so that a
    /// capsule whose ports are flooded still obeys its owner.
    ///
    /// # Errors
    /// When no place is free, or none is given any more.
    pub(crate) fn acquire(&self, port: u16, purpose: Purpose) -> Result<Places, Refused> {
        let [envds, others] = &self.counts;
        let of_port = if port == protocol::ENVD_PORT { envds } else { others };
        let is_active = purpose == Purpose::Use;
        Ok(Places {
            _of_port: of_port.acquire(self.most)?,
            _of_all: self.tracker.acquire(u32::MAX)?,
            _of_active: is_active.then(|| self.active.acquire(u32::MAX)).transpose()?,
        })
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
        self.cut();
    }

    /// Ends every connection with an error, at once and for good.
    pub(crate) fn cut(&self) {
        self.cut.give();
        self.pool.clear();
    }

    /// Waits until every connection has to end.
    pub(crate) async fn gone(&self) {
        self.cut.wait().await;
    }

    /// Reports whether envd takes a new connection and answers a request within `limit`.
    pub(crate) async fn answers(&self, limit: Duration) -> bool {
        let asked = async {
            self.pool.dial(&protocol::ENVD_PORT).await.ok()?;
            self.ask("GET", "/health", "", Bytes::new()).await.ok()
        };
        matches!(tokio::time::timeout(limit, asked).await, Ok(Some(_)))
    }

    /// Reports whether envd answers anything at all. Waits for a slow answer, but not for ever.
    pub(crate) async fn responds(&self) -> bool {
        let asked = async {
            while self.ask("GET", "/health", "", Bytes::new()).await.is_err() {
                tokio::time::sleep(RESPOND_AGAIN).await;
            }
        };
        tokio::time::timeout(SILENT, asked).await.is_ok()
    }

    /// Waits for an answer of envd's, unless envd answers nothing at all.
    pub(crate) async fn unless_silent<T>(&self, answer: impl Future<Output = T>) -> Option<T> {
        let silent = async {
            tokio::time::sleep(PROBE_AFTER).await;
            if self.responds().await {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            answer = answer => Some(answer),
            () = silent => None,
        }
    }

    /// Sends a request to envd.
    async fn ask(
        &self,
        method: &str,
        path: &'static str,
        token: &str,
        body: Bytes,
    ) -> Result<Response<Body>, Failed> {
        let request = Request::builder()
            .header(protocol::ACCESS_TOKEN, token)
            .method(method)
            .uri(path)
            .header(header::HOST, "envd")
            .header(header::CONTENT_LENGTH, body.len())
            .body(Body::from(body));
        let request = request.unwrap_or_default();
        // Boxed, since operations hold several of these at once.
        let sent = Box::pin(self.pool.send(&protocol::ENVD_PORT, request)).await?;
        Ok(sent.answer)
    }

    /// Waits until envd answers.
    pub(crate) async fn wait_healthy(&self) {
        let mut patience = PATIENCE;
        loop {
            // What is sent before the guest has its network is lost, and would be sent again only
            // after a second.
            let dialled = tokio::time::timeout(patience, self.pool.dial(&protocol::ENVD_PORT));
            patience = (patience * 11 / 10).min(Duration::from_secs(1));
            if let Ok(Ok(_)) = dialled.await {
                let asked = self.ask("GET", "/health", "", Bytes::new());
                if let Ok(Ok(answer)) = tokio::time::timeout(Duration::from_secs(1), asked).await
                    && answer.status().is_success()
                {
                    return;
                }
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Begins an epoch: gives envd its token, clock, name and environment, and its kernel
    /// randomness that no other has; what was open to it when it was kept ends there too.
    ///
    /// # Errors
    /// When envd cannot be asked, or refuses, or the clock cannot be set well enough.
    pub(crate) async fn initialize(&self, identity: &Identity) -> io::Result<()> {
        let seed = sys::random::<SEED>()?;
        let epoch = serde_json::json!({
            "entropy": base64::engine::general_purpose::STANDARD.encode(seed),
            "fresh": identity.fresh,
        });
        let body = serde_json::json!({
            "accessToken": identity.token,
            "envVars": identity.envs,
            "defaultUser": identity.user,
            "hostname": identity.hostname,
            "epoch": epoch,
        });
        let token = identity.old_token.as_deref().unwrap_or(&identity.token);
        let took = self.init(body, token).await?;
        self.settle_clock(&identity.token, took).await
    }

    /// Sets the clock of a guest that stood still, and lets its file system go on.
    ///
    /// # Errors
    /// As [`Self::initialize`], and when the guest takes longer than [`REFRESH`].
    pub(crate) async fn refresh(&self, token: &str) -> io::Result<()> {
        let refreshed = async {
            let took = self.init(serde_json::json!({}), token).await?;
            self.settle_clock(token, took).await
        };
        let refreshed = tokio::time::timeout(REFRESH, refreshed).await;
        refreshed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Makes the caller the one task that refreshes the guest later; `None` when there is one.
    pub(crate) fn become_refresher(&self) -> Option<OwnedMutexGuard<()>> {
        Arc::clone(&self.refresher).try_lock_owned().ok()
    }

    /// The clock is off by no more than its setting took; where that was long, it is set again.
    async fn settle_clock(&self, token: &str, mut took: Duration) -> io::Result<()> {
        for _ in 0..CLOCK_TRIES {
            if took <= CLOCK_OFF {
                return Ok(());
            }
            took = took.min(self.init(serde_json::json!({}), token).await?);
        }
        match took <= CLOCK_WRONG {
            true => Ok(()),
            false => Err(io::Error::other("the guest takes too long to set its clock")),
        }
    }

    async fn init(&self, mut body: serde_json::Value, token: &str) -> io::Result<Duration> {
        let started = std::time::Instant::now();
        let now = time::OffsetDateTime::now_utc();
        let now = now.format(&time::format_description::well_known::Rfc3339);
        body["timestamp"] = now.map_err(io::Error::other)?.into();
        self.tell("/init", token, body.to_string()).await?;
        Ok(started.elapsed())
    }

    /// Has the guest run a first command, for all who begin from what it is then.
    ///
    /// # Errors
    /// When envd cannot be asked, or refuses.
    pub(crate) async fn warm(&self) -> io::Result<()> {
        self.prepare("", &serde_json::json!({ "warm": true })).await
    }

    /// Asks the guest to write down what it has in memory; and, where its memory is not kept, to
    /// write nothing from then on.
    ///
    /// # Errors
    /// When envd cannot be asked, or refuses.
    pub(crate) async fn quiesce(&self, token: &str, freeze: bool) -> io::Result<()> {
        self.prepare(token, &serde_json::json!({ "freeze": freeze })).await
    }

    async fn prepare(&self, token: &str, how: &serde_json::Value) -> io::Result<()> {
        let asked = self.tell("/snapshot/prepare", token, how.to_string());
        let told = tokio::time::timeout(QUIESCE, asked).await;
        told.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn tell(&self, path: &'static str, token: &str, body: String) -> io::Result<()> {
        let answer = self.ask("POST", path, token, Bytes::from(body)).await;
        let status = answer.map_err(|failed| io::Error::other(failed.error))?.status();
        if status.is_success() {
            return Ok(());
        }
        Err(io::Error::other(format!("envd answered {status} to {path}")))
    }
}

fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

/// A connection to a guest, which ends with it.
struct GuestStream {
    stream: NamespaceStream,
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
