//! Types of E2B's API, as its SDKs read and write them. Unknown fields of a request are ignored, as
//! E2B's service does.

use crate::auth::Caller;
use crate::capsules::network::to_api;
use crate::db::capsules::Capsule;
use crate::stats::TeamStep;
use crate::stats::series::Stats;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use time::OffsetDateTime;
use types::{CapsuleState, Egress, OnTimeout};

/// Client id of every sandbox. Users of this system see only one client.
const CLIENT: &str = "wrenn";
/// End of a capsule whose lifetime has no end.
const NEVER: OffsetDateTime = time::macros::datetime!(9999-01-01 0:00 UTC);

#[derive(Debug, Serialize)]
pub(super) struct Error {
    pub code: u16,
    pub message: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NewSandbox {
    #[serde(rename = "templateID")]
    pub template_id: Option<String>,
    pub timeout: Option<u32>,
    #[serde(default)]
    pub auto_pause: bool,
    pub auto_pause_memory: Option<bool>,
    pub auto_resume: Option<AutoResume>,
    /// Unlike other fields, it is in snake case on the wire.
    #[serde(rename = "allow_internet_access")]
    pub allow_internet_access: Option<bool>,
    pub metadata: Option<BTreeMap<String, String>>,
    pub env_vars: Option<BTreeMap<String, String>>,
    pub network: Option<Network>,
    pub volume_mounts: Option<Vec<serde_json::Value>>,
    pub iam: Option<serde_json::Value>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct AutoResume {
    #[serde(default)]
    pub enabled: bool,
}

/// Network settings of a create or a change. Only a change has `allow_internet_access` here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Network {
    pub allow_public_traffic: Option<bool>,
    pub allow_out: Option<Vec<String>>,
    pub deny_out: Option<Vec<String>>,
    pub mask_request_host: Option<String>,
    #[serde(rename = "allow_internet_access")]
    pub allow_internet_access: Option<bool>,
    pub dns_servers: Option<Vec<String>>,
    pub egress_proxy: Option<serde_json::Value>,
    pub rules: Option<serde_json::Map<String, serde_json::Value>>,
    pub https_ports: Option<Vec<u16>>,
}

impl Network {
    /// Returns the name of a setting that the platform does not support.
    pub(super) fn unsupported(&self) -> Option<&'static str> {
        let some = |list: &Option<Vec<_>>| list.as_ref().is_some_and(|list| !list.is_empty());
        if some(&self.dns_servers) {
            return Some("network.dnsServers");
        }
        if self.egress_proxy.as_ref().is_some_and(|proxy| !proxy.is_null()) {
            return Some("network.egressProxy");
        }
        if self.rules.as_ref().is_some_and(|rules| !rules.is_empty()) {
            return Some("network.rules");
        }
        let https = self.https_ports.as_ref().is_some_and(|ports| !ports.is_empty());
        https.then_some("network.httpsPorts")
    }

