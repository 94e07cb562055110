//! The agent's access to a guest. Connections are dialled from inside the capsule's namespace. Each
//! capsule has a pool of its own, so no connection serves another capsule. The module also counts
//! the requests under way, and gives envd its identity.

mod dial;
pub(crate) mod log;
pub(crate) mod program;
mod route;
#[cfg(test)]
pub(crate) mod stub;

pub(crate) use route::Route;

use crate::log::LogMode;
use crate::network::egress::Guard;
use crate::network::namespace::Namespace;
use crate::sys;
use base64::Engine;
use bytes::Bytes;
use daemon::{Signal, Tasks};
use dial::Dialer;
use hop::{Body, ConnTracker, Drained, Failed, Permit, Pool, Refused};
use http::{Request, Response, header};
use http_body_util::{BodyExt, Limited};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// Largest error of a guest's clock that ends the setting of the clock at once.
const CLOCK_OFF: Duration = Duration::from_millis(100);
/// Largest error that is accepted after [`CLOCK_TRIES`] settings.
const CLOCK_WRONG: Duration = Duration::from_millis(500);
const CLOCK_TRIES: u32 = 10;
/// Time limit for a guest to write the data in its memory to its disk.
const QUIESCE: Duration = Duration::from_secs(30);
/// Time for the first runs in a guest that others begin from. A code interpreter makes contexts.
const WARM: Duration = Duration::from_secs(150);
/// Time after which a guest's agent counts as silent.
const SILENT: Duration = Duration::from_millis(if cfg!(test) { 500 } else { 10_000 });
/// Delay before another request to a guest that took no connection.
const RESPOND_AGAIN: Duration = Duration::from_millis(100);
/// Wait for an answer before envd is asked for a health check.
const PROBE_AFTER: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 1000 });
/// Time limit for a thawed guest to set its clock. An ended guest never does.
const REFRESH: Duration = Duration::from_secs(30);
/// Bytes of randomness that a guest gets for a new epoch.
const SEED: usize = 64;
/// Period of the attempts to reach a guest that does not answer yet.
const POLL: Duration = Duration::from_millis(10);
/// First time limit for a connection to a guest that does not answer yet.
const PATIENCE: Duration = Duration::from_millis(30);
/// Most bytes of envd's answer to a request for helpers.
const HELPERS_MAX: usize = 4096;
/// Largest answer of envd with its metrics, in bytes.
const METRICS_MAX: usize = 16 * 1024;
/// Idle connections in the pool, for each port of a guest.
const RESTING: usize = 64;

/// Answer to a request for helpers.
#[derive(serde::Deserialize)]
struct Helpers {
    path: String,
}

impl Helpers {
    /// Returns the path if it is an absolute one that needs no quotes in a shell.
    fn checked(self) -> io::Result<String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_' | '.');
        match self.path.starts_with('/') && self.path.chars().all(plain) {
            true => Ok(self.path),
            false => Err(io::Error::other("envd named no plain folder of helpers")),
        }
    }
}

/// A capsule's guest, with its pool of connections.
#[derive(Clone)]
pub(crate) struct Guest {
    pool: Arc<Pool<Dialer>>,
    cut: Signal,
    tracker: ConnTracker,
    /// Requests under way at envd's port, and at all the others.
    counts: [ConnTracker; 2],
    /// Requests under way that are activity.
    active: ConnTracker,
    /// Limit of requests at once at envd's port; all the other ports together have the same limit.
    most: u32,
    /// Guard of the guest's outgoing connections; `None` without a network.
    guard: Option<Arc<Guard>>,
    /// Lock of the task that sets the clock once envd answers.
    refresher: Arc<Mutex<()>>,
}

/// Permits of one request among the requests under way.
#[derive(Debug)]
pub(crate) struct Permits {
    _of_port: Permit,
    _of_all: Permit,
    _of_active: Option<Permit>,
}

/// Purpose of a request to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A request that makes the guest do something, which is activity.
    Use,
    /// A request that only reads the guest's state, which leaves an idle capsule idle.
    Look,
}

/// Identity and settings that envd gets before requests are let in.
pub(crate) struct Identity {
    pub hostname: String,
    pub token: String,
    /// Token that envd still expects, if it differs from `token`.
    pub old_token: Option<String>,
    pub envs: BTreeMap<String, String>,
    /// Default user of programs; `None` leaves envd's.
    pub user: Option<String>,
    /// Default working directory of programs; `None` leaves envd's.
    pub workdir: Option<String>,
    /// Value of `PATH` that login shells get too; `None` leaves the image's.
    pub path: Option<String>,
    /// The guest's facts about itself, as the metadata service tells them. Without them, envd asks
    /// the service if there is one.
    pub metadata: Option<serde_json::Value>,
    /// Output of programs that envd keeps for the capsule's log.
    pub logs: LogMode,
    /// True for a new machine, false for the continuation of a saved one.
    pub fresh: bool,
}

