//! Hosts: their description, registration, heartbeats and deletion.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

/// A machine that runs capsules.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(remote = "Self")]
pub struct Host {
    pub id: String,
    pub name: String,
    /// State of the host. `pending` precedes its registration. `unreachable` follows 90 s without a
    /// heartbeat. Otherwise the host is `online`.
    pub status: String,
    /// True while the host accepts no capsules and its running capsules are paused.
    pub draining: bool,
    /// Team that the host is reserved for. Absent for a host that serves every team.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub team_id: Option<String>,
    /// Tags that capsules may require of their host.
    pub tags: Vec<String>,
    /// Address in the form `HOST:PORT`. Empty until the host has registered.
    pub address: String,
    /// Processor architecture, such as `x86_64`.
    pub arch: String,
    /// Driver that runs the virtual machines, such as `firecracker` or `qemu`.
    pub driver: String,
    /// Accelerator of the virtual machines: `kvm`, `tcg` (emulation) or `none`.
    pub accelerator: String,
    /// Isolation tier, from weakest to strongest: `none`, `tcg` (emulated), `kvm`, `jailed`. In
    /// `jailed`, KVM runs and the VMM is locked into a jail.
    pub isolation: String,
    /// Version of the host agent.
    pub version: String,
    /// Names of the templates on the host.
    pub templates: Vec<String>,
    /// True if the host uses the platform's object store, which then holds its snapshots too.
    pub store: bool,
    /// Number of processor cores.
    pub cpu_cores: i32,
    /// Virtual CPUs that the host's capsules may have in total.
    pub vcpus: i64,
    /// Memory that the host's capsules may have in total, in MiB.
    pub memory_mib: i64,
    /// Disk space that the host's capsules may have in total, in MiB.
    pub disk_mib: i64,
    /// Number of capsules on the host.
    pub capsules: i64,
    /// Virtual CPUs of capsules that are neither paused nor failed.
    pub used_vcpus: i64,
    /// Memory of capsules that are neither paused nor failed, in MiB.
    pub used_memory_mib: i64,
    /// Disk space of all capsules on the host, in MiB.
    pub used_disk_mib: i64,
    pub load: HostLoad,
    /// SHA-256 of the host's certificate, in hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_fingerprint: Option<String>,
    /// Expiry of the host's certificate.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub cert_expires_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// Time of the last heartbeat.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub last_heartbeat_at: Option<OffsetDateTime>,
}

/// Answer to `GET /v1/hosts`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct HostList {
    pub items: Vec<Host>,
}

/// Load of a host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, remote = "Self")]
pub struct HostLoad {
    /// Average number of runnable processes over the last minute, multiplied by 100.
    pub cpu_load_percent: u32,
    /// Memory available to programs, in MiB.
    pub free_memory_mib: u64,
    /// Free space on the disk that holds the capsules, in MiB.
    pub free_disk_mib: u64,
}

/// Hardware and software of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(remote = "Self")]
pub struct HostSpecs {
    pub arch: String,
    /// Number of processor cores.
    pub cpu_cores: u32,
    /// Virtual CPUs that the host's capsules may have in total.
    pub vcpus: u64,
    /// Memory that the host's capsules may have in total, in MiB.
    pub memory_mib: u64,
    /// Disk space that the host's capsules may have in total, in MiB.
    pub disk_mib: u64,
    pub driver: String,
    pub accelerator: String,
    /// Isolation tier. Agents of earlier versions omit the field, which means `none`.
    #[serde(default)]
    pub isolation: String,
    /// Version of the host agent.
    pub version: String,
    /// Names of the templates on the host.
    pub templates: Vec<String>,
    /// True if the host uses the platform's object store.
    #[serde(default)]
    pub store: bool,
}

/// Request body of `POST /v1/hosts`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewHost {
    /// Name of the host. The default is its id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Team that the host is reserved for. By default, the host serves every team.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub team_id: Option<String>,
    /// Tags that capsules may require of their host.
    #[serde(default)]
    pub tags: Vec<String>,
}

/// A host together with its registration token.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct HostToken {
    pub host: Host,
    /// Token for `wrenn agent --register`, valid for this host only. Only this answer contains the
    /// token.
    pub registration_token: String,
    /// Expiry of the registration token.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
}

/// Request body of `POST /v1/hosts/register`, sent by the host. Unknown fields from a newer host
/// are ignored, here and in the two requests below.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RegisterHost {
    /// Registration token from `wrenn host add` or `wrenn host token`.
    pub token: String,
    /// Address in the form `IP:PORT` or `NAME:PORT` at which the control plane reaches the host.
    pub address: String,
    /// Certificate signing request (PEM) for the host's key. Absent when the platform uses no
    /// certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub csr_pem: Option<String>,
    pub specs: HostSpecs,
}

/// Request body of `POST /v1/hosts/refresh`, sent by the host.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RefreshHost {
    /// Refresh token from the registration or the last renewal.
    pub refresh_token: String,
    /// Certificate signing request (PEM) for a new key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub csr_pem: Option<String>,
}

/// Credentials that a host receives at its registration and at each renewal.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(remote = "Self")]
pub struct HostCredentials {
    pub host_id: String,
    /// Token for heartbeats, sent as `Authorization: Bearer`.
    pub jwt: String,
    /// Token for the next renewal.
    pub refresh_token: String,
    /// The host's certificate (PEM). Absent when the platform uses no certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_pem: Option<String>,
    /// Certificates (PEM) of the trusted authorities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_cert_pem: Option<String>,
    /// Seconds until the host must renew its credentials.
    pub renew_in: u64,
}

/// Request body of `POST /v1/hosts/{id}/heartbeat`, sent by the host.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Heartbeat {
    pub specs: HostSpecs,
    pub load: HostLoad,
    /// SHA-256 of the authorities' certificates that the host trusts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust: Option<String>,
}

/// Answer to a heartbeat.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct HeartbeatAnswer {
    /// True if the host must renew its credentials now.
    pub renew: bool,
}

/// Request body of `POST /v1/hosts/{id}/drain`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DrainHost {
    /// True to drain the host, false to let it accept capsules again.
    #[serde(default = "yes")]
    pub drain: bool,
}

fn yes() -> bool {
    true
}

/// Request body of `PUT /v1/hosts/{id}/tags`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HostTags {
    /// New tags of the host, which replace all earlier tags.
    pub tags: Vec<String>,
}

/// Capsules, snapshots and versions that a host's forced deletion would lose.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct HostLoss {
    /// Capsules of any team whose latest state exists only on this host, at most 1,000 of them.
    pub capsules: Vec<LostCapsule>,
    /// Number of snapshots that exist only on this host.
    pub snapshots: i64,
    /// Number of versions of templates that exist only on this host.
    #[serde(default)]
    pub versions: i64,
}

/// A capsule that would be lost.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LostCapsule {
    pub id: String,
    pub team_id: String,
    /// State of the capsule.
    pub status: String,
}
