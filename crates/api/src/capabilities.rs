//! Abilities and limits of a platform.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer to `GET /v1/capabilities`. Clients hide the parts that a platform lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Capabilities {
    /// Version of the control plane.
    pub version: String,
    /// Names of the API's parts that the platform has, such as `capsules.logs`. Later versions add
    /// names, and no version gives a name another meaning.
    pub features: Vec<String>,
    /// Domains below which ports of capsules have the names `{port}-{id}.{domain}`. The first is the
    /// domain in URLs of the API, with its port.
    pub domains: Vec<String>,
    /// True if URLs of capsules' ports begin with `https`.
    pub https: bool,
    /// Who may sign up, as in `GET /v1/auth/providers`.
    pub signup: String,
    /// Names of the providers for sign-ins.
    pub providers: Vec<String>,
    /// True if the platform sends mail. Without mail, sign-up and lost passwords need an admin.
    pub mail: bool,
    pub limits: CapabilityLimits,
}

/// Limits that hold for all teams. `GET /v1/teams/{id}/limits` has those of a team.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CapabilityLimits {
    /// Smallest size of a capsule.
    pub smallest: CapabilitySize,
    /// Largest size of a capsule.
    pub largest: CapabilitySize,
    /// Longest lifetime and idle time, in seconds.
    pub lifetime: u32,
    /// Most bytes of a capsule's metadata.
    pub metadata_bytes: u64,
    /// Most ports of a capsule that may be public.
    pub public_ports: u64,
    /// Most capsules of one bulk request.
    pub bulk: u64,
    /// Days for which metrics of capsules are kept; 0 if none are kept.
    pub metrics_days: u32,
}

/// Size of a capsule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CapabilitySize {
    /// Number of virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Disk size in MiB.
    pub disk_mib: u32,
}
