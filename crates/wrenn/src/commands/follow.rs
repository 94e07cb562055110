//! Connections to streams of server-sent events, which survive cut connections and restarts of the
//! platform.

use crate::client::{self, Client};
use reqwest::{Method, Response};
use std::time::{Duration, Instant};

/// Time without any byte after which a connection counts as broken. The platform sends at least a
/// comment every 15 seconds.
pub(super) const QUIET: Duration = Duration::from_secs(60);
/// Time without an answer of the platform after which the command gives up.
const GIVE_UP: Duration = Duration::from_secs(600);
/// First and longest pause before another connection.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Decides when to connect again, and when to give up.
pub(super) struct Retry {
    /// Pause before the next connection.
    pause: Duration,
    /// Last answer of the platform.
    answered: Instant,
}

impl Retry {
    /// Begins without a pause before the first connection.
    pub(super) fn new() -> Self {
        Self { pause: Duration::ZERO, answered: Instant::now() }
    }

    /// Waits before a connection. Each pause is longer than the one before.
    pub(super) async fn wait(&mut self) {
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).clamp(PAUSES.0, PAUSES.1);
    }

    /// Notes an answer of the platform.
    pub(super) fn answered(&mut self) {
        self.answered = Instant::now();
    }

    /// Notes that events came, so that the next pause is short.
    pub(super) fn progressed(&mut self) {
        self.pause = PAUSES.0;
    }

    /// Reports whether another connection may succeed after an error.
    pub(super) fn can_mend(&self, error: &anyhow::Error) -> bool {
        client::is_passing(error) && self.answered.elapsed() <= GIVE_UP
    }
}

/// Opens a stream of server-sent events, after the event with the id `last`.
///
/// # Errors
/// Fails when the platform refuses, or does not answer for [`QUIET`].
pub(super) async fn open(
    client: &Client,
    path: &str,
    last: Option<&str>,
) -> anyhow::Result<Response> {
    let request = client.request(Method::GET, path).header("Accept", "text/event-stream");
    let request = match last {
        Some(last) => request.header("Last-Event-ID", last),
        None => request,
    };
    tokio::time::timeout(QUIET, client.send(request)).await?
}
