//! Connections to host agents. RPC and the data hop to guests share one pool of connections, so the
//! same security applies to both.

mod builds;
mod failure;
mod logs;
mod stats;

pub(crate) use builds::HostBuilds;

use self::failure::Command;
use crate::error::{Error, Result};
use crate::hosts::tls::{CertStore, is_loopback};
use crate::hosts::{Fleet, Host};
use axum::body::Body;
use connectrpc::client::{CallOptions, ClientBody, ClientConfig, ClientTransport};
use connectrpc::{CompressionRegistry, ConnectError, ErrorCode};
use daemon::Tasks;
use daemon::trace::{TRACEPARENT, TraceParent};
use futures::FutureExt;
use futures::future::BoxFuture;
use hop::{Dial, Pool, Stream};
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, Uri, header};
use protocol::Refusal;
use protocol::filesystem::FilesystemClient;
use protocol::host::{self, HostClient};
use protocol::process::ProcessClient;
use rustls::pki_types::ServerName;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use types::{CapsuleId, HostId, SnapshotId, TeamId};

/// Time limit of a create, longer than a boot may take on the agent's side.
const CREATE: Duration = Duration::from_secs(150);
/// Time within which envd must answer a health check.
const HEALTH: Duration = Duration::from_secs(10);
/// Time limit of a call that writes memory, longer than a large memory takes on a slow disk.
const SUSPEND: Duration = Duration::from_secs(900);
/// Time limit of a removal. The host first ends the work under way, and then only clears up.
const REMOVE: Duration = Duration::from_secs(150);
const CALL: Duration = Duration::from_secs(30);
const DIAL: Duration = Duration::from_secs(5);
/// Time after which the kernel ends a connection whose other side acknowledges nothing.
const SILENT: Duration = Duration::from_secs(30);
/// Most idle connections kept for each agent.
const RESTING: usize = 1024;
/// Time between two sweeps of idle connections.
const SWEEP: Duration = Duration::from_secs(15);

/// Opens connections to hosts. With certificates, it uses TLS and checks that the intended host
/// answers. Without certificates, connections are plain TCP.
pub(crate) struct Dialer {
    fleet: Arc<Fleet>,
    cert_store: Option<Arc<CertStore>>,
    /// Set if hosts on other machines may be reached without TLS.
    plaintext: bool,
}

impl Dial for Dialer {
    type To = HostId;

    async fn dial(&self, to: &HostId) -> io::Result<Box<dyn Stream>> {
        let dialling = tokio::time::timeout(DIAL, self.open(*to)).await;
        let opened = dialling.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if let Err(error) = &opened
            && matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidData)
        {
            tracing::warn!(host = %to, %error, "refused the connection to a host");
        }
        opened
    }
}

impl Dialer {
    async fn open(&self, to: HostId) -> io::Result<Box<dyn Stream>> {
        let host = self.fleet.find(to).await.map_err(|_| io::ErrorKind::NotFound)?;
        let name = host.authority.host().trim_matches(['[', ']']);
        if self.cert_store.is_none() && !self.plaintext && !is_loopback(name) {
            let why =
                "hosts on other machines need certificates; set WRENN_CA_CERT and WRENN_CA_KEY";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let stream = TcpStream::connect((name, host.authority.port_u16().unwrap_or(0))).await?;
        stream.set_nodelay(true)?;
        notice_silence(&stream)?;
        let Some(cert_store) = &self.cert_store else { return Ok(Box::new(stream)) };
        let server = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let connector = TlsConnector::from(cert_store.current());
        let stream = connector.connect(server, hop::ReadAhead::new(stream)).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|certs| certs.first());
        let shown = shown.map(|cert| pki::fingerprint(cert)).unwrap_or_default();
        if !self.is_known(to, &shown).await {
            let why = format!("the server at {} is not {to}", host.authority);
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        Ok(Box::new(stream))
    }

    /// Reports whether a certificate belongs to a host, by its fingerprint. Reads the hosts again
    /// if the fingerprint is unknown, since the certificate may be new.
    async fn is_known(&self, to: HostId, shown: &str) -> bool {
        let known = |host: Arc<Host>| host.fingerprints.iter().any(|known| known == shown);
        if self.fleet.known(to).is_some_and(known) {
            return true;
        }
        self.fleet.read().await.is_ok() && self.fleet.known(to).is_some_and(known)
    }
}

/// Has the kernel end a connection on which the other side acknowledges nothing for half a minute.
/// This holds for idle and busy connections, since a host that is cut off sends no goodbye.
fn notice_silence(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, SILENT / 2)?;
    sockopt::set_tcp_keepintvl(stream, SILENT / 6)?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    Ok(sockopt::set_tcp_user_timeout(stream, u32::try_from(SILENT.as_millis()).unwrap_or(30_000))?)
}

