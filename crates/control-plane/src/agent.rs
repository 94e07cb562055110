//! The way to host agents: their RPC, and their data hop to guests, over one pool of
//! connections, so that whatever secures the one secures the other.

use crate::capsules;
use crate::error::{Error, Result};
use anyhow::Context;
use axum::body::Body;
use connectrpc::client::{CallOptions, ClientBody, ClientConfig, ClientTransport};
use connectrpc::{ConnectError, ErrorCode};
use daemon::Tasks;
use futures::FutureExt;
use futures::future::BoxFuture;
use hop::{Dial, Pool, Stream};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderValue, Request, Response, Uri, header};
use protocol::filesystem::FilesystemClient;
use protocol::host::{self, HostClient};
use protocol::process::ProcessClient;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::net::TcpStream;
use types::{CapsuleId, SnapshotId};

/// Longer than a boot may take on the agent's side.
const CREATE: Duration = Duration::from_secs(150);
/// Longer than writing a large memory to a slow disk takes.
const KEEP: Duration = Duration::from_secs(900);
const CALL: Duration = Duration::from_secs(30);
const DIAL: Duration = Duration::from_secs(5);
/// Connections that rest, for each agent.
const RESTING: usize = 1024;
/// Between two looks at connections that rest.
const SWEEP: Duration = Duration::from_secs(15);

/// Opens connections to agents, by their `host:port`.
pub(crate) struct Tcp;

impl Dial for Tcp {
    type To = Authority;

    async fn dial(&self, to: &Authority) -> io::Result<Box<dyn Stream>> {
        let host = to.host().trim_matches(['[', ']']);
        let dialling = TcpStream::connect((host, to.port_u16().unwrap_or(80)));
        let stream = tokio::time::timeout(DIAL, dialling).await;
        let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

/// The connections to all agents.
#[derive(Clone)]
pub(crate) struct Agents(Arc<Pool<Tcp>>);

impl Agents {
    pub(crate) fn new(tasks: &Tasks) -> Self {
        let pool = Arc::new(Pool::new(Tcp, RESTING, tasks.clone()));
        let sweeping = Arc::clone(&pool);
        tasks.every(SWEEP, move || {
            sweeping.sweep();
            std::future::ready(())
        });
        Self(pool)
    }

    /// The pool, for what is passed on as it is.
    pub(crate) fn pool(&self) -> &Pool<Tcp> {
        &self.0
    }

    /// Sends a request to the agent that its URI names.
    async fn send(
        &self,
        request: Request<hop::Body>,
    ) -> std::result::Result<Response<hop::Body>, hop::Error> {
        let (mut head, body) = request.into_parts();
        let parts = head.uri.into_parts();
        let to = parts.authority.unwrap_or_else(|| Authority::from_static("localhost"));
        let path = parts.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
        head.uri = path.into();
        if let Ok(host) = HeaderValue::from_str(to.as_str()) {
            head.headers.insert(header::HOST, host);
        }
        let sent = self.0.send(&to, Request::from_parts(head, body)).await;
        sent.map(|sent| sent.answer).map_err(|failed| failed.error)
    }
}

impl ClientTransport for Agents {
    type ResponseBody = hop::Body;
    type Error = hop::Error;

    fn send(
        &self,
        request: Request<ClientBody>,
    ) -> BoxFuture<'static, std::result::Result<Response<hop::Body>, hop::Error>> {
        let this = self.clone();
        async move { this.send(request.map(hop::Body::boxed)).await }.boxed()
    }
}

/// Clients of one host agent.
#[derive(Clone)]
pub(crate) struct Agent {
    base: String,
    authority: Authority,
    agents: Agents,
}

impl Agent {
    pub(crate) fn new(url: &str, agents: Agents) -> anyhow::Result<Self> {
        let base = url.trim_end_matches('/').to_owned();
        let uri = base.parse::<Uri>().with_context(|| format!("the agent's URL {base}"))?;
        let authority = uri.authority().cloned();
        let authority =
            authority.with_context(|| format!("the agent's URL {base} names no host"))?;
        Ok(Self { base, authority, agents })
    }

