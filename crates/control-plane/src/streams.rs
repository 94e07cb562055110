//! Streams of a team's events. Each stream goes on from a cursor, and misses none. A
//! stream is woken by changes of its team, and then reads the events from the database.

use crate::db;
use crate::db::events::{Cursor, Event, ResourceType};
use crate::error::{Error, Result};
use crate::load::Streaming;
use sqlx::PgPool;
use std::time::Duration;
use tokio::sync::broadcast;
use types::{
    ApiKeyId, BuildId, CapsuleId, ChannelId, HostId, InvitationId, SnapshotId, TeamId, TemplateId,
    UserId,
};
use uuid::Uuid;

/// Most events of one read.
const PAGE: i64 = 500;
/// Longest sleep of a stream that nothing wakes.
const LOOK: Duration = Duration::from_secs(2);
/// Shortest time from a wake to the read, so that events that come together are read together.
const PAUSE: Duration = Duration::from_millis(20);
/// Most wakes that are queued for a slow stream.
const WAITING: usize = 64;

/// Wakes the streams of a team.
pub(crate) struct Streams {
    db: PgPool,
    /// Team to wake; `None` wakes every team's streams.
    woken: broadcast::Sender<Option<TeamId>>,
}

impl Streams {
    pub(crate) fn new(db: PgPool) -> Self {
        Self { db, woken: broadcast::channel(WAITING).0 }
    }

    /// Opens a team's stream after a cursor; without one, after all events so far. `resource`
    /// selects the events of one resource.
    pub(crate) async fn open(
        &self,
        team: TeamId,
        resource: Option<Uuid>,
        shares: Streaming,
        after: Option<Cursor>,
    ) -> Result<Stream> {
        let woken = self.listen();
        if let Some(at) = after
            && db::events::is_expired(&self.db, team, at).await?
        {
            return Err(Error::CursorExpired);
        }
        let at = match after {
            Some(at) => at,
            None => db::events::now(&self.db).await?,
        };
        Ok(Stream { db: self.db.clone(), team, resource, at, woken, _shares: shares })
    }

    /// Returns a receiver of all wakes.
    pub(crate) fn listen(&self) -> broadcast::Receiver<Option<TeamId>> {
        self.woken.subscribe()
    }

    pub(crate) fn wake(&self, team: Option<TeamId>) {
        // Sending fails when there is no receiver, which is no error.
        let _ = self.woken.send(team);
    }
}

/// A client's stream of events.
pub(crate) struct Stream {
    db: PgPool,
    team: TeamId,
    resource: Option<Uuid>,
    at: Cursor,
    woken: broadcast::Receiver<Option<TeamId>>,
    /// Shares of the streams that the team and the caller hold.
    _shares: Streaming,
}

