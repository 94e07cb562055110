//! Capsules that are out of reach, and whose remains this host still has: limits, network, folder.
//! No list shows such a capsule, and no operation finds it. Its id stays taken until the remains
//! are gone. Otherwise their removal could take the parts of a new capsule of the same id.
//!
//! ```text
//!  Stopping ── leave_remains ──▶ (remains) ── end_remains ──▶ unknown
//!                                    └─────── list_dead ────▶ Dead
//! ```

use super::{Capsule, Registry};
use crate::capsule::State;
use daemon::lock;
use tokio_util::sync::CancellationToken;
use types::CapsuleId;

impl Registry {
    /// Removes the entry of a capsule that is out of reach, and notes its remains. Returns the
    /// capsule's generation.
    pub(in crate::capsule) fn leave_remains(&self, id: CapsuleId) -> u64 {
        let mut capsules = self.lock();
        // Both changes are one step for whoever has the lock of the entries.
        lock(&self.remains).insert(id, CancellationToken::new());
        capsules.remove(&id).map_or(0, |capsule| capsule.generation)
    }

    /// Notes that the remains of a capsule are gone. The id is free from then on.
    pub(in crate::capsule) fn end_remains(&self, id: CapsuleId) {
        let remains = lock(&self.remains).remove(&id);
        if let Some(gone) = remains {
            gone.cancel();
        }
    }

    /// Lists a capsule as dead whose remains cannot be removed, so that the platform asks for its
    /// removal again.
    pub(in crate::capsule) fn list_dead(&self, id: CapsuleId, generation: u64, reason: String) {
        let mut capsules = self.lock();
        let dead = Capsule { generation, ..Capsule::unknown(State::Dead(reason)) };
        capsules.entry(id).or_insert(dead);
        self.end_remains(id);
    }

    /// Returns the token that is cancelled once a capsule's remains are gone; `None` without
    /// remains.
    pub(in crate::capsule) fn remains(&self, id: CapsuleId) -> Option<CancellationToken> {
        lock(&self.remains).get(&id).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capsule::Error;
    use crate::capsule::record::CapsuleRecord;
    use crate::capsule::registry::transitions::Stop;

    /// Returns a registry with the remains of a capsule of generation 5, and the capsule's record.
    fn removed() -> (Registry, CapsuleRecord) {
        let record = CapsuleRecord { generation: 5, ..CapsuleRecord::new(CapsuleId::new()) };
        let registry = Registry::default();
        registry.insert(record.id, Capsule::new(&record, State::Running));
        let lock = registry.begin_destroy(record.id, Some(5)).unwrap().unwrap();
        assert!(matches!(registry.stop(record.id, &lock, Some(5)), Ok(Stop::Stopping(None))));
        assert_eq!(registry.leave_remains(record.id), 5);
        (registry, record)
    }

    #[test]
    fn capsule_with_remains_is_unlisted_frees_its_memory_and_holds_its_id() {
        let (registry, record) = removed();
        assert_eq!((registry.list().len(), registry.totals().memory_mib), (0, 0));
        assert_eq!(registry.state(record.id), None);
        assert!(registry.begin_destroy(record.id, Some(5)).unwrap().is_none());
        assert!(matches!(registry.admit(&record, |_| Ok(())), Err(Error::Stopping)));
        assert!(matches!(registry.begin_fetch(record.id, 6), Err(Error::Stopping)));
        assert_eq!(registry.list().len(), 0);
        let gone = registry.remains(record.id).unwrap();
        assert!(!gone.is_cancelled());
        registry.end_remains(record.id);
        assert!(gone.is_cancelled() && registry.remains(record.id).is_none());
        registry.admit(&record, |_| Ok(())).unwrap();
    }

    #[test]
    fn capsule_whose_remains_cannot_be_removed_is_listed_as_dead_without_memory() {
        let (registry, record) = removed();
        let gone = registry.remains(record.id).unwrap();
        registry.list_dead(record.id, 5, "the disk fails".to_owned());
        assert!(gone.is_cancelled());
        let listed = registry.list();
        assert_eq!((listed[0].id, listed[0].generation), (record.id, 5));
        assert_eq!(listed[0].state, State::Dead("the disk fails".to_owned()));
        assert_eq!(registry.totals().memory_mib, 0);
        assert!(registry.begin_destroy(record.id, Some(5)).unwrap().is_some());
    }
}
