//! A build's log as it grows. The stream survives cut connections and restarts of the platform: it
//! goes on after the last line that came.

use super::sse;
use crate::client::{self, Client};
use anyhow::Context;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use reqwest::Method;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Time without any byte after which a connection counts as broken. The platform sends at least a
/// comment every 15 seconds.
const QUIET: Duration = Duration::from_secs(60);
/// Time without an answer of the platform after which the command gives up.
const GIVE_UP: Duration = Duration::from_secs(600);
/// First and longest pause before another connection.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// News of a build.
#[derive(Debug)]
pub(super) enum News {
    Line(api::BuildLine),
    /// The build has ended.
    End(Box<api::Build>),
}

type Bytes = BoxStream<'static, reqwest::Result<Vec<u8>>>;

struct Follower<'a> {
    client: &'a Client,
    id: String,
    /// Number of the last line that came.
    last: u64,
    connection: Option<Bytes>,
    reader: sse::Reader,
    events: VecDeque<sse::Event>,
    /// Set if lines came by this connection.
    has_lines: bool,
    /// Pause before the next connection.
    pause: Duration,
    /// Last answer of the platform.
    answered: Instant,
    is_over: bool,
}

/// Follows the log of a build to its end. `id` is a checked id.
pub(super) fn follow(
    client: &Client,
    id: String,
) -> impl Stream<Item = anyhow::Result<News>> + Unpin + '_ {
    let follower = Follower {
        client,
        id,
        last: 0,
        connection: None,
        reader: sse::Reader::default(),
        events: VecDeque::new(),
        has_lines: true,
        pause: Duration::ZERO,
        answered: Instant::now(),
        is_over: false,
    };
    Box::pin(futures::stream::try_unfold(follower, |mut follower| async {
        Ok(follower.next().await?.map(|news| (news, follower)))
    }))
}

impl Follower<'_> {
    async fn next(&mut self) -> anyhow::Result<Option<News>> {
        while !self.is_over {
            while let Some(event) = self.events.pop_front() {
                if let Some(news) = self.take(&event)? {
                    return Ok(Some(news));
                }
            }
            match self.connection.as_mut() {
                Some(bytes) => match tokio::time::timeout(QUIET, bytes.next()).await {
                    Ok(Some(Ok(bytes))) => {
                        self.answered = Instant::now();
                        let mut events = Vec::new();
                        self.reader.feed(&bytes, &mut events)?;
                        self.events.extend(events);
                    }
                    Ok(Some(Err(_)) | None) | Err(_) => self.connection = None,
                },
                None => {
                    if let Some(build) = self.connect().await? {
                        self.is_over = true;
                        return Ok(Some(News::End(Box::new(build))));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Turns an event to news. Lines that came before, and events of unknown names, are none.
    fn take(&mut self, event: &sse::Event) -> anyhow::Result<Option<News>> {
        let what = "the platform sent an event that is none of a build's";
        match event.name.as_str() {
            "" | "line" => {
                let line: api::BuildLine = serde_json::from_str(&event.data).context(what)?;
                if line.seq <= self.last {
                    return Ok(None);
                }
                self.last = line.seq;
                self.has_lines = true;
                self.pause = Duration::ZERO;
                Ok(Some(News::Line(line)))
            }
            "end" => {
                self.is_over = true;
                let build = serde_json::from_str(&event.data).context(what)?;
                Ok(Some(News::End(Box::new(build))))
            }
            _ => Ok(None),
        }
    }

    /// Connects anew. Returns the build instead if it has ended and has no more lines.
    async fn connect(&mut self) -> anyhow::Result<Option<api::Build>> {
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).clamp(PAUSES.0, PAUSES.1);
        let opened = match tokio::time::timeout(QUIET, self.open()).await {
            Ok(opened) => opened,
            Err(elapsed) => Err(elapsed.into()),
        };
        match opened {
            Ok(build) => {
                self.answered = Instant::now();
                Ok(build)
            }
            Err(error) if !client::is_passing(&error) => Err(error),
            Err(error) if self.answered.elapsed() > GIVE_UP => {
                let id = &self.id;
                Err(error.context(format!(
                    "the build goes on without this command; see `wrenn template logs -f {id}`"
                )))
            }
            Err(_) => Ok(None),
        }
    }

    async fn open(&mut self) -> anyhow::Result<Option<api::Build>> {
        let path = format!("/v1/builds/{}", self.id);
        if !self.has_lines {
            let build: api::Build = self.client.get(&path).await?;
            if super::has_ended(&build) {
                return Ok(Some(build));
            }
        }
        let request = self.client.request(Method::GET, &format!("{path}/logs?follow=true"));
        let mut request = request.header("Accept", "text/event-stream");
        if self.last > 0 {
            request = request.header("Last-Event-ID", self.last);
        }
        let bytes = self.client.send(request).await?.bytes_stream().map_ok(|bytes| bytes.to_vec());
        self.reader = sse::Reader::default();
        self.connection = Some(bytes.boxed());
        self.has_lines = false;
        Ok(None)
    }
}
