//! The stream of an execution. A stream that breaks off is attached to again, so that each line
//! comes exactly once.

use super::line::{Line, Splitter};
use crate::client::{Client, is_passing};
use crate::output;
use anyhow::Context;
use reqwest::{Method, Response};
use std::time::Duration;

/// Number of tries to attach without a new line in between, and the time between two of them.
const TRIES: u32 = 60;
const PAUSE: Duration = Duration::from_millis(500);

/// An execution and its stream.
pub(super) struct Execution<'a> {
    client: &'a Client,
    /// API's path of the capsule's code.
    path: &'a str,
    id: Option<String>,
    /// Number of lines that have come.
    seen: u64,
    answer: Option<Response>,
    bytes: Splitter,
    /// Tries to attach since the last line.
    tries: u32,
    ended: bool,
}

impl<'a> Execution<'a> {
    /// Runs code.
    pub(super) async fn start(
        client: &'a Client,
        path: &'a str,
        run: &api::RunCode,
    ) -> anyhow::Result<Self> {
        let request = client.request(Method::POST, path).json(run);
        let answer = client.send(request).await?;
        Ok(Self { answer: Some(answer), ..Self::new(client, path, None) })
    }

    /// Returns an execution that was started before.
    pub(super) fn earlier(client: &'a Client, path: &'a str, id: String) -> Self {
        Self::new(client, path, Some(id))
    }

    fn new(client: &'a Client, path: &'a str, id: Option<String>) -> Self {
        let bytes = Splitter::default();
        Self { client, path, id, seen: 0, answer: None, bytes, tries: 0, ended: false }
    }

    /// Returns the next line with its bytes; `None` after the last one. Keepalives are left out. A
    /// call may be dropped at any await without the loss of a line.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<(Vec<u8>, Line)>> {
        while !self.ended {
            if let Some(bytes) = self.bytes.next() {
                let line = Line::read(&bytes).context("the platform sent an invalid line")?;
                self.note(&line);
                if line != Line::Keepalive {
                    return Ok(Some((bytes, line)));
                }
            } else if !self.read().await? {
                self.attach().await?;
            }
        }
        Ok(None)
    }

    fn note(&mut self, line: &Line) {
        self.seen += line.count();
        self.tries = 0;
        self.ended = *line == Line::EndOfExecution;
        if let Line::ExecutionStarted { execution_id } = line {
            self.id = Some(execution_id.clone());
        }
    }

    /// Reads more bytes. Returns `false` when the connection has ended.
    async fn read(&mut self) -> anyhow::Result<bool> {
        let Some(answer) = &mut self.answer else { return Ok(false) };
        let chunk = answer.chunk().await;
        if let Ok(Some(bytes)) = chunk {
            self.bytes.feed(&bytes)?;
            return Ok(true);
        }
        self.answer = None;
        Ok(false)
    }

    /// Attaches to the execution after the last line that has come.
    async fn attach(&mut self) -> anyhow::Result<()> {
        self.bytes.clear();
        let Some(id) = &self.id else {
            anyhow::bail!("the connection broke before the execution began; it may have run");
        };
        if self.tries >= TRIES {
            anyhow::bail!("the stream of the execution broke off {TRIES} times without a new line");
        }
        if self.tries > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        self.tries += 1;
        let path = format!("{}/executions/{}?after={}", self.path, segment(id)?, self.seen);
        match self.client.send(self.client.request(Method::GET, &path)).await {
            Ok(answer) => self.answer = Some(answer),
            Err(error) if self.tries < TRIES && is_passing(&error) => {}
            Err(error) => {
                output::note(&format!("the execution {id} may go on; see `wrenn code --attach`"));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Returns the request that interrupts the execution, once the execution has an id.
    pub(super) fn interruption(&self) -> Option<Interruption> {
        let id = segment(self.id.as_deref()?).ok()?;
        let path = format!("{}/executions/{id}/interrupt", self.path);
        Some(Interruption { client: self.client.clone(), path })
    }
}

/// A request that interrupts an execution.
pub(super) struct Interruption {
    client: Client,
    path: String,
}

impl Interruption {
    /// Sends the request.
    pub(super) async fn send(self) -> anyhow::Result<()> {
        self.client.post_empty(&self.path).await
    }
}

/// Checks the id of an execution, so that it stays one segment of a path. A guest may send any.
fn segment(id: &str) -> anyhow::Result<uuid::Uuid> {
    id.parse().map_err(|_| output::usage(format!("`{id:.40}` is not the id of an execution")))
}
