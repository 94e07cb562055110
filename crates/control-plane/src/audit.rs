//! The audit log: actor, action, resource and address of each change and refusal. A change writes
//! its entry in its own transaction. Refusals and accesses have no bound, so they are counted and
//! written once a second. Entries change only when a user is erased. Retention deletes old entries.

use crate::app::App;
use crate::db;
use daemon::lock;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Duration;
use types::{ApiKeyId, ClientNetwork, HostId, PLATFORM_TEAM, TeamId, UserId};

/// Time between two writes of noted events.
const FLUSH: Duration = Duration::from_secs(1);
/// Most different events that are told apart between two writes. Further events are counted
/// together.
const EVENTS_MAX: usize = 256;

/// The user, key or host that acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Principal {
    User(UserId),
    Key(ApiKeyId),
    Host(HostId),
    /// The platform itself.
    System,
    /// A client without a credential, or with a wrong one.
    Nobody,
}

impl Principal {
    /// Returns the kind of actor, as it is stored.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::User(_) => "user",
            Self::Key(_) => "api_key",
            Self::Host(_) => "host",
            Self::System | Self::Nobody => "system",
        }
    }

    pub(crate) fn id(self) -> String {
        match self {
            Self::User(id) => id.to_string(),
            Self::Key(id) => id.to_string(),
            Self::Host(id) => id.to_string(),
            Self::System => "system".to_owned(),
            Self::Nobody => "anonymous".to_owned(),
        }
    }
}

/// An actor and their address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Actor {
    pub principal: Principal,
    pub from: Option<IpAddr>,
}

impl Actor {
    pub(crate) const SYSTEM: Self = Self { principal: Principal::System, from: None };

    pub(crate) fn user(self, id: UserId) -> Self {
        Self { principal: Principal::User(id), ..self }
    }
}

/// An entry in the log.
#[derive(Debug)]
pub(crate) struct Entry {
    pub team: TeamId,
    pub by: Actor,
    /// Kind of resource and action, such as `capsule.pause`.
    pub action: &'static str,
    pub resource: String,
    pub metadata: Value,
    pub refused: bool,
}

impl Entry {
    pub(crate) fn new(
        team: TeamId,
        by: Actor,
        action: &'static str,
        resource: impl ToString,
    ) -> Self {
        let (resource, metadata) = (resource.to_string(), json!({}));
        Self { team, by, action, resource, metadata, refused: false }
    }

    pub(crate) fn with(self, metadata: Value) -> Self {
        Self { metadata, ..self }
    }

    /// Returns the kind of the resource.
    pub(crate) fn resource_type(&self) -> &'static str {
        self.action.split_once('.').map_or(self.action, |(kind, _)| kind)
    }
}

/// A refusal, or an access, to note. Equal events are counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct AuditEvent {
    pub team: TeamId,
    pub by: Actor,
    pub action: &'static str,
    /// Resource of the request: a route's pattern, or an id.
    pub resource: String,
    pub refused: bool,
    /// The error's code; empty for an access.
    pub code: &'static str,
}

impl AuditEvent {
    /// Makes the log entry of an event that happened `times` times.
    fn entry(self, times: u32) -> Entry {
        let what = match self.refused {
            true => json!({ "count": times, "code": self.code }),
            false => json!({ "count": times }),
        };
        let entry = Entry::new(self.team, self.by, self.action, self.resource).with(what);
        Entry { refused: self.refused, ..entry }
    }
}

/// Key of noted events: an event without its address, and the client's network. A client has every
/// address of its network, so a key with the address would bound nothing.
type EventKey = (AuditEvent, Option<ClientNetwork>);

/// Events to write in the next second, each with its count and the address that it first came from.
#[derive(Default)]
pub(crate) struct AuditBuffer(Mutex<HashMap<EventKey, (u32, Option<IpAddr>)>>);

impl AuditBuffer {
    pub(crate) fn note(&self, event: AuditEvent) {
        let mut notes = lock(&self.0);
        let from = event.by.from;
        let by = Actor { from: None, ..event.by };
        let key = (AuditEvent { by, ..event }, from.map(ClientNetwork::from));
        let (key, from) = if notes.len() < EVENTS_MAX || notes.contains_key(&key) {
            (key, from)
        } else {
            let (event, _) = key;
            let by = if event.refused { Actor { principal: Principal::Nobody, ..by } } else { by };
            let many = AuditEvent { team: PLATFORM_TEAM, by, resource: "many".to_owned(), ..event };
            ((many, None), None)
        };
        notes.entry(key).or_insert((0, from)).0 += 1;
    }

    fn take(&self) -> Vec<(AuditEvent, u32)> {
        let notes = std::mem::take(&mut *lock(&self.0));
        let with_address = |((event, _), (times, from)): (EventKey, _)| {
            let by = Actor { from, ..event.by };
            (AuditEvent { by, ..event }, times)
        };
        notes.into_iter().map(with_address).collect()
    }
}

/// Writes noted events for as long as the process lives.
pub(crate) fn spawn_writer(app: &App) {
    let app = app.clone();
    app.tasks.clone().spawn(async move {
        let mut stop = app.tasks.stop_signal().wait();
        loop {
            let stopped = tokio::select! {
                () = tokio::time::sleep(FLUSH) => false,
                () = &mut stop => true,
            };
            for (event, times) in app.audit_buffer.take() {
                let entry = event.entry(times);
                if let Err(error) = db::audit::write(&app.db, &entry).await {
                    tracing::warn!(%error, ?entry, "writing the audit log");
                }
            }
            if stopped {
                return;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_refusals_are_counted_and_entries_are_bounded() {
        let notes = AuditBuffer::default();
        let by = Actor { principal: Principal::Nobody, from: None };
        for round in 0..3 {
            for n in 0..1000 {
                notes.note(AuditEvent {
                    team: PLATFORM_TEAM,
                    by,
                    action: "auth.refused",
                    resource: format!("/{n}"),
                    refused: true,
                    code: "unauthorized",
                });
            }
            assert!(round < 3);
        }
        let taken = notes.take();
        assert_eq!(taken.len(), EVENTS_MAX + 1);
        assert_eq!(taken.iter().map(|(_, times)| times).sum::<u32>(), 3000);
        assert!(notes.take().is_empty());
    }

    #[test]
    fn refusals_from_one_ipv6_network_share_an_entry() {
        let notes = AuditBuffer::default();
        for from in ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "192.0.2.1", "192.0.2.2"] {
            notes.note(AuditEvent {
                team: PLATFORM_TEAM,
                by: Actor { principal: Principal::Nobody, from: from.parse().ok() },
                action: "auth.refused",
                resource: "/".to_owned(),
                refused: true,
                code: "unauthorized",
            });
        }
        let mut taken: Vec<_> = notes
            .take()
            .into_iter()
            .map(|(event, times)| (event.by.from.unwrap().to_string(), times))
            .collect();
        taken.sort();
        let wanted =
            [("192.0.2.1", 1), ("192.0.2.2", 1), ("2001:db8:0:1::1", 1), ("2001:db8::1", 2)];
        assert_eq!(taken, wanted.map(|(from, times)| (from.to_owned(), times)));
    }

    #[test]
    fn audit_action_prefix_is_the_resource_type() {
        let entry = Entry::new(PLATFORM_TEAM, Actor::SYSTEM, "capsule.pause", "cl-x");
        assert_eq!((entry.resource_type(), entry.resource.as_str()), ("capsule", "cl-x"));
    }
}
