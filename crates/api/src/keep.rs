//! Pausing, resuming, forking, lifetimes, snapshots.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

/// `POST …/pause`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Pause {
    /// Whether memory and processes are kept; true when left out. Without them the capsule boots
    /// on its disk when it is resumed.
    pub memory: Option<bool>,
}

/// `POST …/resume`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Resume {
    /// Seconds from when it runs until its time is over; none when left out.
    pub timeout: Option<u32>,
    /// False leaves memory that was kept aside and boots on the disk.
    pub memory: Option<bool>,
    /// Number of an earlier snapshot of the capsule, as a damaged one's error names them.
    pub snapshot: Option<u64>,
}

/// `POST …/fork`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Fork {
    /// 1 to 100; 1 when left out.
    pub count: Option<u32>,
    /// Seconds from when each runs until its time is over; none when left out.
    pub timeout: Option<u32>,
}

/// The capsules of a fork, and why there are fewer than were asked for.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Forked {
    pub items: Vec<super::Capsule>,
    pub errors: Vec<ForkError>,
}

/// Why one capsule of a fork could not be started.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ForkError {
    pub code: String,
    pub message: String,
}

/// `POST …/timeout`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetTimeout {
    /// Seconds from now until the capsule's time is over; 0 ends it now, null never.
    pub timeout: Option<u32>,
    /// `pause`, `pause_disk` or `kill`; as it was when left out.
    pub on_timeout: Option<String>,
    /// Seconds of inactivity until it is paused, 0 for never; as it was when left out.
    pub timeout_sec: Option<u32>,
}

/// `POST /v1/snapshots`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// A capsule that runs or is paused; it stays as it is.
    pub capsule_id: String,
    /// Name of the snapshot, no other's and no template's; made from its id when left out.
    pub name: Option<String>,
    /// Whether an earlier snapshot of this name gives way, once the new one is complete.
    #[serde(default)]
    pub overwrite: bool,
    /// Whether memory and processes are kept; true when left out. Without them, capsules that
    /// start from it boot on its disk.
    pub memory: Option<bool>,
}

/// A capsule's memory and disk, as they were; capsules start from it as from a template.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    pub id: String,
    pub name: String,
    /// The capsule that it was taken of, while there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capsule_id: Option<String>,
    /// The template of that capsule.
    pub template: String,
    pub vcpus: i32,
    pub memory_mb: i32,
    pub disk_mb: i32,
    /// On the host's disk.
    pub size_bytes: i64,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// `GET /v1/snapshots`: one page, newest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SnapshotPage {
    pub items: Vec<Snapshot>,
    /// Pass it as `before` for the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}
