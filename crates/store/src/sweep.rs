//! Removal of pieces that no tree names any more.

use crate::tree::Tree;
use crate::{Error, Store};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path as Name;
use object_store::{ObjectMeta, ObjectStore};
use std::collections::HashSet;
use std::time::{Duration, SystemTime};

/// Age up to which an unnamed piece stays.
const GRACE: Duration = Duration::from_secs(24 * 3600);

/// Reports whether a piece might be swept before a tree under way names it. `now` is the store's
/// time.
pub(crate) fn is_old(piece: &ObjectMeta, now: SystemTime) -> bool {
    age(piece, now) > GRACE / 2
}

fn age(piece: &ObjectMeta, now: SystemTime) -> Duration {
    now.duration_since(piece.last_modified.into()).unwrap_or_default()
}

pub(crate) async fn sweep(store: &Store) -> Result<u64, Error> {
    let (mut removed, now) = (0, store.now().await?);
    for space in store.objects.list_with_delimiter(None).await?.common_prefixes {
        let space = space.as_ref().to_owned();
        // Pieces come first, since a tree that appears later names no piece that is old now.
        let pieces = Name::from(format!("{space}/pieces"));
        let listed = store.objects.list(Some(&pieces));
        let old = listed.try_filter(|piece| std::future::ready(age(piece, now) > GRACE));
        let old: Vec<_> = old.map_ok(|piece| piece.location).try_collect().await?;
        if old.is_empty() {
            continue;
        }
        let mut named = HashSet::new();
        for name in store.names(&space, "").await? {
            match Tree::read(store, &space, &name).await {
                Ok(tree) => named.extend(tree.pieces().map(str::to_owned)),
                Err(Error::Missing(_)) => {}
                // The pieces of a damaged tree are unknown, so nothing is removed.
                Err(error) => return Err(error),
            }
        }
        let unnamed = |piece: &Name| piece.filename().is_some_and(|hash| !named.contains(hash));
        let gone: Vec<_> = old.into_iter().filter(unnamed).map(Ok).collect();
        removed += gone.len() as u64;
        let gone = futures::stream::iter(gone).boxed();
        store.objects.delete_stream(gone).try_collect::<Vec<_>>().await?;
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn piece_age_is_counted_by_the_stores_clock() {
        let written = SystemTime::UNIX_EPOCH + GRACE * 100;
        let piece = ObjectMeta {
            location: Name::from("piece"),
            last_modified: written.into(),
            size: 1,
            e_tag: None,
            version: None,
        };
        assert!(!is_old(&piece, written + GRACE / 3) && is_old(&piece, written + GRACE));
        // A store's clock may be set back.
        assert_eq!(age(&piece, written - GRACE), Duration::ZERO);
    }
}
