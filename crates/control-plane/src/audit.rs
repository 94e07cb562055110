//! Values of the audit log: actor, action, resource and address of each change and refusal. A
//! change writes its entry in its own transaction. Refusals and accesses have no bound, so `buffer`
//! counts them. Entries change only when a user is erased. Retention deletes old entries.

pub(crate) mod buffer;

pub(crate) mod log;
use serde_json::{Value, json};
use std::net::IpAddr;
use types::{ApiKeyId, HostId, TeamId, UserId};

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

/// Kind of an actor, as the log stores it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ActorKind {
    User,
    ApiKey,
    Host,
    /// The platform, or a client without a valid credential.
    System,
}

types::text_enum!(ActorKind, "actor_type", {
    User = "user",
    ApiKey = "api_key",
    Host = "host",
    System = "system",
});

impl Principal {
    pub(crate) fn kind(self) -> ActorKind {
        match self {
            Self::User(_) => ActorKind::User,
            Self::Key(_) => ActorKind::ApiKey,
            Self::Host(_) => ActorKind::Host,
            Self::System | Self::Nobody => ActorKind::System,
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
    /// Reason why the platform acts by itself, for events. `None` for a client's request.
    pub reason: Option<&'static str>,
}

impl Actor {
    pub(crate) const SYSTEM: Self = Self { principal: Principal::System, from: None, reason: None };

    pub(crate) fn user(self, id: UserId) -> Self {
        Self { principal: Principal::User(id), ..self }
    }

    /// Adds a reason, such as `host_unreachable`.
    pub(crate) fn because(self, reason: &'static str) -> Self {
        Self { reason: Some(reason), ..self }
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

#[cfg(test)]
mod tests {
    use super::*;
    use types::PLATFORM_TEAM;

    #[test]
    fn audit_action_prefix_is_the_resource_type() {
        let entry = Entry::new(PLATFORM_TEAM, Actor::SYSTEM, "capsule.pause", "cl-x");
        assert_eq!((entry.resource_type(), entry.resource.as_str()), ("capsule", "cl-x"));
    }
}