impl Guest {
    /// Returns the guest at `route`, whose envd expects `token`, for at most `most` requests at
    /// once.
    pub(crate) fn new(route: Route, token: &str, most: u32, tasks: Tasks) -> Self {
        let cut = Signal::default();
        let dialer = Dialer::new(route, token.into(), &cut, tasks.clone());
        let pool = Arc::new(Pool::new(dialer, RESTING, tasks).with_title_case());
        let (tracker, counts) = (ConnTracker::default(), <[ConnTracker; 2]>::default());
        let (active, refresher) = (ConnTracker::default(), Arc::default());
        Self { pool, cut, tracker, counts, active, most, guard: None, refresher }
    }

    /// Returns the guest with a guard for its outgoing connections.
    pub(crate) fn guarded(self, guard: Option<Arc<Guard>>) -> Self {
        Self { guard, ..self }
    }

    /// Returns the guard of the guest's outgoing connections.
    pub(crate) fn guard(&self) -> Option<Arc<Guard>> {
        self.guard.clone()
    }

    /// Returns the same guest with connections that are not cut, for a guest that was cut off and
    /// runs on. Requests are refused until [`Self::admit`].
    pub(crate) fn renewed(&self, tasks: Tasks) -> Self {
        let cut = Signal::default();
        let dialer = self.pool.dialer().renewed(&cut, tasks.clone());
        let pool = Arc::new(Pool::new(dialer, RESTING, tasks).with_title_case());
        let (tracker, guard) = (self.tracker.clone(), self.guard.clone());
        let (counts, active) = (self.counts.clone(), self.active.clone());
        let (most, refresher) = (self.most, Arc::default());
        Self { pool, cut, tracker, counts, active, most, guard, refresher }
    }

    /// Replaces the token that envd expects, for a guest that gets another identity. Connections to
    /// the guest stay open.
    pub(crate) fn set_token(&self, token: &str) {
        self.pool.dialer().set_token(token.into());
    }

    /// Lets requests in again.
    pub(crate) fn admit(&self) {
        self.tracker.reset();
    }

