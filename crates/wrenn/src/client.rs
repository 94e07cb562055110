//! HTTP client of the API for the client commands. Errors carry the server's own words.

use crate::cli::Api;
use crate::client_file::ClientFile;
use anyhow::Context;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};
use reqwest::{Method, RequestBuilder, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{self, Message, client::IntoClientRequest};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

const TEAM: &str = "X-Wrenn-Team";

/// HTTP client of one platform, with the caller's credential.
#[derive(Clone)]
pub(crate) struct Client {
    base: String,
    /// Header that identifies the caller; `None` for an anonymous caller.
    credential: Option<(HeaderName, HeaderValue)>,
    team: Option<String>,
    http: reqwest::Client,
}

impl Client {
    /// Builds a client from the given flags. The file of this machine's platform supplies the rest.
    ///
    /// # Errors
    /// When neither the flags nor the file name a platform.
    pub(crate) fn new(api: &Api, file: &Path) -> anyhow::Result<Self> {
        let kept = ClientFile::load(file);
        let url = api.url.clone().or_else(|| kept.as_ref().map(|k| k.url.clone()));
        let Some(url) = url else {
            anyhow::bail!(
                "no platform is configured; start one with `wrenn up`, or set WRENN_BASE_URL and \
                 WRENN_API_KEY"
            );
        };
        let url = url.trim_end_matches('/').to_owned();
        // The file's credentials belong to its own platform, so no other platform sees them.
        let kept = kept.filter(|kept| kept.url == url);
        let session = kept.as_ref().and_then(|kept| kept.session.clone());
        let key = match (&api.api_key, &session) {
            (Some(key), _) => Some(key.clone()),
            (None, Some(_)) => None,
            (None, None) => kept.as_ref().and_then(|kept| kept.api_key.clone()),
        };
        let session = session.filter(|_| api.api_key.is_none());
        let credential = match (&key, &session) {
            (Some(key), _) => Some((HeaderName::from_static("x-api-key"), key.clone())),
            (None, Some(token)) => Some((AUTHORIZATION, format!("Bearer {token}"))),
            (None, None) => None,
        };
        let secret = |(name, value): (HeaderName, String)| {
            let mut value =
                HeaderValue::from_str(&value).context("the API key contains invalid characters")?;
            value.set_sensitive(true);
            anyhow::Ok((name, value))
        };
        let credential = credential.map(secret).transpose()?;
        let chosen = kept.and_then(|kept| kept.team).filter(|_| session.is_some());
        let team = api.in_team.clone().or(chosen);
        // The call fails when a provider is installed already, as in tests. The first provider
        // stays.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().tcp_nodelay(true).build()?;
        Ok(Self { base: url, credential, team, http })
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some((name, value)) = &self.credential {
            request = request.header(name, value);
        }
        if let Some(team) = &self.team {
            request = request.header(TEAM, team);
        }
        request
    }

    /// Returns the platform's URL.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// Reports whether the credential is a user's session.
    pub(crate) fn is_user(&self) -> bool {
        self.credential.as_ref().is_some_and(|(name, _)| *name == AUTHORIZATION)
    }

    /// Returns the id of the chosen team, if any.
    pub(crate) fn team(&self) -> Option<&str> {
        self.team.as_deref()
    }

    /// Sends a request. Any status but success becomes the server's error.
    pub(crate) async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let answer = request.send().await.with_context(|| self.unreachable())?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        Err(refused(status, &answer.bytes().await.unwrap_or_default()))
    }

    /// Sends a request that switches protocols. Any status but 101 becomes the server's error.
    pub(crate) async fn switch(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let answer = request.send().await.with_context(|| self.unreachable())?;
        let status = answer.status();
        if status == reqwest::StatusCode::SWITCHING_PROTOCOLS {
            return Ok(answer);
        }
        Err(refused(status, &answer.bytes().await.unwrap_or_default()))
    }

    /// Opens a WebSocket.
    pub(crate) async fn socket(&self, path: &str) -> anyhow::Result<Socket> {
        let base =
            self.base.strip_prefix("http").context("the platform's URL must begin with http")?;
        let mut request = format!("ws{base}{path}").into_client_request()?;
        if let Some((name, value)) = &self.credential {
            request.headers_mut().insert(name, value.clone());
        }
        if let Some(team) = &self.team {
            request
                .headers_mut()
                .insert(TEAM, team.parse().context("the team's id contains invalid characters")?);
        }
        match tokio_tungstenite::connect_async(request).await {
            Ok((stream, _)) => {
                if let MaybeTlsStream::Plain(stream) = stream.get_ref() {
                    let _ = stream.set_nodelay(true);
                }
                let (sender, receiver) = stream.split();
                Ok(Socket { sender: Sender(sender), receiver: Receiver(receiver) })
            }
            Err(tungstenite::Error::Http(answer)) => {
                let body = answer.body().as_deref().unwrap_or_default();
                Err(refused(answer.status(), body))
            }
            Err(error) => Err(error).with_context(|| self.unreachable()),
        }
    }

    fn unreachable(&self) -> String {
        format!("cannot reach the platform at {}; start it with `wrenn up`", self.base)
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        Ok(self.send(self.request(Method::GET, path)).await?.json().await?)
    }

    /// Fetches all pages of a list. The path may have a query.
    pub(crate) async fn list<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<Vec<T>> {
        #[derive(serde::Deserialize)]
        struct Page<T> {
            items: Vec<T>,
            next: Option<String>,
        }
        let (mut items, mut next): (_, Option<String>) = (Vec::new(), None);
        loop {
            let mark = if path.contains('?') { '&' } else { '?' };
            let from = next.map(|id| format!("{mark}before={id}")).unwrap_or_default();
            let page: Page<T> = self.get(&format!("{path}{from}")).await?;
            items.extend(page.items);
            next = page.next;
            if next.is_none() {
                return Ok(items);
            }
        }
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        Ok(self.send(self.request(Method::POST, path).json(body)).await?.json().await?)
    }

    pub(crate) async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        let answer = self.send(self.request(Method::PUT, path).json(body)).await?;
        Ok(answer.json().await?)
    }

    /// Sends a POST whose response has no body.
    pub(crate) async fn post_nothing(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<()> {
        self.send(self.request(Method::POST, path).json(body)).await.map(|_| ())
    }

    /// Sends a POST without a body.
    pub(crate) async fn post_empty(&self, path: &str) -> anyhow::Result<()> {
        self.send(self.request(Method::POST, path)).await.map(|_| ())
    }

    pub(crate) async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        let answer = self.send(self.request(Method::PATCH, path).json(body)).await?;
        Ok(answer.json().await?)
    }

    /// Sends a PATCH whose response has no body.
    pub(crate) async fn patch_nothing(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<()> {
        self.send(self.request(Method::PATCH, path).json(body)).await.map(|_| ())
    }

    pub(crate) async fn delete(&self, path: &str) -> anyhow::Result<()> {
        self.send(self.request(Method::DELETE, path)).await.map(|_| ())
    }
}

