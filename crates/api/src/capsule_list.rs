//! Creators, parents, changes and lineage of capsules, and counts by state.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use time::OffsetDateTime;
use utoipa::ToSchema;

/// User or key that created a capsule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Creator {
    /// Kind of the creator: `user`, `api_key`, or `system` for the platform.
    pub r#type: String,
    /// Id of the user or key. Absent for the platform and for an erased user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Name of the user or key at the creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// Origin of a capsule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CapsuleParent {
    /// Kind of the origin: `capsule` for a fork, `snapshot` or `template`.
    pub r#type: String,
    pub id: String,
}

/// Answer to `GET /v1/capsules/summary`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CapsuleSummary {
    /// Number of living capsules.
    pub total: i64,
    /// Number of living capsules in each state. States without a capsule are absent.
    pub by_status: BTreeMap<String, i64>,
    /// Number of capsules that ended in the last 30 days.
    pub ended: i64,
}

/// Request body of `PATCH /v1/capsules/{id}`. Absent fields stay.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeCapsule {
    /// New name. An empty name removes the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Key-value pairs that replace the present ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
    /// True if a request for the paused capsule resumes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_resume: Option<bool>,
    /// Output that the capsule's log keeps: `none`, `background` or `all`. The host of a running
    /// capsule learns of this change at once, or within seconds if the call fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logs: Option<String>,
    /// Seconds of inactivity until the capsule is paused; 0 means never. The capsule's host learns
    /// of this change last. If the host does not answer, the other changes hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<u32>,
}

/// A capsule, snapshot or template in a lineage. An entry that no longer exists has only its kind
/// and id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LineageEntry {
    /// Kind of the entry: `capsule`, `snapshot` or `template`.
    pub r#type: String,
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// State of a capsule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Origin of a capsule, or capsule of a snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<CapsuleParent>,
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub created_at: Option<OffsetDateTime>,
}

/// Answer to `GET /v1/capsules/{id}/lineage`. Each list has at most 100 entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lineage {
    /// Origins, the nearest first, at most 32.
    pub parents: Vec<LineageEntry>,
    /// Forks of the capsule, and capsules that started from its snapshots, newest first.
    pub children: Vec<LineageEntry>,
    /// Snapshots of the capsule, newest first.
    pub snapshots: Vec<LineageEntry>,
    /// True if a list is not complete.
    pub truncated: bool,
}
