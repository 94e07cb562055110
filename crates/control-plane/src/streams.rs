//! Streams of a team's events: each goes on from a place, and misses nothing. Woken when something
//! has happened to its team, it asks the database what.

use crate::app::App;
use crate::auth::Caller;
use crate::db;
use crate::db::events::{Event, Place};
use crate::error::Result;
use crate::load::Streaming;
use std::time::Duration;
use tokio::sync::broadcast;
use types::{CapsuleId, ChannelId, HostId, SnapshotId, TeamId};

/// Events that are asked for at once.
const PAGE: i64 = 500;
/// How long a stream sleeps at most, should it not be woken.
const LOOK: Duration = Duration::from_secs(2);
/// Between two looks at least: what happens meanwhile is told together.
const PAUSE: Duration = Duration::from_millis(20);
/// Words that may wait for a stream that is slow.
const WAITING: usize = 64;

/// Wakes streams.
pub(crate) struct Streams {
    /// None is every team.
    woken: broadcast::Sender<Option<TeamId>>,
}

impl Streams {
    pub(crate) fn new() -> Self {
        Self { woken: broadcast::channel(WAITING).0 }
    }

    /// Hears of what happens to teams.
    pub(crate) fn listen(&self) -> broadcast::Receiver<Option<TeamId>> {
        self.woken.subscribe()
    }

    pub(crate) fn wake(&self, team: Option<TeamId>) {
        // Nobody may listen.
        let _ = self.woken.send(team);
    }
}

/// One stream.
pub(crate) struct Stream {
    app: App,
    team: TeamId,
    at: Place,
    woken: broadcast::Receiver<Option<TeamId>>,
    /// Shares of the streams that the team and the caller hold.
    _shares: Streaming,
}

impl Stream {
    /// Begins after a place; with none, after everything that has happened.
    pub(crate) async fn open(app: &App, caller: Caller, after: Option<Place>) -> Result<Self> {
        let shares = app.load.stream(caller.team, caller.holder())?;
        let woken = app.streams.listen();
        let at = match after {
            Some(at) => at,
            None => db::events::now(&app.db).await?,
        };
        Ok(Self { app: app.clone(), team: caller.team, at, woken, _shares: shares })
    }

    /// What has happened since; empty when nothing did for a while.
    pub(crate) async fn next(&mut self) -> Result<Vec<Event>> {
        let events = self.look().await?;
        if !events.is_empty() {
            return Ok(events);
        }
        self.sleep().await;
        tokio::time::sleep(PAUSE).await;
        self.look().await
    }

    async fn look(&mut self) -> Result<Vec<Event>> {
        let events = db::events::after(&self.app.db, self.team, self.at, PAGE).await?;
        if let Some(last) = events.last() {
            self.at = last.place();
        }
        Ok(events)
    }

    async fn sleep(&mut self) {
        let team = self.team;
        let woken = async {
            loop {
                match self.woken.recv().await {
                    Ok(Some(other)) if other != team => {}
                    // Words that were missed may have been for us.
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        let _ = tokio::time::timeout(LOOK, woken).await;
    }
}

/// Reads what `id` of an event says.
pub(crate) fn place(id: &str) -> Option<Place> {
    let (tx, seq) = id.split_once('-')?;
    Some(Place(tx.parse().ok()?, seq.parse().ok()?)).filter(|place| place.0 >= 0 && place.1 >= 0)
}

/// An id as it is on the wire, by the kind of what it names.
fn resource(kind: &str, id: uuid::Uuid) -> String {
    match kind {
        "capsule" => CapsuleId(id).to_string(),
        "snapshot" => SnapshotId(id).to_string(),
        "host" => HostId(id).to_string(),
        "channel" => ChannelId(id).to_string(),
        _ => id.to_string(),
    }
}

/// The wire's shape.
pub(crate) fn shown(event: Event) -> api::Event {
    let Place(tx, seq) = event.place();
    api::Event {
        id: format!("{tx}-{seq}"),
        team_id: TeamId(event.team_id).to_string(),
        event: event.kind,
        resource_id: resource(&event.resource_type, event.resource_id),
        resource_type: event.resource_type,
        data: event.data,
        created_at: event.created_at,
    }
}

/// The wire's shape of one that the outbox has, as the database wrote it.
pub(crate) fn from_outbox(body: &serde_json::Value) -> Option<api::Event> {
    #[derive(serde::Deserialize)]
    struct Row {
        seq: i64,
        transaction: String,
        team_id: uuid::Uuid,
        kind: String,
        resource_type: String,
        resource_id: uuid::Uuid,
        data: serde_json::Value,
        created_at: String,
    }
    let row: Row = serde_json::from_value(body.clone()).ok()?;
    let at = time::OffsetDateTime::parse(
        &row.created_at,
        &time::format_description::well_known::Iso8601::DEFAULT,
    );
    Some(shown(Event {
        seq: row.seq,
        tx: row.transaction.parse().ok()?,
        team_id: row.team_id,
        kind: row.kind,
        resource_type: row.resource_type,
        resource_id: row.resource_id,
        data: row.data,
        created_at: at.ok()?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_survives_the_wire() {
        assert_eq!(place("12-7"), Some(Place(12, 7)));
        for bad in ["", "12", "-", "a-1", "1--1", "1-2-3"] {
            assert_eq!(place(bad), None, "{bad}");
        }
    }
}
