//! The way to a host agent: its RPC, and its data hop to guests, over one kind of pool.

use crate::error::{Error, Result};
use anyhow::Context;
use axum::body::Body;
use connectrpc::client::{CallOptions, ClientConfig, HttpClient};
use connectrpc::{ConnectError, ErrorCode};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use protocol::filesystem::FilesystemClient;
use protocol::host::{self, HostClient};
use protocol::process::ProcessClient;
use std::time::Duration;
use types::CapsuleId;

/// Longer than a boot may take on the agent's side.
const CREATE: Duration = Duration::from_secs(150);
const CALL: Duration = Duration::from_secs(30);

/// Clients of one host agent.
#[derive(Clone)]
pub(crate) struct Agent {
    base: String,
    rpc: HttpClient,
    data: Client<HttpConnector, Body>,
}

impl Agent {
    pub(crate) fn new(url: &str) -> anyhow::Result<Self> {
        let base = url.trim_end_matches('/').to_owned();
        base.parse::<Uri>().with_context(|| format!("the agent's URL {base}"))?;
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let data = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { base, rpc: HttpClient::plaintext(), data })
    }

    fn host(&self) -> HostClient<HttpClient> {
        let config = ClientConfig::new(uri(&self.base)).with_default_timeout(CALL);
        HostClient::new(self.rpc.clone(), config)
    }

    fn guest(&self, id: CapsuleId, token: &str) -> ClientConfig {
        let port = protocol::ENVD_PORT;
        ClientConfig::new(uri(&format!("{}/proxy/{id}/{port}", self.base)))
            .with_default_header(protocol::ACCESS_TOKEN, token)
    }

    /// envd's processes in a capsule; with no limit of time, since a program has none.
    pub(crate) fn processes(&self, id: CapsuleId, token: &str) -> ProcessClient<HttpClient> {
        ProcessClient::new(self.rpc.clone(), self.guest(id, token))
    }

    /// envd's file system in a capsule.
    pub(crate) fn files(&self, id: CapsuleId, token: &str) -> FilesystemClient<HttpClient> {
        let config = self.guest(id, token).with_default_timeout(CALL);
        FilesystemClient::new(self.rpc.clone(), config)
    }

    /// Sends a request to envd in a capsule, body and answer streamed.
    pub(crate) async fn forward(
        &self,
        id: CapsuleId,
        token: &str,
        path: &str,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>> {
        let port = protocol::ENVD_PORT;
        let uri = format!("{}/proxy/{id}/{port}{path}", self.base);
        *request.uri_mut() = uri.parse().map_err(|_| Error::invalid("path", "is no path"))?;
        let token = token.parse().map_err(|_| Error::GuestUnavailable)?;
        request.headers_mut().insert(protocol::ACCESS_TOKEN, token);
        self.data.request(request).await.map_err(|_| Error::HostUnavailable)
    }

    pub(crate) async fn create(&self, request: host::CreateCapsuleRequest) -> Result<()> {
        let options = CallOptions::default().with_timeout(CREATE);
        let answer = self.host().create_capsule_with_options(request, options).await;
        let Err(error) = answer else { return Ok(()) };
        if error.code == ErrorCode::Internal {
            // What the agent says of a boot is for the log: it may name its machine's paths.
            tracing::warn!(%error, "a capsule did not start");
            return Err(Error::StartFailed("see the host's log".to_owned()));
        }
        Err(refused(&error))
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

/// The base was checked when the agent was made known; an id adds nothing that is no path.
fn uri(text: &str) -> Uri {
    text.parse().unwrap_or_default()
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