impl Stream {
    /// Returns the events since the last call; empty when none came for a while.
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
        let (team, resource) = (self.team, self.resource);
        let events = db::events::after(&self.db, team, resource, self.at, PAGE).await?;
        if let Some(last) = events.last() {
            self.at = last.cursor();
        }
        Ok(events)
    }

    async fn sleep(&mut self) {
        let team = self.team;
        let woken = async {
            loop {
                match self.woken.recv().await {
                    Ok(Some(other)) if other != team => {}
                    // Missed wakes may have been for this team.
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        let _ = tokio::time::timeout(LOOK, woken).await;
    }
}

/// Reads the id of a resource that events are about. Ids of all kinds are unique.
pub(crate) fn parse_resource(id: &str) -> Option<Uuid> {
    let (prefix, rest) = id.split_once('-')?;
    let known = [
        CapsuleId::PREFIX,
        SnapshotId::PREFIX,
        HostId::PREFIX,
        ChannelId::PREFIX,
        TemplateId::PREFIX,
        ApiKeyId::PREFIX,
        UserId::PREFIX,
        InvitationId::PREFIX,
        TeamId::PREFIX,
    ];
    let known = known.iter().any(|known| known.strip_suffix('-') == Some(prefix));
    types::ids::decode(rest).ok().filter(|_| known)
}

/// Formats a resource's id for the API, by the kind of resource.
fn resource(kind: ResourceType, id: Uuid) -> String {
    match kind {
        ResourceType::Capsule => CapsuleId(id).to_string(),
        ResourceType::Snapshot => SnapshotId(id).to_string(),
        ResourceType::Host => HostId(id).to_string(),
        ResourceType::Channel => ChannelId(id).to_string(),
        ResourceType::Template => TemplateId(id).to_string(),
        ResourceType::ApiKey => ApiKeyId(id).to_string(),
        ResourceType::Member => UserId(id).to_string(),
        ResourceType::Invitation => InvitationId(id).to_string(),
        ResourceType::Team => TeamId(id).to_string(),
    }
}

/// Formats the id of a build in an event's details for the API.
fn details(mut data: serde_json::Value) -> serde_json::Value {
    let build = data.get("build").and_then(serde_json::Value::as_str);
    if let Some(build) = build.and_then(|id| id.parse::<Uuid>().ok()) {
        data["build"] = BuildId(build).to_string().into();
    }
    data
}

/// Converts an event to the API's form.
pub(crate) fn to_api(event: Event) -> api::Event {
    let Cursor(tx, seq) = event.cursor();
    let label = event.actor_label;
    let actor = event.actor_type.zip(event.actor_id);
    api::Event {
        id: format!("{tx}-{seq}"),
        team_id: event.team_id.to_string(),
        event: event.kind,
        resource_id: resource(event.resource_type, event.resource_id),
        resource_type: event.resource_type.to_string(),
        actor: actor.map(|(kind, id)| api::EventActor { kind, id, label }),
        generation: event.generation,
        data: details(event.data),
        created_at: event.created_at,
    }
}

/// Converts an event of the outbox, in the database's form, to the API's form.
pub(crate) fn from_outbox(body: &serde_json::Value) -> Option<api::Event> {
    #[derive(serde::Deserialize)]
    struct Row {
        seq: i64,
        transaction: String,
        team_id: Uuid,
        kind: String,
        resource_type: ResourceType,
        resource_id: Uuid,
        data: serde_json::Value,
        // Deliveries of an earlier version have no actor.
        actor_type: Option<String>,
        actor_id: Option<String>,
        actor_label: Option<String>,
        generation: Option<i64>,
        created_at: String,
    }
    let row: Row = serde_json::from_value(body.clone()).ok()?;
    let at = time::OffsetDateTime::parse(
        &row.created_at,
        &time::format_description::well_known::Iso8601::DEFAULT,
    );
    Some(to_api(Event {
        seq: row.seq,
        tx: row.transaction.parse().ok()?,
        team_id: TeamId(row.team_id),
        kind: row.kind,
        resource_type: row.resource_type,
        resource_id: row.resource_id,
        data: row.data,
        actor_type: row.actor_type,
        actor_id: row.actor_id,
        actor_label: row.actor_label,
        generation: row.generation,
        created_at: at.ok()?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_in_the_details_of_an_event_is_an_id_of_the_api() {
        let id = BuildId::new();
        let told = details(serde_json::json!({ "build": id.0, "name": "web" }));
        assert_eq!(told, serde_json::json!({ "build": id, "name": "web" }));
        assert_eq!(details(serde_json::json!({ "name": "s" })), serde_json::json!({ "name": "s" }));
    }

    #[test]
    fn id_of_each_resource_with_events_is_parsed_and_other_texts_are_not() {
        let id = Uuid::new_v4();
        for kind in ResourceType::ALL {
            assert_eq!(parse_resource(&resource(kind, id)), Some(id), "{kind}");
        }
        let build = BuildId(id).to_string();
        for bad in ["", "cl", "cl-", "cl-1", &id.to_string(), &build] {
            assert_eq!(parse_resource(bad), None, "{bad}");
        }
    }

    #[test]
    fn delivery_of_an_earlier_version_has_no_actor() {
        let mut body = serde_json::json!({ "seq": 7, "transaction": "12", "team_id": Uuid::nil(),
            "kind": "host.up", "resource_type": "host", "resource_id": Uuid::nil(), "data": {},
            "created_at": "2026-11-26T12:00:00+00:00" });
        assert!(from_outbox(&body).unwrap().actor.is_none());
        body["actor_type"] = "system".into();
        body["actor_id"] = "system".into();
        let event = from_outbox(&body).unwrap();
        assert_eq!((event.id.as_str(), event.actor.unwrap().kind.as_str()), ("12-7", "system"));
    }
}
