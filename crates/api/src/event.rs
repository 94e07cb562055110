//! What happened, who did it, what it took, and who is told.

use serde::{Deserialize, Serialize};
use time::{Date, OffsetDateTime};
use utoipa::ToSchema;

/// An entry of the audit log.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuditLog {
    pub id: String,
    pub team_id: String,
    /// `user`, `api_key`, `host` or `system`.
    pub actor_type: String,
    /// Id of who did it; `system` for the platform itself, `anonymous` for who did not say,
    /// `erased` for a user who is no more.
    pub actor_id: String,
    /// Address that it came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    pub resource_type: String,
    pub resource_id: String,
    /// As `capsule.pause`.
    pub action: String,
    /// `ok`, or `refused`: then `metadata` has the error's code, and how often in that second.
    pub status: String,
    pub metadata: serde_json::Value,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// A page of the audit log, newest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuditLogPage {
    pub items: Vec<AuditLog>,
    /// `before` of the next page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What a team used on a day, in UTC.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DailyUsage {
    /// As 2026-11-26.
    #[schema(value_type = String, format = Date)]
    #[serde(with = "day")]
    pub day: Date,
    /// Virtual processors, by the seconds that their capsules ran.
    pub vcpu_seconds: f64,
    /// Memory of the same, in MiB, by seconds.
    pub memory_mb_seconds: f64,
    /// Disks of capsules that are not gone, and snapshots, in MiB, by seconds.
    pub storage_mb_seconds: f64,
}

/// `GET /v1/usage`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Oldest first, each day of the range.
    pub items: Vec<DailyUsage>,
}

time::serde::format_description!(day, Date, "[year]-[month]-[day]");

/// Something that happened.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Its place among a team's; `Last-Event-ID` of a stream that goes on after it.
    pub id: String,
    pub team_id: String,
    /// `capsule.created`, `.running`, `.paused`, `.error`, `.missing`, `.destroyed`;
    /// `template.snapshot.created`, `.deleted`; `host.up`, `.down`; `channel.test`.
    pub event: String,
    pub resource_type: String,
    pub resource_id: String,
    pub data: serde_json::Value,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// `POST /v1/channels`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewChannel {
    /// 1 to 100 characters.
    pub name: String,
    /// Where events are sent to, by POST: HTTP or HTTPS, at a public address.
    pub url: String,
    /// Which; all when none is named.
    #[serde(default)]
    pub events: Vec<String>,
}

/// `PATCH /v1/channels/{id}`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeChannel {
    pub name: Option<String>,
    pub url: Option<String>,
    pub events: Option<Vec<String>>,
    pub enabled: Option<bool>,
}

/// A URL that a team's events are sent to.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Channel {
    pub id: String,
    pub team_id: String,
    pub name: String,
    pub url: String,
    pub events: Vec<String>,
    pub enabled: bool,
    /// What deliveries are signed with; in the answer to its making alone.
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

/// One event on its way to one channel.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Delivery {
    pub id: String,
    pub event: String,
    /// `waiting`, `done` or `failed`, which is when it was tried for a day.
    pub status: String,
    pub attempts: i32,
    /// Status of the last answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<i32>,
    /// Why the last try failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// Of one that waits.
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
    /// `before` of the next page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}
