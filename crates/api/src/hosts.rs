//! Hosts: how they are shown, added, enrolled and taken away.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

/// A machine that runs capsules.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Host {
    pub id: String,
    pub name: String,
    /// `pending` until it has enrolled, `online`, or `unreachable` when it was not heard of for
    /// 90 s.
    pub status: String,
    /// Whether it takes no more capsules, and those that it has are paused.
    pub draining: bool,
    /// The team whose own it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub team_id: Option<String>,
    pub tags: Vec<String>,
    /// `HOST:PORT`; empty until it has enrolled.
    pub address: String,
    pub arch: String,
    pub driver: String,
    /// `kvm`, `tcg` or `none`.
    pub accelerator: String,
    /// Tier, each better than those before it: `none`, `tcg` (emulated), `kvm`, `jailed` (KVM, and
    /// the VMM in a jail).
    pub isolation: String,
    pub version: String,
    pub templates: Vec<String>,
    /// Whether it has the platform's store, where what it keeps goes too.
    pub store: bool,
    pub cpu_cores: i32,
    /// Virtual CPUs that capsules may have together.
    pub vcpus: i64,
    /// Memory that capsules may have together.
    pub memory_mb: i64,
    /// Disk that capsules may have together.
    pub disk_mb: i64,
    /// Capsules that are on it now.
    pub capsules: i64,
    pub used_vcpus: i64,
    pub used_memory_mb: i64,
    pub used_disk_mb: i64,
    pub load: HostLoad,
    /// SHA-256 of its certificate, in hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_fingerprint: Option<String>,
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub cert_expires_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub last_heartbeat_at: Option<OffsetDateTime>,
}

/// `GET /v1/hosts`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct HostList {
    pub items: Vec<Host>,
}

/// How busy a host is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct HostLoad {
    /// Processes that run or wait to, over the last minute, in hundredths.
    pub cpu_load_percent: u32,
    /// Memory that is free for programs.
    pub free_memory_mb: u64,
    /// Free space where capsules are kept.
    pub free_disk_mb: u64,
}

/// What a host is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostSpecs {
    pub arch: String,
    pub cpu_cores: u32,
    pub vcpus: u64,
    pub memory_mb: u64,
    pub disk_mb: u64,
    pub driver: String,
    pub accelerator: String,
    /// Tier; one that is told by no agent of before is none.
    #[serde(default)]
    pub isolation: String,
    pub version: String,
    pub templates: Vec<String>,
    /// Whether it has the platform's store.
    #[serde(default)]
    pub store: bool,
}

/// `POST /v1/hosts`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewHost {
    /// By default its id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The team whose own it is to be; anyone's by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub team_id: Option<String>,
    /// Words by which capsules ask for it.
    #[serde(default)]
    pub tags: Vec<String>,
}

/// A host that may enrol.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct HostToken {
    pub host: Host,
    /// For `wrenn agent --register`; shown this once, good for one host.
    pub registration_token: String,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
}

/// `POST /v1/hosts/register`, by the host itself. What a newer host says more is passed over, here
/// and in the next two.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RegisterHost {
    pub token: String,
    /// `IP:PORT` or `NAME:PORT`, where it is reached.
    pub address: String,
    /// A certificate signing request (PEM) of its key; none without certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub csr_pem: Option<String>,
    pub specs: HostSpecs,
}

/// `POST /v1/hosts/refresh`, by the host itself.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RefreshHost {
    pub refresh_token: String,
    /// A signing request of a new key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub csr_pem: Option<String>,
}

/// What a host is given when it registers, and each time it renews.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct HostCredentials {
    pub host_id: String,
    /// For heartbeats, as `Authorization: Bearer`.
    pub jwt: String,
    /// For the next renewal.
    pub refresh_token: String,
    /// None where there are no certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_pem: Option<String>,
    /// The authorities that are trusted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_cert_pem: Option<String>,
    /// Seconds after which it is to renew.
    pub renew_sec: u64,
}

/// `POST /v1/hosts/{id}/heartbeat`, by the host itself.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Heartbeat {
    pub specs: HostSpecs,
    pub load: HostLoad,
    /// SHA-256 of the authorities' certificates that it trusts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust: Option<String>,
}

/// Answers a heartbeat.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct HeartbeatAnswer {
    /// Whether it is to renew what it was given now.
    pub renew: bool,
}

/// `POST /v1/hosts/{id}/drain`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DrainHost {
    /// False to take capsules again.
    #[serde(default = "yes")]
    pub drain: bool,
}

fn yes() -> bool {
    true
}

/// `PUT /v1/hosts/{id}/tags`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HostTags {
    pub tags: Vec<String>,
}

/// What would be lost with a host.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct HostLoss {
    /// Capsules of any team that are on it, at most a thousand of them.
    pub capsules: Vec<LostCapsule>,
    /// Snapshots that only it has.
    pub snapshots: i64,
}

/// A capsule that would be lost.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LostCapsule {
    pub id: String,
    pub team_id: String,
    pub status: String,
}
