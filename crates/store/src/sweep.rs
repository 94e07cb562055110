//! Removal of chunks that no manifest names any more.

use crate::age::{GRACE, age};
use crate::manifest::ChunkManifest;
use crate::{Error, Store};
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStore;
use object_store::path::Path as Name;
use std::collections::HashSet;

pub(crate) async fn sweep(store: &Store) -> Result<u64, Error> {
    let (mut removed, now) = (0, store.now().await?);
    for namespace in store.objects.list_with_delimiter(None).await?.common_prefixes {
        let namespace = namespace.as_ref().to_owned();
        // Chunks come first, since a manifest that appears later names no chunk that is old now.
        let chunks = Name::from(format!("{namespace}/pieces"));
        let listed = store.objects.list(Some(&chunks));
        let old = listed.try_filter(|chunk| std::future::ready(age(chunk, now) > GRACE));
        let old: Vec<_> = old.map_ok(|chunk| chunk.location).try_collect().await?;
        if old.is_empty() {
            continue;
        }
        let mut named = HashSet::new();
        for name in store.names(&namespace, "").await? {
            match ChunkManifest::read(store, &namespace, &name).await {
                Ok(manifest) => named.extend(manifest.chunks().map(str::to_owned)),
                Err(Error::Missing(_)) => {}
                // The chunks of a damaged manifest are unknown, so nothing is removed.
                Err(error) => return Err(error),
            }
        }
        let unnamed = |chunk: &Name| chunk.filename().is_some_and(|hash| !named.contains(hash));
        let gone: Vec<_> = old.into_iter().filter(unnamed).map(Ok).collect();
        removed += gone.len() as u64;
        let gone = futures::stream::iter(gone).boxed();
        store.objects.delete_stream(gone).try_collect::<Vec<_>>().await?;
    }
    Ok(removed)
}
