//! Removal of what no build needs: layers after 30 idle days or when their team needs room, and
//! uploaded archives.

use super::engine::Shared;
use super::layer;
use daemon::lock;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};
use types::{BuildId, TeamId};

/// Time without use after which a layer of the cache goes.
const UNUSED: Duration = Duration::from_secs(30 * 24 * 3600);
/// Time after which a copy of a capsule's disk goes that no version uses.
const COPY_UNUSED: Duration = Duration::from_secs(24 * 3600);

impl Shared {
    /// Removes unused layers and archives.
    pub(super) fn clean(&self, now: SystemTime) {
        self.files.expire(now);
        // Layers below removed ones are free only afterwards.
        while self.clean_layers(now) > 0 {}
    }

    fn clean_layers(&self, now: SystemTime) -> usize {
        let all = lock(&self.index).layers();
        let unused = all.into_iter().filter(|(team, id)| self.is_unused(*team, *id, now));
        let unused: Vec<_> = unused.collect();
        unused.into_iter().filter(|(team, id)| self.remove_layer(*team, *id)).count()
    }

    /// Removes layers of a team that nothing uses, the longest unused first, until the team takes
    /// less than `most` bytes. Returns the bytes that the team takes then.
    pub(super) fn make_room(&self, team: TeamId, most: u64) -> u64 {
        loop {
            let used = self.team_bytes(team);
            let found = if used < most { None } else { self.longest_unused(team) };
            match found {
                Some(id) if self.remove_layer(team, id) => {}
                Some(_) | None => return used,
            }
        }
    }

    /// Returns the layer of a team that no version, build or other layer uses, and whose last use is
    /// the longest ago.
    fn longest_unused(&self, team: TeamId) -> Option<BuildId> {
        let index = lock(&self.index);
        let (all, referenced) = (index.layers(), index.referenced(team));
        let own = all.into_iter().filter(|(of, id)| *of == team && !referenced.contains(id));
        let free = own.map(|(_, id)| (id, self.folders.layer(team, id)));
        let free = free.filter(|(_, dir)| !is_linked(dir));
        free.min_by_key(|(_, dir)| used_at(dir)).map(|(id, _)| id)
    }

    /// Removes a layer. Returns whether it is gone.
    fn remove_layer(&self, team: TeamId, id: BuildId) -> bool {
        lock(&self.index).remove(team, id);
        let removed = self.folders.remove(&self.folders.layer(team, id));
        match removed {
            Ok(()) => tracing::info!(%id, "removed an unused layer"),
            Err(ref error) => tracing::warn!(%error, %id, "cannot remove an unused layer"),
        }
        removed.is_ok()
    }

    fn is_unused(&self, team: TeamId, id: BuildId, now: SystemTime) -> bool {
        let index = lock(&self.index);
        let most = if index.has_steps(team, id) { UNUSED } else { COPY_UNUSED };
        !index.referenced(team).contains(&id) && is_idle(&self.folders.layer(team, id), most, now)
    }
}

/// Reports whether a layer's disk has no other link and was not used for some time.
fn is_idle(dir: &Path, most: Duration, now: SystemTime) -> bool {
    let idle = used_at(dir).and_then(|used| now.duration_since(used).ok());
    !is_linked(dir) && idle.is_some_and(|idle| idle > most)
}

/// Reports whether a version or a build has a link to a layer's disk.
fn is_linked(dir: &Path) -> bool {
    layer::disk(dir).metadata().is_ok_and(|found| found.nlink() > 1)
}

/// Returns the time of a layer's last use.
fn used_at(dir: &Path) -> Option<SystemTime> {
    dir.join(layer::FILE).metadata().and_then(|found| found.modified()).ok()
}
