//! Client of the API that returns status and body unchanged, and WebSockets.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::{SinkExt, StreamExt};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// HTTP client with a key.
#[derive(Clone)]
pub struct Client {
    base: String,
    key: String,
    /// Id of the team that a user's requests are for. Empty for the user's default team.
    team: String,
    http: reqwest::Client,
}

/// Status and body of a response.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Value,
}

impl Answer {
    /// Returns the body of a response with this status.
    ///
    /// # Panics
    /// When the status is another.
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        self.body
    }

    /// Checks an error: its status, its code, and a part of its message.
    ///
    /// # Panics
    /// When any of the three differs.
    pub fn refuses(self, status: u16, code: &str, holding: &str) {
        let error = &self.body["error"];
        let told = format!("{} {}", self.status, self.body);
        assert_eq!(self.status.as_u16(), status, "{told}");
        assert_eq!(error["code"], code, "{told}");
        assert!(error["message"].as_str().unwrap().contains(holding), "`{holding}` not in {told}");
        assert_eq!(error["request_id"].as_str().unwrap().len(), 32, "{told}");
    }
}

impl Answer {
    /// Checks that the proxy refuses. Its errors may be plain text.
    ///
    /// # Panics
    /// When the proxy does not refuse.
    pub fn refuses_plain(self, status: u16) {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
    }
}

impl Client {
    pub(crate) fn new(base: &str, key: &str) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        Self::over(base, key, reqwest::Client::builder())
    }

    /// Builds a client of a host agent, which takes this client for a control plane.
    pub(crate) fn of_agent(address: &str, authority: &pki::Authority) -> Self {
        let pair = authority.control_plane().unwrap();
        let config = pki::dial_host(authority.trust(), &pair).unwrap();
        let builder = reqwest::Client::builder().tls_backend_preconfigured(config);
        Self::over(&format!("https://{address}"), "", builder)
    }

    fn over(base: &str, key: &str, builder: reqwest::ClientBuilder) -> Self {
        let builder = builder.no_proxy().redirect(reqwest::redirect::Policy::none());
        // With two control planes, no connection is kept idle, so that the next request goes to the
        // other.
        let rest = if std::env::var_os("WRENN_TEST_REPLICAS").is_some() { 0 } else { usize::MAX };
        let builder = builder.pool_max_idle_per_host(rest);
        Self {
            base: base.to_owned(),
            key: key.to_owned(),
            team: String::new(),
            http: builder.build().unwrap(),
        }
    }

    /// Returns the same client with a prefix for all paths.
    #[must_use]
    pub fn below(&self, path: &str) -> Self {
        Self { base: format!("{}{path}", self.base), ..self.clone() }
    }

    /// Returns the same client, acting in a team.
    #[must_use]
    pub fn in_team(&self, team: &str) -> Self {
        Self { team: team.to_owned(), ..self.clone() }
    }

    /// Returns the base URL.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Returns the key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns a client with the same key at another base URL.
    #[must_use]
    pub fn at(&self, base: &str) -> Self {
        Self::new(base, &self.key)
    }

    /// Builds a request with the key.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        let request = match self.team.as_str() {
            "" => request,
            team => request.header("X-Wrenn-Team", team),
        };
        match self.key.as_str() {
            "" => request,
            // The key is a user's session, or a signed token of one.
            token if token.starts_with("wrs_") || token.starts_with("ey") => {
                request.bearer_auth(token)
            }
            key => request.header("X-API-Key", key),
        }
    }

    /// Builds a request to a port of a capsule by its host name, with the key, if there is one.
    pub fn to_port(&self, method: Method, capsule: &str, port: u16, path: &str) -> RequestBuilder {
        self.request(method, path).header("host", format!("{port}-{capsule}.localhost"))
    }

    /// Sends a request.
    pub async fn send(&self, request: RequestBuilder) -> Answer {
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.bytes().await.unwrap();
        let body = serde_json::from_slice(&text)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&text).into_owned()));
        Answer { status, body }
    }

    /// Sends a GET.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path)).await
    }

    /// Sends a POST of JSON.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    /// Sends a PUT of JSON.
    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request(Method::PUT, path).json(body)).await
    }

    /// Sends a PATCH of JSON.
    pub async fn patch(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request(Method::PATCH, path).json(body)).await
    }

    /// Sends a DELETE.
    pub async fn delete(&self, path: &str) -> Answer {
        self.send(self.request(Method::DELETE, path)).await
    }

    /// Starts a capsule and returns its id.
    pub async fn create(&self, body: &Value) -> String {
        let made = self.post("/v1/capsules", body).await.expect(201);
        assert_eq!(made["status"], "running", "{made}");
        made["id"].as_str().unwrap().to_owned()
    }

    /// Requests a change of a capsule that must succeed. Returns the capsule after it.
    pub async fn change(&self, capsule: &str, what: &str, body: &Value) -> Value {
        self.post(&format!("/v1/capsules/{capsule}/{what}"), body).await.expect(200)
    }

    /// Pauses a capsule.
    pub async fn pause(&self, capsule: &str) {
        assert_eq!(self.change(capsule, "pause", &json!({})).await["status"], "paused");
    }

    /// Resumes a capsule.
    pub async fn resume(&self, capsule: &str) {
        assert_eq!(self.change(capsule, "resume", &json!({})).await["status"], "running");
    }

    /// Returns a capsule's status.
    pub async fn status(&self, capsule: &str) -> String {
        let seen = self.get(&format!("/v1/capsules/{capsule}")).await;
        seen.body["status"].as_str().unwrap_or("gone").to_owned()
    }

    /// Runs a shell command to its end.
    pub async fn sh(&self, capsule: &str, script: &str) -> Value {
        let body = json!({ "cmd": "sh", "args": ["-c", script] });
        self.post(&format!("/v1/capsules/{capsule}/exec"), &body).await.expect(200)
    }

    /// Runs a shell command that must succeed. Returns its standard output.
    ///
    /// # Panics
    /// When the command fails.
    pub async fn out(&self, capsule: &str, script: &str) -> String {
        let result = self.sh(capsule, script).await;
        assert_eq!(result["exit_code"], 0, "{script}: {result}");
        result["stdout"].as_str().unwrap().to_owned()
    }

    /// Opens a WebSocket.
    pub async fn socket(&self, path: &str) -> Socket {
        let url = format!("ws{}{path}", self.base.strip_prefix("http").unwrap());
        let mut request = url.into_client_request().unwrap();
        let headers = request.headers_mut();
        match self.key.starts_with("wrs_") {
            true => {
                headers.insert("Authorization", format!("Bearer {}", self.key).parse().unwrap())
            }
            false => headers.insert("X-API-Key", self.key.parse().unwrap()),
        };
        if !self.team.is_empty() {
            headers.insert("X-Wrenn-Team", self.team.parse().unwrap());
        }
        Socket(tokio_tungstenite::connect_async(request).await.unwrap().0)
    }
}