/// The connections to all agents.
#[derive(Clone)]
pub(crate) struct Agents(Arc<Pool<Dialer>>);

impl Agents {
    pub(crate) fn new(
        fleet: Arc<Fleet>,
        cert_store: Option<Arc<CertStore>>,
        plaintext: bool,
        tasks: &Tasks,
    ) -> Self {
        let dialer = Dialer { fleet, cert_store, plaintext };
        let pool = Arc::new(Pool::new(dialer, RESTING, tasks.clone()));
        let sweeping = Arc::clone(&pool);
        tasks.every(SWEEP, move || {
            sweeping.sweep();
            std::future::ready(())
        });
        Self(pool)
    }

    /// Returns the pool, for requests that are passed on unchanged.
    pub(crate) fn pool(&self) -> &Pool<Dialer> {
        &self.0
    }

    /// Closes the idle connections to a host.
    pub(crate) fn forget(&self, host: HostId) {
        self.0.forget(&host);
    }
}

/// Clients of one host agent.
#[derive(Clone)]
pub(crate) struct Agent {
    host: HostId,
    agents: Agents,
    /// Set if requests to envd leave an idle capsule idle.
    passive: bool,
}

impl ClientTransport for Agent {
    type ResponseBody = hop::Body;
    type Error = hop::Error;

    fn send(
        &self,
        request: Request<ClientBody>,
    ) -> BoxFuture<'static, std::result::Result<Response<hop::Body>, hop::Error>> {
        let this = self.clone();
        async move { this.exchange(request.map(hop::Body::boxed)).await }.boxed()
    }
}

impl Agent {
    pub(crate) fn new(host: HostId, agents: Agents) -> Self {
        Self { host, agents, passive: false }
    }

    /// Returns a client of the same agent whose requests to envd leave an idle capsule idle.
    pub(crate) fn passive(self) -> Self {
        Self { passive: true, ..self }
    }

