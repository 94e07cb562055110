//! A real browser, Debian's Chromium without a window, driven by the DevTools protocol.

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// Time limit for a start or a page, on a machine that is busy with other work.
const PATIENCE: Duration = Duration::from_secs(120);

/// Browser with one page and a profile of its own.
pub struct Browser {
    process: Child,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// Id of the page's session in the DevTools protocol.
    page: String,
    last: u64,
    /// `true` once a page has loaded since the last look.
    loaded: bool,
    _profile: TempDir,
}

impl Browser {
    /// Starts a browser that finds a domain and every name below it at an address. The browser
    /// accepts any certificate.
    ///
    /// # Panics
    /// When the browser does not start.
    pub async fn start(domain: &str, at: SocketAddr) -> Self {
        let profile = tempfile::Builder::new().prefix("wrenn-browser-").tempdir().unwrap();
        let rules = format!("MAP {domain} {ip}, MAP *.{domain} {ip}", ip = at.ip());
        let mut process = Command::new("chromium")
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"])
            .args(["--no-first-run", "--disable-background-networking"])
            .args(["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"])
            .args(["--ignore-certificate-errors", "--remote-debugging-port=0"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(format!("--host-resolver-rules={rules}"))
            .arg("about:blank")
            .env("HOME", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromium is missing: run ./test, which installs it");
        let url = address(profile.path(), &mut process).await;
        let (socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
        let page = String::new();
        let (last, loaded) = (0, false);
        let mut this = Self { process, socket, page, last, loaded, _profile: profile };
        let made = this.ask("Target.createTarget", json!({ "url": "about:blank" })).await;
        let attach = json!({ "targetId": made["targetId"], "flatten": true });
        let attached = this.ask("Target.attachToTarget", attach).await;
        this.page = attached["sessionId"].as_str().unwrap().to_owned();
        this.ask("Page.enable", json!({})).await;
        this
    }

    /// Sends a command and returns its result.
    async fn ask(&mut self, method: &str, params: Value) -> Value {
        self.last += 1;
        let mut message = json!({ "id": self.last, "method": method, "params": params });
        if !self.page.is_empty() {
            message["sessionId"] = self.page.as_str().into();
        }
        self.socket.send(Message::text(message.to_string())).await.unwrap();
        loop {
            let told = self.next(method).await;
            if told["id"] == self.last {
                assert!(told.get("error").is_none(), "{method}: {told}");
                return told["result"].clone();
            }
        }
    }

    /// Returns the next message; `what` names the event that is waited for.
    async fn next(&mut self, what: &str) -> Value {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.socket.next()).await;
            let next = next.unwrap_or_else(|_| panic!("{what}: the browser says nothing"));
            if let Message::Text(text) = next.expect("the browser ended").unwrap() {
                let told: Value = serde_json::from_str(&text).unwrap();
                self.loaded |= told["method"] == "Page.loadEventFired";
                return told;
            }
        }
    }

    /// Opens a URL as if somebody had typed it, and returns the page's text once it has loaded.
    ///
    /// # Panics
    /// When the browser cannot get there.
    pub async fn go(&mut self, url: &str) -> String {
        self.loaded = false;
        let gone = self.ask("Page.navigate", json!({ "url": url })).await;
        assert!(gone.get("errorText").is_none(), "{url}: {gone}");
        while !self.loaded {
            self.next(url).await;
        }
        let text = self.run("document.body.innerText").await;
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Runs a script in the page and returns its result, also when that is a promise.
    ///
    /// # Panics
    /// When the script throws.
    pub async fn run(&mut self, script: &str) -> Value {
        let params = json!({ "expression": script, "awaitPromise": true, "returnByValue": true });
        let done = self.ask("Runtime.evaluate", params).await;
        assert!(done.get("exceptionDetails").is_none(), "{script}: {done}");
        done["result"]["value"].clone()
    }

    /// Returns every cookie that the browser has: domain, path and name, in order.
    pub async fn cookies(&mut self) -> Vec<(String, String, String)> {
        let all = self.ask("Storage.getCookies", json!({})).await;
        let text = |cookie: &Value, field: &str| cookie[field].as_str().unwrap().to_owned();
        let cookie = |c: &Value| (text(c, "domain"), text(c, "path"), text(c, "name"));
        let mut cookies: Vec<_> = all["cookies"].as_array().unwrap().iter().map(cookie).collect();
        cookies.sort();
        cookies
    }
}

/// Returns the address where the browser listens, from the file that it writes.
async fn address(profile: &Path, process: &mut Child) -> String {
    let limit = Instant::now() + PATIENCE;
    loop {
        let text = std::fs::read_to_string(profile.join("DevToolsActivePort")).unwrap_or_default();
        if let Some((port, path)) = text.trim_end().split_once('\n') {
            return format!("ws://127.0.0.1:{port}{path}");
        }
        assert!(process.try_wait().unwrap().is_none(), "chromium ended");
        assert!(Instant::now() < limit, "chromium does not listen");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
