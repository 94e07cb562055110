//! The host's pools of ready capsules and ready networks. This file has their settings, the waits
//! until they are full again, and counts of creates that they served.

use std::time::{Duration, Instant};
use tests::{Client, Platform};

/// Time for a pool to fill. A code interpreter runs code before it is ready.
const FILL: Duration = Duration::from_secs(60);
/// Time between two looks at a gauge. Each look takes time from the work that fills the pool.
const LOOK: Duration = Duration::from_millis(50);
/// Time for the files of a removed capsule to go.
const REMOVAL: Duration = Duration::from_secs(30);

/// Pools of a host that are on. The settings are the product's defaults or 0.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pools {
    /// Both pools.
    Ready,
    /// The pool of networks alone.
    Networks,
    /// No pool.
    Off,
}

impl Pools {
    /// Returns the variables of a platform.
    pub(crate) fn vars(self) -> [(&'static str, &'static str); 2] {
        let (percent, networks) = match self {
            Self::Ready => ("10", "4"),
            Self::Networks => ("0", "4"),
            Self::Off => ("0", "0"),
        };
        [("WRENN_READY_MEMORY_PERCENT", percent), ("WRENN_READY_NETWORKS", networks)]
    }

    /// Describes the pools in a row's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready capsules",
            Self::Networks => "ready networks alone",
            Self::Off => "no pools",
        }
    }

    /// Waits until the pools have `count` entries. Reports whether they have.
    pub(crate) async fn filled(self, metrics: &Metrics, count: usize) -> bool {
        match self {
            Self::Ready => metrics.reaches("wrenn_host_ready_capsules", count).await,
            Self::Networks => metrics.reaches("wrenn_host_ready_networks", count).await,
            Self::Off => true,
        }
    }

    /// Returns how often a create took something from the pool so far.
    pub(crate) async fn taken(self, metrics: &Metrics) -> f64 {
        match self {
            Self::Ready => metrics.sum("wrenn_host_ready_taken_total").await,
            Self::Networks => metrics.sum("wrenn_host_networks_taken_total{from=\"ready\"}").await,
            Self::Off => 0.0,
        }
    }
}

/// The metrics of a platform's host agent.
pub(crate) struct Metrics(Client);

impl Metrics {
    pub(crate) fn of(platform: &Platform) -> Self {
        Self(platform.agent_client())
    }

    /// Returns the sum of a metric's series. The name may end with labels.
    pub(crate) async fn sum(&self, name: &str) -> f64 {
        let figures = self.0.get("/metrics").await.body;
        let lines = figures.as_str().unwrap_or_default().lines();
        let series = lines.filter_map(|line| line.strip_prefix(name));
        let series = series.filter(|rest| rest.starts_with([' ', '{']));
        series.filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Waits until a gauge is at least `count`. Reports whether it is.
    async fn reaches(&self, gauge: &str, count: usize) -> bool {
        let limit = Instant::now() + FILL;
        while Instant::now() < limit {
            if self.sum(gauge).await >= count as f64 {
                return true;
            }
            tokio::time::sleep(LOOK).await;
        }
        false
    }
}

/// Waits until the host has nothing of removed capsules. A removal answers before that.
pub(crate) async fn gone(platform: &Platform, capsules: &[String]) {
    let limit = Instant::now() + REMOVAL;
    let dir = platform.dir().join("capsules");
    while let Some(left) = capsules.iter().find(|id| dir.join(id).exists()) {
        assert!(Instant::now() < limit, "the folder of the removed capsule {left} stays");
        tokio::time::sleep(LOOK).await;
    }
}