    /// The agent's `host:port`.
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    fn host(&self) -> HostClient<Agents> {
        let config = ClientConfig::new(uri(&self.base)).with_default_timeout(CALL);
        HostClient::new(self.agents.clone(), config)
    }

    fn guest(&self, id: CapsuleId, token: &str) -> ClientConfig {
        let port = protocol::ENVD_PORT;
        ClientConfig::new(uri(&format!("{}/proxy/{id}/{port}", self.base)))
            .with_default_header(protocol::ACCESS_TOKEN, token)
    }

    /// envd's processes in a capsule; with no limit of time, since a program has none.
    pub(crate) fn processes(&self, id: CapsuleId, token: &str) -> ProcessClient<Agents> {
        ProcessClient::new(self.agents.clone(), self.guest(id, token))
    }

    /// envd's file system in a capsule.
    pub(crate) fn files(&self, id: CapsuleId, token: &str) -> FilesystemClient<Agents> {
        let config = self.guest(id, token).with_default_timeout(CALL);
        FilesystemClient::new(self.agents.clone(), config)
    }

    /// Sends a request to envd in a capsule, body and answer streamed.
    pub(crate) async fn forward(
        &self,
        id: CapsuleId,
        token: &str,
        path: &str,
        mut request: Request<Body>,
    ) -> Result<Response<hop::Body>> {
        let port = protocol::ENVD_PORT;
        let uri = format!("{}/proxy/{id}/{port}{path}", self.base);
        *request.uri_mut() = uri.parse().map_err(|_| Error::invalid("path", "is no path"))?;
        let token = token.parse().map_err(|_| Error::GuestUnavailable)?;
        request.headers_mut().insert(protocol::ACCESS_TOKEN, token);
        let sent = self.agents.send(request.map(hop::Body::boxed)).await;
        sent.map_err(|_| Error::HostUnavailable)
    }

    /// Makes a capsule.
    pub(crate) async fn create(&self, request: host::CreateCapsuleRequest) -> Result<Begun> {
        let options = CallOptions::default().with_timeout(CREATE);
        let answer = self.host().create_capsule_with_options(request, options).await;
        match answer {
            Ok(answer) => {
                let answer = answer.into_owned();
                Ok(begun(answer.ends_at_ms, &answer.stages))
            }
            Err(error) => Err(failed(&error, Error::StartFailed)),
        }
    }

    pub(crate) async fn pause(&self, request: host::PauseCapsuleRequest) -> Result<()> {
        let options = CallOptions::default().with_timeout(KEEP);
        let answer = self.host().pause_capsule_with_options(request, options).await;
        answer.map(|_| ()).map_err(|error| failed(&error, Error::PauseFailed))
    }

    /// Brings a capsule back.
    pub(crate) async fn resume(&self, request: host::ResumeCapsuleRequest) -> Result<Begun> {
        let options = CallOptions::default().with_timeout(KEEP);
        let answer = self.host().resume_capsule_with_options(request, options).await;
        match answer {
            Ok(answer) => {
                let answer = answer.into_owned();
                Ok(begun(answer.ends_at_ms, &answer.stages))
            }
            Err(error) => Err(failed(&error, Error::StartFailed)),
        }
    }

    pub(crate) async fn keep(&self, request: host::KeepCapsuleRequest) -> Result<()> {
        self.host().keep_capsule(request).await.map(|_| ()).map_err(|e| refused(&e))
    }

    /// Takes a snapshot; returns its bytes.
    pub(crate) async fn snapshot(&self, capsule: CapsuleId, id: SnapshotId) -> Result<u64> {
        let (capsule_id, snapshot_id) = (capsule.to_string(), id.to_string());
        let request = host::CreateSnapshotRequest { capsule_id, snapshot_id, ..Default::default() };
        let options = CallOptions::default().with_timeout(KEEP);
        let answer = self.host().create_snapshot_with_options(request, options).await;
        let answer = answer.map_err(|error| failed(&error, Error::SnapshotFailed))?;
        Ok(answer.into_owned().size_bytes)
    }

