//! Builds of templates in tests: a platform with a registry, uploads, builds up to their ends, and
//! logs as server-sent events.

use crate::client::{Answer, Client};
use crate::oci::{Tree, gzip, hash};
use crate::platform::{Driver, Platform};
use crate::registry::Registry;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Time limit of a build on an emulated guest, while the machine has other work.
const BUILD: Duration = Duration::from_secs(240);
/// Pause between looks at a build.
const LOOK: Duration = Duration::from_millis(30);

/// A platform, and a registry that it pulls from by plain HTTP, also in place of Docker Hub.
pub struct Workshop {
    pub platform: Platform,
    pub registry: Registry,
    pub client: Client,
    _settings: TempDir,
}

impl Workshop {
    /// Starts both, with further variables of the platform.
    ///
    /// # Panics
    /// When one does not start.
    pub async fn start(driver: Driver, vars: &[(&str, &str)]) -> Self {
        Self::start_in(driver, &std::env::temp_dir(), vars).await
    }

    /// Starts both, with the platform's folder below `parent`.
    ///
    /// # Panics
    /// When one does not start.
    pub async fn start_in(driver: Driver, parent: &Path, vars: &[(&str, &str)]) -> Self {
        let registry = Registry::start();
        let settings = tempfile::tempdir().unwrap();
        let file = registry.settings(settings.path());
        let mut all = vec![("WRENN_REGISTRIES", file.as_str())];
        all.extend(vars);
        let platform = Platform::start_in(driver, parent, &all).await;
        let client = platform.client();
        Self { platform, registry, client, _settings: settings }
    }

    /// Starts the platform anew after its death.
    pub async fn resume(&mut self) {
        self.platform.resume().await;
        self.client = self.platform.client();
    }

    /// Ends the test.
    pub fn finish(self) {
        self.platform.finish();
    }
}

/// A build that has ended, with its log.
#[derive(Debug)]
pub struct Build {
    pub id: String,
    /// Answer of `GET /v1/builds/{id}`.
    pub body: Value,
    /// Texts of all lines.
    pub lines: Vec<String>,
}

impl Build {
    /// Counts the lines that contain a text.
    #[must_use]
    pub fn count(&self, text: &str) -> usize {
        self.lines.iter().filter(|line| line.contains(text)).count()
    }

    /// Returns the numbers of the template's own steps that came from the cache.
    #[must_use]
    pub fn cached(&self) -> Vec<u32> {
        let steps = self.lines.iter().filter_map(|line| line.strip_prefix("CACHED [builder "));
        steps.map(|rest| rest.split('/').next().unwrap_or("").parse().unwrap_or(0)).collect()
    }

    /// Checks the reason of a failure: its step, and a part of its message.
    ///
    /// # Panics
    /// When the build did not fail so.
    pub fn failed(&self, step: &str, holding: &str) {
        let (error, log) = (&self.body["error"], self.lines.join("\n"));
        assert_eq!(self.body["status"], "error", "{}\n{log}", self.body);
        assert_eq!(error["step"], step, "{error}\n{log}");
        let message = error["message"].as_str().unwrap_or_default();
        assert!(message.contains(holding), "`{holding}` not in {error}\n{log}");
        assert!(self.lines.iter().any(|line| line.contains("Build failed: ")), "{log}");
    }
}

/// Returns the texts of a page of a log.
#[must_use]
pub fn lines_of(page: &Value) -> Vec<String> {
    let items = page["items"].as_array().into_iter().flatten();
    items.map(|line| line["text"].as_str().unwrap_or_default().to_owned()).collect()
}

impl Client {
    /// Uploads files for COPY steps. Returns their hash.
    ///
    /// # Panics
    /// When the platform refuses them.
    pub async fn upload(&self, files: Tree) -> String {
        let archive = gzip(&files.archive());
        self.upload_bytes(&archive).await
    }

    /// Uploads an archive as it is. Returns its hash.
    ///
    /// # Panics
    /// When the platform refuses it.
    pub async fn upload_bytes(&self, archive: &[u8]) -> String {
        let hash = hash(archive);
        let put = self.request(Method::PUT, &format!("/v1/builds/files/{hash}"));
        let sent = self.send(put.body(archive.to_vec())).await.expect(200);
        assert_eq!(sent["hash"], hash.as_str(), "{sent}");
        hash
    }

    /// Begins a build. Returns its id.
    ///
    /// # Panics
    /// When the platform refuses it.
    pub async fn begin(&self, body: &Value) -> String {
        let begun = self.post("/v1/builds", body).await.expect(201);
        begun["id"].as_str().unwrap().to_owned()
    }

    /// Returns a build as the API shows it now.
    pub async fn see_build(&self, id: &str) -> Value {
        self.get(&format!("/v1/builds/{id}")).await.expect(200)
    }