    pub(super) fn egress(&self, internet: Option<bool>) -> api::Network {
        api::Network {
            internet: internet.or(self.allow_internet_access),
            allow: self.allow_out.clone().unwrap_or_default(),
            deny: self.deny_out.clone().unwrap_or_default(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Connect {
    pub timeout: Option<u32>,
    pub memory: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Timeout {
    pub timeout: Option<u32>,
    /// Seconds of `…/refreshes`.
    pub duration: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Pause {
    pub memory: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Fork {
    pub timeout: Option<u32>,
    pub count: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct NewSnapshot {
    pub name: Option<String>,
    pub memory: Option<bool>,
}

/// Fields that every description of a sandbox has.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    #[serde(rename = "templateID")]
    template_id: String,
    #[serde(rename = "sandboxID")]
    sandbox_id: String,
    #[serde(rename = "clientID")]
    client_id: &'static str,
    alias: String,
    envd_version: &'static str,
}

impl From<&Capsule> for Head {
    fn from(row: &Capsule) -> Self {
        Self {
            template_id: template_id(row),
            sandbox_id: row.id.to_string(),
            client_id: CLIENT,
            alias: row.template.clone(),
            envd_version: protocol::ENVD_VERSION,
        }
    }
}

/// A sandbox in the answer to a create, a resume or a connect.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Sandbox {
    #[serde(flatten)]
    head: Head,
    /// Both this token and the next are shown only to callers who may run commands, since the
    /// tokens allow that.
    #[serde(skip_serializing_if = "Option::is_none")]
    envd_access_token: Option<String>,
    /// Given also when the sandbox's ports are public, since the code interpreter's port never is.
    traffic_access_token: Option<String>,
    domain: String,
}

impl Sandbox {
    pub(super) fn new(row: Capsule, domain: &str, caller: Caller) -> Self {
        let executes = caller.executes(&row);
        Self {
            head: Head::from(&row),
            envd_access_token: executes.then_some(row.envd_token),
            traffic_access_token: executes.then_some(row.traffic_token),
            domain: domain.to_owned(),
        }
    }
}

/// A sandbox in a list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Listed {
    #[serde(flatten)]
    head: Head,
    #[serde(with = "time::serde::rfc3339")]
    started_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    end_at: OffsetDateTime,
    cpu_count: u32,
    #[serde(rename = "memoryMB")]
    memory_mb: u32,
    #[serde(rename = "diskSizeMB")]
    disk_size_mb: u32,
    state: &'static str,
    metadata: BTreeMap<String, String>,
}

impl From<Capsule> for Listed {
    fn from(row: Capsule) -> Self {
        Self {
            head: Head::from(&row),
            started_at: began(&row),
            end_at: row.ends_at.unwrap_or(NEVER),
            cpu_count: row.vcpus,
            memory_mb: row.memory_mib,
            disk_size_mb: row.disk_mib,
            state: state(row.state),
            metadata: row.metadata.0,
        }
    }
}

/// A sandbox with all its details.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Detail {
    #[serde(flatten)]
    listed: Listed,
    /// The token permits commands, so only callers who may run commands receive it.
    #[serde(skip_serializing_if = "Option::is_none")]
    envd_access_token: Option<String>,
    allow_internet_access: bool,
    domain: String,
    network: ShownNetwork,
    lifecycle: Lifecycle,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownNetwork {
    allow_public_traffic: bool,
    allow_out: Vec<String>,
    deny_out: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mask_request_host: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Lifecycle {
    auto_resume: bool,
    on_timeout: &'static str,
}

impl Detail {
    pub(super) fn new(row: Capsule, domain: &str, caller: Caller) -> Self {
        let executes = caller.executes(&row);
        let api::Network { allow, deny, .. } = to_api(&row.egress);
        Self {
            envd_access_token: executes.then(|| row.envd_token.clone()),
            allow_internet_access: !nothing(&row.egress),
            domain: domain.to_owned(),
            network: ShownNetwork {
                allow_public_traffic: row.public_traffic,
                allow_out: allow,
                deny_out: deny,
                mask_request_host: row.host_header.clone(),
            },
            lifecycle: Lifecycle {
                auto_resume: row.auto_resume,
                on_timeout: match row.on_timeout {
                    OnTimeout::Kill => "kill",
                    OnTimeout::Pause | OnTimeout::PauseDisk => "pause",
                },
            },
            listed: row.into(),
        }
    }
}

/// Reports whether the rules permit no outbound connection.
fn nothing(egress: &Egress) -> bool {
    egress.denies_all() && egress.allow.is_empty()
}

/// Returns the id of the template or snapshot that a sandbox started from.
fn template_id(row: &Capsule) -> String {
    match (row.snapshot_id, row.template_id) {
        (Some(id), None) => id.to_string(),
        (_, Some(id)) => id.to_string(),
        (None, None) => row.template.clone(),
    }
}

/// Returns the start of a sandbox.
fn began(row: &Capsule) -> OffsetDateTime {
    row.started_at.unwrap_or(row.created_at)
}

/// Maps a state to one of E2B's two. A transitional state maps to the state that it leads to.
/// `missing` counts as running, since its host may return, and `error` as paused, since a snapshot
/// may be resumed.
fn state(state: CapsuleState) -> &'static str {
    match state {
        CapsuleState::Starting
        | CapsuleState::Running
        | CapsuleState::Resuming
        | CapsuleState::Missing => "running",
        CapsuleState::Pausing
        | CapsuleState::Paused
        | CapsuleState::Error
        | CapsuleState::Stopping
        | CapsuleState::Stopped => "paused",
    }
}

/// States that are listed as running, and states that are listed as paused.
pub(super) const RUNNING: [CapsuleState; 4] =
    [CapsuleState::Starting, CapsuleState::Running, CapsuleState::Resuming, CapsuleState::Missing];
pub(super) const PAUSED: [CapsuleState; 3] =
    [CapsuleState::Pausing, CapsuleState::Paused, CapsuleState::Error];

/// A sandbox of a fork, or its error.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Forked {
    Sandbox(Box<Sandbox>),
    Error(Error),
}

#[derive(Debug, Serialize)]
pub(super) struct Snapshot {
    #[serde(rename = "snapshotID")]
    pub snapshot_id: String,
    pub names: Vec<String>,
}

impl From<crate::db::snapshots::Snapshot> for Snapshot {
    fn from(row: crate::db::snapshots::Snapshot) -> Self {
        let snapshot_id = row.id.to_string();
        let names = row.name.filter(|name| *name != snapshot_id).into_iter().collect();
        Self { snapshot_id, names }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metric {
    #[serde(with = "time::serde::rfc3339")]
    timestamp: OffsetDateTime,
    timestamp_unix: i64,
    cpu_count: u32,
    cpu_used_pct: f64,
    mem_used: u64,
    mem_total: u64,
    mem_cache: u64,
    disk_used: u64,
    disk_total: u64,
}

impl Metric {
    /// Converts stats of a sandbox to E2B's metric. Returns `None` for a time out of range.
    pub(super) fn new(row: &Capsule, stats: &Stats) -> Option<Self> {
        Some(Self {
            timestamp: OffsetDateTime::from_unix_timestamp(stats.at).ok()?,
            timestamp_unix: stats.at,
            cpu_count: row.vcpus,
            cpu_used_pct: stats.cpu_max,
            mem_used: stats.guest_memory.unwrap_or(stats.memory),
            mem_total: u64::from(row.memory_mib) << 20,
            mem_cache: stats.cache.unwrap_or(0),
            disk_used: stats.disk.unwrap_or(0),
            disk_total: u64::from(row.disk_mib) << 20,
        })
    }
}

/// Metrics of sandboxes by their ids.
#[derive(Debug, Serialize)]
pub(super) struct Metrics {
    pub sandboxes: BTreeMap<String, Metric>,
}

/// Sandboxes of a team in one step of a series.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TeamMetric {
    #[serde(with = "time::serde::rfc3339")]
    timestamp: OffsetDateTime,
    timestamp_unix: i64,
    concurrent_sandboxes: u64,
    /// Starts in a second.
    sandbox_start_rate: f64,
}

impl TeamMetric {
    /// Makes a metric from a step of `seconds` seconds. Returns `None` for a time out of range.
    pub(super) fn new(step: &TeamStep, seconds: u32) -> Option<Self> {
        Some(Self {
            timestamp: OffsetDateTime::from_unix_timestamp(step.at).ok()?,
            timestamp_unix: step.at,
            concurrent_sandboxes: step.most,
            sandbox_start_rate: rate(step.starts, seconds),
        })
    }

    /// Returns the largest value of a series; `None` for a series without steps.
    pub(super) fn most(all: &[Self], rate: bool) -> Option<MostMetric> {
        let last = all.last()?;
        let sandboxes = |one: &Self| u32::try_from(one.concurrent_sandboxes).unwrap_or(u32::MAX);
        let value = |one: &Self| match rate {
            true => one.sandbox_start_rate,
            false => f64::from(sandboxes(one)),
        };
        let most = all.iter().rev().fold(
            last,
            |most, one| {
                if value(one) > value(most) { one } else { most }
            },
        );
        let (timestamp, timestamp_unix) = (most.timestamp, most.timestamp_unix);
        Some(MostMetric { timestamp, timestamp_unix, value: value(most) })
    }
}

/// Returns the starts in a second.
fn rate(starts: u64, seconds: u32) -> f64 {
    f64::from(u32::try_from(starts).unwrap_or(u32::MAX)) / f64::from(seconds.max(1))
}

/// Largest value of a team's series.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MostMetric {
    #[serde(with = "time::serde::rfc3339")]
    timestamp: OffsetDateTime,
    timestamp_unix: i64,
    value: f64,
}

/// A team as E2B's CLI lists it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Team {
    #[serde(rename = "teamID")]
    team_id: String,
    name: String,
    /// Always empty, since the platform stores only hashes of keys.
    api_key: &'static str,
    is_default: bool,
}

impl From<api::Team> for Team {
    fn from(team: api::Team) -> Self {
        Self { team_id: team.id, name: team.name, api_key: "", is_default: team.default }
    }
}