    /// Reports whether any activity is under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.active.count() > 0
    }

    /// Takes permits for one more request. The ports of envd and the code interpreter have permits
    /// of their own, so that a capsule whose ports are flooded still obeys its owner.
    ///
    /// # Errors
    /// Fails when no permit is free, or when the guest takes no more requests.
    pub(crate) fn acquire(&self, port: u16, purpose: Purpose) -> Result<Permits, Refused> {
        let [envds, others] = &self.counts;
        let of_port = if protocol::is_agent_port(port) { envds } else { others };
        let is_active = purpose == Purpose::Use;
        Ok(Permits {
            _of_port: of_port.acquire(self.most)?,
            _of_all: self.tracker.acquire(u32::MAX)?,
            _of_active: is_active.then(|| self.active.acquire(u32::MAX)).transpose()?,
        })
    }

    /// Returns the pool of connections to the guest's ports.
    pub(crate) fn pool(&self) -> &Pool<Dialer> {
        &self.pool
    }

    /// Refuses new requests, waits up to `grace` for the requests under way, and ends all remaining
    /// connections with an error. Returns the number of requests that were cut off.
    pub(crate) async fn drain(&self, grace: Duration) -> u64 {
        let drained = self.tracker.drain(tokio::time::sleep(grace)).await;
        self.close();
        if let Drained::Left(count) = drained { count } else { 0 }
    }

    /// Refuses new requests and ends every connection with an error, at once and for good. A
    /// machine that is gone never closes its connections itself, so a reader would wait for ever.
    pub(crate) fn close(&self) {
        self.tracker.shut();
        self.cut();
    }

    /// Ends every connection with an error, at once and for good.
    pub(crate) fn cut(&self) {
        self.cut.trigger();
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

    /// Waits for an answer from envd; returns `None` if envd answers nothing at all.
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
        // The request is boxed, since operations hold several of these at once.
        let sent = Box::pin(self.pool.send(&protocol::ENVD_PORT, request)).await?;
        Ok(sent.answer)
    }

    /// Waits until envd answers.
    pub(crate) async fn wait_healthy(&self) {
        let mut patience = PATIENCE;
        loop {
            // A packet that is sent before the guest has its network is lost. TCP would send it
            // again only after a second.
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

    /// Begins an epoch. Gives envd its token, clock, name and environment, and gives the guest's
    /// kernel randomness that no other guest has. Connections from before the save end in the
    /// guest.
    ///
    /// # Errors
    /// Fails when envd cannot be reached or refuses, or when its clock cannot be set well enough.
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
            "defaultWorkdir": identity.workdir,
            "templatePath": identity.path,
            "hostname": identity.hostname,
            "metadata": identity.metadata,
            "logs": identity.logs.as_str(),
            "epoch": epoch,
        });
        let token = identity.old_token.as_deref().unwrap_or(&identity.token);
        let took = self.init(body, token).await?;
        self.settle_clock(&identity.token, took).await
    }

    /// Sets the clock of a guest that stood still, and thaws its file system.
    ///
    /// # Errors
    /// Fails like [`Self::initialize`], and when the guest takes longer than [`REFRESH`].
    pub(crate) async fn refresh(&self, token: &str) -> io::Result<()> {
        let refreshed = async {
            let took = self.init(serde_json::json!({}), token).await?;
            self.settle_clock(token, took).await
        };
        let refreshed = tokio::time::timeout(REFRESH, refreshed).await;
        refreshed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Makes the caller the only task that refreshes the guest later; `None` when there is one.
    pub(crate) fn become_refresher(&self) -> Option<OwnedMutexGuard<()>> {
        Arc::clone(&self.refresher).try_lock_owned().ok()
    }

    /// Sets the clock again while setting it took too long. The clock's error is at most the time
    /// that its setting took.
    async fn settle_clock(&self, token: &str, mut took: Duration) -> io::Result<()> {
        for _ in 0..CLOCK_TRIES {
            if took <= CLOCK_OFF {
                return Ok(());
            }
            took = took.min(self.init(serde_json::json!({}), token).await?);
        }
        match took <= CLOCK_WRONG {
            true => Ok(()),
            false => Err(io::Error::other("the guest took too long to set its clock")),
        }
    }

    async fn init(&self, mut body: serde_json::Value, token: &str) -> io::Result<Duration> {
        let started = std::time::Instant::now();
        let now = time::OffsetDateTime::now_utc();
        let now = now.format(&time::format_description::well_known::Rfc3339);
        body["timestamp"] = now.map_err(io::Error::other)?.into();
        self.post("/init", token, body.to_string()).await?;
        Ok(started.elapsed())
    }

    /// Makes the guest run a first command, which speeds up all guests restored from this one.
    ///
    /// # Errors
    /// Fails when envd cannot be reached, or refuses.
    pub(crate) async fn warm(&self, token: &str) -> io::Result<()> {
        self.prepare(token, &serde_json::json!({ "warm": true }), WARM).await
    }

    /// Asks the guest to write the data in its memory to its disk. With `freeze`, the guest writes
    /// nothing more after that, since its memory is not saved.
    ///
    /// # Errors
    /// Fails when envd cannot be reached, or refuses.
    pub(crate) async fn quiesce(&self, token: &str, freeze: bool) -> io::Result<()> {
        self.prepare(token, &serde_json::json!({ "freeze": freeze }), QUIESCE).await
    }

    async fn prepare(
        &self,
        token: &str,
        how: &serde_json::Value,
        limit: Duration,
    ) -> io::Result<()> {
        let asked = self.post("/snapshot/prepare", token, how.to_string());
        let told = tokio::time::timeout(limit, asked).await;
        told.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Asks envd for the guest's metrics, within `limit`. The request does not count as activity. It
    /// takes no permit of a client, and a pause cuts it off.
    ///
    /// # Errors
    /// Fails when envd refuses, does not answer in time, or answers too much.
    pub(crate) async fn metrics(&self, token: &str, limit: Duration) -> io::Result<Bytes> {
        let asked = async {
            let answer = self.ask("GET", "/metrics", token, Bytes::new()).await;
            let answer = answer.map_err(|failed| io::Error::other(failed.error))?;
            if !answer.status().is_success() {
                return Err(io::Error::other("envd refused to return its metrics"));
            }
            let body = Limited::new(answer.into_body(), METRICS_MAX).collect().await;
            Ok(body.map_err(io::Error::other)?.to_bytes())
        };
        let told = tokio::time::timeout(limit, asked).await;
        told.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Returns the namespace that the guest is in; `None` for a driver without machines.
    pub(crate) fn namespace(&self) -> Option<&Namespace> {
        self.pool.dialer().namespace()
    }

    /// Asks the guest for the folder with small stand-ins of the programs that ready commands use.
    ///
    /// # Errors
    /// Fails when envd cannot be reached, refuses, or names no plain folder.
    pub(crate) async fn helpers(&self, token: &str) -> io::Result<String> {
        let asked = async {
            let answer = self.ask("POST", "/helpers", token, Bytes::new()).await;
            let answer = answer.map_err(|failed| io::Error::other(failed.error))?;
            let status = answer.status();
            if !status.is_success() {
                return Err(io::Error::other(format!("envd answered {status} to /helpers")));
            }
            let body = Limited::new(answer.into_body(), HELPERS_MAX).collect().await;
            let body = body.map_err(io::Error::other)?.to_bytes();
            let told: Helpers = serde_json::from_slice(&body)?;
            told.checked()
        };
        let told = tokio::time::timeout(REFRESH, asked).await;
        told.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn post(&self, path: &'static str, token: &str, body: String) -> io::Result<()> {
        let answer = self.ask("POST", path, token, Bytes::from(body)).await;
        let status = answer.map_err(|failed| io::Error::other(failed.error))?.status();
        if status.is_success() {
            return Ok(());
        }
        Err(io::Error::other(format!("envd answered {status} to {path}")))
    }
}
