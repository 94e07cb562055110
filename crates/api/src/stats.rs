//! Metrics of capsules, teams and hosts over time.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use time::OffsetDateTime;
use utoipa::ToSchema;

/// Metrics of a capsule in one step of a series. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MetricsPoint {
    /// Beginning of the step.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Mean use of all virtual CPUs of the capsule, from 0 to 100.
    pub cpu_percent: f64,
    /// Largest use of all virtual CPUs of the capsule, from 0 to 100.
    pub cpu_max_percent: f64,
    /// Largest resident memory of the capsule's VMM.
    pub memory_used: u64,
    /// Memory of the capsule.
    pub memory_total: u64,
    /// Size of the capsule's disk.
    pub disk_total: u64,
    /// Largest memory in use, as the guest reports.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub guest_memory_used: Option<u64>,
    /// Largest page cache, as the guest reports.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub guest_memory_cache: Option<u64>,
    /// Largest used part of the disk, as the guest reports.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub guest_disk_used: Option<u64>,
    /// Bytes that the capsule received over its network in the step.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub network_received: Option<u64>,
    /// Bytes that the capsule sent over its network in the step.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub network_sent: Option<u64>,
    /// OOM kills of the capsule's VMM.
    pub oom_kills: u32,
    /// OOM kills by the guest's kernel, as the guest reports.
    pub guest_oom_kills: u32,
    /// Source of `cpu_percent`, `cpu_max_percent` and `memory_used`: `host` or `guest`. Root in the
    /// guest can falsify values from `guest`.
    pub source: String,
    /// True if a VM started in the step, for example after a pause. The time before is a gap.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gap: bool,
}

/// Answer to `GET /v1/capsules/{id}/metrics`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MetricsSeries {
    /// Length of a step in seconds. Metrics from before yesterday have steps of at least 300 s.
    pub step_sec: u32,
    /// Steps in which the capsule ran, in order.
    pub items: Vec<MetricsPoint>,
}

/// Request body of `POST /v1/capsules/metrics`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LatestMetrics {
    /// Ids of capsules, at most 100.
    pub ids: Vec<String>,
}

/// Answer to `POST /v1/capsules/metrics`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LatestMetricsMap {
    /// Latest metrics by capsule id. Only running capsules are listed.
    pub items: BTreeMap<String, MetricsPoint>,
}

/// Running capsules of a team in one step of a series.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TeamMetricsPoint {
    /// Beginning of the step.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Most capsules that ran at the same time.
    pub concurrent_capsules: u64,
    /// Starts of capsules, with resumes.
    pub starts: u64,
}

/// Answer to `GET /v1/metrics`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TeamMetrics {
    /// Length of a step in seconds.
    pub step_sec: u32,
    pub items: Vec<TeamMetricsPoint>,
}

/// Load of a host in one step of a series.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostMetricsPoint {
    /// Beginning of the step.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Largest average number of runnable processes, multiplied by 100.
    pub cpu_load_percent: u32,
    /// Smallest memory available to programs, in MiB.
    pub free_memory_mib: u64,
    /// Smallest free space on the disk that holds the capsules, in MiB.
    pub free_disk_mib: u64,
    /// Most capsules with a machine.
    pub capsules: u32,
    /// Most virtual CPUs of these capsules.
    pub used_vcpus: u32,
    /// Most memory of these capsules, in MiB.
    pub used_memory_mib: u64,
}

/// Answer to `GET /v1/hosts/{id}/metrics/history`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostMetrics {
    /// Length of a step in seconds, a multiple of 300.
    pub step_sec: u32,
    /// Steps in which the host was online, in order.
    pub items: Vec<HostMetricsPoint>,
}
