//! Pausing, resuming, forking, lifetimes and snapshots.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

/// Request body of `POST …/pause`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Pause {
    /// True, the default, to keep memory and processes. Otherwise a later resume boots the capsule
    /// from its disk.
    pub memory: Option<bool>,
}

/// Request body of `POST …/resume`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Resume {
    /// Lifetime in seconds from the moment the capsule runs. By default, the lifetime has no end.
    pub lifetime: Option<u32>,
    /// False to boot from the disk and ignore the stored memory.
    pub memory: Option<bool>,
    /// Number of an earlier snapshot of the capsule. The error about a damaged snapshot lists these
    /// numbers.
    pub snapshot: Option<u64>,
}

/// Request body of `POST …/fork`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct Fork {
    /// Number of capsules to create, 1 to 100. The default is 1.
    pub count: Option<u32>,
    /// Name of the copy, for a `count` of 1. By default, the copies of a capsule `x` are named
    /// `x-2`, `x-3` and so on. Copies of a capsule without a name have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Lifetime of each capsule in seconds from the moment it runs. By default, the lifetime has no
    /// end.
    pub lifetime: Option<u32>,
}

/// Capsules of a fork, and the errors of those that did not start.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Forked {
    /// Capsules that started.
    pub items: Vec<super::Capsule>,
    /// Errors of the capsules that did not start.
    pub errors: Vec<ForkError>,
}

/// Reason why one capsule of a fork did not start.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ForkError {
    /// Stable code for programs, as in `ErrorDetail`.
    pub code: String,
    /// Message for people.
    pub message: String,
}

/// Request body of `POST …/timeout`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct SetTimeout {
    /// Seconds from now until the capsule's lifetime ends. 0 ends it now, and null removes the end.
    pub lifetime: Option<u32>,
    /// Action at the end of the lifetime: `pause`, `pause_disk` or `kill`. By default, the action
    /// stays.
    pub on_timeout: Option<String>,
    /// Seconds of inactivity until the capsule is paused; 0 means never. By default, the value
    /// stays.
    pub idle_timeout: Option<u32>,
}

/// Request body of `POST /v1/snapshots`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// Id or name of a running or paused capsule. The capsule keeps its state.
    pub capsule_id: String,
    /// Name of the snapshot. No other snapshot or template may have this name. The default is
    /// derived from the id.
    pub name: Option<String>,
    /// True to replace an earlier snapshot with this name once the new snapshot is complete.
    #[serde(default)]
    pub overwrite: bool,
    /// True, the default, to keep memory and processes. Otherwise capsules that start from the
    /// snapshot boot from its disk.
    pub memory: Option<bool>,
}

/// A capsule's memory and disk at one moment. Capsules start from a snapshot as from a template.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(remote = "Self")]
pub struct Snapshot {
    pub id: String,
    pub name: String,
    /// Id of the capsule that the snapshot was taken of. Absent once the capsule is removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capsule_id: Option<String>,
    /// Name of the capsule's template.
    pub template: String,
    /// Number of virtual CPUs.
    pub vcpus: i32,
    /// Memory in MiB.
    pub memory_mib: i32,
    /// Disk size in MiB.
    pub disk_mib: i32,
    /// Size on the host's disk, in bytes.
    pub size_bytes: i64,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// Answer to `GET /v1/snapshots`: one page, newest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SnapshotPage {
    pub items: Vec<Snapshot>,
    /// Value of `before` for the next page. Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}
