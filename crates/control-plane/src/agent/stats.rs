//! Calls for the metrics of a host's capsules.

use super::{Agent, other};
use crate::error::Result;
use protocol::host;
use types::CapsuleId;

impl Agent {
    /// Reads the samples of capsules since a time, in milliseconds since 1970. Without a time, reads
    /// the latest sample of each running capsule.
    pub(crate) async fn read_stats(
        &self,
        ids: &[CapsuleId],
        since_ms: Option<u64>,
    ) -> Result<Vec<host::CapsuleStats>> {
        let capsule_ids = ids.iter().map(ToString::to_string).collect();
        let request = host::ReadStatsRequest { capsule_ids, since_ms, ..Default::default() };
        let answer = self.host().read_stats(request).await.map_err(|e| other(&e))?;
        Ok(answer.into_owned().capsules)
    }

    /// Tells the host that a batch of minutes is stored, and returns the oldest of the others.
    pub(crate) async fn collect_stats(
        &self,
        acknowledged: Option<u64>,
    ) -> Result<host::CollectStatsResponse> {
        let request = host::CollectStatsRequest { acknowledged, ..Default::default() };
        let answer = self.host().collect_stats(request).await.map_err(|e| other(&e))?;
        Ok(answer.into_owned())
    }
}
