//! A guest's own measurements of its processor, memory and disk. The guest is not trusted, so its
//! answer is bounded in time and size.

use crate::app::App;
use crate::db::capsules::Capsule;
use crate::error::{Error, Result};
use http::Request;
use serde::Deserialize;
use std::time::Duration;
use types::CapsuleState;

/// Largest answer of a guest, in bytes, and the longest wait for it.
const BYTES_MAX: usize = 64 * 1024;
const WAIT: Duration = Duration::from_secs(5);

/// Measurements of a guest, as envd makes them. Sizes are in bytes.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct GuestStats {
    /// Time of the measurement, in seconds since 1970.
    pub ts: i64,
    pub cpu_count: u32,
    /// Processor use of the whole machine, in percent.
    pub cpu_used_pct: f64,
    pub mem_total: u64,
    pub mem_used: u64,
    pub mem_cache: u64,
    pub disk_used: u64,
    pub disk_total: u64,
}

/// Returns a guest's current measurements; `None` for a capsule that is not running.
pub(crate) async fn guest_stats(app: &App, capsule: &Capsule) -> Result<Option<GuestStats>> {
    if capsule.state != CapsuleState::Running {
        return Ok(None);
    }
    let agent = app.agent_of(capsule)?;
    let asked = Request::new(axum::body::Body::empty());
    let read = async {
        let answer = agent.forward(capsule.id, &capsule.envd_token, "/metrics", asked).await?;
        let body = axum::body::to_bytes(axum::body::Body::new(answer.into_body()), BYTES_MAX).await;
        let body = body.map_err(|_| Error::GuestUnavailable)?;
        serde_json::from_slice(&body).map_err(|_| Error::GuestUnavailable)
    };
    let read = tokio::time::timeout(WAIT, read).await;
    read.unwrap_or(Err(Error::GuestUnavailable)).map(Some)
}
