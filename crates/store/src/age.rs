//! Ages of chunks, by the store's clock. A sweep removes a chunk only when it is old and unnamed.

use object_store::ObjectMeta;
use std::time::{Duration, SystemTime};

/// Age up to which an unnamed chunk stays.
pub(crate) const GRACE: Duration = Duration::from_secs(24 * 3600);

/// Reports whether a chunk might be swept before a manifest under way names it. `now` is the
/// store's time.
pub(crate) fn is_old(chunk: &ObjectMeta, now: SystemTime) -> bool {
    age(chunk, now) > GRACE / 2
}

/// Returns the time since a chunk was written.
pub(crate) fn age(chunk: &ObjectMeta, now: SystemTime) -> Duration {
    now.duration_since(chunk.last_modified.into()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::path::Path as Name;

    #[test]
    fn chunk_age_uses_the_stores_clock() {
        let written = SystemTime::UNIX_EPOCH + GRACE * 100;
        let chunk = ObjectMeta {
            location: Name::from("chunk"),
            last_modified: written.into(),
            size: 1,
            e_tag: None,
            version: None,
        };
        assert!(!is_old(&chunk, written + GRACE / 3) && is_old(&chunk, written + GRACE));
        // A store's clock may be set back.
        assert_eq!(age(&chunk, written - GRACE), Duration::ZERO);
    }
}
