//! Audit log, usage, events, and the channels that events are sent to.

use serde::{Deserialize, Serialize};
use time::{Date, OffsetDateTime};
use utoipa::ToSchema;

/// An entry of the audit log.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuditLog {
    pub id: String,
    pub team_id: String,
    /// Kind of the actor: `user`, `api_key`, `host`, or `system` for the platform and for unknown
    /// callers.
    pub actor_type: String,
    /// Id of the actor. `system` stands for the platform, `anonymous` for an unknown caller, and
    /// `erased` for an erased user.
    pub actor_id: String,
    /// Network address that the request came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Type of the resource, such as `capsule` or `api_key`.
    pub resource_type: String,
    pub resource_id: String,
    /// Kind and verb of the action, such as `capsule.pause`.
    pub action: String,
    /// Outcome: `ok` or `refused`. For `refused`, `metadata` holds the error's `code` and the
    /// `count` of equal refusals in that second.
    pub status: String,
    /// Details of the action, as an object.
    pub metadata: serde_json::Value,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// A page of the audit log, newest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuditLogPage {
    pub items: Vec<AuditLog>,
    /// Value of `before` for the next page. Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A team's usage on one day, in UTC.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(remote = "Self")]
pub struct DailyUsage {
    /// Date in the form `2026-11-26`.
    #[schema(value_type = String, format = Date)]
    #[serde(with = "day")]
    pub day: Date,
    /// Virtual CPUs of running capsules, multiplied by the seconds that they ran.
    pub vcpu_seconds: f64,
    /// Memory of running capsules in MiB, multiplied by the seconds that they ran.
    pub memory_mib_seconds: f64,
    /// Disks of capsules and sizes of snapshots in MiB, multiplied by the seconds until their
    /// removal.
    pub storage_mib_seconds: f64,
}

/// Answer to `GET /v1/usage`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Usage of each day of the range, oldest first.
    pub items: Vec<DailyUsage>,
}

time::serde::format_description!(day, Date, "[year]-[month]-[day]");

/// The user, key or platform that caused an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventActor {
    /// `user`, `api_key`, or `system` for the platform itself.
    #[serde(rename = "type")]
    pub kind: String,
    /// Id of the user or key. `system` stands for the platform, and `erased` for an erased user.
    pub id: String,
    /// Name of the user or key at the time of the event.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub label: Option<String>,
}

/// A page of events, newest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct EventPage {
    pub items: Vec<Event>,
    /// Value of `before` for the next page. Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// An event of a team: a change of a capsule or another resource.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Position among the team's events. As `Last-Event-ID`, it makes a stream continue after this
    /// event.
    pub id: String,
    pub team_id: String,
    /// Kind of the event.
    /// - `capsule.created`, `.running`, `.pausing`, `.paused`, `.resuming`, `.error`, `.missing`,
    ///   `.stopping`, `.destroyed`
    /// - `capsule.changed`
    /// - `template.created`, `.changed`, `.deleted`
    /// - `template.build.started`, `.ready`, `.failed`, `.cancelled`
    /// - `template.snapshot.created`, `.deleted`
    /// - `template.tag.assigned`, `.deleted`
    /// - `key.created`, `.revoked`
    /// - `member.added`, `.role`, `.removed`
    /// - `invitation.created`, `.removed`
    /// - `team.changed`, `.limits`
    /// - `channel.created`, `.changed`, `.deleted`
    /// - `registry.login`, `.logout`
    /// - `host.up`, `.down`
    /// - `channel.test`
    pub event: String,
    /// Type of the resource, such as `capsule` or `host`.
    pub resource_type: String,
    pub resource_id: String,
    /// Actor. Absent in events of earlier versions.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub actor: Option<EventActor>,
    /// Number that grows with each state change of the capsule or build. Absent for other
    /// resources.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub generation: Option<i64>,
    /// Details of the event, as an object. Events of a change and `team.limits` have `fields`, the
    /// names of the changed settings. Events of the platform itself may have `reason`, such as
    /// `idle`, `lifetime_over` or `host_unreachable`.
    pub data: serde_json::Value,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// Request body of `POST /v1/channels`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewChannel {
    /// Name of 1 to 100 characters.
    pub name: String,
    /// HTTP or HTTPS URL at a public address. Events are sent there by POST.
    pub url: String,
    /// Kinds of events to send. An empty list selects all kinds.
    #[serde(default)]
    pub events: Vec<String>,
}

/// Request body of `PATCH /v1/channels/{id}`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeChannel {
    pub name: Option<String>,
    pub url: Option<String>,
    pub events: Option<Vec<String>>,
    /// False to stop deliveries to the channel.
    pub enabled: Option<bool>,
}

/// A URL that a team's events are sent to.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Channel {
    pub id: String,
    pub team_id: String,
    pub name: String,
    pub url: String,
    /// Kinds of events to send. An empty list means all kinds.
    pub events: Vec<String>,
    /// False while the channel receives no events.
    pub enabled: bool,
    /// Secret that signs deliveries. Only answers that create or renew the secret contain it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub secret: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
}

/// A team's channels.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ChannelList {
    pub items: Vec<Channel>,
}

/// A delivery of one event to one channel.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Delivery {
    pub id: String,
    /// Kind of the event, such as `capsule.paused`.
    pub event: String,
    /// State of the delivery: `waiting`, `done` or `failed`. A delivery fails after ten attempts in
    /// 16 hours.
    pub status: String,
    /// Number of attempts so far.
    pub attempts: i32,
    /// HTTP status of the last answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<i32>,
    /// Reason why the last attempt failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// Time of the next attempt. Absent unless the delivery is waiting.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub next_at: Option<OffsetDateTime>,
}

/// A page of deliveries, newest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DeliveryPage {
    pub items: Vec<Delivery>,
    /// Value of `before` for the next page. Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}
