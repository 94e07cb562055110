//! Specification of a capsule to start: its source, its settings, and what only its start needs.

use super::idempotency::IdempotencyKey;
use std::collections::BTreeMap;
use types::resources::Resources;
use types::{Egress, HostId, Isolation, OnTimeout, SnapshotId, TemplateId};

/// Options of a create that depend on the API it came by.
#[derive(Default)]
pub(crate) struct CreateOptions {
    /// Set if the create came by E2B's API.
    pub e2b: bool,
    /// Idempotency key, by which a create may be repeated.
    pub idempotency_key: Option<IdempotencyKey>,
}

/// A capsule to start.
pub(super) struct CreateSpec {
    pub source: Source,
    pub settings: Settings,
    pub options: CreateOptions,
    /// Tags that the host must have.
    pub host_tags: Vec<String>,
    /// Environment of the guest's programs.
    pub envs: BTreeMap<String, String>,
}

/// Source of a capsule's machine, and the size of that machine.
pub(super) struct Source {
    /// Name of the template that the machine descends from.
    pub template: String,
    pub size: Resources,
    pub origin: Origin,
}

/// State that a capsule starts from.
pub(super) enum Origin {
    Template {
        id: TemplateId,
        /// Lowest isolation tier that the template accepts.
        isolation: Isolation,
    },
    Snapshot {
        id: SnapshotId,
        /// Template of the snapshot's capsule, if it is known.
        template_id: Option<TemplateId>,
        /// Host that has the snapshot.
        host: Option<HostId>,
        /// Set if the store has the snapshot, too.
        stored: bool,
    },
}

impl Origin {
    pub(super) fn template_id(&self) -> Option<TemplateId> {
        match self {
            Self::Template { id, .. } => Some(*id),
            Self::Snapshot { template_id, .. } => *template_id,
        }
    }

    /// Returns the snapshot to start from; `None` for a template.
    pub(super) fn snapshot(&self) -> Option<SnapshotId> {
        match self {
            Self::Template { .. } => None,
            Self::Snapshot { id, .. } => Some(*id),
        }
    }

    /// Returns the host that the capsule should start on, if there is room.
    pub(super) fn host(&self) -> Option<HostId> {
        match self {
            Self::Template { .. } => None,
            Self::Snapshot { host, .. } => *host,
        }
    }

    /// Reports whether a host that lacks the origin can fetch it from the store.
    pub(super) fn can_be_fetched(&self) -> bool {
        match self {
            // A host uploads its templates when it has the store, so other hosts with the store can
            // fetch them.
            Self::Template { .. } => true,
            Self::Snapshot { stored, .. } => *stored,
        }
    }

    /// Returns the lowest isolation tier that the origin accepts. A snapshot accepts any.
    pub(super) fn isolation(&self) -> Isolation {
        match self {
            Self::Template { isolation, .. } => *isolation,
            Self::Snapshot { .. } => Isolation::None,
        }
    }
}

/// Settings that a capsule has for life, or until its owner changes them.
pub(super) struct Settings {
    /// Seconds without activity after which the capsule is paused; `None` for never.
    pub idle_sec: Option<u32>,
    /// Lifetime in seconds, from the moment the capsule runs.
    pub timeout: Option<u32>,
    pub on_timeout: OnTimeout,
    pub auto_resume: bool,
    pub public_ports: Vec<i32>,
    pub public_traffic: bool,
    pub host_header: Option<String>,
    pub egress: Egress,
    pub metadata: BTreeMap<String, String>,
}