    /// Waits until a build has ended. Returns it with its log.
    ///
    /// # Panics
    /// When it does not end in time.
    pub async fn ended(&self, id: &str) -> Build {
        let limit = Instant::now() + BUILD;
        let body = loop {
            let body = self.see_build(id).await;
            if matches!(body["status"].as_str(), Some("ready" | "error")) {
                break body;
            }
            assert!(
                Instant::now() < limit,
                "the build goes on: {body}\n{:?}",
                self.lines(id).await
            );
            tokio::time::sleep(LOOK).await;
        };
        Build { id: id.to_owned(), body, lines: self.lines(id).await }
    }

    /// Begins a build and waits for its end, whichever that is.
    pub async fn attempt(&self, body: &Value) -> Build {
        let id = self.begin(body).await;
        self.ended(&id).await
    }

    /// Begins a build that must become ready.
    ///
    /// # Panics
    /// When it fails.
    pub async fn build(&self, body: &Value) -> Build {
        let build = self.attempt(body).await;
        assert_eq!(build.body["status"], "ready", "{}\n{}", build.body, build.lines.join("\n"));
        build
    }

    /// Returns all lines of a build's log so far.
    ///
    /// # Panics
    /// When the numbers of the lines have gaps.
    pub async fn lines(&self, id: &str) -> Vec<String> {
        let (mut from, mut lines) = (1, Vec::new());
        loop {
            let page = self.get(&format!("/v1/builds/{id}/logs?from={from}")).await.expect(200);
            let items = page["items"].as_array().unwrap();
            if items.is_empty() {
                return lines;
            }
            for (item, wanted) in items.iter().zip(from..) {
                assert_eq!(item["seq"], wanted, "a gap in the log");
            }
            lines.extend(lines_of(&page));
            from = page["next"].as_u64().unwrap();
        }
    }

    /// Waits until a line of a build's log contains a text.
    pub async fn logged(&self, id: &str, text: &str) {
        let what = format!("the build writes `{text}`");
        crate::eventually(&what, async || {
            self.lines(id).await.iter().any(|line| line.contains(text)).then_some(())
        })
        .await;
    }

    /// Asks for a build's end.
    pub async fn cancel(&self, id: &str) -> Answer {
        self.post(&format!("/v1/builds/{id}/cancel"), &json!({})).await
    }

    /// Follows a build's log, from the start or after the line `last`.
    ///
    /// # Panics
    /// When the platform refuses.
    pub async fn follow(&self, id: &str, last: Option<u64>) -> Follow {
        let mut asked = self.request(Method::GET, &format!("/v1/builds/{id}/logs?follow=true"));
        if let Some(last) = last {
            asked = asked.header("last-event-id", last.to_string());
        }
        let answer = asked.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        Follow { answer, early: Vec::new() }
    }
}

/// A followed log.
pub struct Follow {
    answer: Response,
    early: Vec<u8>,
}

/// An event of a followed log.
#[derive(Debug)]
pub struct LogEvent {
    /// Number of the line, or `None` at the build's end.
    pub seq: Option<u64>,
    /// The line or, at the end, the build.
    pub data: Value,
}

impl Follow {
    /// Returns the next event, or `None` once the connection has ended.
    ///
    /// # Panics
    /// When nothing comes in time, or an event is malformed.
    pub async fn next(&mut self) -> Option<LogEvent> {
        loop {
            while let Some(at) = self.early.windows(2).position(|two| two == b"\n\n") {
                let text: Vec<u8> = self.early.drain(..at + 2).collect();
                if let Some(event) = event(&String::from_utf8(text).unwrap()) {
                    return Some(event);
                }
            }
            let chunk = tokio::time::timeout(BUILD, self.answer.chunk()).await;
            self.early.extend(chunk.expect("no event came in time").ok()??);
        }
    }

    /// Reads up to the end. Returns the lines' numbers and texts, and the build.
    ///
    /// # Panics
    /// When the stream ends early.
    pub async fn all(&mut self) -> (Vec<(u64, String)>, Value) {
        let mut lines = Vec::new();
        loop {
            let event = self.next().await.expect("the stream ended before the build");
            match event.seq {
                Some(seq) => lines.push((seq, event.data["text"].as_str().unwrap().to_owned())),
                None => return (lines, event.data),
            }
        }
    }
}

/// Parses an event. Comments are none.
fn event(text: &str) -> Option<LogEvent> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(|value| value.trim_start().to_owned())
    };
    let data = serde_json::from_str(&field("data")?).unwrap();
    let seq = field("id").map(|id| id.parse().unwrap());
    assert!(seq.is_some() || field("event").as_deref() == Some("end"), "{text}");
    Some(LogEvent { seq, data })
}