    async fn exchange(
        &self,
        mut request: Request<hop::Body>,
    ) -> std::result::Result<Response<hop::Body>, hop::Error> {
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = path.unwrap_or_else(|| PathAndQuery::from_static("/")).into();
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("agent"));
        let trace = TraceParent::current().map(|trace| HeaderValue::try_from(trace.to_string()));
        if let Some(Ok(trace)) = trace {
            request.headers_mut().insert(TRACEPARENT, trace);
        }
        request.headers_mut().remove(protocol::PASSIVE);
        if self.passive {
            request.headers_mut().insert(protocol::PASSIVE, HeaderValue::from_static("1"));
        }
        let sent = self.agents.0.send(&self.host, request).await;
        sent.map(|sent| sent.answer).map_err(|failed| {
            tracing::debug!(host = %self.host, error = %failed.error, "the host did not answer");
            failed.error
        })
    }

    fn host(&self) -> HostClient<Self> {
        let config = ClientConfig::new(uri("")).with_default_timeout(CALL);
        HostClient::new(self.clone(), config)
    }

    /// Returns a client of envd's process service in a capsule. It has no time limit, since a
    /// program has none.
    pub(crate) fn processes(&self, id: CapsuleId, token: &str) -> ProcessClient<Self> {
        ProcessClient::new(self.clone(), guest(id, token))
    }

    /// Returns a client of envd's file system service in a capsule.
    pub(crate) fn files(&self, id: CapsuleId, token: &str) -> FilesystemClient<Self> {
        let config = guest(id, token).with_default_timeout(CALL);
        FilesystemClient::new(self.clone(), config)
    }

    /// Sends a request to envd in a capsule. Body and answer are streamed.
    pub(crate) async fn forward(
        &self,
        id: CapsuleId,
        token: &str,
        path: &str,
        request: Request<Body>,
    ) -> Result<Response<hop::Body>> {
        self.forward_to((id, protocol::ENVD_PORT), token, path, request).await
    }

    /// Sends a request to the code interpreter in a capsule. Body and answer are streamed.
    pub(crate) async fn interpret(
        &self,
        id: CapsuleId,
        token: &str,
        path: &str,
        request: Request<Body>,
    ) -> Result<Response<hop::Body>> {
        self.forward_to((id, protocol::INTERPRETER_PORT), token, path, request).await
    }

    /// Sends a request to one of the two ports in a capsule that take envd's token.
    async fn forward_to(
        &self,
        (id, port): (CapsuleId, u16),
        token: &str,
        path: &str,
        mut request: Request<Body>,
    ) -> Result<Response<hop::Body>> {
        let uri = format!("/proxy/{id}/{port}{path}");
        *request.uri_mut() =
            uri.parse().map_err(|_| Error::invalid("path", "is not a valid path"))?;
        let token = token.parse().map_err(|_| Error::GuestUnavailable)?;
        request.headers_mut().insert(protocol::ACCESS_TOKEN, token);
        let sent = self.exchange(request.map(hop::Body::boxed)).await;
        sent.map_err(|error| {
            if error.is_stalled() {
                Error::BodyTooSlow
            } else if matches!(error, hop::Error::Request(_)) {
                Error::broken_body()
            } else {
                Error::HostUnavailable
            }
        })
    }

    /// Reports whether envd in a capsule answers. A capsule at its limit of requests counts as
    /// alive, since it can take no further request.
    pub(crate) async fn lives(&self, id: CapsuleId, token: &str) -> bool {
        let asked = self.forward(id, token, "/health", Request::new(Body::empty()));
        let answer = tokio::time::timeout(HEALTH, Box::pin(asked)).await;
        let Ok(Ok(answer)) = answer else { return false };
        let refusal = answer.headers().get(protocol::REFUSAL);
        let is_full = refusal.is_some_and(|refusal| refusal == Refusal::TooMany.as_str());
        is_full || answer.status().is_success()
    }

    /// Returns the agent's metrics, in the Prometheus text format.
    pub(crate) async fn metrics(&self) -> Result<Response<Body>> {
        let mut request = Request::new(hop::Body::empty());
        *request.uri_mut() = Uri::from_static("/metrics");
        let answer = self.exchange(request).await.map_err(|_| Error::HostUnavailable)?;
        let mut shown = Response::new(Body::new(answer.into_body()));
        let text = HeaderValue::from_static("text/plain; version=0.0.4");
        shown.headers_mut().insert(header::CONTENT_TYPE, text);
        Ok(shown)
    }

    /// Creates a capsule on the host. `ready_within` is the time that start and ready commands of
    /// the capsule's version may take beyond the boot.
    pub(crate) async fn create(
        &self,
        request: host::CreateCapsuleRequest,
        ready_within: Duration,
    ) -> Result<Started> {
        let options = CallOptions::default().with_timeout(CREATE + ready_within);
        let answer = self.host().create_capsule_with_options(request, options).await;
        let answer = answer.map_err(|e| refused(Command::Create, &e))?.into_owned();
        Ok(answer.started.into_option().unwrap_or_default().into())
    }

    pub(crate) async fn pause(&self, request: host::PauseCapsuleRequest) -> Result<()> {
        let options = CallOptions::default().with_timeout(SUSPEND);
        let answer = self.host().pause_capsule_with_options(request, options).await;
        answer.map(|_| ()).map_err(|e| refused(Command::Pause, &e))
    }

    /// Resumes a capsule.
    ///
    /// # Errors
    /// [`Error::GuestUnavailable`] when envd in the guest never answered; the capsule's snapshot is
    /// unchanged.
    pub(crate) async fn resume(&self, request: host::ResumeCapsuleRequest) -> Result<Started> {
        let options = CallOptions::default().with_timeout(SUSPEND);
        let answer = self.host().resume_capsule_with_options(request, options).await;
        let answer = answer.map_err(|e| refused(Command::Resume, &e))?.into_owned();
        Ok(answer.started.into_option().unwrap_or_default().into())
    }

    /// Changes the time that a capsule may run. Returns the time that is left by the host's clock;
    /// `None` means that it may run for ever.
    pub(crate) async fn set_lifetime(
        &self,
        request: host::SetLifetimeRequest,
    ) -> Result<Option<Duration>> {
        let answer = self.host().set_lifetime(request).await.map_err(|e| other(&e))?;
        Ok(answer.into_owned().left_ms.map(Duration::from_millis))
    }

    /// Counts as activity in a capsule.
    pub(crate) async fn touch(&self, id: CapsuleId) -> Result<()> {
        let request =
            host::TouchCapsuleRequest { capsule_id: id.to_string(), ..Default::default() };
        self.host().touch_capsule(request).await.map(|_| ()).map_err(|e| other(&e))
    }

    /// Replaces the rules for the network destinations that a capsule may reach.
    pub(crate) async fn set_egress(&self, id: CapsuleId, egress: host::Egress) -> Result<()> {
        let (capsule_id, egress) = (id.to_string(), egress.into());
        let request = host::SetEgressRequest { capsule_id, egress, ..Default::default() };
        self.host().set_egress(request).await.map(|_| ()).map_err(|e| other(&e))
    }

    /// Takes a snapshot, with or without memory. Returns its size in bytes, and the bytes that no
    /// template's machine shares.
    pub(crate) async fn snapshot(
        &self,
        capsule: CapsuleId,
        id: SnapshotId,
        memory: bool,
    ) -> Result<(u64, u64)> {
        let (capsule_id, snapshot_id) = (capsule.to_string(), id.to_string());
        let disk_only = !memory;
        let request = host::CreateSnapshotRequest {
            capsule_id,
            snapshot_id,
            disk_only,
            ..Default::default()
        };
        let options = CallOptions::default().with_timeout(SUSPEND);
        let answer = self.host().create_snapshot_with_options(request, options).await;
        let answer = answer.map_err(|e| refused(Command::Snapshot, &e))?;
        let answer = answer.into_owned();
        Ok((answer.size_bytes, answer.storage_bytes))
    }

    /// Removes a snapshot. With a team, removes it from the store, too.
    pub(crate) async fn remove_snapshot(&self, id: SnapshotId, of: Option<TeamId>) -> Result<()> {
        let team_id = of.map(|team| team.to_string());
        let snapshot_id = id.to_string();
        let request = host::DeleteSnapshotRequest { snapshot_id, team_id, ..Default::default() };
        self.host().delete_snapshot(request).await.map(|_| ()).map_err(|e| other(&e))
    }

    /// Lists the snapshots that the host has.
    pub(crate) async fn snapshots(&self) -> Result<HostSnapshots> {
        let answer = self.host().list_snapshots(host::ListSnapshotsRequest::default()).await;
        let answer = answer.map_err(|e| other(&e))?.into_owned();
        let ids = |texts: Vec<String>| texts.iter().filter_map(|id| id.parse().ok()).collect();
        let storage = answer.storage_bytes.into_iter();
        let storage = storage.filter_map(|(id, bytes)| Some((id.parse().ok()?, bytes)));
        Ok(HostSnapshots {
            ids: ids(answer.snapshot_ids),
            stored: ids(answer.stored_ids),
            storage: storage.collect(),
        })
    }

    /// Waits until a capsule changes on the host by itself, or until some seconds have passed.
    /// `seen` is the count that the last call returned. Without it, the call returns at once.
    /// Returns the new count.
    pub(crate) async fn wait_change(&self, seen: Option<u64>) -> Result<u64> {
        let request = host::WaitChangeRequest { seen, ..Default::default() };
        let answer = self.host().wait_change(request).await.map_err(|e| other(&e))?;
        Ok(answer.into_owned().count)
    }

    /// Removes a capsule and everything that the host has of it. With a team, the capsule's part of
    /// the store goes too. A capsule stays if a command of a generation later than `newest` began
    /// on it.
    pub(crate) async fn destroy(
        &self,
        id: CapsuleId,
        newest: u64,
        of: Option<TeamId>,
    ) -> Result<()> {
        let request = host::DestroyCapsuleRequest {
            capsule_id: id.to_string(),
            team_id: of.map(|team| team.to_string()),
            generation: Some(newest),
            ..Default::default()
        };
        let options = CallOptions::default().with_timeout(REMOVE);
        let answer = self.host().destroy_capsule_with_options(request, options).await;
        answer.map(|_| ()).map_err(|e| other(&e))
    }

    /// Removes a capsule's snapshots from the store, except the one that its row names and newer
    /// ones.
    pub(crate) async fn prune_stored(
        &self,
        id: CapsuleId,
        of: TeamId,
        retained: host::StoredSnapshot,
    ) -> Result<()> {
        let request = host::PruneStoredRequest {
            capsule_id: id.to_string(),
            team_id: of.to_string(),
            retained: retained.into(),
            ..Default::default()
        };
        self.host().prune_stored(request).await.map(|_| ()).map_err(|e| other(&e))
    }

    pub(crate) async fn list(&self) -> Result<Vec<host::CapsuleInfo>> {
        let answer = self.host().list_capsules(host::ListCapsulesRequest::default()).await;
        Ok(answer.map_err(|e| other(&e))?.into_owned().capsules)
    }

    pub(crate) async fn logs(&self, id: CapsuleId) -> Result<Vec<u8>> {
        let request = host::ReadLogsRequest { capsule_id: id.to_string(), ..Default::default() };
        let answer = self.host().read_logs(request).await.map_err(|e| other(&e))?;
        Ok(answer.into_owned().console)
    }

    pub(crate) async fn describe(&self) -> anyhow::Result<host::DescribeResponse> {
        Ok(self.host().describe(host::DescribeRequest::default()).await?.into_owned())
    }
}

