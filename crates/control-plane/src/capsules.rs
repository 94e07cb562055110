//! State changes of capsules. This module is the only writer of a capsule's state in the database.
//!
//! ```text
//!  start          mark_running         begin_pause         the host paused
//!  ────▶ starting ───────────▶ running ──────────▶ pausing ──────────────▶ paused
//!                               ▲   ▲                 │                     │  ▲
//!                               │   └─────────────────┘           resume_on │  │ the host
//!                               │     the host refused                      ▼  │ refused
//!                               └──────────────────────────────────────── resuming
//!                                           the host resumed                 ▲
//!                                                                            │ resume_on
//!  a machine is lost, or its host deleted ──▶ error ─────────────────────────┘
//!
//!  running, pausing, resuming ── the host is unreachable ──▶ missing
//!  missing ── reconcile, once the host answers ──▶ running, paused or error
//!  every state but stopped ── begin_removal ──▶ stopping ── complete_removal ──▶ stopped
//! ```
//! `types::CapsuleState::next` is the table of these moves. A refused resume of a capsule in
//! `error` leads back to `error`. `start` removes a capsule whose start fails.
//!
//! Each use case has a file: `create`, `pause`, `resume`, `fork`, `snapshot`, `delete`, `timeouts`,
//! `wake`, `change`, `bulk`, `lineage`. They share `start`, `transition`, `settle` and `join`.
//! `waiters` is the service that announces changes to tasks that wait for a state.
//!
//! Each change of a capsule runs as a task of its own. A client that disconnects therefore leaves
//! nothing half done. If a process dies in between, `reconcile` completes or undoes the change by
//! these same functions.

mod access;
mod alive;
mod build;
mod bulk;
mod change;
mod create;
mod delete;
mod detached;
mod failure;
mod fork;
mod get;
mod idempotency;
mod join;
mod lag;
mod lineage;
mod link;
mod named;
pub(crate) mod network;
mod passive;
mod pause;
mod ports;
mod query;
mod resume;
mod settle;
mod snapshot;
mod spec;
mod start;
mod timeouts;
mod transition;
pub(crate) mod waiters;
mod wake;

pub(crate) use access::{rotate_links, rotate_token};
pub(crate) use alive::unless_silent;
pub(crate) use build::{BuildCapsule, start_for_build};
pub(crate) use bulk::{BULK_MAX, BulkAction, BulkState, Selection, bulk};
pub(crate) use change::{apply_logs, change};
pub(crate) use create::{HOST_PORT, create};
pub(crate) use delete::{abandon, delete, remove};
pub(crate) use failure::classify_failure;
pub(crate) use fork::fork;
pub(crate) use get::{get, get_ever};
pub(crate) use idempotency::IdempotencyKey;
pub(crate) use lag::{caught_up, may_lag};
pub(crate) use lineage::lineage;
pub(crate) use link::record_link;
pub(crate) use named::find_id;
pub(crate) use passive::{classify_read, readable};
pub(crate) use pause::pause;
pub(crate) use ports::{Listener, check_exposed, listeners, set_public};
pub(crate) use query::{list, summary, time_left};
pub(crate) use resume::{ResumeRequest, resume};
pub(crate) use settle::settled;
pub(crate) use snapshot::snapshot;
pub(crate) use spec::CreateOptions;
pub(crate) use timeouts::{extend, ping, set_lifetime};
pub(crate) use transition::transition;
pub(crate) use wake::{awake, wake};

use crate::audit::ActorKind;
use crate::auth::Caller;
use crate::db::capsules::{Capsule, ParentKind};
use uuid::Uuid;

/// Converts a row to the API's form for the capsule's maker. It has the traffic token if the maker
/// may run commands there.
pub(crate) fn to_api_for_maker(row: Capsule, caller: Caller) -> api::Capsule {
    let traffic_token = caller.executes(&row).then(|| row.traffic_token.clone());
    api::Capsule { traffic_token, ..to_api(row) }
}

/// Converts a creator to the API's form. Rows of earlier versions have only a key.
fn creator(row: &Capsule) -> Option<api::Creator> {
    let Some(kind) = row.created_by_type else {
        let id = row.created_by_key.map(|key| key.to_string())?;
        let r#type = ActorKind::ApiKey.to_string();
        return Some(api::Creator { r#type, id: Some(id), label: None });
    };
    let (id, label) = (row.created_by_id.clone(), row.created_by_label.clone());
    Some(api::Creator { r#type: kind.to_string(), id, label })
}

/// Converts an origin to the API's form.
fn to_parent(kind: ParentKind, id: Uuid) -> api::CapsuleParent {
    api::CapsuleParent { r#type: kind.to_string(), id: kind.id(id) }
}

/// Converts a row to the API's form.
pub(crate) fn to_api(row: Capsule) -> api::Capsule {
    api::Capsule {
        created_by: creator(&row),
        parent: row.parent_type.zip(row.parent_id).map(|(kind, id)| to_parent(kind, id)),
        id: row.id.to_string(),
        name: row.name,
        status: row.state.to_string(),
        template: row.template,
        vcpus: row.vcpus.cast_signed(),
        memory_mib: row.memory_mib.cast_signed(),
        disk_mib: row.disk_mib.cast_signed(),
        snapshot: row.snapshot_id.map(|id| id.to_string()),
        idle_timeout: row.idle_sec.map_or(0, u32::cast_signed),
        ends_at: row.ends_at,
        on_timeout: row.on_timeout.to_string(),
        auto_resume: row.auto_resume,
        booted: row.booted,
        stored: row.stored_newest,
        host_id: row.host_id.map(|id| id.to_string()),
        isolation: row.isolation.map(|tier| tier.to_string()),
        disk_full: row.disk_full,
        error: row.error,
        public_ports: row.public_ports,
        public_traffic: row.public_traffic,
        traffic_token: None,
        host_header: row.host_header,
        network: network::to_api(&row.egress.0),
        metadata: row.metadata.0,
        logs: row.logs.to_string(),
        created_at: row.created_at,
        started_at: row.started_at,
        last_updated: row.updated_at,
        state_since: Some(row.state_since),
        paused_at: row.paused_at,
        last_active_at: Some(row.last_active_at),
        ended_at: row.ended_at,
    }
}
