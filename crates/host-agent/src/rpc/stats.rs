//! Conversions of stats between the agent's types and the messages of `wrenn.host.v1`.

use super::wire;
use crate::capsule::{Error, io_error};
use crate::stats::{MinuteRow, Sample, Stats};
use protocol::host;
use types::CapsuleId;

/// Most capsules of one call.
const CAPSULES_MAX: usize = 100;

/// Reads the samples of capsules from memory.
pub(super) async fn read(
    stats: &Stats,
    request: host::ReadStatsRequest,
) -> Result<host::ReadStatsResponse, Error> {
    if request.capsule_ids.len() > CAPSULES_MAX {
        return Err(Error::Invalid(format!("capsule_ids: must name at most {CAPSULES_MAX}")));
    }
    let ids = request.capsule_ids.iter().map(|id| wire::parse("capsule_ids", id));
    let ids = ids.collect::<Result<Vec<CapsuleId>, Error>>()?;
    let read = stats.read(&ids, request.since_ms).await;
    let capsules = read.into_iter().map(|(id, samples)| host::CapsuleStats {
        capsule_id: id.to_string(),
        samples: samples.into_iter().map(From::from).collect(),
        ..Default::default()
    });
    Ok(host::ReadStatsResponse { capsules: capsules.collect(), ..Default::default() })
}

/// Removes the batch that the caller has, and returns the next one.
pub(super) async fn collect(
    stats: &Stats,
    acknowledged: Option<u64>,
) -> Result<host::CollectStatsResponse, Error> {
    let batch = stats.collect(acknowledged).await.map_err(io_error("cannot read the stats"))?;
    let (next, rows) = batch.map_or((None, Vec::new()), |(number, rows)| (Some(number), rows));
    let rows = rows.into_iter().map(From::from).collect();
    Ok(host::CollectStatsResponse { rows, next, ..Default::default() })
}

impl From<Sample> for host::StatsSample {
    fn from(sample: Sample) -> Self {
        Self {
            at_ms: sample.at_ms,
            cpu_percent: sample.cpu_percent,
            memory: sample.memory,
            guest_memory: sample.guest_memory,
            cache: sample.cache,
            disk: sample.disk,
            received: sample.received,
            sent: sample.sent,
            oom_kills: sample.oom_kills,
            guest_oom_kills: sample.guest_oom_kills,
            from_host: sample.from_host,
            begins: sample.begins,
            ..Default::default()
        }
    }
}

impl From<MinuteRow> for host::StatsMinute {
    fn from(row: MinuteRow) -> Self {
        let known = |bytes: Option<u64>| bytes.and_then(|bytes| i64::try_from(bytes).ok());
        Self {
            capsule_id: row.capsule.to_string(),
            at_sec: row.at,
            slots: row.slots.into(),
            begins: row.begins.into(),
            from_host: row.from_host,
            cpu_percent: row.cpu,
            memory: row.memory,
            guest_memory: row.guest_memory.into_iter().map(|m| known(m).unwrap_or(-1)).collect(),
            cache: row.cache,
            disk: row.disk,
            received: row.received,
            sent: row.sent,
            oom_kills: row.oom_kills,
            guest_oom_kills: row.guest_oom_kills,
            ..Default::default()
        }
    }
}
