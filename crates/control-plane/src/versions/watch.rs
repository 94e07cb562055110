//! Memory of the comparisons of versions: the last one of each host, and files without a row. A
//! row's absence counts only after a grace, since a restored database may lack recent rows.

use daemon::lock;
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;
use types::{BuildId, HostId};

/// Time between two comparisons of a host's versions.
const APART: Duration = Duration::from_secs(20);
/// Time after which files without a row are removed.
const GRACE: Duration = Duration::from_secs(60);

/// Memory of one replica.
#[derive(Default)]
pub(crate) struct VersionWatch {
    compared: Mutex<HashMap<HostId, Instant>>,
    /// Moment at which a version on a host was first seen without a row.
    orphans: Mutex<HashMap<(HostId, BuildId), Instant>>,
}

impl VersionWatch {
    /// Reports whether a host's versions are due for a comparison, and counts it as made.
    pub(crate) fn is_due(&self, host: HostId) -> bool {
        let (now, mut compared) = (Instant::now(), lock(&self.compared));
        let due = compared.get(&host).is_none_or(|last| *last + APART <= now);
        if due {
            compared.insert(host, now);
        }
        due
    }

    /// Notes all versions of a host that have no row now. Returns those whose grace is over.
    pub(crate) fn over(&self, host: HostId, without_row: &[BuildId]) -> Vec<BuildId> {
        let (now, mut orphans) = (Instant::now(), lock(&self.orphans));
        orphans.retain(|(at, id), _| *at != host || without_row.contains(id));
        let over = |id: &&BuildId| *orphans.entry((host, **id)).or_insert(now) + GRACE <= now;
        without_row.iter().filter(over).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn version_without_row_is_over_after_its_grace_alone() {
        let (watch, host, id) = (VersionWatch::default(), HostId::new(), BuildId::new());
        assert!(watch.over(host, &[id]).is_empty());
        tokio::time::advance(GRACE / 2).await;
        // The row is back, so a later absence begins anew.
        assert!(watch.over(host, &[]).is_empty());
        assert!(watch.over(host, &[id]).is_empty());
        tokio::time::advance(GRACE / 2).await;
        assert!(watch.over(host, &[id]).is_empty());
        assert!(watch.over(HostId::new(), &[id]).is_empty());
        tokio::time::advance(GRACE / 2).await;
        assert_eq!(watch.over(host, &[id]), [id]);
    }

    #[tokio::test(start_paused = true)]
    async fn host_is_compared_once_in_a_while() {
        let (watch, host) = (VersionWatch::default(), HostId::new());
        assert!(watch.is_due(host) && !watch.is_due(host) && watch.is_due(HostId::new()));
        tokio::time::advance(APART).await;
        assert!(watch.is_due(host));
    }
}