/// WebSocket of JSON frames.
pub struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    /// Sends a frame.
    pub async fn send(&mut self, frame: Value) {
        self.0.send(Message::text(frame.to_string())).await.unwrap();
    }

    /// Sends text that may be an invalid frame.
    pub async fn send_text(&mut self, text: &str) {
        self.0.send(Message::text(text)).await.unwrap();
    }

    /// Returns the next frame, or `None` at the end.
    ///
    /// # Panics
    /// When no frame comes in time.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            let next = tokio::time::timeout(crate::PATIENCE, self.0.next()).await;
            match next.expect("no frame came in time")?.ok()? {
                Message::Text(text) => return Some(serde_json::from_str(&text).unwrap()),
                Message::Close(_) => return None,
                Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    /// Reads to the close. Returns the last frame, and the close's code and reason.
    ///
    /// # Panics
    /// When the close does not come in time.
    pub async fn until_closed(&mut self) -> (Value, Option<(u16, String)>) {
        let mut last = Value::Null;
        loop {
            let next = tokio::time::timeout(crate::PATIENCE, self.0.next()).await;
            match next.expect("the socket was not closed in time") {
                Some(Ok(Message::Text(text))) => last = serde_json::from_str(&text).unwrap(),
                Some(Ok(Message::Close(reason))) => {
                    return (last, reason.map(|r| (r.code.into(), r.reason.to_string())));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return (last, None),
            }
        }
    }

    /// Reads frames up to the exit. Returns the bytes of one stream, and the exit code.
    pub async fn until_exit(&mut self, kind: &str) -> (Vec<u8>, i64) {
        let mut out = Vec::new();
        while let Some(frame) = self.next().await {
            if frame["type"] == kind {
                out.extend(bytes(&frame, kind == "output"));
            }
            if frame["type"] == "exit" {
                return (out, frame["exit_code"].as_i64().unwrap());
            }
            assert!(frame["type"] != "error", "{frame}");
        }
        panic!("the socket ended without an exit; read {}", String::from_utf8_lossy(&out));
    }

    /// Reads output frames until their text contains `wanted`. Returns the text.
    pub async fn until(&mut self, kind: &str, wanted: &str) -> String {
        let mut out = Vec::new();
        loop {
            let late =
                |_| panic!("`{wanted}` did not come after {}", String::from_utf8_lossy(&out));
            let next = tokio::time::timeout(crate::PATIENCE / 2, self.next()).await;
            let Some(frame) = next.unwrap_or_else(late) else { break };
            if frame["type"] == kind {
                out.extend(bytes(&frame, kind == "output"));
            }
            let text = String::from_utf8_lossy(&out).into_owned();
            if text.contains(wanted) {
                return text;
            }
            assert!(frame["type"] != "exit" && frame["type"] != "error", "{frame} after {text}");
        }
        panic!("the socket ended before `{wanted}`: {}", String::from_utf8_lossy(&out));
    }
}

fn bytes(frame: &Value, all_base64: bool) -> Vec<u8> {
    let data = frame["data"].as_str().unwrap();
    if all_base64 || frame["encoding"] == "base64" {
        return STANDARD.decode(data).unwrap();
    }
    data.as_bytes().to_vec()
}
