//! Images of memory that machines map and share, made once for all who start from the same
//! layers and are of one team: what is shared can be told by how long it takes. A few that were used
//! last are kept, since many capsules start from few templates.

use super::Layers;
use super::layer::Layer;
use super::memory;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use tokio::sync::Mutex;

/// Images that are kept; a machine's own mapping keeps its pages alive without it.
const KEPT: usize = 8;

/// The images, the one used last at the end.
#[derive(Default)]
pub(crate) struct Images(Mutex<Vec<(Vec<String>, Arc<File>)>>);

impl Images {
    /// Bytes of memory that the images take: what was written into them, and empty pages that
    /// machines have touched since.
    pub(crate) fn used(&self) -> u64 {
        let images = self.0.try_lock();
        let bytes = |image: &File| image.metadata().map_or(0, |found| found.blocks() * 512);
        images.map_or(0, |images| images.iter().map(|(_, image)| bytes(image)).sum())
    }

    /// Forgets the images that end in one of these layers: nobody will begin from them any more.
    pub(crate) async fn forget(&self, gone: &Layers) {
        let last = gone.all.last().map(|layer| &layer.id);
        self.0.lock().await.retain(|(key, _)| key.last() != last);
    }

    /// The image of the layers that are shared; `layers` are those, opened.
    pub(crate) async fn get(
        &self,
        team: &str,
        named: &Layers,
        layers: Vec<Layer>,
        bytes: u64,
    ) -> io::Result<Arc<File>> {
        let ids = named.all[..named.shared].iter().map(|layer| layer.id.clone());
        let key: Vec<String> = std::iter::once(team.to_owned()).chain(ids).collect();
        // Held while one is made: who wants the same waits for it.
        let mut images = self.0.lock().await;
        if let Some(at) = images.iter().position(|(known, _)| *known == key) {
            let found = images.remove(at);
            let image = Arc::clone(&found.1);
            images.push(found);
            return Ok(image);
        }
        let made = tokio::task::spawn_blocking(move || memory::image(&layers, bytes)).await;
        let image = Arc::new(made.unwrap_or_else(|e| Err(io::Error::other(e)))?);
        if images.len() == KEPT {
            images.remove(0);
        }
        images.push((key, Arc::clone(&image)));
        Ok(image)
    }
}