/// Snapshots that a host has.
pub(crate) struct HostSnapshots {
    pub ids: Vec<SnapshotId>,
    /// Snapshots that the store has too.
    pub stored: Vec<SnapshotId>,
    /// Bytes on disk that only this snapshot holds, for each snapshot, as of the host's last count.
    pub storage: HashMap<SnapshotId, u64>,
}

/// Result of a create or a resume.
pub(crate) struct Started {
    /// Time until the capsule's end; `None` means that it may run for ever.
    pub left: Option<Duration>,
    /// Set if the guest was booted, since it could not be restored from memory.
    pub booted: bool,
}

impl From<host::Started> for Started {
    fn from(started: host::Started) -> Self {
        Self {
            left: started.left_ms.map(Duration::from_millis),
            booted: started.kind == host::StartKind::START_KIND_BOOTED,
        }
    }
}

/// Converts and logs a host's error about a command.
fn refused(command: Command, error: &ConnectError) -> Error {
    // The caller does not get the text of such an error.
    if error.code == ErrorCode::Internal {
        tracing::warn!(%error, "the host could not carry out a command");
    }
    command.error(error)
}

fn other(error: &ConnectError) -> Error {
    Command::Other.error(error)
}

/// Configures calls to envd in a capsule. Answers come uncompressed, since compression would cost
/// the guest's processor time.
fn guest(id: CapsuleId, token: &str) -> ClientConfig {
    let port = protocol::ENVD_PORT;
    ClientConfig::new(uri(&format!("/proxy/{id}/{port}")))
        .with_compression(CompressionRegistry::new())
        .with_default_header(protocol::ACCESS_TOKEN, token)
}

/// Makes the URI of a call from its path. The transport knows the host.
fn uri(path: &str) -> Uri {
    format!("http://agent{path}").parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envd_request_asks_for_identity_encoding() {
        let config = guest(CapsuleId::new(), "token");
        assert_eq!(config.compression().accept_encoding_header(), "");
        assert!(config.request_compression().is_none());
    }
}
