//! A build's log as it grows. The stream survives cut connections and restarts of the platform: it
//! goes on after the last line that came.

use crate::client::{self, Client};
use crate::commands::follow::{self, Retry};
use crate::commands::sse;
use anyhow::Context;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use std::collections::VecDeque;

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
    retry: Retry,
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
        retry: Retry::new(),
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
                Some(bytes) => match tokio::time::timeout(follow::QUIET, bytes.next()).await {
                    Ok(Some(Ok(bytes))) => {
                        self.retry.answered();
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
                self.retry.progressed();
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
        self.retry.wait().await;
        match self.open().await {
            Ok(build) => {
                self.retry.answered();
                Ok(build)
            }
            Err(error) if !client::is_passing(&error) => Err(error),
            Err(error) if !self.retry.can_mend(&error) => {
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
            let get = self.client.get::<api::Build>(&path);
            let build = tokio::time::timeout(follow::QUIET, get).await??;
            if super::has_ended(&build) {
                return Ok(Some(build));
            }
        }
        let last = (self.last > 0).then(|| self.last.to_string());
        let path = format!("{path}/logs?follow=true");
        let answer = follow::open(self.client, &path, last.as_deref()).await?;
        let bytes = answer.bytes_stream().map_ok(|bytes| bytes.to_vec());
        self.reader = sse::Reader::default();
        self.connection = Some(bytes.boxed());
        self.has_lines = false;
        Ok(None)
    }
}
