//! Specification of a capsule to start: its source, its settings, and what only its start needs.

use super::idempotency::IdempotencyKey;
use crate::db::capsule_names::NewName;
use crate::db::capsules::ParentKind;
use crate::scheduler::Holders;
use std::collections::BTreeMap;
use std::time::Duration;
use types::resources::Resources;
use types::{
    ApiKeyId, BuildId, CapsuleId, Egress, HostId, Isolation, LogPolicy, OnTimeout, SnapshotId,
    TeamId, TemplateId,
};
use uuid::Uuid;

/// Options of a create that depend on the API it came by.
#[derive(Default)]
pub(crate) struct CreateOptions {
    /// Set if the create came by E2B's API.
    pub e2b: bool,
    /// Idempotency key, by which a create may be repeated.
    pub idempotency_key: Option<IdempotencyKey>,
}

/// Build that a capsule works for.
#[derive(Debug, Clone, Copy)]
pub(super) struct BuildWork {
    pub build: BuildId,
    /// Id of the capsule, which the build's row names before the capsule exists.
    pub id: CapsuleId,
    /// Key that asked for the build, whose limits the capsule counts against.
    pub created_by_key: Option<ApiKeyId>,
}

/// A capsule to start.
pub(super) struct CreateSpec {
    pub name: NewName,
    /// Capsule that this one is a fork of.
    pub fork_of: Option<CapsuleId>,
    pub source: Source,
    pub settings: Settings,
    pub options: CreateOptions,
    /// Set if the capsule works for a build.
    pub work: Option<BuildWork>,
    /// Tags that the host must have.
    pub host_tags: Vec<String>,
    /// Environment of the guest's programs.
    pub envs: BTreeMap<String, String>,
}

impl CreateSpec {
    /// Returns the capsule, template or snapshot that the capsule descends from.
    pub(super) fn parent(&self) -> Option<(ParentKind, Uuid)> {
        let origin = &self.source.origin;
        let template = || origin.template_id().map(|id| (ParentKind::Template, id.0));
        let snapshot = || origin.snapshot().map(|id| (ParentKind::Snapshot, id.0));
        let capsule = self.fork_of.map(|id| (ParentKind::Capsule, id.0));
        capsule.or_else(template).or_else(snapshot)
    }
}

/// Source of a capsule's machine, and the size of that machine.
pub(super) struct Source {
    /// Name of the template that the machine descends from.
    pub template: String,
    pub size: Resources,
    pub origin: Origin,
}

/// Version of a template, as a capsule needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    pub id: BuildId,
    /// Team that owns the version, whose part of the store has it.
    pub team: TeamId,
    /// Time that start and ready commands may take beyond a boot.
    pub ready_within: Duration,
}

/// State that a capsule starts from.
pub(super) enum Origin {
    Template {
        id: TemplateId,
        /// Lowest isolation tier that the template accepts.
        isolation: Isolation,
    },
    Version {
        version: Version,
        template_id: TemplateId,
        /// Lowest isolation tier that the template accepts.
        isolation: Isolation,
        /// Hosts that have the version.
        hosts: Vec<HostId>,
        /// Set if the store has the version, too.
        stored: bool,
    },
    Snapshot {
        id: SnapshotId,
        /// Template of the snapshot's capsule, if it is known.
        template_id: Option<TemplateId>,
        /// Version that the snapshot descends from, or that the snapshot is.
        version: Option<BuildId>,
        /// Lowest isolation tier that the snapshot accepts.
        isolation: Isolation,
        /// Host that has the snapshot.
        host: Option<HostId>,
        /// Set if the store has the snapshot, too.
        stored: bool,
    },
    /// Nothing yet: the capsule runs the steps of a build on the build's host.
    Build { template_id: TemplateId, isolation: Isolation, host: HostId },
}

impl Origin {
    pub(super) fn template_id(&self) -> Option<TemplateId> {
        match self {
            Self::Template { id, .. } => Some(*id),
            Self::Version { template_id, .. } | Self::Build { template_id, .. } => {
                Some(*template_id)
            }
            Self::Snapshot { template_id, .. } => *template_id,
        }
    }

    /// Returns the snapshot to start from.
    pub(super) fn snapshot(&self) -> Option<SnapshotId> {
        match self {
            Self::Template { .. } | Self::Version { .. } | Self::Build { .. } => None,
            Self::Snapshot { id, .. } => Some(*id),
        }
    }

    /// Returns the version that the machine descends from; `None` for an operator's template.
    pub(super) fn version_id(&self) -> Option<BuildId> {
        match self {
            Self::Template { .. } | Self::Build { .. } => None,
            Self::Version { version, .. } => Some(version.id),
            Self::Snapshot { version, .. } => *version,
        }
    }

    /// Returns the version whose files the host must have.
    pub(super) fn version(&self) -> Option<&Version> {
        match self {
            Self::Version { version, .. } => Some(version),
            Self::Template { .. } | Self::Snapshot { .. } | Self::Build { .. } => None,
        }
    }

    /// Returns the hosts that the capsule may start on. `template` is the template's name.
    pub(super) fn holders<'a>(&'a self, template: &'a str) -> Holders<'a> {
        match self {
            Self::Template { .. } => Holders::Template(template),
            Self::Version { hosts, stored, .. } => Holders::Hosts { ids: hosts, stored: *stored },
            Self::Snapshot { host, stored, .. } => {
                Holders::Hosts { ids: host.as_slice(), stored: *stored }
            }
            Self::Build { host, .. } => {
                Holders::Hosts { ids: std::slice::from_ref(host), stored: false }
            }
        }
    }

    /// Returns the lowest isolation tier that the origin accepts.
    pub(super) fn isolation(&self) -> Isolation {
        match self {
            Self::Template { isolation, .. }
            | Self::Version { isolation, .. }
            | Self::Snapshot { isolation, .. }
            | Self::Build { isolation, .. } => *isolation,
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
    /// Output that the capsule's log keeps; `None` for the team's setting.
    pub logs: Option<LogPolicy>,
}