/// Refusal by the server, in the server's words.
#[derive(Debug)]
pub(crate) struct Refused {
    /// Stable error code, for programs.
    pub code: String,
    pub message: String,
    /// Id of the request in the platform's log; `None` for a refusal that came over a WebSocket.
    pub request_id: Option<String>,
    /// HTTP status; `None` for a refusal that came in another way.
    pub status: Option<reqwest::StatusCode>,
}

/// Error of a response without the API's error format, from the platform or a proxy in front of it.
#[derive(Debug, thiserror::Error)]
#[error("the platform answered {0}")]
pub(crate) struct BadAnswer(reqwest::StatusCode);

impl Refused {
    /// Makes the error of a refusal that came over a WebSocket.
    pub(crate) fn frame(code: String, message: String) -> anyhow::Error {
        Self { code, message, request_id: None, status: None }.into()
    }
}

/// Reports whether an error is an answer with this status.
pub(crate) fn is_status(error: &anyhow::Error, status: reqwest::StatusCode) -> bool {
    let refused = error.downcast_ref::<Refused>().and_then(|refused| refused.status);
    refused.or(error.downcast_ref::<BadAnswer>().map(|bad| bad.0)) == Some(status)
}

/// Reports whether a request that failed so may succeed later: nothing answered, or the platform or
/// a proxy is busy or restarts.
pub(crate) fn is_passing(error: &anyhow::Error) -> bool {
    // 500 is a fault, which another try would hide.
    let passing = |status: reqwest::StatusCode| matches!(status.as_u16(), 429 | 502 | 503 | 504);
    error.chain().any(|cause| {
        let refused = cause.downcast_ref::<Refused>().and_then(|refused| refused.status);
        let bad = cause.downcast_ref::<BadAnswer>().map(|bad| bad.0);
        let http = cause.downcast_ref::<reqwest::Error>();
        refused.or(bad).is_some_and(passing)
            || http.is_some_and(|http| !http.is_builder() && !http.is_decode())
            || cause.is::<tokio::time::error::Elapsed>()
    })
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

impl std::error::Error for Refused {}

fn refused(status: reqwest::StatusCode, body: &[u8]) -> anyhow::Error {
    match serde_json::from_slice::<api::ErrorBody>(body) {
        Ok(api::ErrorBody { error }) => {
            let request_id = Some(error.request_id);
            let status = Some(status);
            Refused { code: error.code, message: error.message, request_id, status }.into()
        }
        Err(_) => BadAnswer(status).into(),
    }
}

type Stream = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// WebSocket of JSON frames. Its two directions never wait for each other.
pub(crate) struct Socket {
    pub sender: Sender,
    pub receiver: Receiver,
}

/// Sending half of a WebSocket.
pub(crate) struct Sender(SplitSink<Stream, Message>);

impl Sender {
    pub(crate) async fn send(&mut self, frame: &impl Serialize) -> anyhow::Result<()> {
        let text = serde_json::to_string(frame)?;
        self.0.send(Message::text(text)).await.context("cannot send to the platform")
    }
}

/// Receiving half of a WebSocket.
pub(crate) struct Receiver(SplitStream<Stream>);

impl Receiver {
    /// Returns the next frame.
    ///
    /// # Errors
    /// When the connection ends or breaks, or the frame is not a `T`.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        while let Some(message) = self.0.next().await {
            match message.context("cannot receive from the platform")? {
                Message::Text(text) => return Ok(serde_json::from_str(&text)?),
                Message::Close(_) => break,
                Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
        anyhow::bail!("the connection to the platform broke")
    }
}