    pub(crate) async fn remove_snapshot(&self, id: SnapshotId) -> Result<()> {
        let request =
            host::DeleteSnapshotRequest { snapshot_id: id.to_string(), ..Default::default() };
        self.host().delete_snapshot(request).await.map(|_| ()).map_err(|e| refused(&e))
    }

    pub(crate) async fn snapshots(&self) -> Result<Vec<SnapshotId>> {
        let answer = self.host().list_snapshots(host::ListSnapshotsRequest::default()).await;
        let ids = answer.map_err(|e| refused(&e))?.into_owned().snapshot_ids;
        Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
    }

    /// Waits until something has changed on the host that nobody asked for, or for some seconds.
    pub(crate) async fn wait_change(&self, seen: u64) -> Result<u64> {
        let request = host::WaitChangeRequest { seen, ..Default::default() };
        let answer = self.host().wait_change(request).await.map_err(|e| refused(&e))?;
        Ok(answer.into_owned().count)
    }

    pub(crate) async fn destroy(&self, id: CapsuleId) -> Result<()> {
        let request =
            host::DestroyCapsuleRequest { capsule_id: id.to_string(), ..Default::default() };
        self.host().destroy_capsule(request).await.map(|_| ()).map_err(|e| refused(&e))
    }

    pub(crate) async fn list(&self) -> Result<Vec<host::CapsuleInfo>> {
        let answer = self.host().list_capsules(host::ListCapsulesRequest::default()).await;
        Ok(answer.map_err(|e| refused(&e))?.into_owned().capsules)
    }

    pub(crate) async fn logs(&self, id: CapsuleId) -> Result<Vec<u8>> {
        let request = host::ReadLogsRequest { capsule_id: id.to_string(), ..Default::default() };
        let answer = self.host().read_logs(request).await.map_err(|e| refused(&e))?;
        Ok(answer.into_owned().console)
    }

    pub(crate) async fn describe(&self) -> anyhow::Result<host::DescribeResponse> {
        Ok(self.host().describe(host::DescribeRequest::default()).await?.into_owned())
    }
}

/// How a capsule came to run.
pub(crate) struct Begun {
    /// When its time is over.
    pub ends_at: Option<OffsetDateTime>,
    /// Whether its guest was booted, where it could not be brought back from memory.
    pub booted: bool,
}

fn begun(ends_at_ms: i64, stages: &[host::Stage]) -> Begun {
    let booted = stages.iter().any(|stage| stage.name == "booted");
    Begun { ends_at: capsules::end(ends_at_ms), booted }
}

/// The base was checked when the agent was made known; an id adds nothing that is no path.
fn uri(text: &str) -> Uri {
    text.parse().unwrap_or_default()
}

/// What a host says of a capsule that it could not make or change. Of what went wrong inside,
/// which may name its machine's paths, only the log tells.
#[expect(clippy::wildcard_enum_match_arm, reason = "the library may add codes")]
fn failed(error: &ConnectError, why: fn(String) -> Error) -> Error {
    let message = error.message.clone().unwrap_or_default();
    if error.code == ErrorCode::Internal {
        tracing::warn!(%error, "a host failed");
        return why("see the host's log".to_owned());
    }
    match error.code {
        ErrorCode::DataLoss => Error::SnapshotDamaged(message),
        ErrorCode::OutOfRange => Error::SnapshotIncompatible(message),
        _ => refused(error),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the library may add codes")]
fn refused(error: &ConnectError) -> Error {
    let message = error.message.clone().unwrap_or_default();
    match error.code {
        // Too little room, or not the template.
        ErrorCode::ResourceExhausted | ErrorCode::FailedPrecondition => Error::NoCapacity(message),
        ErrorCode::InvalidArgument => Error::invalid("request", message),
        ErrorCode::Aborted => Error::Conflict(message),
        ErrorCode::NotFound => Error::NotFound("capsule"),
        ErrorCode::Unavailable | ErrorCode::Canceled | ErrorCode::DeadlineExceeded => {
            Error::HostUnavailable
        }
        _ => Error::Internal(anyhow::anyhow!("{error}")),
    }
}
